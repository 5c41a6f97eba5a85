"""torch.export archives: what a model needs comes through, what torch would run does not reach it."""

import io
import logging

import bad_models
import pytest
import torch
from torch import nn

from gemedge.capture import pt2
from gemedge.capture.archive import parse_archive
from gemedge.capture.symbols import check_expression
from gemedge.errors import ModelError, UnsupportedError

NOT_TORCHS = "is not in the form that torch writes"
NO_IDENTIFIER = "is no Python identifier; torch writes no other names into a graph"
REASONS = {
    "a pickled weight": "its weight '0.weight' is stored as a pickle, which could run code",
    "a pickled object": "its weight 'thing' is stored as a pickle, which could run code",
    "a value named as code": NO_IDENTIFIER,
    "an expression of code": f"'input': the shape expression '__import__.*{NOT_TORCHS}",
    "an expression with a lambda": NOT_TORCHS,
    "an expression of attributes": NOT_TORCHS,
    "an expression that explodes": NOT_TORCHS,
    "an expression of large powers": NOT_TORCHS,
    "an expression too deep": NOT_TORCHS,
    "an expression too long": "no ASCII text of up to 4000 characters",
    "a symbol named as code": "'s0.__class__' is no symbol of a shape; torch's are as s53 and u0",
    "an operator by attributes": "'linear': it names 'torch.hub.load' as an operator; operators are as torch.ops.aten",
    "an operator of Python": "names '_operator.attrgetter' as an operator",
    "an operator of the registry": "names '#torch:x' as an operator",
    "an operator with a newline": "a node whose operator is no name",
    "a parameter named as code": "is no name of a parameter; it is made of letters",
    "an argument named as code": NO_IDENTIFIER,
    "a range of no symbol": "'u99999999' is no symbol of a shape",
    "JSON too deep": "models/model.json is not JSON that torch could have written",
    "no JSON": "models/model.json is not JSON that torch could have written",
    "a JSON list": r"\[\] stands where torch writes a dict",
    "no graph": "it lacks the field 'graph'",
    "weight strides that leave the record": r"stride \(1048576, 1\) .* does not fit record 'data/weights/weight_0'",
    "a weight of 2^40": r"shape \(1099511627776,\) .* does not fit record 'data/weights/weight_0'",
    "a weight of negative stride": "'0.weight': -3 is not a size or stride",
    "a weight of symbolic size": "its weight '0.weight' has a size that is no number",
    "a weight elsewhere": "its weight '0.weight' is stored as a pickle",
    "a weight of another record": "its record 'data/weights/weight_99' is missing",
    "a weight without its record": "its record 'data/weights/weight_0' is missing",
    "a weight not in the archive": "its graph uses the weight '0.weight', which is not in the archive",
    "weights without a list": "its record 'data/weights/model_weights_config.json' is missing",
    "a record of half a number": "'data/weights/weight_0' of 47 bytes holds no whole number of float32",
    "two types on one record": "its weight '0.bias' shares a record with one of another dtype",
}
UNSUPPORTED = {
    "an operator of files": "'linear': it uses the operator aten.from_file, which gemedge does not read",
    "an operator of another library": "the operator torchvision.nms",
    "an operator that moves memory": "the operator aten.set_,",
    "another higher order operator": "the operator higher_order.while_loop",
    "a custom object": "a custom object, which only running its code would restore",
    "a weight of complex": "a tensor of complex64; gemedge reads uint8",
    "a weight of float8": "a tensor of float8",
    "a sparse weight": "a sparse tensor",
    "a weight on cuda": "exported on the device 'cuda'; export it on the CPU",
    "weights as a pickle": "its weights are a pickle, as torch 2.8 and older wrote",
    "two programs": "it holds 2 exported programs; gemedge reads one",
    "another version": "a torch.export archive of version '9', not '0'",
    "another schema": "has the schema version 99; gemedge reads 8",
    "inputs of a class": "are nested in a 'os.PathLike'; tuple, list and dict are allowed",
    "an unknown dialect": "of the dialect 'EDGE'; TRAINING and ATEN are allowed",
}


def test_every_hostile_archive_has_its_reason():
    assert set(bad_models.PT2_HOSTILE) == set(REASONS)
    assert set(bad_models.PT2_UNSUPPORTED) == set(UNSUPPORTED)


@pytest.mark.parametrize(("name", "reason"), REASONS.items())
def test_hostile_archive_is_refused_and_runs_nothing(name, reason, tmp_path):
    marker = tmp_path / "marker"
    data = bad_models.PT2_HOSTILE[name](marker)
    for read in (pt2.strip, lambda data: pt2.load(parse_archive(data))):
        with pytest.raises(ModelError, match=reason):
            read(data)
    assert not marker.exists()


@pytest.mark.parametrize(("name", "reason"), UNSUPPORTED.items())
def test_sound_archive_that_gemedge_does_not_read_is_named(name, reason, tmp_path):
    with pytest.raises(UnsupportedError, match=reason):
        pt2.strip(bad_models.PT2_UNSUPPORTED[name](tmp_path))


@pytest.mark.parametrize("name", bad_models.PT2_DROPPED)
def test_code_that_no_model_needs_is_left_out_and_never_runs(name, tmp_path):
    marker = tmp_path / "marker"
    data = bad_models.PT2_DROPPED[name](marker)
    program = pt2.load(parse_archive(data))
    assert program.module()(torch.ones(5, 3)).shape == (5, 2)
    assert torch.export.load(io.BytesIO(pt2.strip(data))).module()(torch.ones(5, 3)).shape == (5, 2)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["a pickled sample input", "an expression of code", "guards of code", "a pickled weight"]
)
def test_torch_alone_runs_the_code(name, tmp_path):
    """The rows above are hostile: torch.export.load, or its result's module(), makes the marker."""
    marker = tmp_path / "marker"
    data = (bad_models.PT2_DROPPED | bad_models.PT2_HOSTILE)[name](marker)
    logging.disable(logging.CRITICAL)
    try:
        torch.export.load(io.BytesIO(data)).module()(torch.ones(2, 3))
    except Exception as error:
        print(error)
    finally:
        logging.disable(logging.NOTSET)
    assert marker.exists()


def exported(function, *arguments, shapes=None):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.register_buffer("scale", torch.arange(4.0), persistent=False)

        def forward(self, *inputs):
            return function(self, *inputs)

    torch.manual_seed(0)
    program = torch.export.export(Model().eval(), arguments, dynamic_shapes=(shapes,) if shapes else None)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return program, buffer.getvalue()


def _without_gradient(self, x):
    with torch.no_grad():
        doubled = x * 2
    return doubled + x


D = torch.export.Dim.DYNAMIC
ROWS, CELLS = ({0: D},), ({0: D, 1: D},)
SQUARE, IMAGE = torch.linspace(-1, 1, 24).reshape(6, 4), torch.linspace(-1, 1, 81).reshape(1, 1, 9, 9)
PROGRAMS = {
    "tied weights and constants": (
        lambda self, x: self.second(self.first(x)) * self.scale + torch.ones(4), (SQUARE,), ROWS,
    ),
    "no dynamic shape": (lambda self, x: self.first(x), (SQUARE,), None),
    "a floor division": (lambda self, x: x.view(x.shape[0] // 2, -1), (SQUARE,), ROWS),
    "a product of sizes": (lambda self, x: x.reshape(-1), (SQUARE,), CELLS),
    "a remainder": (lambda self, x: x[: x.shape[0] % 4 + 1], (SQUARE,), ROWS),
    "a size as a float": (lambda self, x: x / (x.shape[0] * 2.5), (SQUARE,), ROWS),
    "a minimum and a maximum": (lambda self, x: x.new_ones(max(x.shape[0], 5), min(x.shape[0], 4)), (SQUARE,), ROWS),
    "a ceiling in pooling": (
        lambda self, x: nn.functional.avg_pool2d(x, 2, 2, ceil_mode=True), (IMAGE,), ({2: D, 3: D},),
    ),
    "an interpolation": (lambda self, x: nn.functional.interpolate(x, scale_factor=1.5), (IMAGE,), ({2: D, 3: D},)),
    "an infinite constant": (lambda self, x: x.masked_fill(x > 0, float("-inf")), (SQUARE,), ROWS),
    "several outputs": (lambda self, x: x.split([1, 3], 1), (SQUARE,), ROWS),
    "a dict of outputs": (lambda self, x: {"twice": 2 * x, "rest": [x, (x,)]}, (SQUARE,), ROWS),
    "two inputs": (lambda self, x, y: x + y, (SQUARE, SQUARE), ({0: D}, {0: D})),
    "a size that depends on data": (lambda self, x: x[torch.nonzero(x[:, 0] > 0)[:, 0]], (SQUARE,), ROWS),
    "no gradient": (_without_gradient, (SQUARE,), ROWS),
    "a condition": (lambda self, x: torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,)), (SQUARE,), ROWS),
    "attention": (
        lambda self, x: nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True), (IMAGE,), ({2: D},),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_comes_through_with_shapes_weights_and_example(name):
    function, arguments, shapes = PROGRAMS[name]
    program, data = exported(function, *arguments, shapes=shapes)
    stripped = pt2.strip(data)
    assert pt2.strip(stripped) == stripped
    read = pt2.load(parse_archive(data))
    for other in (read, torch.export.load(io.BytesIO(stripped))):
        wanted, got = (torch.utils._pytree.tree_leaves(p.module()(*arguments)) for p in (program, other))
        assert len(wanted) == len(got)
        assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
        assert str(other.range_constraints) == str(program.range_constraints)
    (example, keywords) = read.example_inputs
    assert all(torch.equal(a, b) for a, b in zip(example, arguments, strict=True))
    assert keywords == {}


def test_stripped_archive_has_no_pickle_and_no_path():
    records = parse_archive(pt2.strip(bad_models.good_pt2())).records
    assert bytes(records["data/sample_inputs/model.pt"]) == b""
    for content in records.values():
        assert b"stack_trace" not in bytes(content)
        assert b".py" not in bytes(content)
    assert not any(name.endswith((".pkl", "serialization_id")) for name in records)


def test_example_is_left_out_where_it_is_no_plain_data(tmp_path):
    data = bad_models.PT2_DROPPED["a pickled sample input"](tmp_path / "marker")
    assert pt2.sample_inputs(parse_archive(data).records) is None
    assert pt2.load(parse_archive(data)).example_inputs is None


def test_error_of_torch_is_one_line():
    def change(graph):
        graph["nodes"][0]["inputs"][0]["arg"]["as_tensor"]["name"] = "nowhere"

    data = bad_models.graph_with(change)(None)
    with pytest.raises(ModelError, match=r"^torch cannot read it: .*nowhere.*$"):
        pt2.load(parse_archive(data))


@pytest.mark.parametrize(
    "expression",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Integer(-1)",
        "Add(FloorDiv(Add(Symbol('s25', positive=True, integer=True), Integer(-1)), Integer(2)), Integer(1))",
        "TruncToInt(Mul(Float('1.5', precision=53), ToFloat(Symbol('s63', positive=True, integer=True))))",
        "GreaterThan(Symbol('u0', integer=True), Integer(0))",
        "Pow(Symbol('s0', integer=True), Integer(2))",
        "Pow(Symbol('s0', integer=True), Rational(1, 2))",
        "true",
    ],
)
def test_expressions_that_torch_writes_pass(expression):
    assert check_expression(expression) == expression


@pytest.mark.parametrize(
    "expression",
    [
        "", "s0", "1", "'x'", "Integer", "Integer()", "Integer(True)", "Integer(1.5)", "Integer('1')", "Integer(1)()",
        "Integer(Integer(1))", "Integer(10**9)", "Integer(2)**Integer(9)", "Add()", "Add(1)", "Add(*[Integer(1)])",
        "Add(Integer(1), evaluate=False)", "Add(**{})", "Symbol(s0)", "Symbol('s0', cls=True)",
        "Symbol('s0', integer=Integer(1))", "Symbol('os')", "Symbol('s0', 's1')", "Float('1e9999', precision=53)",
        "Float('1.5', precision=10000000)", "Float(1.5, precision=53)", "Rational(1, 0)",
        "Pow(Integer(2), Integer(17))",
        "Pow(Integer(2), Symbol('s0'))", "Lambda(Symbol('s0'), Integer(1))", "sympify('1')", "Add.mro()",
        "[Integer(1)]",
        "Integer(1) if true else Integer(2)", "(lambda: Integer(1))()", "Integer(1)\n", "f'{Integer(1)}'",
        "Integer(" + "9" * 3900 + ")", "1if 2else 3", "Ａdd(Integer(1))", None, 3, b"Integer(1)",
    ],
)  # fmt: skip
def test_expressions_outside_the_grammar_are_refused(expression):
    with pytest.raises(ModelError, match="shape"):
        check_expression(expression)

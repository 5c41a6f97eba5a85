"""Real architectures through the exporter, judged by onnxruntime at sizes that were not traced."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from networks import NETWORKS
from thinned import thinned
from torch import Tensor, nn

import gemedge.nn as gnn
from gemedge.capture import Captured, capture_module, forms, live, packing, schema, trace
from gemedge.capture.forms import FORMS
from gemedge.errors import UnsupportedError, UsageError
from gemedge.export import export
from gemedge.export.to_onnx import to_onnx
from gemedge.nn import EGEM, GEM, SEGEM

MIXED = [lambda: GEM(1), lambda: EGEM(2, 0.5), lambda: SEGEM(1, 0.25), lambda: GEM(3)]
ACTIVATIONS = ["gem(n=1)", "egem(n=2, epsilon=0.5)", "segem(n=1, epsilon=0.25)", "gem(n=3)"]


def mixed():
    """A factory of several members of the family, in turn."""
    kinds = itertools.cycle(MIXED)
    return lambda: next(kinds)()


def session_of(content: bytes) -> onnxruntime.InferenceSession:
    """onnxruntime on a file's bytes; a custom node gets the function body that the function form would have."""
    model = onnx.load_from_string(content)
    if not model.functions and any(entry.domain == schema.DOMAIN for entry in model.opset_import):
        content = ir.to_proto(forms.to_form(ir.from_proto(model), "function")).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(content: bytes, inputs: dict[str, Tensor]) -> list[np.ndarray]:
    return session_of(content).run(None, {name: value.numpy() for name, value in inputs.items()})


def results(model: nn.Module, *inputs: Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        given = model(*inputs)
    given = list(given.values()) if isinstance(given, dict) else given
    return [value.numpy() for value in (given if isinstance(given, list | tuple) else [given])]


def activations(content: bytes) -> list[dict[str, str]]:
    return json.loads({p.key: p.value for p in onnx.load_from_string(content).metadata_props}["gemedge.activations"])


def shapes(values) -> dict[str, list[int | str]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


def exported(model: nn.Module, example, **options) -> bytes:
    return export(model, example=example, **options)["model.onnx"]


@pytest.fixture(scope="module", params=NETWORKS)
def captured(request) -> tuple[str, nn.Module, Captured]:
    network = NETWORKS[request.param]
    model = network.model(mixed())
    return request.param, model, capture_module(model, network.inputs(), dynamic=network.dynamic)


@pytest.fixture(scope="module", params=FORMS)
def written(request, captured) -> tuple[str, str, nn.Module, bytes]:
    name, model, found = captured
    return request.param, name, model, to_onnx(found.model, "model.onnx", gem=request.param)["model.onnx"]


@pytest.mark.parametrize(("batch", "length"), [(1, None), (5, 13), (3, 4)])
def test_each_network_in_each_form_gives_torchs_outputs_at_sizes_not_traced(written, batch, length):
    _, name, model, content = written
    inputs = NETWORKS[name].inputs(batch, length, seed=7)
    for got, wanted in zip(run(content, inputs), results(model, *inputs.values()), strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_full_check_passes_and_free_dimensions_are_named(written):
    _, name, _, content = written
    schema.register()
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    network = NETWORKS[name]
    for value, sizes in shapes(model.graph.input).items():
        wanted = [2, *network.shapes[value]]
        for axis, label in network.dynamic[value].items():
            wanted[axis] = label
        assert sizes == wanted
    assert all(sizes[0] == "batch" for sizes in shapes(model.graph.output).values())
    assert (model.ir_version, model.opset_import[0].version) == (8, 18)


def test_metadata_lists_every_activation_with_its_node_named_after_its_module(written):
    form, name, model, content = written
    modules = {path: str(m.activation) for path, m in model.named_modules() if hasattr(m, "activation")}
    listed = activations(content)
    assert {entry["node"]: entry["activation"] for entry in listed} == modules
    assert len(listed) == NETWORKS[name].activations
    assert set(modules.values()) == set(ACTIVATIONS[: len(listed)])
    nodes = {node.name: node for node in onnx.load_from_string(content).graph.node}
    if form == "primitive":
        assert not any(node.domain for node in nodes.values())
        assert all(f"{path}/Y" in nodes for path in modules)
    else:
        assert {path for path, node in nodes.items() if node.domain == "ai.gemedge"} == set(modules)
        for path, text in modules.items():
            values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in nodes[path].attribute}
            assert values == {"n": model.get_submodule(path).n, "epsilon": model.get_submodule(path).epsilon}, text


def test_node_names_are_unique_and_nothing_of_torchs_inside_shows(written):
    *_, content = written
    names = [node.name for node in onnx.load_from_string(content).graph.node]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.startswith(("_", "node_", "n_")) or not name]
    assert b"/torch/" not in content
    assert os.getcwd().encode() not in content


def test_a_convolution_keeps_its_name_where_torch_merges_the_batch_norm_after_it():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), gnn.GEM(1), nn.Conv2d(2, 2, 3, bias=False)).eval()
    graph = capture_module(model, torch.randn(1, 1, 8, 8)).model.graph
    assert [node.name for node in graph] == ["0", "2", "3"]


@cache
def program_of(name: str) -> tuple[nn.Module, torch.export.ExportedProgram]:
    network = NETWORKS[name]
    model = network.model(mixed())
    return model, live.program(model, network.inputs(), network.dynamic)


@pytest.mark.parametrize("name", ["cnn", "gpt"])
@pytest.mark.parametrize("opset", thinned(range(17, 24), 3))
def test_the_opset_asked_for_is_the_one_delivered(name, opset):
    network = NETWORKS[name]
    model, program = program_of(name)
    graph = trace.to_onnx(program, opset)
    inputs = network.inputs(3, 6, seed=5)
    for form in FORMS:
        content = to_onnx(graph, "model.onnx", gem=form)["model.onnx"]
        written = onnx.load_from_string(content)
        assert {entry.domain: entry.version for entry in written.opset_import}[""] == opset
        assert all(f.opset_import[0].version == opset for f in written.functions)
        assert written.ir_version == {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}[opset]
        wanted = results(model, *inputs.values())[0]
        np.testing.assert_allclose(run(content, inputs)[0], wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.float64, 1e-13)])
def test_half_and_double_models_keep_their_type(dtype, tolerance, form):
    model = NETWORKS["mlp"].model(mixed()).to(dtype)
    x = NETWORKS["mlp"].inputs(4)["input"].to(dtype)
    got, wanted = run(exported(model, x, gem=form), {"input": x})[0], results(model, x)[0]
    assert got.dtype == wanted.dtype == torch.empty(0, dtype=dtype).numpy().dtype
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_bfloat16_which_onnxruntime_cannot_run_is_refused_unless_unchecked():
    model = NETWORKS["mlp"].model(mixed()).bfloat16()
    x = NETWORKS["mlp"].inputs()["input"].bfloat16()
    with pytest.raises(UnsupportedError, match=r"onnxruntime cannot load the exported model.*Gemm"):
        export(model, example=x)
    written = onnx.load_from_string(exported(model, x, check=False))
    assert written.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16


@pytest.mark.parametrize("kind", thinned([nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity], 3))
@pytest.mark.parametrize("form", FORMS)
def test_models_without_gem_are_plain_onnx_in_every_form(kind, form):
    model, inputs = NETWORKS["mlp"].model(kind), NETWORKS["mlp"].inputs(3)
    content = exported(model, inputs, gem=form)
    np.testing.assert_allclose(run(content, inputs)[0], results(model, inputs["input"])[0], rtol=1e-4, atol=1e-6)
    assert activations(content) == []
    assert {entry.domain for entry in onnx.load_from_string(content).opset_import} == {""}


def test_no_weight_is_stored_twice_not_even_a_tied_one(captured):
    _, model, found = captured
    stored = sum(t.nbytes for v in found.model.graph.initializers.values() if (t := v.const_value) is not None)
    assert stored < 500 + sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


class Pieces(nn.Module):
    """A module used twice, functions of gemedge.nn, and containers in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.act = GEM(2)
        self.parts = nn.ModuleDict({"deep": nn.ModuleList([nn.Sequential(nn.Linear(6, 6), EGEM(1, 0.5))])})

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.parts["deep"][0](self.act(x)))
        return gnn.segem(gnn.gem(y - 0.5), 2, 0.125)


def test_a_module_used_twice_functions_and_nested_containers_are_all_listed():
    model, x = Pieces(), torch.randn(3, 6)
    content = exported(model, x)
    assert activations(content) == [
        {"node": "act/GEM", "activation": "gem(n=2)"},
        {"node": "parts.deep.0.1", "activation": "egem(n=1, epsilon=0.5)"},
        {"node": "act/GEM_2", "activation": "gem(n=2)"},
        {"node": "GEM", "activation": "gem(n=1)"},
        {"node": "SEGEM", "activation": "segem(n=2, epsilon=0.125)"},
    ]
    np.testing.assert_allclose(run(content, {"x": x})[0], results(model, x)[0], atol=1e-6)


def test_a_training_model_is_exported_in_eval_mode_and_left_as_it_was():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), GEM(), nn.Dropout(0.5), nn.Linear(8, 2))
    model.train()
    model[1].eval()  # a frozen batch norm stays frozen
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(5, 4)
    content = exported(model, x)
    assert [module.training for module in model.modules()] == [True, True, False, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    np.testing.assert_allclose(run(content, {"input": x})[0], results(model.eval(), x)[0], atol=1e-6)


def test_external_data_is_two_files_that_plain_onnxruntime_loads(tmp_path):
    network = NETWORKS["cnn"]
    model, inputs = network.model(mixed()), network.inputs(2)
    files = export(model, example=inputs, external_data=True, name="net.onnx")
    assert sorted(files) == ["net.onnx", "net.onnx.data"]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert len(files["net.onnx.data"]) > 10_000
    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"])
    got = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    np.testing.assert_allclose(got, results(model, *inputs.values())[0], rtol=0, atol=1e-5)
    onnx.checker.check_model(str(tmp_path / "net.onnx"))


def test_weights_beyond_the_limit_of_one_file_lie_outside_unasked(monkeypatch):
    model, x = nn.Linear(30, 40, bias=False), torch.randn(2, 30)
    monkeypatch.setattr(packing, "SINGLE_FILE_LIMIT", 4 * 30 * 40)
    assert list(export(model, example=x)) == ["model.onnx"]
    monkeypatch.setattr(packing, "SINGLE_FILE_LIMIT", 4 * 30 * 40 - 1)
    assert sorted(export(model, example=x)) == ["model.onnx", "model.onnx.data"]


class Sized(nn.Module):
    """Runs at one batch size only."""

    def forward(self, x: Tensor) -> Tensor:
        return gnn.gem(x.reshape(2, 12))


class Broadcast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return gnn.gem(x + torch.zeros(1, 5, 3))


class Pairs(nn.Module):
    """Runs at even batch sizes only."""

    def forward(self, x: Tensor) -> Tensor:
        return gnn.gem(x.reshape(x.shape[0] // 2, 2, -1))


def test_the_batch_is_free_where_nothing_was_said_and_fixed_where_the_model_fixes_it():
    linear = onnx.load_from_string(exported(nn.Sequential(nn.Linear(3, 2), GEM()), torch.randn(1, 3)))
    assert shapes(linear.graph.input) == {"input": ["batch", 3]}
    sized = onnx.load_from_string(exported(Sized(), torch.randn(2, 3, 4)))
    assert shapes([*sized.graph.input, *sized.graph.output]) == {"x": [2, 3, 4], "output": [2, 12]}
    pairs = onnx.load_from_string(exported(Pairs(), torch.randn(4, 4)))
    assert shapes(pairs.graph.input) == {"x": ["batch", 4]}


@pytest.mark.parametrize(
    ("model", "x", "dynamic", "error", "reason"),
    [
        (Sized(), (2, 3, 4), {"x": {0: "b"}}, UnsupportedError, r"input 'x': dimension 0 \(b\) .* fixes it at 2"),
        (Broadcast(), (2, 5, 3), {"x": {1: "s"}}, UnsupportedError, r"input 'x': dimension 1 \(s\) .* fixes it at 5"),
        (Pieces(), (2, 6), {"y": {0: "b"}}, UsageError, "no input is called 'y'.*; there is 'x'"),
        (Pieces(), (2, 6), {"x": {2: "b"}}, UsageError, r"input 'x' of shape \[2, 6\] has no dimension 2"),
    ],
)
def test_a_dimension_that_cannot_vary_is_refused_by_name(model, x, dynamic, error, reason):
    with pytest.raises(error, match=reason):
        export(model, example=torch.randn(x), dynamic=dynamic)


def test_a_dimension_asked_for_varies_even_where_the_example_has_size_one():
    network = NETWORKS["gpt"]
    model = network.model(GEM)
    content = exported(model, network.inputs(1, 1), dynamic=network.dynamic)
    inputs = network.inputs(4, 11)
    np.testing.assert_allclose(run(content, inputs)[0], results(model, inputs["tokens"])[0], atol=1e-4)


class Args(nn.Module):
    def forward(self, *xs: Tensor) -> Tensor:
        return gnn.gem(xs[0] - xs[1] * 2 + xs[2] * 3)


class Keywords(nn.Module):
    def forward(self, x: Tensor, *, scale: Tensor, flag: bool = True, extra: Tensor | None = None) -> Tensor:
        y = gnn.gem(x * 2 - scale)
        return y if extra is None else y * extra


class Names(nn.Module):
    """Returns its inputs, one tensor twice, a weight, and keys that are the names of inputs and of inner values."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 4))

    def forward(self, output: Tensor, x: Tensor) -> dict:
        y = gnn.gem(output)
        return {"x": y, "output": x + 1, "add": [x, y, {"w": self.w}], "mul": y * x}


def test_names_of_inputs_and_outputs_survive_a_model_that_hands_them_round():
    model, a, b = Names(), torch.randn(2, 4), torch.randn(2, 4)
    content = exported(model, (a, b))
    names = ["x_2", "output_2", "add.0", "add.1", "add.2.w", "mul"]
    written = onnx.load_from_string(content)
    assert [value.name for value in written.graph.input] == ["output", "x"]
    assert [value.name for value in written.graph.output] == names
    y = gnn.gem(a)
    for got, wanted in zip(run(content, {"output": a, "x": b}), [y, b + 1, b, y, model.w, y * b], strict=True):
        np.testing.assert_allclose(got, wanted.detach().numpy(), atol=1e-6)


def test_arguments_of_every_kind_become_inputs_by_name():
    a, b, c = torch.randn(3, 2, 4)
    got = run(exported(Args(), (a, b, c)), {"xs_0": a, "xs_1": b, "xs_2": c})[0]
    np.testing.assert_allclose(got, results(Args(), a, b, c)[0], atol=1e-6)
    content = exported(Keywords(), {"extra": c, "scale": b, "x": a})
    with torch.no_grad():
        wanted = Keywords()(a, scale=b, extra=c).numpy()
    np.testing.assert_allclose(run(content, {"x": a, "scale": b, "extra": c})[0], wanted, atol=1e-6)
    only = onnx.load_from_string(exported(Keywords(), {"x": a, "scale": b}))
    assert [value.name for value in only.graph.input] == ["x", "scale"]


class Returns(nn.Module):
    def __init__(self, other) -> None:
        super().__init__()
        self.other = other

    def forward(self, x: Tensor) -> tuple:
        return gnn.gem(x), self.other


def test_none_among_the_outputs_is_left_out_and_a_number_is_refused():
    content = exported(Returns(None), torch.randn(2, 3))
    assert [value.name for value in onnx.load_from_string(content).graph.output] == ["output"]
    with pytest.raises(UnsupportedError, match="the model returns 3 at place 1; ONNX returns tensors"):
        export(Returns(3), example=torch.randn(2, 3))


def test_a_scalar_and_a_transformer_layer_of_torch_export():
    content = exported(GEM(), torch.tensor(1.5))
    assert run(content, {"x": torch.tensor(1.5)})[0] == GEM()(torch.tensor(1.5)).numpy()
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=gnn.gem, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    np.testing.assert_allclose(run(exported(layer, x), {"src": x})[0], results(layer, x)[0], atol=1e-5)


class Branches(nn.Module):
    """Which activation runs depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = EGEM(2, 0.5), SEGEM(1, 0.25)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: self.one(y + 1), lambda y: self.other(y - 1), (x,))


@pytest.mark.parametrize("form", FORMS)
def test_activations_in_the_branches_of_a_condition_are_found_in_every_form(form):
    content = exported(Branches(), torch.randn(2, 4), gem=form)
    assert {entry["activation"] for entry in activations(content)} == {
        "egem(n=2, epsilon=0.5)",
        "segem(n=1, epsilon=0.25)",
    }
    for x in (torch.full((3, 4), 0.3), torch.full((3, 4), -0.3)):
        wanted = EGEM(2, 0.5)(x + 1) if x.sum() > 0 else SEGEM(1, 0.25)(x - 1)
        np.testing.assert_allclose(run(content, {"x": x})[0], wanted.numpy(), atol=1e-6)


SCRIPT = """
import hashlib, sys, locale
sys.path.insert(0, sys.argv[1])
from networks import NETWORKS
from gemedge.export import export
from gemedge.nn import EGEM, SEGEM
for name in ("cnn", "gpt"):
    network = NETWORKS[name]
    kinds = iter([EGEM(2, 0.3), SEGEM(1, 0.1)])
    files = export(network.model(lambda: next(kinds)), example=network.inputs(), dynamic=network.dynamic, check=False)
    print(name, hashlib.sha256(files["model.onnx"]).hexdigest())
"""


@pytest.mark.long
def test_the_same_model_gives_the_same_bytes_in_another_folder_locale_and_hash_seed(tmp_path):
    here = str(Path(__file__).parent)
    package = str(Path(gnn.__file__).parents[1])

    def digests(**environment: str) -> str:
        folder = tmp_path / environment["PYTHONHASHSEED"]
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, here],
            env={**os.environ, "PYTHONPATH": package, **environment},
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    one = digests(PYTHONHASHSEED="1", LC_ALL="C")
    assert one == digests(PYTHONHASHSEED="77", LC_ALL="C.UTF-8", TZ="Asia/Tokyo")
    network = NETWORKS["gpt"]
    kinds = iter([EGEM(2, 0.3), SEGEM(1, 0.1)])
    content = exported(network.model(lambda: next(kinds)), network.inputs(), dynamic=network.dynamic)
    assert hashlib.sha256(content).hexdigest() in one


def test_packing_copies_no_weight():
    weight = np.arange(1024, dtype=np.float32).reshape(32, 32)
    value = ir.Value(name="weight", const_value=ir.tensor(weight, name="weight"))
    _, pieces = packing.pack(ir.Model(ir.Graph([], [], nodes=[], initializers=[value]), ir_version=10))
    assert any(np.shares_memory(np.frombuffer(piece, np.uint8), weight) for piece in pieces)
    assert b"".join(pieces) == weight.tobytes()

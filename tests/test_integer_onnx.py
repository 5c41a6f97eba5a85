"""Integer ONNX gives simulate's integers at every layer in onnxruntime, and refuses what it cannot hold exactly."""

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from math import floor, isqrt

import numpy as np
import onnx
import onnx.inliner
import pytest
from float_runs import float_tensors, ranges_of
from networks import MLPERF_TINY, NETWORKS
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_runs import metadata, session, tensors_in_onnxruntime
from test_operators import GRAPHS
from test_simulate import MAKERS
from test_to_c import CHANNELS_LAST, SMALL, captured_of

from gemedge.errors import UnsupportedError, UsageError
from gemedge.export.integer_windows import normalised, root_of
from gemedge.export.onnx_writer import Writer
from gemedge.export.to_integer_onnx import OPSETS, to_integer_onnx
from gemedge.export.to_qdq import to_qdq
from gemedge.fixed import QuantParams, Rounding
from gemedge.model import SCHEMES, QuantizedModel
from gemedge.moving import Embed, Reshape
from gemedge.operators import Dense, LayerNormalization, MaxPool, Tensor
from gemedge.probes import probes
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import border, entered, simulate

FEW = [("int8", Rounding.DOUBLE), ("int16x8", Rounding.SINGLE)]
EVERY = [(scheme, rounding) for scheme in SCHEMES for rounding in Rounding]
REST = [case for case in EVERY if case not in FEW]
ALL_GRAPHS = GRAPHS | {f"channels last: {name}": graph for name, graph in CHANNELS_LAST.items()}
WIDE = [name for name in (*MAKERS, *NETWORKS, *MLPERF_TINY) if name not in SMALL and name not in MAKERS]


def equal(model: QuantizedModel, given: dict[str, np.ndarray], content: bytes, **how: object) -> int:
    """How many layers were compared, every one of them equal; outputs are equal as floats."""
    found = tensors_in_onnxruntime(content, given, **how)
    wanted = simulate(model, given, layers=[layer.name for layer in model.layers], raw=True)
    for layer in model.layers:
        np.testing.assert_array_equal(found[layer.output], wanted[layer.name], layer.name)
    for name, real in simulate(model, given).items():
        assert found[f"output {name}"].dtype == np.float32
        np.testing.assert_array_equal(found[f"output {name}"], real)
    return len(model.layers)


def quantized_graph(name: str, scheme: str, rounding: Rounding) -> tuple[QuantizedModel, dict[str, np.ndarray]]:
    graph = ALL_GRAPHS[name]
    ranges = ranges_of(float_tensors(graph.model(), graph.inputs))
    return quantize(graph.model(), ranges, scheme=scheme, rounding=rounding), dict(graph.inputs)


@pytest.fixture(scope="module", params=[*(f"simulated {name}" for name in MAKERS), *SMALL])
def network(request):
    return captured_of(request.param.removeprefix("simulated "))


@pytest.mark.parametrize(("scheme", "rounding"), FEW)
@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_every_operator_has_the_simulators_integers(name, scheme, rounding):
    model, given = quantized_graph(name, scheme, rounding)
    equal(model, given, to_integer_onnx(model))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("scheme", "rounding"), REST)
@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_every_operator_has_the_simulators_integers_in_every_scheme(name, scheme, rounding):
    model, given = quantized_graph(name, scheme, rounding)
    equal(model, given, to_integer_onnx(model), optimized=False)


@pytest.mark.parametrize(("scheme", "rounding"), EVERY)
def test_every_layer_of_a_network_has_the_simulators_integers(network, scheme, rounding):
    graph, ranges, given = network
    model = quantize(graph, ranges, scheme=scheme, rounding=rounding)
    assert equal(model, given, to_integer_onnx(model)) >= 3


@pytest.mark.parametrize(("scheme", "rounding"), FEW)
@pytest.mark.parametrize("name", MLPERF_TINY)
def test_every_layer_of_mlperf_tinys_networks_has_the_simulators_integers(name, scheme, rounding):
    graph, ranges, given = captured_of(name)
    model = quantize(graph, ranges, scheme=scheme, rounding=rounding)
    assert equal(model, given, to_integer_onnx(model)) > 15


@pytest.mark.exhaustive
@pytest.mark.parametrize(("scheme", "rounding"), EVERY)
@pytest.mark.parametrize("name", WIDE)
def test_every_layer_of_a_larger_network_has_the_simulators_integers(name, scheme, rounding):
    graph, ranges, given = captured_of(name)
    model = quantize(graph, ranges, scheme=scheme, rounding=rounding)
    assert equal(model, given, to_integer_onnx(model)) >= 3


@pytest.fixture(scope="module")
def transformer():
    graph, ranges, given = captured_of("gpt")
    return quantize(graph, ranges, scheme="int16x8", rounding=Rounding.SINGLE), given


@pytest.fixture(scope="module")
def convolutions():
    graph, ranges, given = captured_of("mobilenet")
    return quantize(graph, ranges, scheme="int8", rounding=Rounding.DOUBLE), given


RUNS = [{"opset": opset, "batch": 3, "threads": 1, "optimized": True} for opset in OPSETS]
RUNS += [{"opset": 17, "batch": batch, "threads": 2, "optimized": False} for batch in (1, 64)]
CROSS = [
    {"opset": opset, "batch": batch, "threads": threads, "optimized": optimized}
    for opset in OPSETS
    for batch in (1, 3, 64)
    for threads in (1, 2)
    for optimized in (True, False)
]


def equal_in_a_run(model, run):
    content = to_integer_onnx(model, opset=run["opset"])
    assert onnx.ModelProto.FromString(content).opset_import[0].version == run["opset"]
    given = probes(model, run["batch"])
    equal(model, given, content, threads=run["threads"], optimized=run["optimized"])


@pytest.mark.parametrize("run", RUNS, ids=str)
@pytest.mark.parametrize("which", ["transformer", "convolutions"])
def test_opset_batch_threads_and_optimizer_change_nothing(which, run, request):
    equal_in_a_run(request.getfixturevalue(which)[0], run)


@pytest.mark.exhaustive
@pytest.mark.parametrize("run", CROSS, ids=str)
@pytest.mark.parametrize("which", ["transformer", "convolutions"])
def test_all_of_opset_batch_threads_and_optimizer_change_nothing(which, run, request):
    equal_in_a_run(request.getfixturevalue(which)[0], run)


class GatherElements(OpRun):
    """ONNX's reference takes tables of up to 64 numbers."""

    op_domain = ""

    def _run(self, data, indices, axis=None):
        return (np.take_along_axis(data, indices, axis),)


@pytest.mark.parametrize(("scheme", "rounding"), [("int8", Rounding.DOUBLE), ("q15", Rounding.SINGLE)])
def test_onnxs_own_reference_gives_the_simulators_outputs(network, scheme, rounding):
    graph, ranges, given = network
    model = quantize(graph, ranges, scheme=scheme, rounding=rounding)
    feeds = {name: array if array.dtype.kind == "i" else array.astype(np.float32) for name, array in given.items()}
    proto = onnx.ModelProto.FromString(to_integer_onnx(model, opset=17))
    found = ReferenceEvaluator(proto, new_ops=[GatherElements]).run(list(model.outputs), feeds)
    for name, array in zip(model.outputs, found, strict=True):
        np.testing.assert_array_equal(array, simulate(model, given)[name])


# By hand: the ends of what a model may hold

BYTE, WORD = QuantParams(0.25, -3, 8), QuantParams(2.0**-9, 0, 16)


def one_layer(layer, given: Tensor, made: Tensor, rounding=Rounding.SINGLE, scheme="int8") -> QuantizedModel:
    tensors = {given.name: given, made.name: made}
    return QuantizedModel(scheme, rounding, (given.name,), {"y": made.name}, tensors, (layer,))


def codes(params: QuantParams) -> np.ndarray:
    """Every real number of a format, one a sample."""
    raw = np.arange(params.raw_min, params.raw_max + 1, 1 if params.bits == 8 else 37)
    return ((raw - params.zero_point) * params.scale).astype(np.float32)[:, None]


MULTIPLIERS = [  # mantissas and shifts of four channels
    ([2**31 - 1, 2**30, 2**30 + 1, 3], [31, 32, 37, 5]),
    ([2**31 - 1, 2**31 - 1, 1, 0], [0, 62, 0, 0]),  # one guard does not fit them all
    ([2**30 - 1, 12345, 54321, 7], [62, 20, 1, 62]),
    ([1, 2, 3, 4], [1, 2, 1, 2]),
    ([1, 1, 1, 1], [0, 0, 0, 0]),
]
WEIGHTS = np.array([[1], [-1], [127], [-127]], np.int8)


@pytest.mark.parametrize("out", [BYTE, WORD, QuantParams(1.0, 127, 8), QuantParams(1.0, -128, 8)], ids=str)
@pytest.mark.parametrize(("mantissa", "shift"), MULTIPLIERS)
def test_any_mantissa_and_shift_rescales_exactly(mantissa, shift, out):
    bias = np.array([1, -1, 12345, -54321])
    layer = Dense("d", ("x",), "y", WEIGHTS, bias, np.array(mantissa), np.array(shift))
    model = one_layer(layer, Tensor("x", (1,), BYTE), Tensor("y", (4,), out))
    raw = np.arange(-128, 128)
    sums = (raw[:, None] + 3) * WEIGHTS[:, 0].astype(int) + bias
    exact = [
        [floor(Fraction(int(s) * m, 2**k) + Fraction(1, 2)) for s, m, k in zip(row, mantissa, shift, strict=True)]
        for row in sums
    ]
    wanted = np.clip(np.array(exact, object) + out.zero_point, out.raw_min, out.raw_max).astype(np.int64)
    for optimized in (True, False):
        found = tensors_in_onnxruntime(to_integer_onnx(model), {"x": codes(BYTE)}, optimized=optimized)
        np.testing.assert_array_equal(found["y"], wanted)


def away_from_zero(value: Fraction) -> int:
    return floor(abs(value) + Fraction(1, 2)) * (1 if value >= 0 else -1)


@pytest.mark.parametrize("out", [BYTE, WORD], ids=str)
@pytest.mark.parametrize("shift", [[31, 31, 31, 31], [32, 45, 62, 33], [31, 40, 29, 20]])
def test_gemmlowps_two_roundings_are_exact(shift, out):
    mantissa, bias = [2**31 - 1, 2**30, 2**30 + 12345, 3 << 29], np.array([5, -7, 300, -300])
    layer = Dense(
        "d", ("x",), "y", np.array([[1], [-1], [9], [-9]], np.int8), bias, np.array(mantissa), np.array(shift)
    )
    model = one_layer(layer, Tensor("x", (1,), BYTE), Tensor("y", (4,), out), Rounding.DOUBLE)
    wanted = []
    for raw in range(-128, 128):
        row = []
        for weight, b, m, s in zip((1, -1, 9, -9), bias, mantissa, shift, strict=True):
            total = ((raw + 3) * weight + int(b)) << max(31 - s, 0)
            high = floor(Fraction(total * m, 2**31) + Fraction(1, 2))
            row.append(away_from_zero(Fraction(high, 1 << max(s - 31, 0))) + out.zero_point)
        wanted.append(row)
    found = tensors_in_onnxruntime(to_integer_onnx(model), {"x": codes(BYTE)})
    np.testing.assert_array_equal(found["y"], np.clip(wanted, out.raw_min, out.raw_max))


@pytest.mark.parametrize("params", [BYTE, WORD], ids=str)
@pytest.mark.parametrize("epsilon", [1, 2, 3, 2**20 - 1, 2**40 + 1, 2**59 + 12345])
def test_a_normalisation_is_exact_from_the_smallest_to_the_largest_spread(epsilon, params):
    mantissa, bias = np.array([2**28, -(2**27), 1]), np.array([0, 2**30, -1])
    layer = LayerNormalization("n", ("x",), "y", epsilon, mantissa, bias, 40)
    made = Tensor("y", (3,), QuantParams(0.01, 0, 16))
    model = one_layer(layer, Tensor("x", (3,), params), made)
    rng = np.random.default_rng(4)
    rows = rng.integers(params.raw_min, params.raw_max + 1, (200, 3))
    rows[:100] = rows[:100, :1] + np.arange(100)[:, None] % 3 * [0, 1, 0]
    given = ((rows - params.zero_point) * params.scale).astype(np.float32)
    equal(model, {"x": given}, to_integer_onnx(model))


SQUARES = [2**60, 2**60 + 1, 2**61, (2**30 + 1) ** 2, (2**30 + 1) ** 2 - 1, (3 << 29) ** 2 - 1, (2**31 - 1) ** 2]
SQUARES += [
    (2**31 - 1) ** 2 - 1,
    2**62 - 1,
    *(int(n) ** 2 - k for n in range(2**30 + 1, 2**31, 2**27 - 1) for k in (0, 1)),
]


def test_roots_are_exact_and_numbers_are_brought_to_62_bits_exactly():
    to = Writer(named("r"), 17)
    wide, up = normalised(to, "spread")
    outputs = {"root": root_of(to, "square"), "wide": wide, "up": up}
    lengths = {"square": "squares", outputs["root"]: "squares"} | dict.fromkeys(("spread", wide, up), "spreads")
    ports = {n: onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT64, [size]) for n, size in lengths.items()}
    shown = [ports[name] for name in outputs.values()]
    graph = onnx.helper.make_graph(to.nodes, "g", [ports["square"], ports["spread"]], shown, to.constants.values())
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    spreads = [1, 2, 3, *(2**k + d for k in range(2, 61) for d in (-1, 0, 1))]
    feeds = {"square": np.array(SQUARES), "spread": np.array(spreads)}
    root, wide, up = session(proto.SerializeToString()).run(None, feeds)
    assert root.tolist() == [isqrt(square) for square in SQUARES]
    assert wide.tolist() == [spread * 4 ** int(k) for spread, k in zip(spreads, up, strict=True)]
    assert 2**60 <= wide.min() <= wide.max() < 2**62


def test_a_largest_number_is_found_where_padding_is_wider_than_a_window():
    layer = MaxPool("m", ("x",), "y", (2, 2), (1, 1), (2, 0, 2, 1))
    model = one_layer(layer, Tensor("x", (2, 3, 3), BYTE), Tensor("y", (2, 6, 3), BYTE))
    equal(model, probes(model), to_integer_onnx(model))


@pytest.mark.parametrize("params", [BYTE, WORD, QuantParams(0.1, 0, 8), QuantParams(1e-3, 0, 16)], ids=str)
def test_the_border_rounds_as_simulate_does(params):
    layer = Reshape("r", ("x",), "y", (1, 1))
    model = one_layer(layer, Tensor("x", (1,), params), Tensor("y", (1, 1), params))
    halves = np.arange(2 * params.raw_min - 5, 2 * params.raw_max + 6, 1 if params.bits == 8 else 17) / 2
    ties = (halves * params.scale).astype(np.float32)
    near = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([ties, *near, np.float32([0, -0.0, 3e38, -3e38, 1e-42])])[:, None]
    equal(model, {"x": x}, to_integer_onnx(model))


@pytest.mark.parametrize("write", [to_integer_onnx, to_qdq])
@pytest.mark.parametrize("scheme", ["int8", "q15"])
def test_raw_inputs_and_outputs_are_simulates_integers(write, scheme):
    model, given = quantized_graph("relu in Add", scheme, Rounding.SINGLE)
    content = write(model, raw=True)
    kind = np.int8 if scheme == "int8" else np.int16
    rng, info = np.random.default_rng(1), np.iinfo(kind)
    integers = {name: rng.integers(info.min, info.max, array.shape).astype(kind) for name, array in given.items()}
    reals = {
        n: ((a.astype(int) - p.zero_point) * p.scale) for n, a in integers.items() for p in [model.tensors[n].quantized]
    }
    (found,) = session(content).run(None, integers)
    assert found.dtype == kind
    wanted = simulate(model, reals, raw=True)["y"]
    assert np.abs(found.astype(int) - wanted).max() <= (write is to_qdq)


def test_floats_stand_at_the_border_alone(transformer):
    content = to_integer_onnx(transformer[0])
    proto = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(content))
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*proto.graph.value_info, *proto.graph.output)}
    kinds |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    touched = [n for n in proto.graph.node if any(kinds.get(v) in floats for v in (*n.input, *n.output))]
    assert all(".raw/" in n.output[0] or ".real/" in n.output[0] or n.output[0] == "output" for n in touched)
    assert {node.domain for node in proto.graph.node} == {""}


@pytest.mark.parametrize("write", [to_integer_onnx, to_qdq])
def test_the_same_model_gives_the_same_bytes(write, convolutions):
    assert write(convolutions[0]) == write(convolutions[0])


@pytest.mark.parametrize("write", [to_integer_onnx, to_qdq])
def test_the_file_says_what_it_was_made_of(write, convolutions):
    model, _ = convolutions
    told = metadata(write(model))
    assert (told["gemedge.scheme"], told["gemedge.rounding"]) == ("int8", "double")
    assert told["gemedge.form"] == ("integer" if write is to_integer_onnx else "qdq")
    digests = {entry["layer"]: entry["digest"] for entry in json.loads(told["gemedge.activations"])}
    assert digests == {name: kernel.digest for name, kernel in model.kernels.items()}
    assert set(json.loads(told["gemedge.tensors"])) == set(model.tensors)


def test_names_of_borders_are_kept_and_others_step_aside(convolutions):
    model, given = convolutions
    (output,) = model.outputs.values()
    names = (f"{model.layers[0].name}/ConvInteger", "constant_0", f"{output}.real/Cast")
    renamed = replace(model, outputs=dict.fromkeys(names, output))
    content = to_integer_onnx(renamed)
    proto = onnx.ModelProto.FromString(content)
    assert [value.name for value in proto.graph.input] == list(model.inputs)
    assert tuple(value.name for value in proto.graph.output) == names
    equal(renamed, given, content)


# What it cannot hold


def many_products() -> QuantizedModel:
    count = 33_100
    layer = Dense(
        "big", ("x",), "y", np.full((1, count), 255, np.int16), np.zeros(1, np.int64), np.array([1]), np.array([40])
    )
    return one_layer(layer, Tensor("x", (count,), WORD), Tensor("y", (1,), WORD), scheme="q15")


def four_bytes() -> QuantizedModel:
    wide = Tensor("wide", (2,), QuantParams(1.0, 0, 32))
    return QuantizedModel("int8", Rounding.SINGLE, ("wide",), {"y": "wide"}, {"wide": wide}, ())


def named(name: str) -> QuantizedModel:
    layer = Reshape(name, ("x",), "y", (1, 1))
    return one_layer(layer, Tensor("x", (1,), BYTE), Tensor("y", (1, 1), BYTE))


def twice_named() -> QuantizedModel:
    return replace(named("r"), outputs={"x": "y"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            many_products,
            r"layer 'big' \(Dense\) in ONNX: a sum of products of bytes can reach 2152327500; ONNX's integer products"
            " hold 32 bits",
        ),
        (four_bytes, "tensor 'wide' has 32 bits; ONNX takes 8 and 16"),
        (lambda: named("a\ud800b"), r"name 'a\\ud800b' is not UTF-8"),
        (twice_named, "name 'x' of an input or output is empty or twice there"),
    ],
)
def test_what_cannot_be_held_exactly_is_refused_by_name(make, message):
    with pytest.raises(UnsupportedError, match=message):
        to_integer_onnx(make())


@pytest.mark.parametrize("opset", [16, 22])
def test_opsets_that_are_not_written_are_refused(opset, convolutions):
    with pytest.raises(UsageError, match=f"opset {opset} of a quantized model must be from 17 to 21"):
        to_integer_onnx(convolutions[0], opset=opset)


def test_constants_beyond_one_file_are_refused(convolutions, monkeypatch):
    from gemedge.export import onnx_writer

    monkeypatch.setattr(onnx_writer, "LARGEST", 1000)
    with pytest.raises(UnsupportedError, match="its constants take more than 1,000 bytes, which one ONNX file holds"):
        to_integer_onnx(convolutions[0])


# Floats between QuantizeLinear and DequantizeLinear

NEAR = {"int8": 1, "q7": 1, "int16x8": 3, "q15": 3}  # LSB, of one layer alone


def each_alone(model: QuantizedModel, given: dict[str, np.ndarray]) -> dict[str, int]:
    """The largest difference of each layer, by itself as float operators, fed with simulate's integers."""
    before = [name for layer in model.layers for name in layer.inputs if name not in model.inputs]
    known = simulate(model, given, layers=dict.fromkeys([*before, *(x.name for x in model.layers)]), raw=True)
    known = {name: known[name] for name in before} | entered(model, border(model, given), Counter())
    wanted = simulate(model, given, layers=[layer.name for layer in model.layers], raw=True)
    found = {}
    for layer in model.layers:
        if layer.inputs:
            names = tuple(dict.fromkeys(layer.inputs))
            tensors = {name: model.tensors[name] for name in (*names, layer.output)}
            alone = replace(model, inputs=names, outputs={"alone": layer.output}, tensors=tensors, layers=(layer,))
            (got,) = session(to_qdq(alone, raw=True), optimized=False).run(None, {name: known[name] for name in names})
            found[layer.name] = int(np.abs(got.astype(int) - wanted[layer.name]).max())
    return found


@pytest.mark.parametrize(("scheme", "rounding"), FEW)
@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_float_operators_mean_what_the_integers_mean(name, scheme, rounding):
    model, given = quantized_graph(name, scheme, rounding)
    assert max(each_alone(model, given).values(), default=0) <= NEAR[scheme]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("scheme", "rounding"), REST)
@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_float_operators_mean_what_the_integers_mean_in_every_scheme(name, scheme, rounding):
    model, given = quantized_graph(name, scheme, rounding)
    assert max(each_alone(model, given).values(), default=0) <= NEAR[scheme]


def farthest(model: QuantizedModel, given: dict[str, np.ndarray], content: bytes) -> int:
    found = tensors_in_onnxruntime(content, given)
    wanted = simulate(model, given, layers=[layer.name for layer in model.layers], raw=True)
    return max((int(np.abs(found[x.output] - wanted[x.name]).max()) for x in model.layers), default=0)


@pytest.mark.parametrize(("scheme", "most"), [("int8", 12), ("q7", 12), ("int16x8", 64), ("q15", 64)])
def test_a_network_of_float_operators_stays_near_when_onnxruntime_rewrites_it(network, scheme, most):
    graph, ranges, given = network
    model = quantize(graph, ranges, scheme=scheme, rounding=Rounding.SINGLE)
    assert farthest(model, given, to_qdq(model)) <= most


@pytest.mark.parametrize(
    ("scheme", "op_type", "functions"),
    [("int8", "QuantizedSEGEM", ["SEGEM", "QuantizedSEGEM"]), ("int16x8", "SEGEM", ["SEGEM"])],
)
def test_an_activation_is_one_node_with_a_body(scheme, op_type, functions):
    graph, ranges, _ = captured_of("mobilenet")
    proto = onnx.ModelProto.FromString(to_qdq(quantize(graph, ranges, scheme=scheme, rounding=Rounding.DOUBLE)))
    nodes = [node.op_type for node in proto.graph.node if node.domain == "ai.gemedge"]
    assert nodes == [op_type] * 7
    assert [function.name for function in proto.functions] == functions


@pytest.mark.parametrize("opset", OPSETS)
def test_an_activation_is_three_operators_for_tools_that_inline_functions(convolutions, opset):
    proto = onnx.ModelProto.FromString(to_qdq(convolutions[0], opset=opset))
    activations = [node for node in proto.graph.node if node.domain == "ai.gemedge"]
    (body,) = (function for function in proto.functions if function.name == "SEGEM")
    proto.functions.remove(body)
    inlined = onnx.inliner.inline_local_functions(proto)
    makers = {node.output[0]: node for node in inlined.graph.node}
    for activation in activations:
        last = makers[activation.output[0]]
        middle = makers[last.input[0]]
        first = makers[middle.input[0]]
        assert [node.op_type for node in (first, middle, last)] == ["DequantizeLinear", "SEGEM", "QuantizeLinear"]
        assert [*first.input, *last.input[1:]] == list(activation.input)
        attributes = [{a.name: (a.i, a.f) for a in node.attribute} for node in (middle, activation)]
        assert attributes == [{"n": (1, 0.0), "epsilon": (0, float(np.float32(0.1)))}] * 2


@pytest.fixture(scope="module")
def kernel_cache(tmp_path_factory):
    """A cache of this file's own, so that the kernels are built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("scheme", ["int8", "q7"])
def test_float_operators_give_the_same_integers_with_and_without_the_kernel(network, scheme, optimized, kernel_cache):
    graph, ranges, given = network
    content = to_qdq(quantize(graph, ranges, scheme=scheme, rounding=Rounding.SINGLE))
    plain = tensors_in_onnxruntime(content, given, optimized=optimized)
    fused = tensors_in_onnxruntime(content, given, optimized=optimized, fused=True)
    assert list(fused) == list(plain)
    for name, array in plain.items():
        np.testing.assert_array_equal(fused[name], array, name)


def test_sixteen_bits_need_opset_21(transformer):
    with pytest.raises(
        UsageError, match=r"tensor '.*' has 16 bits, which QuantizeLinear makes from opset 21 on, not 18"
    ):
        to_qdq(transformer[0], opset=18)


# Seeded inputs


def test_seeded_inputs_are_the_same_and_reach_beyond_both_ends(convolutions):
    model, _ = convolutions
    (first,), (again,) = probes(model).values(), probes(model).values()
    np.testing.assert_array_equal(first, again)
    params = model.tensors[model.inputs[0]].quantized
    codes_of = first / params.scale + params.zero_point
    assert codes_of.min() < params.raw_min
    assert codes_of.max() > params.raw_max


def test_seeded_indices_are_in_the_smallest_table():
    tensors = {"x": Tensor("x", (4,), None), "r": Tensor("r", (2, 2), None)}
    tensors |= {name: Tensor(name, (*shape, 3), BYTE) for name, shape in (("a", (4,)), ("b", (2, 2)))}
    layers = (
        Reshape("r", ("x",), "r", (2, 2)),
        Embed("a", ("x",), "a", np.zeros((9, 3), np.int8)),
        Embed("b", ("r",), "b", np.zeros((5, 3), np.int8)),
    )
    model = QuantizedModel("int8", Rounding.SINGLE, ("x",), {"y": "a", "z": "b"}, tensors, layers)
    assert sorted(set(probes(model, 64)["x"].ravel())) == [0, 1, 2, 3, 4]
    equal(model, probes(model), to_integer_onnx(model))

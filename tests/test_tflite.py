"""Quantized models in TensorFlow Lite: simulate's integers in TensorFlow Lite Micro, within 1 LSB in LiteRT."""

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from float_runs import float_tensors, ranges_of
from networks import MLPERF_TINY, NETWORKS, Network
from test_operators import GRAPHS, Graph, i64, normal
from torch import nn

import gemedge.nn as gnn
from gemedge.capture import capture_module
from gemedge.cli.engines import differences
from gemedge.errors import UnsupportedError
from gemedge.export import tflite_writer
from gemedge.export.tflite_layers import _CALLS
from gemedge.export.tflite_run import LITERT, MICRO, run_here
from gemedge.export.to_tflite import Written, laid, to_tflite
from gemedge.fixed import Multiplier, QuantParams, Rounding
from gemedge.model import QuantizedModel
from gemedge.moving import Concatenate, Reshape
from gemedge.operators import Combine, Tensor
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import border, entered, run

DOUBLE, SINGLE = Rounding.DOUBLE, Rounding.SINGLE
ALL_NETWORKS = NETWORKS | MLPERF_TINY
RUNNABLE = ("mlp", "cnn", "mobilenet", "conv1d", "two inputs", "resnet8", "ds-cnn")
REFUSED_GRAPHS = {name for name in GRAPHS if "softmax" in name or "masked" in name or "layer normalisation" in name}
REFUSED_GRAPHS |= {"batch merged with heads"}


class EveryOperator(nn.Module):
    """Each operator that has a form in TensorFlow Lite; at 8 bits with rounding double."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.act = gnn.GEM(1)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=8)
        self.smooth = gnn.SEGEM(2, 0.1)
        self.grouped = nn.Conv2d(16, 8, (1, 3), padding=(0, 1), groups=2, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.most = nn.MaxPool2d(3, stride=2, padding=1)
        self.mean = nn.AvgPool2d(2)
        self.signal = nn.Conv1d(4, 5, 3, padding=1)
        self.head = nn.Linear(37, 6)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.act(self.stem(x))
        z = self.grouped(self.smooth(self.depthwise(y))) + y
        z = self.up(z - y * torch.sigmoid(z))
        z = nn.functional.pad(torch.cat([self.mean(z), self.most(z)], 1), (1, 0, 1, 1), value=0.25)
        rows = self.signal(torch.index_select(z.flatten(2).transpose(1, 2)[:, 2::3], 1, torch.tensor([3, 0, 1, 2])))
        squares = torch.matmul(rows, rows.transpose(1, 2))
        kept = torch.where(torch.eye(5, dtype=torch.bool), squares, -0.5 * squares)
        return {"image": z, "score": self.head(torch.cat([kept.flatten(1), self.embedding(tokens).flatten(1)], 1))}


EVERY = Network(lambda _: EveryOperator(), {"x": (3, 8, 8), "tokens": (2,)}, 2)


def inputs_of(name: str, batch: int) -> dict[str, torch.Tensor]:
    if name == "every operator":
        return {"x": EVERY.inputs(batch)["x"], "tokens": torch.arange(2 * batch).reshape(batch, 2) % 7}
    return ALL_NETWORKS[name].inputs(batch)


@cache
def captured_of(name: str):
    """A network's float graph, its ranges, and inputs by name."""
    network = EVERY if name == "every operator" else ALL_NETWORKS[name]
    model = network.model(lambda: gnn.GEM(1) if name != "mobilenet" else gnn.SEGEM(1, 0.1))
    given = inputs_of(name, 3)
    found = capture_module(model, {k: v[:1] for k, v in given.items()}, opset=20)
    arrays = {k: v.numpy() for k, v in given.items()}
    return found.model, ranges_of(float_tensors(found.model, arrays)), arrays


@pytest.fixture(scope="module", params=[*RUNNABLE, "every operator"])
def network(request):
    return captured_of(request.param)


@pytest.fixture(scope="module")
def cnn():
    return captured_of("cnn")


def quantized(captured, scheme="int8", rounding=DOUBLE) -> QuantizedModel:
    return quantize(captured[0], captured[1], scheme=scheme, rounding=rounding)


def integers_of(model: QuantizedModel, given) -> dict[str, np.ndarray]:
    return entered(model, border(model, given), Counter())


def made_by(runtime: str, written: Written, integers) -> dict[str, np.ndarray]:
    """Every layer's integers by its tensor, as the model has them."""
    inputs = laid(written.inputs, [integers[value.name] for value in written.inputs])
    outputs = run_here(runtime, written.content, inputs, dynamic=written.dynamic)
    return {value.name: value.from_memory(array) for value, array in zip(written.outputs, outputs, strict=True)}


def assert_equal_to_simulate(runtime: str, model: QuantizedModel, given, gem=None) -> int:
    integers = integers_of(model, given)
    found = made_by(runtime, to_tflite(model, gem=gem, observed=True), integers)
    wanted = run(model, integers, keep=list(found))
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    return len(found)


def assert_off_by_one_at_most(runtime: str, model: QuantizedModel, given, gem=None) -> set[str]:
    """Each layer by itself; the kinds of layers that are off."""
    integers = integers_of(model, given)
    found = differences(model, integers | made_by(runtime, to_tflite(model, gem=gem, observed=True), integers))
    assert all(difference.max_lsb <= 1 for difference in found), found[0]
    return {difference.kind for difference in found if difference.max_lsb}


# Integers


def test_every_layer_in_micro_has_the_simulators_integers(network):
    model = quantized(network)
    layers = sum(type(layer).__name__ != "Constant" for layer in model.layers)
    assert assert_equal_to_simulate(MICRO, model, network[2]) == layers > 4


@pytest.mark.parametrize(
    ("scheme", "rounding"), [("int8", DOUBLE), ("int8", SINGLE), ("int16x8", SINGLE), ("int16x8", DOUBLE)]
)
def test_every_layer_in_litert_is_off_by_one_at_most(network, scheme, rounding):
    assert_off_by_one_at_most(LITERT, quantized(network, scheme, rounding), network[2])


def test_micro_is_off_by_one_at_most_where_the_model_rounds_once(network):
    assert_off_by_one_at_most(MICRO, quantized(network, "int8", SINGLE), network[2])


def test_litert_has_the_simulators_integers_of_16_bits_with_tables_on_these_inputs(network):
    """Its products and sums round otherwise, which few numbers show: a ResNet-8's 1 of 16,384."""
    assert_equal_to_simulate(LITERT, quantized(network, "int16x8"), network[2], gem="table")


def test_at_16_bits_micro_is_off_by_one_at_most_in_float_activations_alone(cnn):
    assert assert_off_by_one_at_most(MICRO, quantized(cnn, "int16x8"), cnn[2]) <= {"Activate"}


def test_the_model_with_every_operator_has_every_operator():
    kinds = {type(layer) for layer in quantized(captured_of("every operator")).layers}
    others = {"Clamp", "Combine", "AveragePool", "Interpolate"}  # of 16 bits, or of rounding single
    assert {kind.__name__ for kind in set(_CALLS) - kinds} == others


def graph_of(name: str, scheme: str, rounding: Rounding) -> tuple[QuantizedModel, dict[str, np.ndarray]]:
    graph = GRAPHS[name]
    model = graph.model()
    ranges = ranges_of(float_tensors(model, graph.inputs))
    return quantize(model, ranges, scheme=scheme, rounding=rounding), dict(graph.inputs)


@pytest.mark.parametrize("name", sorted(set(GRAPHS) - REFUSED_GRAPHS))
def test_each_operator_in_micro_has_the_simulators_integers(name):
    assert assert_equal_to_simulate(MICRO, *graph_of(name, "int8", DOUBLE)) > 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(set(GRAPHS) - REFUSED_GRAPHS))
@pytest.mark.parametrize(("scheme", "rounding"), [("int8", DOUBLE), ("int8", SINGLE), ("int16x8", DOUBLE)])
def test_each_operator_in_litert_is_off_by_one_at_most(name, scheme, rounding):
    model, given = graph_of(name, scheme, rounding)
    if name == "average with padding" and rounding is SINGLE:
        with pytest.raises(UnsupportedError, match="quantize with --rounding double"):
            to_tflite(model)
        return
    assert_off_by_one_at_most(LITERT, model, given, gem="table")


# Forms of the activation


@pytest.mark.parametrize("runtime", [LITERT, MICRO])
@pytest.mark.parametrize(
    "function", [gnn.GEM(1), gnn.GEM(3), gnn.EGEM(2, 0.05), gnn.SEGEM(1, 1.0), gnn.SEGEM(3, 0.2), nn.ReLU()], ids=str
)
def test_tables_are_exact_and_floats_off_by_one_at_most_for_every_code(runtime, function):
    codes = np.arange(-128, 128, dtype=np.float32)[:, None]
    found = capture_module(function, torch.zeros(1, 1))
    name = found.model.graph.inputs[0].name
    tensors = float_tensors(found.model, {name: codes * np.float32(0.031)})
    model = quantize(found.model, ranges_of(tensors), scheme="int8", rounding=DOUBLE)
    given = {name: tensors[name]}
    assert assert_equal_to_simulate(runtime, model, given, gem="table") == 1
    assert assert_off_by_one_at_most(runtime, model, given, gem="float") <= {"Activate"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("runtime", [LITERT, MICRO])
@pytest.mark.parametrize("function", [gnn.GEM(1), gnn.EGEM(2, 0.05), gnn.SEGEM(2, 0.2)], ids=str)
def test_floats_are_off_by_one_at_most_for_every_code_of_16_bits(runtime, function):
    found = capture_module(function, torch.zeros(1, 1 << 16))
    name = found.model.graph.inputs[0].name
    codes = np.arange(-32768, 32768, dtype=np.float32)[None] * np.float32(0.00021)
    model = quantize(
        found.model, ranges_of(float_tensors(found.model, {name: codes})), scheme="int16x8", rounding=DOUBLE
    )
    assert assert_off_by_one_at_most(runtime, model, {name: codes}, gem="float") <= {"Activate"}


def root(content: bytes) -> schema.ModelT:
    return schema.ModelT.InitFromPackedBuf(content, 0)


def operators(content: bytes) -> Counter:
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    model = root(content)
    return Counter(names[model.operatorCodes[op.opcodeIndex].builtinCode] for op in model.subgraphs[0].operators)


@pytest.mark.parametrize(
    ("gem", "used"),
    [
        ("table", {"CAST": 2, "GATHER": 2, "ADD": 2}),
        ("float", {"DEQUANTIZE": 2, "QUANTIZE": 2, "DIV": 4, "MUL": 2, "MAXIMUM": 2, "ADD": 2}),
        ("custom", {"CUSTOM": 2}),
    ],
)
def test_each_form_takes_its_operators_and_nothing_transposes(cnn, gem, used):
    found = operators(to_tflite(quantized(cnn), gem=gem).content)
    of_the_network = {"CONV_2D": 2, "MAX_POOL_2D": 1, "AVERAGE_POOL_2D": 1, "RESHAPE": 1, "FULLY_CONNECTED": 1}
    assert found == Counter(of_the_network | used)


@pytest.mark.parametrize("name", ["resnet8", "ds-cnn", "mobilenet"])
def test_no_network_of_images_transposes(name):
    assert operators(to_tflite(quantized(captured_of(name))).content)["TRANSPOSE"] == 0


def test_the_operator_of_ours_carries_its_options(cnn):
    model = quantized(cnn)
    written = to_tflite(model, gem="custom")
    assert list(written.kernels) == list(model.kernels)
    ours = [op for op in root(written.content).subgraphs[0].operators if op.customOptions is not None]
    digests = [bytes(op.customOptions)[36:].hex() for op in ours]
    assert digests == [kernel.digest[:16] for kernel in model.kernels.values()]
    assert b"gemedge.Activation" in [code.customCode for code in root(written.content).operatorCodes]


# The file


def test_the_runtimes_verifier_accepts_the_file_and_refuses_a_damaged_one(cnn):
    content = to_tflite(quantized(cnn)).content
    assert content[4:8] == b"TFL3"
    litert.Interpreter(model_content=content)
    table = int.from_bytes(content[:4], "little")
    damaged = bytearray(content)
    damaged[table : table + 4] = b"\xff\xff\xff\x7f"
    with pytest.raises(ValueError, match="not a valid Flatbuffer"):
        litert.Interpreter(model_content=bytes(damaged))


@pytest.mark.parametrize(
    ("scheme", "versions"),
    [
        ("int8", {"CONV_2D": 3, "MAX_POOL_2D": 2, "AVERAGE_POOL_2D": 2, "FULLY_CONNECTED": 5, "GATHER": 2}),
        ("int16x8", {"CONV_2D": 4, "MAX_POOL_2D": 3, "AVERAGE_POOL_2D": 3, "FULLY_CONNECTED": 7, "GATHER": 4}),
    ],
)
def test_operators_have_the_first_version_that_takes_their_numbers(cnn, scheme, versions):
    """tensorflow/lite/tools/versioning/op_version.cc: an older runtime refuses what it would compute wrongly."""
    numbers = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    codes = root(to_tflite(quantized(cnn, scheme), gem="table").content).operatorCodes
    found = {numbers[code.builtinCode]: code.version for code in codes}
    assert found == versions | {"CAST": 1, "ADD": 1, "RESHAPE": 1}


def test_the_same_model_gives_the_same_bytes(cnn):
    model = quantized(cnn)
    assert to_tflite(model).content == to_tflite(model).content


@pytest.mark.parametrize(("scheme", "bias_type"), [("int8", np.int32), ("int16x8", np.int64)])
def test_parameters_are_as_the_specification_says(scheme, bias_type):
    """Weights [O, H, W, I], depthwise [1, H, W, O], a scale for each of O; a bias's scale is input times weight."""
    model = quantized(captured_of("ds-cnn"), scheme)
    made = root(to_tflite(model).content)
    codes = [code.builtinCode for code in made.operatorCodes]
    kinds = {schema.BuiltinOperator.CONV_2D: 0, schema.BuiltinOperator.DEPTHWISE_CONV_2D: 3}
    kinds[schema.BuiltinOperator.FULLY_CONNECTED] = 0
    graph, seen = made.subgraphs[0], Counter()
    for op in graph.operators:
        code = codes[op.opcodeIndex]
        if code not in kinds:
            continue
        given, weight, bias = (graph.tensors[index] for index in op.inputs)
        outputs = weight.shape[kinds[code]]
        seen[code, tuple(weight.shape)] += 1
        assert weight.quantization.quantizedDimension == kinds[code]
        assert len(weight.quantization.scale) == len(bias.quantization.scale) == outputs
        assert not weight.quantization.zeroPoint.any()
        assert not bias.quantization.zeroPoint.any()
        product = weight.quantization.scale.astype(np.float64) * float(given.quantization.scale[0])
        np.testing.assert_array_equal(bias.quantization.scale, product.astype(np.float32))
        assert len(made.buffers[bias.buffer].data) == outputs * bias_type().itemsize
    shapes = {shape for _, shape in seen}
    assert {(64, 10, 4, 1), (1, 3, 3, 64), (64, 1, 1, 64), (12, 64)} == shapes


def test_weight_scales_are_those_that_the_weights_were_made_with(cnn):
    """The model keeps multipliers alone; the float32 scales come out of them again."""
    model = quantized(cnn)
    weights = [v.const_value.numpy() for v in cnn[0].graph.initializers.values() if len(v.shape) == 4]
    written = [np.abs(w).reshape(len(w), -1).max(1).astype(np.float64) / 127 for w in weights]
    tensors = root(to_tflite(model).content).subgraphs[0].tensors
    found = [t.quantization.scale for t in tensors if t.quantization is not None and len(t.shape) == 4]
    for scales in written:
        assert any(len(scale) == len(scales) and (scale == scales.astype(np.float32)).all() for scale in found)


def test_metadata_names_each_activation_and_the_axes(cnn):
    model = quantized(cnn)
    made = root(to_tflite(model).content)
    (note,) = made.metadata
    told = json.loads(bytes(made.buffers[note.buffer].data))
    assert note.name == b"gemedge"
    assert [(a["n"], a["epsilon"], a["form"]) for a in told["activations"]] == [(1, 1.0, "table")] * 2
    assert [a["digest"] for a in told["activations"]] == [kernel.digest for kernel in model.kernels.values()]
    assert told["axes"] == {"input": [0, 2, 3, 1], model.outputs["output"]: [0, 1]}
    assert (told["scheme"], told["rounding"]) == ("int8", "double")


def test_callers_find_inputs_and_outputs_by_name_and_channels_last(cnn):
    found = litert.Interpreter(model_content=to_tflite(quantized(cnn)).content)
    signature = found.get_signature_list()["serving_default"]
    assert signature == {"inputs": ["input"], "outputs": ["output"]}
    (detail,) = found.get_input_details()
    assert (detail["shape"].tolist(), detail["shape_signature"].tolist()) == ([1, 16, 16, 3], [-1, 16, 16, 3])


@pytest.mark.parametrize("batch", [1, 5])
def test_the_batch_may_vary(cnn, batch):
    model = quantized(cnn)
    given = {"input": NETWORKS["cnn"].inputs(batch, seed=4)["input"].numpy()}
    integers = integers_of(model, given)
    together = made_by(LITERT, to_tflite(model), integers)
    alone = [made_by(LITERT, to_tflite(model), {"input": integers["input"][i : i + 1]}) for i in range(batch)]
    for name, array in together.items():
        np.testing.assert_array_equal(array, np.concatenate([each[name] for each in alone]))


def test_a_constant_beside_a_tensor_fixes_the_batch():
    model, _ = graph_of("concatenated with a constant", "int8", DOUBLE)
    written = to_tflite(model)
    assert not written.dynamic
    assert litert.Interpreter(model_content=written.content).get_input_details()[0]["shape_signature"][0] == 1


# What has no form


REFUSED = {
    "softmax": (GRAPHS["softmax"], "int8", "layer 'softmax0' (Softmax) in TensorFlow Lite: its integers are by a law"),
    "layer norm": (
        GRAPHS["layer normalisation"],
        "int8",
        "layer 'layernormalization0' (LayerNormalization) in TensorFlow Lite: its integers are by a law of ours",
    ),
    "weights of 16 bits": (
        GRAPHS["relu in a convolution"],
        "q15",
        "scheme q15; TensorFlow Lite takes int8 and int16x8",
    ),
    "padding that must not count": (
        Graph("y = AveragePool <kernel_shape = [3, 3], pads = [1, 0, 0, 0]> (x)", {"x": normal(2, 2, 5, 5)}),
        "int8",
        "layer 'averagepool0' (RawAveragePool) in TensorFlow Lite: pads [1, 0, 0, 0] are not TensorFlow Lite's SAME",
    ),
    "six axes": (
        Graph("y = Reshape (x, s)", {"x": normal(2, 8, 6)}, {"s": i64(0, 2, 2, 2, 3, 2)}),
        "int8",
        "layer 'reshape0' (Reshape) in TensorFlow Lite: tensor 'y' has 6 axes; TensorFlow Lite takes 5",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_refused_by_name(name):
    graph, scheme, message = REFUSED[name]
    model = graph.model()
    tensors = float_tensors(model, graph.inputs)
    made = quantize(model, ranges_of(tensors), scheme=scheme, rounding=SINGLE if scheme == "q15" else DOUBLE)
    with pytest.raises(UnsupportedError) as refused:
        to_tflite(made)
    assert message in str(refused.value)


def changed(model: QuantizedModel, kind: str, **fields) -> QuantizedModel:
    layers = [replace(x, **fields) if type(x).__name__ == kind else x for x in model.layers]
    return replace(model, layers=tuple(layers))


@pytest.mark.parametrize(
    ("graph", "kind"),
    [("relu in Add", "GemmlowpSum"), ("product of numbers", "Multiply"), ("product of activations", "MatrixMultiply")],
)
def test_a_multiplier_that_runtimes_would_not_compute_is_refused(graph, kind):
    model, _ = graph_of(graph, "int8", DOUBLE)
    (layer,) = (layer for layer in model.layers if type(layer).__name__ == kind)
    mantissa = layer.mantissa.copy()
    mantissa[-1] += 1
    with pytest.raises(UnsupportedError, match=r"it rescales by \d+ \* 2\^-\d+; TensorFlow Lite would by"):
        to_tflite(changed(model, kind, mantissa=mantissa))


def test_weights_whose_multipliers_no_scale_gives_are_refused(cnn):
    model = quantized(cnn)
    (layer,) = (layer for layer in model.layers if type(layer).__name__ == "Dense")
    with pytest.raises(UnsupportedError, match=f"layer '{layer.name}' .* it rescales by"):
        to_tflite(changed(model, "Dense", mantissa=layer.mantissa | 127))


@pytest.mark.parametrize("names", [("\ud800", "y", "z"), ("x", "\ud800", "z"), ("x", "y", "\ud800")], ids=ascii)
def test_a_name_that_is_not_utf8_is_refused(names):
    given, made, output = names
    tensors = {name: Tensor(name, (2, 3), QuantParams(0.1, 0, 8)) for name in (given, made)}
    model = QuantizedModel("int8", DOUBLE, (given,), {output: made}, tensors, (Reshape("r", (given,), made, (2, 3)),))
    with pytest.raises(UnsupportedError, match=r"name '\\ud800' is not UTF-8, in which a TensorFlow Lite file holds"):
        to_tflite(model)


def test_a_file_beyond_two_gigabytes_is_refused(cnn, monkeypatch):
    monkeypatch.setattr(tflite_writer, "MOST_BYTES", 2000)
    with pytest.raises(UnsupportedError, match=r"constant '.*/weight' takes the file beyond 2 GB"):
        to_tflite(quantized(cnn))


def test_without_a_schema_the_error_says_what_to_install(cnn, monkeypatch):
    monkeypatch.setattr(tflite_writer, "_SCHEMAS", ("missing_package.schema",))
    with pytest.raises(UnsupportedError, match=r"the schema of ai-edge-litert: pip install 'gemedge\[litert\]'"):
        to_tflite(quantized(cnn))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("Conv", "layer '0.0' (Convolution) in TensorFlow Lite: 8 bits in and 16 out; its operator there takes one"),
        ("Gemm", "layer '2' (Dense) in TensorFlow Lite: 8 bits in and 16 out"),
    ],
)
def test_layers_of_two_widths_are_refused_by_name(cnn, node, message):
    wide = {n.name for n in cnn[0].graph if n.op_type == node}
    model = quantize(
        cnn[0], cnn[1], scheme="int8", rounding=DOUBLE, scheme_of=lambda name: "int16x8" if name in wide else None
    )
    with pytest.raises(UnsupportedError) as refused:
        to_tflite(model)
    assert message in str(refused.value)


@pytest.mark.parametrize("widths", [(16, 8, 8), (8, 8, 16), (16, 16, 8), (8, 16, 16)], ids=str)
@pytest.mark.parametrize("runtime", [LITERT, MICRO])
def test_numbers_of_two_widths_are_joined_exactly(runtime, widths):
    scales = {8: 0.1, 16: 0.001}
    params = [QuantParams(scales[bits], 0, bits) for bits in widths]
    tensors = {name: Tensor(name, (2 * 3 if name == "c" else 3,), p) for name, p in zip("abc", params, strict=True)}
    found = [Multiplier.from_real(Fraction(p.scale) / Fraction(params[2].scale)) for p in params[:2]]
    mantissas, shifts = np.array([m.mantissa for m in found]), np.array([31 - m.shift for m in found])
    layer = Concatenate("join", ("a", "b"), "c", 0, mantissas, shifts)
    model = QuantizedModel("int8", DOUBLE, ("a", "b"), {"y": "c"}, tensors, (layer,))
    given = np.arange(-128, 127, dtype=np.float32).reshape(-1, 3)
    assert_equal_to_simulate(runtime, model, {"a": given * 0.1, "b": given[::-1] * 0.05})


def test_a_sum_of_three_is_refused():
    tensors = {name: Tensor(name, (2,), QuantParams(0.1, 0, 8)) for name in "abcd"}
    layer = Combine("sum", ("a", "b", "c"), "d", np.array([1, 1, 1]), np.array(0))
    model = QuantizedModel("int8", SINGLE, ("a", "b", "c"), {"y": "d"}, tensors, (layer,))
    with pytest.raises(UnsupportedError, match=r"layer 'sum' .Combine. in TensorFlow Lite: a sum of 3 tensors"):
        to_tflite(model)


def test_an_output_that_is_an_input_is_copied():
    tensors = {name: Tensor(name, (2, 3), QuantParams(0.1, 0, 8)) for name in "ab"}
    model = QuantizedModel("int8", DOUBLE, ("a",), {"y": "b", "z": "a"}, tensors, (Reshape("r", ("a",), "b", (2, 3)),))
    given = np.arange(6, dtype=np.int8).reshape(1, 2, 3)
    y, z = run_here(MICRO, to_tflite(model).content, [given], dynamic=False)
    assert (y == given).all()
    assert (z == given).all()

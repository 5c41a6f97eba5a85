"""Every operator: from ONNX to integers that a second reading of the file gives too, near onnxruntime's numbers."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import floor, frexp, isqrt

import independent
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import safetensors.numpy
from float_runs import decibels, float_tensors, ranges_of
from networks import NETWORKS

import gemedge.nn as gnn
from gemedge import DataError, GemedgeError, ModelError, model_file
from gemedge.capture import capture_module
from gemedge.fixed import Rounding
from gemedge.fixed import quantize as to_integers
from gemedge.model import SCHEMES, QuantizedModel
from gemedge.quant import evaluate
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import simulate

CASES = [(scheme, Rounding.SINGLE) for scheme in SCHEMES]
CASES += [("int8", Rounding.DOUBLE), ("int16x8", Rounding.DOUBLE)]
RNG = np.random.default_rng(5)
INF = np.float32(np.inf)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


def i64(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@dataclass(frozen=True)
class Graph:
    """An ONNX graph, opset 18, written out: nodes in onnx's text form, from the inputs x (and z) to y.

    loses: decibels below what the scheme reaches at least; moved: the integers are exactly the float output's.
    """

    body: str
    inputs: Mapping[str, np.ndarray]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    moved: bool = False
    loses: int = 0
    layers: tuple[str, ...] = ()

    def model(self) -> ir.Model:
        kinds = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.int64): onnx.TensorProto.INT64}
        graph = onnx.parser.parse_graph(f"g () => () {{ {self.body} }}")
        for name, array in self.inputs.items():
            shape = ["N", *array.shape[1:]]
            graph.input.append(onnx.helper.make_tensor_value_info(name, kinds[array.dtype], shape))
        for name in self.outputs:
            graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items())
        for index, node in enumerate(graph.node):
            node.name = f"{node.op_type.lower()}{index}"
        return ir.from_proto(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        )


def x(*shape: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": normal(3, *shape, scale=scale)}


def moved(body: str, inputs: Mapping[str, np.ndarray], **constants: np.ndarray) -> Graph:
    return Graph(body, inputs, constants, moved=True)


def causal(value: float) -> np.ndarray:
    return np.where(np.tril(np.ones((5, 5))), 0, value).astype(np.float32)


LOWER = np.tril(np.ones((5, 5), bool))
IMAGE, ROWS = x(4, 5, 6), x(5, 6)
GRAPHS = {
    # Convolutions
    "transposed convolution": Graph(
        "y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]> (x, w, b)",
        IMAGE,
        {"w": normal(4, 3, 3, 3), "b": normal(3)},
    ),
    "transposed convolution in groups": Graph(
        "y = ConvTranspose <strides = [2, 3], group = 2, dilations = [2, 1], pads = [0, 1, 1, 0]> (x, w)",
        IMAGE,
        {"w": normal(4, 3, 3, 2)},
    ),
    "transposed depthwise": Graph(
        "y = ConvTranspose <strides = [2, 2], group = 4> (x, w)", IMAGE, {"w": normal(4, 1, 2, 2)}
    ),
    "transposed convolution of a signal": Graph(
        "y = ConvTranspose <strides = [3], output_padding = [2]> (x, w, b)",
        ROWS,
        {"w": normal(5, 2, 4), "b": normal(2)},
    ),
    "transposed convolution without a stride": Graph(
        "y = ConvTranspose <pads = [1, 0, 0, 1]> (x, w)", IMAGE, {"w": normal(4, 2, 3, 2)}
    ),
    # Absorbed
    "relu in a convolution": Graph(
        "c = Conv (x, w, b) y = Relu (c)", IMAGE, {"w": normal(3, 4, 2, 2), "b": normal(3)}, layers=("Convolution",)
    ),
    "relu6 in a convolution": Graph(
        "c = Conv (x, w) y = Clip (c, low, high)",
        IMAGE,
        {"w": normal(3, 4, 2, 2), "low": np.float32(0), "high": np.float32(2.5)},
    ),
    "clip from below in Gemm": Graph(
        "c = Gemm (x, w, b) y = Clip (c, low)", x(6), {"w": normal(6, 4), "b": normal(4), "low": np.float32(-0.5)}
    ),
    "clip from above in Gemm": Graph(
        "c = Gemm <transB = 1> (x, w) y = Clip (c, , high)", x(6), {"w": normal(4, 6), "high": np.float32(0.7)}
    ),
    "relu in Add": Graph("c = Add (x, z) y = Relu (c)", {"x": normal(3, 6), "z": normal(3, 6)}),
    "relu in Sub": Graph("c = Sub (k, x) y = Relu (c)", x(6), {"k": normal(6)}),
    "relu in MatMul and Add": Graph(
        "c = MatMul (x, w) d = Add (b, c) y = Relu (d)", ROWS, {"w": normal(6, 4), "b": normal(4)}
    ),
    "relu read twice is not absorbed": Graph(
        "c = Gemm (x, w) d = Relu (c) y = Add (c, d)", x(6), {"w": normal(6, 4)}, loses=3
    ),
    # Products
    "product of activations": Graph("t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (x, t)", ROWS, loses=3),
    "product with heads broadcast": Graph(
        "y = MatMul (x, z)", {"x": normal(3, 2, 5, 6), "z": normal(3, 1, 6, 4)}, loses=3
    ),
    "constant on the left": Graph("y = MatMul (k, x)", ROWS, {"k": normal(4, 5)}, loses=3),
    "constant for each head on the right": Graph("y = MatMul (x, k)", x(2, 5, 6), {"k": normal(2, 6, 3)}, loses=3),
    "product of numbers": Graph("y = Mul (x, z)", {"x": normal(3, 2, 5), "z": normal(3, 1, 5)}, loses=3),
    "product with constants": Graph("y = Mul (k, x)", ROWS, {"k": normal(5, 1)}, loses=3),
    "product with a negative number": Graph("y = Mul (x, k)", ROWS, {"k": np.float32(-0.3)}, loses=3),
    "product with a positive number": Graph("y = Mul (k, x)", ROWS, {"k": np.float32(0.25)}, layers=("Reshape",)),
    # Shares
    "softmax": Graph("y = Softmax (x)", ROWS, loses=3),
    "softmax over another axis": Graph("y = Softmax <axis = 1> (x)", x(4, 5, 6), loses=3),
    "softmax of one column": Graph("y = Softmax (x)", x(5, 1)),
    "softmax of large numbers": Graph("y = Softmax (x)", x(5, 6, scale=40.0), loses=12),
    "softmax of numbers far below": Graph("a = Add (x, k) y = Softmax (a)", ROWS, {"k": np.float32(-50)}, loses=14),
    "masked by a sum with infinity": Graph(
        "a = Add (x, k) y = Softmax (a)", x(2, 5, 5), {"k": causal(-np.inf)}, loses=3, layers=("Softmax",)
    ),
    "masked by a sum with -1e9": Graph(
        "a = Add (k, x) y = Softmax (a)", x(2, 5, 5), {"k": causal(-1e9)}, loses=3, layers=("Softmax",)
    ),
    "masked by a choice": Graph(
        "a = Where (c, x, k) y = Softmax (a)", x(2, 5, 5), {"c": LOWER, "k": -INF}, loses=3, layers=("Softmax",)
    ),
    "masked by the other choice": Graph(
        "a = Where (c, k, x) y = Softmax (a)",
        x(2, 5, 5),
        {"c": ~LOWER[None], "k": np.float32(-1e9)},
        loses=3,
        layers=("Softmax",),
    ),
    # Normalised
    "layer normalisation": Graph("y = LayerNormalization (x, w, b)", x(5, 32), {"w": normal(32), "b": normal(32)}),
    "layer normalisation over two axes": Graph(
        "y = LayerNormalization <axis = -2> (x, w, b)", x(4, 5, 6), {"w": normal(5, 6), "b": normal(5, 6)}
    ),
    "layer normalisation without a bias": Graph(
        "y = LayerNormalization <epsilon = 0.1> (x, w)", x(5, 16), {"w": normal(16)}
    ),
    "layer normalisation of constant rows": Graph(
        "y = LayerNormalization (x, w, b)",
        {"x": np.concatenate([normal(2, 4, 16), np.full((1, 4, 16), 1.0, np.float32)])},
        {"w": normal(16), "b": normal(16)},
    ),
    # Means
    "mean of the last axis": Graph("y = ReduceMean <keepdims = 0> (x, a)", x(4, 5, 6), {"a": i64(-1)}, loses=9),
    "mean of a middle axis": Graph("y = ReduceMean (x, a)", x(4, 5, 6), {"a": i64(2)}, loses=9),
    "mean of the channels": Graph("y = ReduceMean <keepdims = 0> (x, a)", x(4, 5, 6), {"a": i64(1)}, loses=9),
    "mean of two axes": Graph("y = ReduceMean <keepdims = 0> (x, a)", x(4, 5, 6), {"a": i64(3, 1)}, loses=12),
    "mean of all axes": Graph("y = ReduceMean (x, a)", {"x": 1 + normal(3, 4, 5, 6)}, {"a": i64(1, 2, -1)}, loses=14),
    "global average": Graph("y = GlobalAveragePool (x)", IMAGE, loses=14),
    "average with padding": Graph(
        "y = AveragePool <kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 1]> (x)", IMAGE, loses=9
    ),
    "average counting padding": Graph(
        "y = AveragePool <kernel_shape = [3, 2], pads = [1, 0, 1, 1], count_include_pad = 1> (x)", IMAGE, loses=9
    ),
    # Choices and constants
    "choice": Graph("y = Where (c, x, z)", {"x": normal(3, 5), "z": normal(3, 1)}, {"c": np.arange(5) % 2 == 0}),
    "choice of a constant": Graph("y = Where (c, k, x)", x(4, 5), {"c": np.eye(4, 5) == 1, "k": np.float32(0.7)}),
    "a constant read by nodes of different ranks": Graph(
        "a = Add (x, k) b = Mul (z, k) c = Unsqueeze (b, one) y = Add (a, c)",
        {"x": normal(3, 4, 6), "z": normal(3, 6)},
        {"k": normal(6), "one": i64(1)},
        loses=6,
    ),
    "concatenated with a constant": Graph(
        "s = Shape <end = 1> (x) t = Concat <axis = 0> (s, r) e = Expand (k, t) y = Concat <axis = 1> (e, x)",
        x(4, 6),
        {"k": normal(1, 1, 6), "r": i64(2, 6)},
    ),
    # Moved
    "sliced backwards": moved(
        "y = Slice (x, s, e, a, t)", IMAGE, s=i64(-1, 4), e=i64(-99, 0), a=i64(2, -1), t=i64(-2, -1)
    ),
    "sliced beyond": moved("y = Slice (x, s, e)", IMAGE, s=i64(0, 1, -3), e=i64(9999, 99, 2**62)),
    "sliced to all": moved("y = Slice (x, s, e, a)", IMAGE, s=i64(0), e=i64(99), a=i64(1)),
    "split evenly": Graph(
        "p, q, r = Split <axis = -1, num_outputs = 3> (x)", IMAGE, outputs=("p", "q", "r"), moved=True
    ),
    "split unevenly": Graph("p, q = Split <axis = 1> (x, s)", IMAGE, {"s": i64(1, 3)}, outputs=("p", "q"), moved=True),
    "split with a rest": Graph("p, q = Split <axis = 2, num_outputs = 2> (x)", IMAGE, outputs=("p", "q"), moved=True),
    "squeezed": moved("y = Squeeze (x, a)", x(1, 5, 1), a=i64(-1, 1)),
    "squeezed of all": moved("y = Squeeze (x)", x(1, 5, 1)),
    "unsqueezed": moved("y = Unsqueeze (x, a)", ROWS, a=i64(-1, 1)),
    "flattened": moved("y = Flatten (x)", IMAGE),
    "expanded": moved("y = Expand (x, s)", x(1, 6), s=i64(1, 4, 1)),
    "gathered by a number": moved("y = Gather <axis = 2> (x, i)", IMAGE, i=np.int64(-2)),
    "gathered by a list": moved("y = Gather <axis = 1> (x, i)", IMAGE, i=i64(3, 0, -1, 3)),
    "gathered by a table": moved("y = Gather <axis = 2> (x, i)", IMAGE, i=i64(3, 0, -1, 2).reshape(2, 2)),
    "padded on one axis": moved("y = Pad (x, p, , a)", IMAGE, p=i64(1, 2), a=i64(-1)),
    "identity": moved("y = Identity (x)", ROWS),
    "batch moved, then selected": moved("t = Transpose <perm = [2, 0, 1]> (x) y = Gather (t, i)", ROWS, i=np.int64(1)),
    "batch moved, then split": moved(
        "t = Transpose <perm = [1, 0, 2]> (x) p, q = Split <axis = 0> (t, s) u = Squeeze (p, o) y = Identity (u)",
        ROWS,
        s=i64(1, 4),
        o=i64(0),
    ),
    "batch merged with heads": Graph(
        "r = Reshape (x, s) t = Transpose <perm = [0, 2, 1]> (r) m = MatMul (r, t) v = Softmax (m) y = Reshape (v, u)",
        x(2, 5, 6),
        {"s": i64(-1, 5, 6), "u": i64(-1, 2, 5, 5)},
        loses=9,
    ),
    "two outputs and one read twice": Graph(
        "a = Gemm (x, w) y = Add (a, a) z = Sigmoid (a)", x(6), {"w": normal(6, 4)}, outputs=("y", "z"), loses=3
    ),
    "nearest neighbours, twice": moved("y = Resize (x, , s)", IMAGE, s=np.float32([1, 1, 2, 2])),
    "nearest neighbours, by sizes": moved(
        'b = Shape <end = 1> (x) t = Concat <axis = 0> (b, s) y = Resize <nearest_mode = "floor"> (x, , , t)',
        IMAGE,
        s=i64(4, 7, 3),
    ),
    "embedding": Graph(
        "e = Gather (t, x) y = Add (e, p)", {"x": RNG.integers(0, 11, (3, 4))}, {"t": normal(11, 6), "p": normal(4, 6)}
    ),
}
LEAST = {"int8": 34, "q7": 28, "int16x8": 38, "q15": 72}


def judged(quantized: QuantizedModel, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs' integers, after every layer's were compared with the second reading's."""
    names = [layer.name for layer in quantized.layers]
    ours = simulate(quantized, inputs, layers=names, raw=True)
    theirs = independent.run(model_file.save(quantized), inputs)
    for layer in quantized.layers:
        expected = np.broadcast_to(theirs[layer.output], ours[layer.name].shape)
        np.testing.assert_array_equal(ours[layer.name], expected, err_msg=layer.name)
    return ours


@pytest.fixture(scope="module", params=GRAPHS, ids=str)
def drawn(request):
    graph = GRAPHS[request.param]
    model = graph.model()
    tensors = float_tensors(model, graph.inputs)
    return graph, model, tensors


@pytest.mark.parametrize(("scheme", "rounding"), CASES)
def test_each_operator_gives_the_integers_of_the_second_reading(drawn, scheme, rounding):
    graph, model, tensors = drawn
    quantized = quantize(model, ranges_of(tensors), scheme=scheme, rounding=rounding)
    ours = judged(quantized, graph.inputs)
    for name in graph.outputs:
        params = quantized.tensors[quantized.outputs[name]].quantized
        if graph.moved:
            np.testing.assert_array_equal(ours[name], to_integers(tensors[name], params))
        real = (ours[name].astype(np.float64) - params.zero_point) * params.scale
        assert real.shape == tensors[name].shape
        assert decibels(tensors[name], real) > LEAST[scheme] - graph.loses
    if graph.layers and scheme == "int8":
        assert tuple(type(layer).__name__ for layer in quantized.layers) == graph.layers


MODES = [
    (transformation, nearest)
    for transformation in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
    for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
]


@pytest.mark.parametrize(("transformation", "nearest"), MODES)
def test_resize_takes_the_places_that_onnxruntime_takes(transformation, nearest):
    for size in (1, 2, 5, 7):
        for scale in (0.4, 0.5, 0.6, 1.1, 1.2, 1.5, 2.0, 2.5, 3.0, 3.3):
            if int(size * scale) < 1:
                continue
            body = (
                f'y = Resize <coordinate_transformation_mode = "{transformation}", nearest_mode = "{nearest}"> (x, , s)'
            )
            given = {"x": np.arange(3 * size, dtype=np.float32).reshape(3, 1, size)}
            graph = Graph(body, given, {"s": np.float32([1, 1, scale])})
            model = graph.model()
            tensors = float_tensors(model, given)
            made = simulate(quantize(model, ranges_of(tensors), scheme="int8", rounding=Rounding.SINGLE), given)
            np.testing.assert_array_equal(np.rint(made["y"]), tensors["y"], err_msg=f"{size} times {scale}")


@pytest.fixture(scope="module", params=["vit", "gpt"])
def transformer(request):
    network = NETWORKS[request.param]
    inputs = network.inputs(batch=2)
    found = capture_module(
        network.model(lambda: gnn.GEM(1)),
        {k: v[:2] for k, v in inputs.items()},
        dynamic={k: {0: "batch"} for k in inputs},
    )
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
    return found.model, given, float_tensors(found.model, given)


@pytest.mark.parametrize(("scheme", "rounding"), CASES)
def test_transformers_are_integers_from_end_to_end(transformer, scheme, rounding):
    model, given, tensors = transformer
    quantized = quantize(model, ranges_of(tensors), scheme=scheme, rounding=rounding)
    ours = judged(quantized, given)
    kinds = {type(layer).__name__ for layer in quantized.layers}
    assert {"Softmax", "LayerNormalization", "MatrixMultiply", "Activate"} <= kinds <= set(independent.EVALUATE)
    for name, tensor in quantized.outputs.items():
        params = quantized.tensors[tensor].quantized
        real = (ours[name].astype(np.float64) - params.zero_point) * params.scale
        assert decibels(tensors[name], real) > {"int8": 30, "q7": 27, "int16x8": 44, "q15": 74}[scheme]


FIXED = [
    *("squeezed", "squeezed of all", "unsqueezed", "flattened", "expanded", "gathered by a table", "split evenly"),
    *("batch moved, then selected", "batch moved, then split", "batch merged with heads", "mean of two axes"),
    *("concatenated with a constant", "masked by a choice", "constant on the left", "nearest neighbours, by sizes"),
]


@pytest.mark.parametrize("name", FIXED)
def test_a_model_of_one_sample_runs_on_many(name):
    graph, model = GRAPHS[name], GRAPHS[name].model()
    for value in model.graph.inputs:
        value.shape = ir.Shape([1, *value.shape[1:]])
    samples = [float_tensors(model, {key: a[i : i + 1] for key, a in graph.inputs.items()}) for i in range(3)]
    tensors = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    found = simulate(quantize(model, ranges_of(tensors), scheme="q15", rounding=Rounding.SINGLE), graph.inputs)
    for output in graph.outputs:
        assert decibels(tensors[output].reshape(found[output].shape), found[output]) > 75


def lowered(graph: Graph, scheme="int8", rounding=Rounding.SINGLE, tensors=None):
    model = graph.model()
    return quantize(model, ranges_of(tensors or float_tensors(model, graph.inputs)), scheme=scheme, rounding=rounding)


def test_a_relu_whose_bound_is_the_zero_point_costs_no_layer():
    quantized = lowered(GRAPHS["relu in a convolution"])
    assert quantized.tensors[quantized.outputs["y"]].quantized.zero_point == -128
    assert [type(layer).__name__ for layer in quantized.layers] == ["Convolution"]
    quantized = lowered(GRAPHS["relu in a convolution"], scheme="int16x8")
    assert [type(layer).__name__ for layer in quantized.layers] == ["Convolution", "Clamp"]


def test_a_product_with_a_positive_number_keeps_every_integer():
    graph = GRAPHS["product with a positive number"]
    quantized = lowered(graph)
    given, made = quantized.tensors["x"].quantized, quantized.tensors[quantized.outputs["y"]].quantized
    ours = simulate(quantized, graph.inputs, raw=True)["y"]
    np.testing.assert_array_equal(ours, to_integers(graph.inputs["x"], given))
    assert (made.scale, made.zero_point) == (given.scale / 4, given.zero_point)


@pytest.mark.parametrize("index", [-1, 11, 2**40])
def test_an_index_outside_its_table_is_named(index):
    graph = GRAPHS["embedding"]
    with pytest.raises(DataError, match=rf"layer 'gather0': index {index} of a table of 11 rows"):
        simulate(lowered(graph), {"x": np.array([[0, 1, index, 3]])})


TURNED = "t = Transpose <perm = [1, 0, 2]> (x) "
REFUSED = {
    "slice of the batch": (moved("y = Slice (x, s, e)", ROWS, s=i64(1), e=i64(9)), "axis 0 is the batch"),
    "batch turned round": (
        moved("y = Slice (x, s, e, a, t)", ROWS, s=i64(-1), e=i64(-99), a=i64(0), t=i64(-1)),
        r"'slice0' \(Slice\): axis 0 is the batch",
    ),
    "mean over the batch": (moved("y = ReduceMean (x, a)", ROWS, a=i64(0)), "axis 0 is the batch"),
    "mean over everything": (Graph("y = ReduceMean (x)", ROWS), "a mean over all axes would cross the batch"),
    "norm over the batch": (
        Graph(
            "t = Transpose <perm = [1, 0, 2]> (x) y = LayerNormalization <axis = 1> (t, w)", x(4, 4), {"w": normal(4)}
        ),
        r"'layernormalization1' \(LayerNormalization\): axis 1 is the batch",
    ),
    "norm across the batch": (
        Graph(
            "t = Transpose <perm = [1, 0, 2]> (x) y = LayerNormalization <axis = 0> (t, w)", x(4, 4), {"w": normal(4)}
        ),
        "it would cross the batch",
    ),
    "matrix over the batch": (
        Graph("t = Transpose <perm = [1, 2, 0]> (x) y = MatMul (t, k)", x(4, 4), {"k": normal(3, 4)}),
        r"'matmul1' \(MatMul\): it would cross the batch",
    ),
    "product over the batch": (
        Graph("t = Transpose <perm = [1, 0, 2]> (x) u = Transpose <perm = [1, 2, 0]> (x) y = MatMul (t, u)", x(4, 4)),
        "it would cross the batch",
    ),
    "window over the batch": (
        Graph("t = Transpose <perm = [1, 0, 2, 3]> (x) y = MaxPool <kernel_shape = [2, 2]> (t)", IMAGE),
        "its input must have the batch on the first axis, and nothing else there",
    ),
    "average over heads": (
        Graph("r = Reshape (x, s) y = GlobalAveragePool (r)", x(2, 3, 4, 4), {"s": i64(-1, 3, 4, 4)}),
        "its input must have the batch on the first axis, and nothing else there",
    ),
    "sum of batches": (
        Graph("t = Transpose <perm = [1, 0, 2]> (x) y = Add (x, t)", {"x": normal(4, 4, 4)}),
        "its inputs have the batch on different axes",
    ),
    "batches side by side": (
        Graph("t = Transpose <perm = [1, 0, 2]> (x) y = Concat <axis = 2> (x, t)", {"x": normal(4, 4, 4)}),
        "its inputs have the batch on different axes",
    ),
    "choice of batches": (
        Graph(
            "t = Transpose <perm = [1, 0, 2]> (x) y = Where (c, x, t)",
            {"x": normal(4, 4, 4)},
            {"c": np.ones(4, bool)},
        ),
        "its inputs have the batch on different axes",
    ),
    "an output with the batch elsewhere": (
        Graph("y = Transpose <perm = [1, 0, 2]> (x)", ROWS),
        "output 'y' has its batch on axis 1",
    ),
    "a constant for each sample": (
        Graph("y = Add (x, k)", x(4), {"k": normal(3, 4)}),
        "a constant differs from sample to sample",
    ),
    "too many numbers under a mean": (
        Graph("y = LayerNormalization (x, w)", x(16385), {"w": normal(16385)}),
        "16385 numbers under one mean; 16384 at most",
    ),
    "an empty row of a mask": (
        Graph(
            "a = Where (c, x, k) y = Softmax (a)",
            x(4, 4),
            {"c": np.tril(np.ones((4, 4), bool), -1), "k": -INF},
        ),
        "a row of its mask lets nothing pass",
    ),
    "a mask over another axis": (
        Graph("a = Add (x, k) y = Softmax <axis = 1> (a)", x(5, 5), {"k": causal(-np.inf)}),
        "a mask needs a softmax over the last axis",
    ),
    "a mask with other numbers": (
        Graph("a = Add (x, k) y = Softmax (a)", x(5, 5), {"k": causal(-np.inf) + np.eye(5, dtype=np.float32)}),
        r"'add0' \(Add\): constant 'k' holds infinity or NaN",
    ),
    "an infinite factor": (Graph("y = Mul (x, k)", ROWS, {"k": INF}), "constant 'k' holds infinity or NaN"),
    "an infinite choice": (
        Graph("y = Where (c, x, k)", ROWS, {"c": np.ones((5, 6), bool), "k": -INF}),
        "constant 'k' holds infinity or NaN",
    ),
    "an infinite weight": (
        Graph("y = MatMul (x, k)", x(4, 4), {"k": np.where(np.eye(4), INF, 0)}),
        "its weights or its bias hold NaN or infinity",
    ),
    "everything without an integer form": (
        Graph("a = Sin (x) b = CumSum (a, o) c = Div (b, x) d = Floor (c) y = Add (d, x)", ROWS, {"o": np.int64(1)}),
        r"no integer form for 'sin0' \(Sin\), 'cumsum1' \(CumSum\), 'div2' \(Div\), 'floor3' \(Floor\)$",
    ),
    "linear interpolation": (
        Graph('y = Resize <mode = "linear"> (x, , s)', IMAGE, {"s": np.float32([1, 1, 2, 2])}),
        "mode nearest over all axes, stretched, is supported",
    ),
    "a symmetric half pixel": (
        Graph(
            'y = Resize <coordinate_transformation_mode = "half_pixel_symmetric"> (x, , s)',
            IMAGE,
            {"s": np.float32([1, 1, 2, 2])},
        ),
        "coordinate_transformation_mode 'half_pixel_symmetric'",
    ),
    "parts that do not add up": (
        moved("y = Gather <axis = 1> (x, i)", IMAGE, i=i64(0, 4)),
        "a place outside an axis of 4",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_integer_form_is_refused_by_name(name):
    graph, message = REFUSED[name]
    ranges = {letter: np.ones(2, np.float32) for letter in "abcdrtuyx"}
    with pytest.raises(GemedgeError, match=message):
        lowered(graph, tensors=ranges)


# Accuracy, and laws written out from their sources


@pytest.mark.parametrize(
    ("bits", "spread", "most"), [(8, 1.0, 0.51), (16, 1.0, 0.51), (16, 0.01, 0.51), (8, 0.01, 0.6)]
)
@pytest.mark.parametrize("size", [32, 256, 768])
def test_layer_normalization_is_within_half_an_lsb(bits, size, spread, most):
    """At 8 bits and spread 0.01 the codes of a row differ by one: there the whole epsilon shows."""
    rng = np.random.default_rng(size)
    limit = 2 ** (bits - 1)
    q = np.rint(np.clip(rng.standard_normal((40, size)) * spread * limit / 4 + 3, -limit, limit - 1)).astype(np.int64)
    weight, bias = rng.uniform(0.3, 1.2, size).astype(np.float32), rng.uniform(-1, 1, size).astype(np.float32)
    graph = Graph("y = LayerNormalization (x, w, b)", {"x": (q * 0.05).astype(np.float32)}, {"w": weight, "b": bias})
    ends = np.float32([-limit, limit - 1])
    quantized = lowered(
        graph,
        scheme="q7" if bits == 8 else "int16x8",
        tensors={"x": ends * np.float32(0.05), "y": ends * np.float32(8 / limit)},
    )
    given, made = (quantized.tensors[name].quantized for name in ("x", quantized.outputs["y"]))
    codes = to_integers(graph.inputs["x"], given)
    real = codes * given.scale
    centred = real - real.mean(-1, keepdims=True)
    exact = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float64(np.float32(1e-5))) * weight + bias
    exact = np.clip(exact / made.scale, made.raw_min, made.raw_max)
    error = np.abs(simulate(quantized, graph.inputs, raw=True)["y"] - exact).max()
    assert error <= most


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [2, 17, 300])
def test_softmax_is_within_0_6_lsb(scheme, size):
    rng = np.random.default_rng(size)
    for scale in (0.5, 4.0, 30.0):
        graph = Graph("y = Softmax (x)", {"x": (scale * rng.standard_normal((60, size))).astype(np.float32)})
        quantized = lowered(graph, scheme=scheme)
        given, made = (quantized.tensors[name].quantized for name in ("x", quantized.outputs["y"]))
        real = to_integers(graph.inputs["x"], given) * given.scale
        e = np.exp(real - real.max(-1, keepdims=True))
        exact = np.clip(e / e.sum(-1, keepdims=True) / made.scale + made.zero_point, made.raw_min, made.raw_max)
        error = np.abs(simulate(quantized, graph.inputs, raw=True)["y"] - exact).max()
        assert error <= 0.6


def test_a_share_halfway_between_two_codes_becomes_the_upper():
    graph = Graph("y = Softmax (x)", {"x": np.zeros((1, 512), np.float32)})
    assert set(simulate(lowered(graph), graph.inputs, raw=True)["y"].flat) == {-127}  # 256 / 512 above -128


def test_roots_are_whole_parts_where_float64_rounds_up():
    edges = [r * r + offset for r in (2**30, 2**30 + 1, 3 * 2**29, 2**31 - 1) for offset in (-1, 0, 1, 2 * r)]
    values = [value for value in edges if 2**60 <= value < 2**62]
    assert evaluate._root(np.array(values)).tolist() == [isqrt(value) for value in values]


def multiplier(real: float) -> tuple[int, int]:
    """QuantizeMultiplier, tensorflow/lite/kernels/internal/quantization_util.cc."""
    fraction, shift = frexp(real)
    fixed = floor(fraction * 2**31 + 0.5)
    if fixed == 2**31:
        fixed, shift = fixed // 2, shift + 1
    return (0, 0) if shift < -31 else (fixed, shift)


def truncated(a: int, b: int) -> int:
    """C's a / b."""
    return abs(a) // b * (1 if a >= 0 else -1)


def high_multiply(a: int, b: int) -> int:
    """SaturatingRoundingDoublingHighMul, gemmlowp/fixedpoint/fixedpoint.h."""
    ab = a * b
    return truncated(ab + (2**30 if ab >= 0 else 1 - 2**30), 2**31)


def divide_by_power(x: int, exponent: int) -> int:
    """RoundingDivideByPOT, gemmlowp/fixedpoint/fixedpoint.h."""
    mask = 2**exponent - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


def times(x: int, mantissa: int, shift: int) -> int:
    """MultiplyByQuantizedMultiplier, tensorflow/lite/kernels/internal/common.h."""
    return divide_by_power(high_multiply(x * 2 ** max(shift, 0), mantissa), max(-shift, 0))


def wide_times(x: int, mantissa: int, shift: int) -> int:
    """MultiplyByQuantizedMultiplier for int64, tensorflow/lite/kernels/internal/common.cc."""
    reduced = (mantissa + 2**15) >> 16 if mantissa < 0x7FFF0000 else 0x7FFF
    return (x * reduced + 2 ** (14 - shift)) >> (15 - shift)


def parameters(quantized: QuantizedModel, *names: str):
    return [quantized.tensors[quantized.outputs.get(name, name)].quantized for name in names]


@pytest.mark.parametrize(("scheme", "left"), [("int8", 20), ("int16x8", 15)])
@pytest.mark.parametrize(("kind", "sign"), [("Add", 1), ("Sub", -1)])
def test_double_sums_as_tensorflow_lite_does(scheme, left, kind, sign):
    """AddElementwise and SubElementwise, tensorflow/lite/kernels/internal/reference."""
    tensors = {"x": np.float32([-3, 2.5]), "z": np.float32([-0.4, 0.9]), "y": np.float32([-2.1, 2.9])}
    grid = np.meshgrid(np.linspace(-3, 2.5, 256), np.linspace(-0.4, 0.9, 256))  # all pairs of 8-bit codes
    given = {name: numbers.astype(np.float32) for name, numbers in zip("xz", grid, strict=True)}
    quantized = lowered(Graph(f"y = {kind} (x, z)", given), scheme, Rounding.DOUBLE, tensors)
    x, z, y = parameters(quantized, "x", "z", "y")
    twice = 2 * max(x.scale, z.scale)
    first, second, last = (multiplier(real) for real in (x.scale / twice, z.scale / twice, twice / (2**left * y.scale)))
    expected = []
    for p, q in zip(to_integers(given["x"], x).flat, to_integers(given["z"], z).flat, strict=True):
        one = times((int(p) - x.zero_point) * 2**left, *first)
        two = times((int(q) - z.zero_point) * 2**left, *second)
        expected.append(min(max(times(one + sign * two, *last) + y.zero_point, y.raw_min), y.raw_max))
    assert simulate(quantized, given, raw=True)["y"].reshape(-1).tolist() == expected


def test_double_averages_as_tensorflow_lite_does():
    """AveragePool, tensorflow/lite/kernels/internal/reference/integer_ops/pooling.h: -1 and 0 give -1."""
    codes = np.array([[-1, 0], [0, 1], [-3, 0], [-128, -127], [127, 126], [1, 1], [5, -8]])
    given = {"x": codes.astype(np.float32)[:, None]}
    graph = Graph("y = AveragePool <kernel_shape = [2]> (x)", given)
    ends = {"x": np.float32([-128, 127]), "y": np.float32([-128, 127])}
    made = {r: simulate(lowered(graph, "int8", r, ends), given, raw=True)["y"].reshape(-1).tolist() for r in Rounding}
    sums = [int(a + b) for a, b in codes]
    assert made[Rounding.DOUBLE] == [truncated(total + (1 if total > 0 else -1), 2) for total in sums]
    assert made[Rounding.SINGLE] == [(total + 1) // 2 for total in sums]
    assert (made[Rounding.DOUBLE][0], made[Rounding.SINGLE][0]) == (-1, 0)


@pytest.mark.parametrize(("scheme", "law"), [("int8", times), ("int16x8", wide_times)])
def test_double_rescales_products_as_tensorflow_lite_does(scheme, law):
    given = {"x": normal(40, 6)}
    graph = Graph("y = Gemm (x, w, b)", given, {"w": normal(6, 5), "b": normal(5)})
    quantized = lowered(graph, scheme, Rounding.DOUBLE)
    (dense,) = quantized.layers
    x, y = parameters(quantized, "x", "y")
    limit, expected = 127, []
    scales = np.abs(graph.constants["w"]).max(0).astype(np.float64) / limit
    for row in to_integers(given["x"], x):
        for weights, bias, scale in zip(dense.weight, dense.bias, np.float32(scales), strict=True):
            total = int(bias) + sum(int(w) * (int(q) - x.zero_point) for w, q in zip(weights, row, strict=True))
            code = law(total, *multiplier(x.scale * float(scale) / y.scale)) + y.zero_point
            expected.append(min(max(code, y.raw_min), y.raw_max))
    assert simulate(quantized, given, raw=True)["y"].reshape(-1).tolist() == expected


# Files that are whole, and wrong


def rewritten(content: bytes, kind: str, change: Mapping[str, object]) -> bytes:
    """The file with fields of the first layer of a kind changed, and its digest made anew (docs/file-format.md)."""
    graph, _, _ = independent.read(content)
    arrays = safetensors.numpy.load(content)
    layer = next(layer for layer in graph["layers"] if layer["operator"] == kind)
    for key, value in change.items():
        if isinstance(value, np.ndarray):
            arrays[layer[key]["tensor"]] = value
        else:
            layer[key] = value
    header, data = {}, b""
    for name, array in arrays.items():
        stop = len(data) + array.nbytes
        dtype = {1: "I8", 2: "I16", 8: "I64"}[array.itemsize]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), stop]}
        data += array.tobytes()
    text, index = (json.dumps(part, separators=(",", ":")) for part in (graph, header))
    digest = hashlib.sha256(text.encode() + index.encode() + data).hexdigest()
    header["__metadata__"] = {"format": "gemedge model", "version": "1", "digest": digest, "graph": text}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + data


def i8(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int8)


FINE, EYE = np.full(256, 2**14), np.eye(5, dtype=np.int8)
NORM, SHARES = "layer normalisation without a bias", "masked by a choice"
SUM, CHOICE, TABLE = "relu in Add", "choice", "embedding"
WRONG = [
    ("gathered by a list", "Take", {"places": i64(0, 4)}, "layer 'gather0': a place outside an axis of 4"),
    ("gathered by a list", "Take", {"places": i64(-1)}, "layer 'gather0': a place outside an axis of 4"),
    ("gathered by a list", "Take", {"places": i64()}, "its places must be a list"),
    ("gathered by a list", "Take", {"places": i64(3, 0, 1)}, r"it makes \[3, 5, 6\], its output is \[4, 5, 6\]"),
    ("gathered by a list", "Take", {"axis": 3}, r"axis 3 of shape \[4, 5, 6\]"),
    ("gathered by a list", "Take", {"axis": -1}, r"axis -1 of shape \[4, 5, 6\]"),
    (SHARES, "Softmax", {"fine": -FINE}, "layer 'softmax1': its tables or its shift"),
    (SHARES, "Softmax", {"coarse": i64(2**50)}, "layer 'softmax1': its "),
    (SHARES, "Softmax", {"fine": i64(1, 2)}, "tables of 2 and 1 numbers"),
    (SHARES, "Softmax", {"shift": 15 + 1}, "its tables or its shift"),
    (SHARES, "Softmax", {"shift": -1}, "layer 'softmax1': shift -1 must be from 0 to 62"),
    (SHARES, "Softmax", {"one": 0}, "its tables or its shift"),
    (SHARES, "Softmax", {"one": 2**16}, "its tables or its shift"),
    (SHARES, "Softmax", {"mask": 2 * EYE}, "a condition must be 0 or 1"),
    (SHARES, "Softmax", {"mask": 0 * EYE}, "a row of its mask lets nothing pass"),
    (SHARES, "Softmax", {"mask": np.ones((3, 2, 5, 5), np.int8)}, "its mask is larger than it"),
    (NORM, "LayerNormalization", {"epsilon": 0}, "epsilon of 0 must be from 1 to 2.60"),
    (NORM, "LayerNormalization", {"epsilon": 2**60}, "must be from 1 to 2.60"),
    (NORM, "LayerNormalization", {"mantissa": i64(1, 2)}, r"\(2,\) mantissas for 16"),
    (NORM, "LayerNormalization", {"mantissa": np.full(16, 2**31)}, "mantissa 2147483648 or shift"),
    (NORM, "LayerNormalization", {"bias": np.full(16, 2**60)}, "a bias beyond 2.60"),
    (NORM, "LayerNormalization", {"bias": i64(-(2**63), *range(15))}, "a bias beyond 2.60"),
    (NORM, "LayerNormalization", {"mantissa": i64(-(2**63), *range(15))}, "mantissa 9223372036854775808 or shift"),
    (NORM, "LayerNormalization", {"shift": 63}, "or shift 63"),
    (CHOICE, "Choose", {"condition": i8(0, 1, 2, 0, 1)}, "layer 'where0': a condition must be 0 or 1"),
    (CHOICE, "Choose", {"condition": i64(0, 1, 1, 0, 1)}, "a condition must be 0 or 1"),
    (CHOICE, "Choose", {"condition": i8(0, 1)}, "do not combine"),
    (CHOICE, "Choose", {"mantissa": i64(2**30)}, "1 mantissas; it needs 2"),
    (TABLE, "Embed", {"table": np.zeros((11, 6), np.int16)}, "integers of type int16; its output has int8"),
    (TABLE, "Embed", {"table": np.zeros((11, 5), np.int8)}, r"it makes \[4, 5\], its output is \[4, 6\]"),
    (SUM, "GemmlowpSum", {"mantissa": i64(2**30, 2**30)}, "2 mantissas and 3 shifts; it needs 3"),
    (SUM, "GemmlowpSum", {"shift": i64(31)}, "3 mantissas and 1 shifts; it needs 3"),
    (SUM, "GemmlowpSum", {"left": -1}, "left=-1 must be from 0 to 30"),
    (SUM, "GemmlowpSum", {"left": 60}, "left=60 must be from 0 to 30"),
    (SUM, "GemmlowpSum", {"mantissa": i64(2**30, 2**30, -(2**30))}, "layer 'add0': mantissa -1073741824 below 0"),
    (SUM, "GemmlowpSum", {"left": 30}, r"left=30 and shifts \[.*\] take an input beyond 32 bits"),
    ("relu6 in a convolution", "Clamp", {"low": 3, "high": 2}, "low=3 above high=2"),
    ("relu6 in a convolution", "Clamp", {"high": 2**15}, r"conv0/clamp': \[32768\] outside the integers from -32768"),
    ("transposed convolution", "Spread", {"strides": [2]}, "strides"),
    ("transposed convolution", "Spread", {"strides": [2, 0]}, "strides"),
    ("transposed convolution", "Spread", {"value": 128}, r"convtranspose0/spread': \[128\] outside"),
    ("padded on one axis", "Pad", {"value": -129}, r"layer 'pad0': \[-129\] outside the integers from -128 to 127"),
    ("product of activations", "MatrixMultiply", {"inputs": ["x", "x"]}, r"\[5, 6\] times \[5, 6\]"),
    ("product of activations", "MatrixMultiply", {"mantissa": i64(-5)}, "layer 'matmul1': mantissa -5 below 0"),
    ("product of activations", "MatrixMultiply", {"mantissa": i64(2**31)}, "layer 'matmul1': "),
    (
        "product of activations",
        "MatrixMultiply",
        {"mantissa": i64(-(2**63))},
        "layer 'matmul1': mantissa -9223372036854775808 below 0",
    ),
    ("global average", "RawAveragePool", {"kernel": [0, 1]}, r"window \[0, 1\]"),
    ("average with padding", "RawAveragePool", {"pads": [9, 9, 9, 9]}, "layer 'averagepool0': "),
]


@pytest.mark.parametrize(("name", "kind", "change", "message"), WRONG)
def test_a_wrong_operator_in_a_sound_file_is_refused(name, kind, change, message):
    graph = GRAPHS[name]
    content = model_file.save(lowered(graph, "int16x8" if kind == "Clamp" else "int8", Rounding.DOUBLE))
    assert model_file.save(model_file.load(rewritten(content, kind, {}))) == content
    with pytest.raises(ModelError, match=message) as refused:
        model_file.load(rewritten(content, kind, change))
    assert "\n" not in str(refused.value)


def test_a_sum_of_two_roundings_belongs_to_rounding_double():
    quantized = lowered(GRAPHS[SUM], "int8", Rounding.DOUBLE)
    with pytest.raises(GemedgeError, match="layer 'add0': it belongs to rounding double"):
        replace(quantized, rounding=Rounding.SINGLE)

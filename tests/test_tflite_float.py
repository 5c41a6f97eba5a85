"""Float models in TensorFlow Lite: each operator beside onnxruntime, in LiteRT and TensorFlow Lite Micro."""

import json

import numpy as np
import pytest
import torch
from float_runs import float_tensors
from networks import MLPERF_TINY, NETWORKS
from test_operators import Graph, i64, normal, x
from test_tflite import operators, root
from torch import nn

import gemedge.nn as gnn
from gemedge import PromiseError, UnsupportedError, UsageError
from gemedge.capture import Captured, capture_module
from gemedge.export import export, tflite_run
from gemedge.export.check import compare
from gemedge.export.tflite_float import to_tflite_float
from gemedge.export.tflite_run import LITERT, MICRO, run_here
from gemedge.export.to_tflite import laid

IMAGE, ROWS, VECTOR = x(4, 5, 6), x(5, 6), x(6)
CONVOLVED = {"w": normal(6, 4, 2, 3), "b": normal(6)}
GRAPHS = {
    "convolution": Graph("y = Conv <pads = [1, 0, 0, 2], strides = [2, 1]> (x, w, b)", IMAGE, CONVOLVED),
    "convolution padded alike": Graph("y = Conv <pads = [1, 1, 1, 1]> (x, w)", IMAGE, {"w": normal(3, 4, 3, 3)}),
    "convolution padded before": Graph("y = Conv <pads = [1, 1, 0, 0]> (x, w)", IMAGE, {"w": normal(3, 4, 2, 2)}),
    "convolution padded after": Graph("y = Conv <pads = [0, 0, 1, 1]> (x, w)", IMAGE, {"w": normal(3, 4, 2, 2)}),
    "depthwise": Graph("y = Conv <group = 4, dilations = [2, 1]> (x, w)", IMAGE, {"w": normal(8, 1, 2, 2)}),
    "in groups": Graph("y = Conv <group = 2> (x, w, b)", IMAGE, {"w": normal(6, 2, 2, 3), "b": normal(6)}),
    "signal": Graph("y = Conv <pads = [1, 1]> (x, w, b)", ROWS, {"w": normal(3, 5, 3), "b": normal(3)}),
    "transposed": Graph(
        "y = ConvTranspose <strides = [2, 3]> (x, w, b)", IMAGE, {"w": normal(4, 3, 3, 2), "b": normal(3)}
    ),
    "transposed in groups": Graph(
        "y = ConvTranspose <group = 2, pads = [0, 1, 1, 0], output_padding = [1, 0], strides = [2, 1]> (x, w)",
        IMAGE,
        {"w": normal(4, 3, 3, 2)},
    ),
    "gemm": Graph(
        "y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)", VECTOR, {"w": normal(4, 6), "b": normal(4)}
    ),
    "gemm and one number": Graph("y = Gemm (x, w, b)", VECTOR, {"w": normal(6, 4), "b": normal(1)}),
    "matmul": Graph("y = MatMul (x, w)", ROWS, {"w": normal(6, 3)}),
    "matmul of an image": Graph("c = Conv (x, w, b) y = MatMul (c, k)", IMAGE, CONVOLVED | {"k": normal(4, 5)}),
    "product of activations": Graph("t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (x, t)", ROWS),
    "product with a constant": Graph("y = MatMul (k, x)", ROWS, {"k": normal(4, 5)}),
    "relu": Graph("y = Relu (x)", ROWS),
    "leaky relu": Graph("y = LeakyRelu <alpha = 0.2> (x)", ROWS),
    "functions": Graph("a = Sigmoid (x) b = Tanh (x) c = Mul (a, b) d = Exp (c) e = Neg (d) y = Abs (e)", ROWS),
    "roots and logarithms": Graph("a = Abs (x) b = Add (a, k) c = Sqrt (b) y = Log (c)", ROWS, {"k": np.float32(0.1)}),
    "elu": Graph("y = Elu (x)", ROWS),
    "clip": Graph("y = Clip (x, low, high)", ROWS, {"low": np.float32(-0.3), "high": np.float32(0.4)}),
    "clip from above": Graph("y = Clip (x, , high)", ROWS, {"high": np.float32(0.4)}),
    "arithmetic": Graph(
        "a = Add (x, k) b = Sub (a, x) c = Div (x, n) d = Max (b, c) y = Min (d, k)",
        ROWS,
        {"k": normal(5, 1), "n": np.float32(3)},
    ),
    "broadcast onto an image": Graph(
        "c = Conv (x, w, b) d = Mul (c, k) y = Add (m, d)", IMAGE, CONVOLVED | {"k": normal(6, 1, 4), "m": normal(4, 1)}
    ),
    "squared": Graph("y = Pow (x, k)", ROWS, {"k": np.float32(2)}),
    "batch normalisation": Graph(
        "y = BatchNormalization (x, s, b, m, v)",
        IMAGE,
        {"s": normal(4), "b": normal(4), "m": normal(4), "v": np.abs(normal(4)) + 1},
    ),
    "largest": Graph("y = MaxPool <kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 0, 1]> (x)", IMAGE),
    "mean of windows": Graph("y = AveragePool <kernel_shape = [2, 2]> (x)", IMAGE),
    "mean with padding": Graph(
        "y = AveragePool <kernel_shape = [2, 2], pads = [1, 0, 0, 1], count_include_pad = 1> (x)", IMAGE
    ),
    "mean without padding": Graph("y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)", IMAGE),
    "global mean": Graph("c = Conv (x, w, b) y = GlobalAveragePool (c)", IMAGE, CONVOLVED),
    "mean of axes": Graph(
        "c = Conv (x, w, b) y = ReduceMean <keepdims = 0> (c, a)", IMAGE, CONVOLVED | {"a": i64(1, -1)}
    ),
    "mean of the height": Graph(
        "c = Conv (x, w, b) y = ReduceMean <keepdims = 0> (c, a)", IMAGE, CONVOLVED | {"a": i64(2)}
    ),
    "softmax of channels": Graph("c = Conv (x, w, b) y = Softmax <axis = 1> (c)", IMAGE, CONVOLVED),
    "softmax of rows": Graph("c = Conv (x, w, b) y = Softmax (c)", IMAGE, CONVOLVED),
    "layer normalisation": Graph("y = LayerNormalization (x, g, h)", ROWS, {"g": normal(6), "h": normal(6)}),
    "layer normalisation of two axes": Graph(
        "y = LayerNormalization <axis = -2, epsilon = 0.1> (x, g)", ROWS, {"g": normal(5, 6)}
    ),
    "shapes": Graph(
        "a = Flatten (x) b = Unsqueeze (a, k) c = Squeeze (b, k) y = Reshape (c, s)",
        IMAGE,
        {"k": i64(1), "s": i64(0, 6, -1)},
    ),
    "shape computed": Graph(
        "s = Shape <end = 1> (x) t = Concat <axis = 0> (s, r) y = Reshape (x, t)", IMAGE, {"r": i64(10, 12)}
    ),
    "axes turned": Graph("c = Conv (x, w, b) y = Transpose <perm = [0, 3, 1, 2]> (c)", IMAGE, CONVOLVED),
    "joined": Graph("c = Conv (x, w, b) y = Concat <axis = 1> (c, c)", IMAGE, CONVOLVED),
    "sliced": Graph(
        "y = Slice (x, s, e, a, t)", IMAGE, {"s": i64(-1, 0), "e": i64(-99, 5), "a": i64(2, -1), "t": i64(-2, 2)}
    ),
    "all samples sliced": Graph("y = Slice (x, s, e)", IMAGE, {"s": i64(0, 1), "e": i64(2**40, 3)}),
    "split": Graph("p, q = Split <axis = 1> (x, s)", IMAGE, {"s": i64(1, 3)}, outputs=("p", "q")),
    "gathered": Graph("y = Gather <axis = 2> (x, i)", IMAGE, {"i": i64(3, 0, -1, 2).reshape(2, 2)}),
    "gathered by a number": Graph("y = Gather <axis = 1> (x, i)", IMAGE, {"i": np.int64(-2)}),
    "embedding": Graph("y = Gather (t, x)", {"x": np.arange(6).reshape(3, 2)}, {"t": normal(7, 4)}),
    "padded": Graph(
        "c = Conv (x, w, b) y = Pad (c, p, v)",
        IMAGE,
        CONVOLVED | {"p": i64(0, 1, 2, 0, 0, 2, 0, 3), "v": np.float32(1.5)},
    ),
    "an input is an output": Graph("y = Identity (x)", ROWS),
}
NOT_IN_MICRO = {"squared"}


def outputs_of(runtime: str, graph: Graph) -> dict[str, np.ndarray]:
    written = to_tflite_float(graph.model())
    inputs = laid(written.inputs, [graph.inputs[value.name] for value in written.inputs])
    made = run_here(runtime, written.content, inputs, dynamic=written.dynamic)
    return {name: v.from_memory(a) for name, v, a in zip(graph.outputs, written.outputs, made, strict=True)}


@pytest.mark.parametrize("runtime", [LITERT, MICRO])
@pytest.mark.parametrize("name", GRAPHS)
def test_each_operator_gives_onnxruntimes_numbers(name, runtime):
    graph = GRAPHS[name]
    if runtime == MICRO and name in NOT_IN_MICRO:
        with pytest.raises(UnsupportedError, match="TensorFlow Lite Micro lacks an operator"):
            outputs_of(runtime, graph)
        return
    wanted = float_tensors(graph.model(), graph.inputs)
    for output, made in outputs_of(runtime, graph).items():
        assert made.shape == wanted[output].shape
        np.testing.assert_allclose(made, wanted[output], rtol=0, atol=2e-6 * np.abs(wanted[output]).max())


EDGES = np.float32(
    [0, -0.0, 1e-42, -1e-42, 1e-20, -1e-20, 0.5, -0.5, 1, -1, 3, -3, 1e4, -1e4, 3e38, -3e38, np.inf, -np.inf, np.nan]
)


@pytest.mark.parametrize("runtime", [LITERT, MICRO])
@pytest.mark.parametrize(
    "function",
    [gnn.GEM(1), gnn.GEM(3), gnn.EGEM(2, 0.01), gnn.EGEM(16, 5.0), gnn.SEGEM(1, 1.0), gnn.SEGEM(4, 0.1)],
    ids=str,
)
def test_the_activation_is_right_at_the_edges(function, runtime):
    """Denormals may count as zero; NaN stays NaN; Micro's operators end at the largest float."""
    found = capture_module(function, torch.zeros(1, EDGES.size))
    written = to_tflite_float(found.model)
    (made,) = run_here(runtime, written.content, [EDGES[None]], dynamic=True)
    wanted = function(torch.from_numpy(EDGES)[None]).numpy()
    if runtime == MICRO:
        wanted = np.where(np.isposinf(wanted), np.finfo(np.float32).max, wanted)
    np.testing.assert_allclose(made, wanted, rtol=1e-6, atol=1e-40)


@pytest.mark.parametrize("name", ["mlp", "cnn", "mobilenet", "conv1d", "two inputs", "resnet8", "ds-cnn"])
def test_networks_pass_the_check_after_export(name):
    network = (NETWORKS | MLPERF_TINY)[name]
    model = network.model(lambda: gnn.GEM(1) if name != "mobilenet" else gnn.SEGEM(1, 0.1))
    files = export(model, "tflite", example=network.inputs(1))
    content = files["model.tflite"]
    assert operators(content)["TRANSPOSE"] == (name == "two inputs")  # an image flattened beside numbers
    assert list(root(content).subgraphs[0].tensors[0].shapeSignature)[:1] == [-1]


def test_metadata_names_each_activation():
    made = root(
        export(nn.Sequential(nn.Linear(3, 4), gnn.EGEM(2, 0.25)), "tflite", example=torch.zeros(1, 3))["model.tflite"]
    )
    (note,) = made.metadata
    told = json.loads(bytes(made.buffers[note.buffer].data))
    assert [(a["n"], a["epsilon"], a["form"]) for a in told["activations"]] == [(2, 0.25, "float")]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_of_fixed_size_becomes_one_sample_at_a_time(batch):
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), gnn.GEM(1), nn.Linear(12, 2))
    given = torch.randn(batch, 2, 3, 3)
    found = capture_module(model, given, dynamic={})
    written = to_tflite_float(found.model)
    (made,) = run_here(LITERT, written.content, laid(written.inputs, [given.numpy()]), dynamic=written.dynamic)
    assert not written.dynamic
    np.testing.assert_allclose(made, model(given).detach().numpy(), atol=1e-5)


REFUSED = {
    "nodes without an operator": (
        Graph("a = Erf (x) y = Asinh (a)", ROWS),
        r"no TensorFlow Lite operator for 'erf0' \(Erf\), 'asinh1' \(Asinh\)",
    ),
    "another domain": (
        Graph("y = com.strangers.Relu (x)", ROWS),
        r"no TensorFlow Lite operator for 'relu0' \(Relu\)",
    ),
    "an alpha": (Graph("y = Elu <alpha = 0.5> (x)", ROWS), r"node 'elu0' \(Elu\) in TensorFlow Lite: alpha must be 1"),
    "mean over all": (Graph("y = ReduceMean <keepdims = 0> (x)", ROWS), "node 'reducemean0' .* would cross the batch"),
    "the batch reshaped": (
        Graph("y = Reshape (x, s)", ROWS, {"s": i64(-1, 3)}),
        "node 'reshape0' .* the batch would not stay the first axis",
    ),
    "the batch moved": (Graph("y = Transpose <perm = [1, 0, 2]> (x)", ROWS), "node 'transpose0' .* it moves the batch"),
    "samples joined": (Graph("y = Concat <axis = 0> (x, x)", ROWS), "node 'concat0' .* joins samples"),
    "seven axes": (
        Graph("y = Reshape (x, s)", x(8, 6), {"s": i64(0, 2, 2, 2, 3, 2)}),
        "node 'reshape0' in TensorFlow Lite: tensor 'y' has 6 axes; TensorFlow Lite takes 5",
    ),
    "constants of samples": (
        Graph("y = Add (x, k)", ROWS, {"k": normal(3, 1, 1)}),
        "node 'add0' .* differs from sample",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_refused_by_name(name):
    graph, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message):
        to_tflite_float(graph.model())


def test_a_runtime_that_computes_otherwise_fails_the_check(monkeypatch):
    true = tflite_run.run

    def perturbed(runtime, *arguments, **named):
        outputs = true(runtime, *arguments, **named)
        return [array + np.float32(0.01 * (runtime.name == MICRO)) for array in outputs]

    monkeypatch.setattr(tflite_run, "run", perturbed)
    model = nn.Sequential(nn.Linear(3, 4), gnn.GEM(1))
    with pytest.raises(PromiseError, match=r"output 'output' on \w+ in TensorFlow Lite Micro .*off by 0.01"):
        export(model, "tflite", example=torch.zeros(1, 3))
    assert export(model, "tflite", example=torch.zeros(1, 3), check=False)


@pytest.mark.parametrize(
    ("named", "message"),
    [({"gem": "table"}, "gem='table' is for quantized models"), ({"external_data": True}, "external data is for ONNX")],
)
def test_what_is_not_for_float_models_is_refused(named, message):
    with pytest.raises(UsageError, match=message):
        export(nn.Linear(3, 4), "tflite", example=torch.zeros(1, 3), **named)


def test_an_input_whose_size_varies_beyond_the_batch_is_refused():
    dynamic = {"x": {0: "batch", 2: "time"}}

    class Free(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x)

    found: Captured = capture_module(Free(), {"x": torch.zeros(2, 3, 4)}, dynamic=dynamic)
    with pytest.raises(UnsupportedError, match=r"input 'x' of shape \[batch, 3, time\] varies in more than its first"):
        to_tflite_float(found.model)


def test_a_difference_names_the_probe_and_the_runtime():
    difference = compare("example in LiteRT 2", "y", np.float32([1.0]), np.float32([2.0]))
    assert "output 'y' on example in LiteRT 2, element [0]: 2 instead of 1" in str(difference)

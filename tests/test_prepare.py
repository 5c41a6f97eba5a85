"""The model made ready for integers computes what it did, with fewer operators."""

import networks
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from thinned import thinned

import gemedge.nn as gnn
from gemedge import UnsupportedError
from gemedge.capture import capture_module, forms
from gemedge.quant.prepare import prepare


def outputs(model: ir.Model, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    content = ir.to_proto(forms.to_form(model.clone(), "function")).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feed), strict=True))


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def names(model: ir.Model) -> list[list[str | None]]:
    return [[value.name for value in values] for values in (model.graph.inputs, model.graph.outputs)]


def assert_same(model: ir.Model, prepared: ir.Model, feed: dict[str, np.ndarray], tolerance: float = 2e-5) -> None:
    assert names(model) == names(prepared)
    onnx.checker.check_model(ir.to_proto(forms.to_form(prepared.clone(), "function")))
    wanted, found = outputs(model, feed), outputs(prepared, feed)
    for name, array in wanted.items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("make", [lambda: gnn.EGEM(2, 0.1), lambda: gnn.SEGEM(1, 0.5), torch.nn.SiLU])
@pytest.mark.parametrize("name", thinned(networks.NETWORKS, 3))
def test_every_network_computes_the_same(name, make):
    network = networks.NETWORKS[name]
    captured = capture_module(network.model(make), network.inputs(), dynamic=network.dynamic, opset=20)
    before = op_types(captured.model)
    prepared = prepare(captured.model).model
    assert_same(captured.model, prepared, {key: value.numpy() for key, value in network.inputs(3).items()})
    assert op_types(captured.model) == before  # it worked on a clone
    assert "BatchNormalization" not in op_types(prepared)
    assert len(forms.activation_nodes(prepared)) == len(forms.activation_nodes(captured.model))
    assert op_types(prepared).count("Elementwise") >= (network.activations if make is torch.nn.SiLU else 0)


def test_weights_are_shared_and_not_copied():
    network = networks.NETWORKS["mlp"]
    model = capture_module(network.model(torch.nn.SiLU), network.inputs(), opset=20).model
    prepared = prepare(model).model
    for name in ("0.weight", "2.weight", "4.weight"):
        assert prepared.graph.initializers[name].const_value is model.graph.initializers[name].const_value


def test_a_large_weight_with_two_readers_is_not_transposed_into_a_copy():
    model = parsed(
        "x",
        """t = Transpose <perm = [1, 0]> (w)
        y = MatMul (x, t)
        rows = Gather (w, at)
        z = Add (y, rows)""",
        "float[batch, 300] x",
        "float[batch, 300] z",
        {"w": np.ones((300, 300)), "at": np.zeros((1,), np.int64)},
    )
    made = prepare(model).model
    assert op_types(made) == ["Transpose", "MatMul", "Gather", "Add"]
    assert sum(value.const_value.nbytes for value in made.graph.initializers.values()) < 300 * 300 * 4 + 100


def parsed(name: str, body: str, given: str, made: str, weights: dict[str, np.ndarray]) -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 20, "ai.gemedge": 1]> {name} ({given}) => ({made}) {{ {body} }}'
    )
    for key, array in weights.items():
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{index}"
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


RNG = np.random.default_rng(5)
NORM = "BatchNormalization <epsilon = 0.01> ({}, gamma, beta, mean, var)"


def norm(channels: int) -> dict[str, np.ndarray]:
    return {
        "gamma": RNG.uniform(0.5, 2, channels),
        "beta": RNG.standard_normal(channels),
        "mean": RNG.standard_normal(channels),
        "var": RNG.uniform(0.2, 3, channels),
    }


NORMS = {  # body, input shape, output shape, weights, what is left
    "conv": ("c = Conv (x, w, b) y = " + NORM.format("c"), "3,8,8", "6,6,6", {"w": (6, 3, 3, 3), "b": (6,)}, ["Conv"]),
    "conv without bias": ("c = Conv (x, w) y = " + NORM.format("c"), "3,8,8", "6,6,6", {"w": (6, 3, 3, 3)}, ["Conv"]),
    "conv with an absent bias": (
        'c = Conv (x, w, "") y = ' + NORM.format("c"), "3,8,8", "6,6,6", {"w": (6, 3, 3, 3)}, ["Conv"],
    ),
    "depthwise": (
        "c = Conv <group = 6> (x, w) y = " + NORM.format("c"), "6,8,8", "6,6,6", {"w": (6, 1, 3, 3)}, ["Conv"],
    ),
    "transposed": (
        "c = ConvTranspose <group = 2> (x, w) y = " + NORM.format("c"), "4,5,5", "6,7,7", {"w": (4, 3, 3, 3)},
        ["ConvTranspose"],
    ),
    "gemm": (
        "c = Gemm <transB = 1, beta = 0.5> (x, w, b) y = " + NORM.format("c"), "5", "6", {"w": (6, 5), "b": (6,)},
        ["Gemm"],
    ),
    "alone, images": ("y = " + NORM.format("x"), "6,4,4", "6,4,4", {}, ["Conv"]),
    "alone, sequences": ("y = " + NORM.format("x"), "6,4", "6,4", {}, ["Conv"]),
    "alone, features": ("y = " + NORM.format("x"), "6", "6", {}, ["Unsqueeze", "Conv", "Squeeze"]),
    "alone, volumes": ("y = " + NORM.format("x"), "6,2,3,2", "6,2,3,2", {}, ["Mul", "Add"]),
    "after an activation": (
        "c = Conv (x, w) a = ai.gemedge.GEM <n = 2, epsilon = 0.5> (c) y = " + NORM.format("a"),
        "3,8,8", "6,6,6", {"w": (6, 3, 3, 3)}, ["Conv", "GEM", "Conv"],
    ),
    "shared weights": (
        "c = Conv (x, w) d = Conv (x, w) e = " + NORM.format("c") + " y = Add (d, e)",
        "3,8,8", "6,6,6", {"w": (6, 3, 3, 3)}, ["Conv", "Conv", "Conv", "Add"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NORMS)
def test_batch_normalization_becomes_weights(case):
    body, given, made, shapes, left = NORMS[case]
    weights = {key: RNG.standard_normal(shape) for key, shape in shapes.items()} | norm(6)
    model = parsed("g", body, f"float[batch,{given}] x", f"float[batch,{made}] y", weights)
    for node in model.graph:  # the parser's shapes do not reach behind nodes of ours
        if node.outputs[0].shape is None:
            node.outputs[0].shape, node.outputs[0].type = model.graph.outputs[0].shape, model.graph.outputs[0].type
    prepared = prepare(model)
    assert op_types(prepared.model) == left
    assert_same(model, prepared.model, {"x": RNG.standard_normal((3, *map(int, given.split(",")))).astype(np.float32)})
    assert sum("BatchNormalization" in note for note in prepared.notes) == 1
    first = next(node.name for node in model.graph)
    assert next(iter(prepared.model.graph)).name.startswith(first)  # layers keep their names


def test_batch_normalization_by_the_batch_is_refused():
    body = "y, m, v = BatchNormalization <training_mode = 1> (x, gamma, beta, mean, var)"
    model = parsed("g", body, "float[batch,6,4] x", "float[batch,6,4] y", norm(6))
    with pytest.raises(UnsupportedError, match=r"'BatchNormalization_0' .*normalizes by the batch; export .* eval"):
        prepare(model)


def test_what_does_nothing_is_removed_and_outputs_keep_their_names():
    body = """two = Constant <value_float = 2.0> ()
        three = Add (two, one)
        i = Identity (x)
        d = Dropout (i)
        unread = Exp (x)
        p = MatMul (d, w)
        q = Add (p, bias)
        y = Identity (q)
        z = Identity (y)"""
    given, made = "float[batch,3] x", "float[batch,2] y, float[batch,2] z"
    weights = {"w": np.ones((3, 2)), "bias": np.ones(2), "one": np.ones(()), "unused": np.ones(9)}
    model = parsed("g", body, given, made, weights)
    prepared = prepare(model)
    assert set(op_types(prepared.model)) <= {"MatMul", "Add", "Identity"}
    assert op_types(prepared.model).count("Identity") <= 1  # two outputs need two tensors
    assert_same(model, prepared.model, {"x": np.eye(3, dtype=np.float32)})
    assert set(prepared.model.graph.initializers) == {"w", "bias"}
    assert any("computed or removed" in note and "1 Dropout" in note for note in prepared.notes)


def test_functions_of_strangers_are_inlined_and_activations_are_not():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20, "s": 1, "ai.gemedge": 1]>
        g (float[batch,3] x) => (float[batch,3] y) { a = ai.gemedge.GEM <n = 1> (x) y = s.Twice (a) }
        <domain: "s", opset_import: ["": 20]> Twice (X) => (Y) { Y = Add (X, X) }
        <domain: "ai.gemedge", opset_import: ["": 20]> GEM <n: int = 1> (X) => (Y) { Y = Relu (X) }"""
    )
    prepared = prepare(ir.from_proto(proto))
    assert op_types(prepared.model) == ["GEM", "Elementwise"]
    assert prepared.notes[0] == "inlined Twice"


def test_every_node_gets_a_name_of_its_own():
    body = "b = Relu (x) c = Relu (b) y = MatMul (c, w)"
    model = parsed("g", body, "float[batch,3] x", "float[batch,2] y", {"w": np.ones((3, 2))})
    for node, name in zip(model.graph, ("same", "same", ""), strict=True):
        node.name = name
    named = [node.name for node in prepare(model).model.graph]
    assert len(set(named)) == len(named)
    assert named[-1] == "y"
    assert all(name.startswith("same") for name in named[:-1])

"""Chains of element-wise nodes become one node, which becomes one table that is correctly rounded."""

from collections import namedtuple
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from test_prepare import assert_same, op_types, parsed
from thinned import thinned
from torch import Tensor, nn
from torch.nn import functional as F

import gemedge.nn as gnn
from gemedge import UnsupportedError
from gemedge.capture import capture_module
from gemedge.fixed import Rounding
from gemedge.model import Interpolate, Lookup
from gemedge.quant import functions
from gemedge.quant.prepare import prepare
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import simulate

Range = namedtuple("Range", "min max")
TANH = np.sqrt(2 / np.pi)
erf = np.vectorize(__import__("math").erf)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# torch's function, the same in NumPy, and the decibels it has in int16x8
FUNCTIONS = {
    "gelu by erf": (
        lambda x: x * 0.5 * (1 + torch.erf(x / 1.4142135)), lambda x: x * 0.5 * (1 + erf(x / float32(1.4142135))),
    ),
    "gelu by tanh": (
        lambda x: 0.5 * x * (1 + torch.tanh(TANH * (x + 0.044715 * x**3))),
        lambda x: 0.5 * x * (1 + np.tanh(float32(TANH) * (x + float32(0.044715) * x**3))),
    ),
    "silu": (lambda x: x * torch.sigmoid(x), lambda x: x / (1 + np.exp(-x))),
    "hard swish": (lambda x: x * torch.clamp(x + 3, 0, 6) / 6, lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "mish": (lambda x: x * torch.tanh(torch.log1p(torch.exp(x))), lambda x: x * np.tanh(np.log(1 + np.exp(x)))),
    "mish by softplus": (lambda x: x * torch.tanh(F.softplus(x)), lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    "softsign": (lambda x: x / (1 + x.abs()), lambda x: x / (1 + np.abs(x))),
    "square": (lambda x: x * x, np.square),
    "root": (lambda x: torch.sqrt(x.abs() + 1), lambda x: np.sqrt(np.abs(x) + 1)),
    "logistic": (lambda x: 1 / (1 + torch.exp(-x)), lambda x: 1 / (1 + np.exp(-x))),
    "leaky relu": (lambda x: torch.where(x > 0, x, 0.1 * x), lambda x: np.where(x > 0, x, float32(0.1) * x)),
    "in half a range": (
        lambda x: torch.where((x > -1) & ~(x >= 1), x * x, torch.ones_like(x)),
        lambda x: np.where(np.abs(x) < 1, x * x, 1.0),
    ),
    "scaled": (lambda x: -1.7 * x, lambda x: float32(-1.7) * x),
    "shifted": (lambda x: x - 0.3, lambda x: x - float32(0.3)),
    "reciprocal": (lambda x: torch.reciprocal(x.abs() + 0.5), lambda x: 1 / (np.abs(x) + 0.5)),
    "power": (lambda x: x.abs() ** 1.5, lambda x: np.abs(x) ** 1.5),
    "residual": (lambda x: x + 0.25 * torch.sin(2 * x), lambda x: x + 0.25 * np.sin(2 * x)),
    "bounded": (lambda x: torch.maximum(x, -x / 2).clamp(max=2), lambda x: np.minimum(np.maximum(x, -x / 2), 2)),
    "selu": (F.selu, lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))),
    "celu": (lambda x: F.celu(x, 0.5), lambda x: np.maximum(x, 0) + np.minimum(0, 0.5 * np.expm1(x / 0.5))),
    "log of sigmoid": (lambda x: torch.log(torch.sigmoid(x)), lambda x: -np.log1p(np.exp(-x))),
}  # fmt: skip


def float32(number: float) -> float:
    return float(np.float32(number))


def captured(function: Callable[[Tensor], Tensor]) -> ir.Model:
    shape = {0: "batch"}
    return capture_module(Function(function).eval(), torch.randn(2, 8), dynamic={"x": shape}, opset=20).model


SPREAD = np.linspace(-4, 4, 1001 * 8, dtype=np.float32).reshape(-1, 8)


@pytest.mark.parametrize("name", thinned(FUNCTIONS, 3))
def test_a_chain_becomes_one_node_that_computes_the_same(name):
    model = captured(FUNCTIONS[name][0])
    made = prepare(model)
    assert op_types(made.model) == ["Elementwise"]
    assert_same(model, made.model, {"x": SPREAD}, 1e-6)
    assert made.notes[-1].endswith("became one table")


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("scheme", ["int8", "q7"])
def test_every_code_of_8_bits_gets_the_correctly_rounded_value(name, scheme):
    exact = FUNCTIONS[name][1]
    model = prepare(captured(FUNCTIONS[name][0])).model
    ends = exact(np.linspace(-4, 4, 2001))
    ranges = {"x": Range(-4, 4), model.graph.outputs[0].name: Range(ends.min(), ends.max())}
    quantized = quantize(model, ranges, scheme=scheme, rounding=Rounding.SINGLE)
    (layer,) = quantized.layers
    assert isinstance(layer, Lookup)
    given, made = quantized.tensors["x"].params, quantized.tensors[layer.output].params
    x = (np.arange(-128, 128) - given.zero_point) * given.scale
    wanted = np.clip(np.floor(exact(x) / made.scale + made.zero_point + 0.5), -128, 127)
    np.testing.assert_array_equal(layer.table, wanted)


@pytest.mark.parametrize("name", thinned(FUNCTIONS, 3))
def test_tables_of_16_bits_hold_rounded_values_and_the_line_between_is_near(name):
    exact = FUNCTIONS[name][1]
    model = prepare(captured(FUNCTIONS[name][0])).model
    ends = exact(np.linspace(-4, 4, 2001))
    ranges = {"x": Range(-4, 4), model.graph.outputs[0].name: Range(ends.min(), ends.max())}
    quantized = quantize(model, ranges, scheme="int16x8", rounding=Rounding.SINGLE)
    (layer,) = quantized.layers
    assert isinstance(layer, Interpolate)
    given, made = quantized.tensors["x"].params, quantized.tensors[layer.output].params
    x = np.minimum(np.arange(-32768, 32769, 128), 32767) * given.scale
    wanted = np.clip(np.floor(exact(x) / made.scale + 0.5), -32768, 32767)
    np.testing.assert_array_equal(layer.table, wanted)
    (found,) = simulate(quantized, {"x": SPREAD}).values()
    assert np.abs(found - exact(SPREAD.astype(np.float64))).max() < 2e-3 * max(1, np.abs(ends).max())


class Escapes(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.exp(-x)
        return 1 / (1 + inner), inner @ torch.ones(8, 2)


class TwoTensors(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x @ torch.ones(8, 8)
        return torch.sqrt(torch.abs(x) + 1) * torch.sigmoid(2 * y)


class AfterWeights(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(8, 8), act

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-self.act(self.linear(x)))


@pytest.mark.parametrize(
    ("module", "left"),
    [
        (Escapes(), ["Elementwise", "Elementwise", "MatMul"]),  # the inner tensor has another reader
        (TwoTensors(), ["Elementwise", "MatMul", "Elementwise", "Mul"]),
        (AfterWeights(nn.ReLU()), ["Gemm", "Relu", "Elementwise"]),
        (AfterWeights(nn.LeakyReLU()), ["Gemm", "Elementwise"]),
        (AfterWeights(gnn.GEM(1)), ["Gemm", "GEM", "Elementwise"]),
        (Function(torch.sigmoid), ["Sigmoid"]),  # has a table of its own
        (Function(lambda x: F.relu(x)), ["Relu"]),
        (Function(lambda x: x + torch.ones(8)), ["Elementwise"]),  # one number repeated
        (Function(lambda x: x + torch.arange(8.0)), ["Add"]),  # several numbers
        (Function(lambda x: F.linear(x[:, None], torch.ones(8, 8), torch.ones(8))), ["Unsqueeze", "MatMul", "Add"]),
    ],
    ids=str,
)
def test_a_chain_ends_where_something_else_begins(module, left):
    model = capture_module(module.eval(), torch.randn(2, 8), dynamic={"x": {0: "batch"}}, opset=20).model
    made = prepare(model).model
    assert sorted(op_types(made)) == sorted(left)
    assert_same(model, made, {model.graph.inputs[0].name: SPREAD[:100]}, 1e-5)


def test_an_output_inside_a_chain_stays_an_output():
    model = parsed(
        "g", "a = Exp (x) b = Neg (a) c = Sqrt (a)", "float[n,4] x", "float[n,4] b, float[n,4] a, float[n,4] c", {}
    )
    made = prepare(model).model
    assert op_types(made) == ["Exp", "Neg", "Elementwise"]
    assert_same(model, made, {"x": SPREAD[:, :4]}, 1e-6)


@pytest.mark.parametrize(
    ("body", "given"),
    [
        ("f = Cast <to = 1> (x) y = Neg (f)", "int64[n,4] x"),  # indices are no numbers of a format
        ("y = Add (x, wide)", "float[4] x"),  # the number makes the tensor larger
    ],
)
def test_what_is_no_function_of_one_float_tensor_is_left(body, given):
    made = "float[n,4] y" if "int64" in given else "float[3,1,4] y"
    model = parsed("g", body, given, made, {"wide": np.ones((3, 1, 1))})
    assert "Elementwise" not in op_types(prepare(model).model)


def test_half_precision_within_a_chain_counts_as_real_numbers():
    body = "h = Cast <to = 10> (x) e = Sigmoid (h) y = Cast <to = 1> (e)"
    model = parsed("g", body, "float[n,4] x", "float[n,4] y", {})
    made = prepare(model).model
    assert op_types(made) == ["Elementwise"]
    assert_same(model, made, {"x": SPREAD[:, :4]}, 1e-3)


def test_equal_chains_share_a_body_and_others_do_not():
    body = "a = Mul (x, two) m = MatMul (a, w) b = Mul (m, two) k = MatMul (b, w) y = Mul (k, three)"
    weights = {"two": np.float64(-2), "three": np.float64(-3), "w": RNG.standard_normal((4, 4))}
    model = parsed("g", body, "float[n,4] x", "float[n,4] y", weights)
    made = prepare(model).model
    assert op_types(made).count("Elementwise") == 3
    assert len(made.functions) == 2
    assert_same(model, made, {"x": SPREAD[:, :4]}, 1e-5)


RNG = np.random.default_rng(0)


def test_where_a_chain_has_no_value_the_table_repeats_the_nearest():
    model = prepare(parsed("g", "a = Log (x) y = Neg (a)", "float[n,4] x", "float[n,4] y", {})).model
    (node,) = model.graph
    found = functions.of(node, [], model.functions)(np.array([-2.0, -1.0, 0.5, 1.0]))
    np.testing.assert_allclose(found, [np.log(2), np.log(2), np.log(2), 0], atol=1e-15)
    with pytest.raises(UnsupportedError, match="no value for any input in range"):
        functions.of(node, [], model.functions)(np.array([-2.0, -1.0]))
    with pytest.raises(UnsupportedError, match="its function body is missing"):
        functions.of(node, [], {})


def test_a_long_chain_takes_little_time():
    lines = " ".join(f"v{i + 1} = Sin (v{i})" for i in range(3000))
    model = parsed("g", f"v0 = Neg (x) {lines} y = Neg (v3000)", "float[n,4] x", "float[n,4] y", {})
    made = prepare(model).model
    assert len(op_types(made)) < 40
    assert_same(model, made, {"x": SPREAD[:10, :4]}, 1e-4)

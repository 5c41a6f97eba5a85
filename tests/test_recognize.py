"""GEM and SE-GEM written as standard operators are found, and what only looks like them is not."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from test_chains import Function, captured
from test_prepare import assert_same, op_types, parsed
from thinned import thinned
from torch import nn

import gemedge.nn as gnn
from gemedge.capture import capture_module, forms, schema
from gemedge.quant.prepare import prepare
from gemedge.quant.recognize import likeness

X = np.concatenate([np.linspace(-50, 50, 2001 * 8), np.logspace(-3, 3, 8000)]).astype(np.float32).reshape(-1, 8)


def activations(model: ir.Model) -> list[str]:
    return [str(schema.activation_of(node)) for node in forms.activation_nodes(model)]


@pytest.mark.parametrize("epsilon", thinned([0.01, 1.0, 10.0, 0.7391283], 3))
@pytest.mark.parametrize("n", thinned([1, 2, 3, 4, 16], 4))
@pytest.mark.parametrize("make", [gnn.EGEM, gnn.SEGEM])
def test_the_primitive_form_that_export_writes_is_one_node_again(make, n, epsilon):
    module = nn.Sequential(nn.Linear(8, 8), make(n, epsilon), nn.Linear(8, 8), make(n, epsilon))
    original = capture_module(module, torch.randn(2, 8), dynamic={"input": {0: "batch"}}, opset=20).model
    primitive = forms.to_form(original.clone(), "primitive")
    assert not activations(primitive)
    made = prepare(primitive)
    assert activations(made.model) == activations(original)
    assert op_types(made.model) == op_types(original)
    assert len(made.findings) == 2
    assert activations(original)[0] in made.findings[0]
    assert_same(original, made.model, {"input": X}, 1e-5)


def rectified(x, floor=0.0):
    return x.clamp(min=floor)


def product(x):  # r * t / (1 + t)
    t = (rectified(x) / 0.3) ** 4
    return rectified(x) * t / (1 + t)


def tail(x):  # SE-GEM's branch below 0
    t = (-x).clamp(min=0) / 0.5
    p = t + t * t
    return torch.where(x > 0, x, -0.5 * p / (1 + p))


HAND_WRITTEN = {
    "by the reciprocal": (lambda x: rectified(x) / (1 + (0.01 / rectified(x)) ** 2), "egem(n=1, epsilon=0.01)"),
    "by where": (lambda x: torch.where(x > 0, x**3 / (1 + x**2), torch.zeros_like(x)), "gem(n=1)"),
    "by where, n = 2": (lambda x: torch.where(x > 0, x**5 / (1 + x**4), 0.0), "gem(n=2)"),
    "by a product": (product, "egem(n=2, epsilon=0.3)"),
    "by relu": (lambda x: torch.relu(x) ** 3 / (torch.relu(x) ** 2 + 0.01), "egem(n=1, epsilon=0.1)"),
    "by a square of epsilon": (lambda x: torch.relu(x) ** 7 / (torch.relu(x) ** 6 + 64), "egem(n=3, epsilon=2.0)"),
    "with a small number added": (
        lambda x: rectified(x) / (1 + (0.5 / (rectified(x) + 1e-9)) ** 2), "egem(n=1, epsilon=0.5)",
    ),
    "by a mask": (lambda x: (x > 0).float() * x**3 / (x**2 + 4), "egem(n=1, epsilon=2.0)"),
    "the smooth one by where": (tail, "segem(n=1, epsilon=0.5)"),
    "the smooth one by a difference": (
        lambda x: torch.relu(x) - 1 + 1 / (1 + torch.relu(-x) + torch.relu(-x) ** 2), "segem(n=1, epsilon=1.0)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_what_users_write_by_hand_is_recognised_by_its_values(name):
    function, wanted = HAND_WRITTEN[name]
    model = captured(function)
    made = prepare(model)
    assert op_types(made.model) == ["SEGEM" if "segem" in wanted else "GEM"]
    assert activations(made.model) == [wanted]
    assert_same(model, made.model, {"x": X[np.all(X != 0, axis=1)]}, 1e-6)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: x + product(x), ["GEM", "Add"]),  # a residual around it
        (lambda x: torch.tanh(product(x) - 1), ["GEM", "Elementwise"]),
        (lambda x: product(torch.exp(x)), ["Exp", "GEM"]),
        (lambda x: product(product(x)), ["GEM", "GEM"]),
    ],
)
def test_it_is_found_within_a_longer_chain(function, left):
    model = captured(function)
    made = prepare(model)
    assert op_types(made.model) == left
    assert_same(model, made.model, {"x": X[::7].clip(-5, 5)}, 1e-5)


def test_a_rectified_input_that_others_read_leaves_the_activation_whole():
    body = """r = Relu (x) q = Div (one, r) p = Mul (q, q) d = Add (p, one) y = Div (r, d) z = MatMul (r, w)"""
    model = parsed(
        "g", body, "float[n,8] x", "float[n,8] y, float[n,2] z", {"one": np.float64(1), "w": np.ones((8, 2))}
    )
    made = prepare(model)
    assert sorted(op_types(made.model)) == ["GEM", "MatMul", "Relu"]
    assert_same(model, made.model, {"x": X}, 1e-6)


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        lambda x: torch.relu(x) * x / (1 + x.abs()),
        lambda x: x**3 / (1 + x**2),  # odd: not 0 below 0
        lambda x: torch.nn.functional.hardswish(x),
        lambda x: torch.relu(x) ** 3 / (1 + torch.relu(x) ** 3),
        lambda x: 2 * product(x),
        lambda x: product(x) + 1e-3 * x,
        lambda x: x * torch.clamp(x + 3, 0, 6) / 6,
        lambda x: torch.where(x > 0, x, x / (1 - x)),
    ],
)
def test_other_functions_are_not_taken_for_it(function):
    model = captured(function)
    whole = prepare(model)
    assert_same(model, whole.model, {"x": X}, 1e-6)
    assert op_types(whole.model)[-1] not in ("GEM", "SEGEM")


def test_what_is_near_but_not_it_says_how_far():
    near = captured(lambda x: torch.relu(x) ** 3 / (torch.relu(x) ** 2 + 0.04 + 0.002 * torch.relu(x)))
    made = prepare(near)
    assert op_types(made.model) == ["Elementwise"]
    (line,) = made.findings
    assert "near egem(n=1, epsilon=0.2" in line
    assert "off at x = 0." in line
    far = captured(lambda x: torch.relu(x) ** 3 / (torch.relu(x) ** 2 + 0.04 + 0.1 * torch.relu(x)))
    assert not prepare(far).findings


@pytest.mark.parametrize("share", [1e-7, 1e-5])
def test_the_tolerance_is_a_millionth(share):
    def function(x):
        r = np.maximum(x, 0)
        return (1 + share) * r**3 / (r**2 + 1)

    found = likeness(function)
    assert (found.distance == 0) == (share < 1e-6)
    assert found.activation.epsilon == pytest.approx(1, rel=2e-5)


ABOVE = float(np.nextafter(np.float32(0.1), np.float32(1)))


@pytest.mark.parametrize(
    ("epsilon", "wanted"),
    [(0.1, np.float32(0.1)), (ABOVE, ABOVE), (0.1 * (1 + 3e-7), np.float32(0.1)), (0.1234567, np.float32(0.1234567))],
)
def test_epsilon_is_the_float32_meant(epsilon, wanted):
    found = likeness(lambda x: np.maximum(x, 0) ** 3 / (x**2 + epsilon**2))
    assert found.activation.epsilon == wanted


def test_it_reads_a_layer_whose_function_is_called_in_half_precision():
    module = Function(product).half()
    model = capture_module(module, torch.randn(2, 8).half(), dynamic={"x": {0: "batch"}}, opset=20).model
    made = prepare(model).model
    assert "Div" not in op_types(made)

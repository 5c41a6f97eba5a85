"""The torch modules: the bits of gemedge.activation, closed-form gradients, and one node for exporters."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import gemedge.nn as gnn
from gemedge import Activation, ActivationError, UsageError

EDGES = [0.0, -0.0, 1e-45, -1e-45, 1e-20, -1e-20, 3.4e38, -3.4e38, float("inf"), -float("inf"), float("nan")]
FUNCTIONS = [("egem", gnn.egem, Activation.egem), ("segem", gnn.segem, Activation.segem)]
MODULES = [gnn.GEM(1), gnn.GEM(2), gnn.EGEM(3, 0.01), gnn.SEGEM(1, 0.1), gnn.SEGEM(2, 2.0)]


def inputs(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.cat([torch.randn(5000, generator=generator) * 3, torch.tensor(EDGES)]).to(dtype)


@pytest.mark.parametrize("epsilon", [1.0, 0.01, 10.0, 1e-38, 3e38])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize(("name", "function", "make"), FUNCTIONS)
def test_torch_gives_the_bits_of_the_definition(name, function, make, dtype, n, epsilon):
    x = inputs(dtype)
    wanted = make(n, epsilon)(x.numpy())
    operator = torch.ops.gemedge.gem if name == "egem" else torch.ops.gemedge.segem
    for y in (function(x, n, epsilon), operator(x, n, epsilon)):
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.numpy(), wanted)
        np.testing.assert_array_equal(np.signbit(y.numpy()[:-1]), np.signbit(wanted[:-1]))  # of zeros, too; not of NaN


@pytest.mark.parametrize(("name", "function", "make"), FUNCTIONS)
def test_bfloat16_is_computed_in_float32(name, function, make):
    x = inputs(torch.bfloat16)
    wanted = torch.from_numpy(make(2, 0.1)(x.float().numpy())).bfloat16()
    torch.testing.assert_close(function(x, 2, 0.1), wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_first_and_second_gradients_are_those_of_the_value(module):
    x = torch.tensor([-3.0, -0.4, -0.05, 0.02, 0.3, 1.1, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)
    assert torch.autograd.gradgradcheck(module, x)


@pytest.mark.parametrize("module", MODULES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_the_derivative_even_at_the_edges(module, dtype):
    x = torch.tensor([*EDGES[:-1], -2.0, 0.5, 0.011, 3.0], dtype=dtype, requires_grad=True)
    module(x).sum().backward()
    wanted = module.activation.derivative(x.detach().numpy())
    np.testing.assert_allclose(x.grad.numpy(), wanted, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-30)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_third_derivative_comes_from_automatic_differentiation(module):
    x = torch.tensor([-0.7, 0.0, 0.3, 4.0, 1e30], dtype=torch.float64, requires_grad=True)
    y = module(x)
    for _ in range(2):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    np.testing.assert_allclose(y.detach(), module.activation.derivative(x.detach().numpy(), 2), rtol=1e-9, atol=1e-80)


def test_a_high_derivative_at_a_tiny_epsilon_is_the_limit():
    x = torch.tensor([-1.0, 0.0, 1e-39], dtype=torch.float64, requires_grad=True)
    y = gnn.egem(x, 1, 1e-38)
    for _ in range(10):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert y[:2].tolist() == [0, 0]
    assert abs(y[2].item()) == float("inf")  # 10^342 and more


@pytest.mark.parametrize("operator", [torch.ops.gemedge.gem.default, torch.ops.gemedge.segem.default])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_operator_passes_opcheck(operator, dtype):
    checks = torch.library.opcheck(operator, (torch.randn(3, 5, dtype=dtype, requires_grad=True), 2, 0.5))
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_export_sees_one_operator(module):
    model = nn.Sequential(nn.Linear(3, 3), module)
    program = torch.export.export(model, (torch.randn(2, 3),))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    operator = "segem" if isinstance(module, gnn.SEGEM) else "gem"
    assert targets == ["aten.linear.default", f"gemedge.{operator}.default"]
    x = torch.randn(2, 3)
    assert torch.equal(program.module()(x), model(x))


def test_compiled_module_agrees_and_gives_gradients():
    model = nn.Sequential(nn.Linear(3, 4), gnn.GEM(2), gnn.SEGEM(1, 0.1))
    x = torch.randn(8, 3, requires_grad=True)
    wanted = torch.autograd.grad(model(x).square().sum(), x)[0]
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), x)[0], wanted)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_compiled_gradient_is_the_derivative_even_at_the_edges(module):
    x = torch.tensor([*EDGES[:-1], -2.0, 0.5, 0.011, 3.0], requires_grad=True)
    torch.compile(module, fullgraph=True)(x).sum().backward()
    wanted = module.activation.derivative(x.detach().numpy())
    np.testing.assert_allclose(x.grad.numpy(), wanted, rtol=1e-5, atol=1e-30)


def test_function_transforms_see_through():
    x = torch.linspace(-1, 2, 12).reshape(3, 4)
    per_sample = torch.func.vmap(torch.func.grad(lambda row: gnn.gem(row, 1).sum()))(x)
    np.testing.assert_allclose(per_sample, Activation.gem(1).derivative(x.numpy()), rtol=1e-5)
    jacobian = torch.func.jacrev(gnn.segem)(x[0])
    np.testing.assert_allclose(jacobian.diagonal(), Activation.segem(1, 1.0).derivative(x[0].numpy()), rtol=1e-5)


def test_scripted_trace_keeps_the_operator():
    traced = torch.jit.trace(nn.Sequential(gnn.GEM(2)), torch.randn(3))
    assert "gemedge::gem" in str(traced.inlined_graph)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (gnn.GEM(1), "GEM(n=1)"),
        (gnn.EGEM(2, 0.01), "EGEM(n=2, epsilon=0.01)"),
        (gnn.SEGEM(), "SEGEM(n=1, epsilon=1.0)"),
    ],
)
def test_module_reads_well(module, text):
    assert repr(module) == text


LEARNED = [gnn.EGEM(1, 0.7, learnable=True), gnn.EGEM(3, 0.02, learnable=True), gnn.SEGEM(1, 0.7, learnable=True),
           gnn.SEGEM(3, 2.0, learnable=True)]  # fmt: skip


@pytest.mark.parametrize("module", LEARNED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_learned_epsilon_has_the_bits_of_the_fixed_one(module, dtype):
    x = inputs(dtype)
    fixed = type(module)(module.n, module.epsilon)
    torch.testing.assert_close(module(x), fixed(x), rtol=0, atol=0, equal_nan=True)
    assert module.activation == fixed.activation
    assert repr(module) == repr(fixed)[:-1] + ", learnable=True)"


@pytest.mark.parametrize("module", LEARNED, ids=str)
def test_gradient_by_the_logarithm_of_epsilon_is_that_of_the_value(module):
    x = torch.tensor([-3.0, -0.4, -0.05, 0.02, 0.3, 1.1, 5.0], dtype=torch.float64, requires_grad=True)
    torch.compiler.reset()  # or torch counts how often it compiled the same method for other modules
    module = copy.deepcopy(module).double()
    assert torch.autograd.gradcheck(lambda x, _: module(x), (x, module.log_epsilon))
    compiled = torch.compile(module, fullgraph=True)
    found = torch.autograd.grad(compiled(x).square().sum(), [x, module.log_epsilon])
    torch.testing.assert_close(found, torch.autograd.grad(module(x).square().sum(), [x, module.log_epsilon]))


@pytest.mark.parametrize("module", LEARNED, ids=str)
def test_gradient_by_the_logarithm_of_epsilon_has_its_limits_at_the_edges(module):
    module, family = copy.deepcopy(module), type(module)
    for x in (3.4e38, float("inf"), 1e-45, 0.0, -0.0, -1e-45):
        (slope,) = torch.autograd.grad(module(torch.tensor(x)), module.log_epsilon)
        assert abs(slope.item()) < 1e-30, x
    for x in (-3.4e38, -float("inf")):  # SE-GEM tends to -epsilon, whose logarithmic slope is -epsilon
        (slope,) = torch.autograd.grad(module(torch.tensor(x)), module.log_epsilon)
        assert slope.item() == pytest.approx(-module.epsilon if family is gnn.SEGEM else 0.0)
    assert torch.autograd.grad(module(torch.tensor(float("nan"))), module.log_epsilon)[0].isnan()


def test_training_moves_epsilon_to_the_one_that_made_the_data():
    torch.manual_seed(0)
    x = torch.randn(500)
    module = gnn.EGEM(1, 1.0, learnable=True)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (module(x) - gnn.egem(x, 1, 0.3)).square().mean().backward()
        optimizer.step()
    assert module.epsilon == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize("make", [lambda: gnn.GEM(0), lambda: gnn.EGEM(1, -1.0), lambda: gnn.segem(torch.ones(1), 1.5)])
def test_impossible_parameters_are_refused(make):
    with pytest.raises(ActivationError, match="must be"):
        make()


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"gem takes a floating-point tensor, not torch\.int64"):
        gnn.gem(torch.arange(3))


def test_swaps_activations_and_says_which():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), shared, nn.Sequential(nn.GELU(), shared, shared), nn.ReLU6()).eval()
    untouched = copy.deepcopy(model[0].state_dict())
    lines = gnn.replace_activations(model, {nn.ReLU: gnn.GEM(1), nn.GELU: gnn.SEGEM(2, 0.1)})
    assert lines == [
        "1: ReLU() -> GEM(n=1)",
        "2.0: GELU(approximate='none') -> SEGEM(n=2, epsilon=0.1)",
        "2.1: ReLU() -> GEM(n=1)",
        "2.2: ReLU() -> GEM(n=1)",
    ]
    assert model[1] is model[2][1] is model[2][2]
    assert [type(module) for module in model] == [nn.Linear, gnn.GEM, nn.Sequential, nn.ReLU6]
    assert not model[1].training
    assert all(torch.equal(model[0].state_dict()[name], value) for name, value in untouched.items())


@pytest.mark.parametrize(
    ("model", "replacements", "message"),
    [
        (nn.ReLU(), {nn.ReLU: gnn.GEM(1)}, "the model is itself a ReLU; put it in a container"),
        (nn.Sequential(), {nn.ReLU: gnn.GEM}, "the replacement of ReLU is .* must be a module such as GEM"),
    ],
)
def test_swaps_that_cannot_be_are_refused(model, replacements, message):
    with pytest.raises(UsageError, match=message):
        gnn.replace_activations(model, replacements)

"""GEM activations for torch: modules, functions, and the operator that exporters see.

Training runs an autograd.Function whose gradient is the closed form; differentiating through the value's
formula would give NaN at infinities and denormals. torch.export and tracing see one opaque operator,
gemedge::gem or gemedge::segem, that becomes one node; a learnable epsilon stands around it, as x / epsilon
before and times epsilon behind, and gemedge.capture.learned folds it away.
"""

import copy
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gemedge import polynomial as poly
from gemedge.activation import Activation, Branch, Family, even_power, segem_limit
from gemedge.errors import UsageError

__all__ = ["EGEM", "GEM", "SEGEM", "egem", "gem", "replace_activations", "save", "segem"]


def gem(x: Tensor, n: int = 1) -> Tensor:
    """GEM of every element, in x's float type; half types are computed in float32."""
    return egem(x, n, 1.0)


def egem(x: Tensor, n: int = 1, epsilon: float = 1.0) -> Tensor:
    """E-GEM of every element: epsilon * GEM(x / epsilon). epsilon is rounded to float32."""
    return _apply(x, "gem", *_checked("gem", n, epsilon))


def segem(x: Tensor, n: int = 1, epsilon: float = 1.0) -> Tensor:
    """SE-GEM of every element. epsilon is rounded to float32."""
    return _apply(x, "segem", *_checked("segem", n, epsilon))


class _Module(nn.Module):
    """One activation of the family; n and epsilon are checked, and epsilon rounded to float32, when it is made.

    A learnable epsilon is exp(log_epsilon), a parameter: positive whatever the optimizer does.
    """

    _family: Family = "gem"
    n: int
    epsilon: float

    def __init__(self, n: int, epsilon: float, learnable: bool = False) -> None:
        super().__init__()
        self.n, epsilon = _checked(self._family, n, epsilon)
        if learnable:
            self.log_epsilon = nn.Parameter(torch.tensor(math.log(epsilon), dtype=torch.float32))
        else:
            self.epsilon = epsilon

    def __getattr__(self, name: str) -> Any:
        if name == "epsilon" and "log_epsilon" in self._parameters:
            return float(self.log_epsilon.detach().exp())
        return super().__getattr__(name)

    @property
    def activation(self) -> Activation:
        """The function itself, as it will be exported."""
        return _activation(self._family, self.n, self.epsilon)

    def extra_repr(self) -> str:
        learnable = ", learnable=True" if "log_epsilon" in self._parameters else ""
        return str(self.activation).partition("(")[2].removesuffix(")") + learnable

    def forward(self, x: Tensor) -> Tensor:
        if "log_epsilon" in self._parameters:
            return _apply_learned(x, self._family, self.n, self.log_epsilon)
        return _apply(x, self._family, self.n, self.epsilon)


class GEM(_Module):
    """GEM: n from 1 to 16, epsilon 1."""

    def __init__(self, n: int = 1) -> None:
        super().__init__(n, 1.0)


class EGEM(_Module):
    """GEM at the scale epsilon, which is where training begins if it is learnable."""

    def __init__(self, n: int = 1, epsilon: float = 1.0, *, learnable: bool = False) -> None:
        super().__init__(n, epsilon, learnable)


class SEGEM(_Module):
    """The identity above 0 and a smooth floor of -epsilon below: no dead neurons. epsilon may be learnable."""

    _family = "segem"

    def __init__(self, n: int = 1, epsilon: float = 1.0, *, learnable: bool = False) -> None:
        super().__init__(n, epsilon, learnable)


def save(
    model: nn.Module, path: str | Path, example: Any, *, dynamic: Mapping[str, Mapping[int, str]] | None = None
) -> None:
    """Write the model, in eval mode, as a torch.export archive with no pickled part: `gemedge export` needs no flag.

    example: an input tensor or array, a sequence of them, or a dict by name. dynamic: {input: {axis: name}},
    the dimensions that may vary; None lets the first of each input vary where the model permits it. An
    existing file is replaced, whole or not at all. Raises UnsupportedError where torch.export cannot follow
    the model, OutputError where the file cannot be written.
    """
    from gemedge.capture import live, pt2
    from gemedge.files import write

    buffer = io.BytesIO()
    torch.export.save(live.program(model, live.example_of(model, example), dynamic), buffer)
    write({Path(path): pt2.strip(buffer.getvalue())}, force=True)


def _apply(x: Tensor, family: Family, n: int, epsilon: float) -> Tensor:
    if not x.is_floating_point():
        raise TypeError(f"{family} takes a floating-point tensor, not {x.dtype}")
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        operator = torch.ops.gemedge.gem if family == "gem" else torch.ops.gemedge.segem
        return operator(x, n, epsilon)
    return _Value.apply(x, family, n, epsilon)


def _apply_learned(x: Tensor, family: Family, n: int, log_epsilon: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise TypeError(f"{family} takes a floating-point tensor, not {x.dtype}")
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        epsilon = log_epsilon.exp().to(x.dtype)
        return _apply(x / epsilon, family, n, 1.0) * epsilon
    return _Learned.apply(x, log_epsilon, family, n)


class _Learned(torch.autograd.Function):
    """The activation at exp(log_epsilon): with t = x / epsilon, f = epsilon g(t), so that df / d log(epsilon) is
    f - x f'(x). Differentiable once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_epsilon: Tensor, family: Family, n: int) -> Tensor:
        ctx.save_for_backward(x, log_epsilon)
        ctx.parameters = family, n
        return _in_float32(x, lambda wide: _value(wide, family, n, log_epsilon.exp()))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, log_epsilon = ctx.saved_tensors
        family, n = ctx.parameters
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        scale = log_epsilon.exp().to(wide.dtype)
        by_x = _slope(wide, grad.to(wide.dtype), family, n, scale).to(x.dtype)
        by_log = (grad.to(wide.dtype) * _by_log_epsilon(wide, family, n, scale)).sum().to(log_epsilon.dtype)
        return by_x, by_log, None, None


class _Value(torch.autograd.Function):
    """The activation; its gradient is the closed form."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, family: Family, n: int, epsilon: float) -> Tensor:
        return _in_float32(x, lambda wide: _value(wide, family, n, epsilon))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(inputs[0])
        ctx.parameters = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return _Slope.apply(x, grad, *ctx.parameters, 1), None, None, None


class _Slope(torch.autograd.Function):
    """grad times the derivative of a given order at x; differentiable again in both."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, grad: Tensor, family: Family, n: int, epsilon: float, order: int) -> Tensor:
        if order > 1:
            return _in_float32(x, lambda wide: grad * _higher_derivative(wide, _activation(family, n, epsilon), order))
        return _in_float32(x, lambda wide: _slope(wide, grad, family, n, epsilon))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[:2])
        ctx.parameters = inputs[2:]

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        x, grad = ctx.saved_tensors
        family, n, epsilon, order = ctx.parameters
        by_x = _Slope.apply(x, outer * grad, family, n, epsilon, order + 1)
        by_grad = _Slope.apply(x, outer, family, n, epsilon, order)
        return by_x, by_grad, None, None, None, None


def _in_float32(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    if x.dtype in (torch.float16, torch.bfloat16):
        return function(x.float()).to(x.dtype)
    return function(x)


# What follows works in as few buffers as it can: for a large tensor a fresh buffer costs as much as arithmetic.


def _value(x: Tensor, family: Family, n: int, epsilon: float | Tensor) -> Tensor:
    """The formulas of gemedge.activation, to the same bits."""
    # a Python number would become its reciprocal: other bits
    scale = epsilon.to(x.dtype) if isinstance(epsilon, Tensor) else x.new_full((), epsilon)
    if family == "segem":
        t, s = _rising_sum(x, n, scale)
        s.div_(t.copy_(s).add_(1)).mul_(scale)
        return torch.threshold_(t.copy_(x), 0, 0).sub_(s)
    r = torch.threshold(x, 0, 0)  # clamp would keep the sign of -0
    return r.div_(_even_power(scale / r, n).add_(1))


def _slope(x: Tensor, grad: Tensor, family: Family, n: int, epsilon: float | Tensor) -> Tensor:
    """grad * f'(x); with s the gate, GEM's is s * (1 + 2n * (1 - s)), and SE-GEM's S'(t) / S(t)^2."""
    if family == "segem":
        t, s = _rising_sum(x, n, epsilon if isinstance(epsilon, Tensor) else x.new_full((), epsilon))
        slope = torch.full_like(t, 2 * n)
        for power in range(2 * n - 1, 0, -1):
            slope.mul_(t).add_(power)
        s.add_(1)
        return grad * slope.div_(s).div_(s)
    if torch.compiler.is_compiling():  # fused code counts divisions: one, of t clamped so that t^(2n) is finite
        raised = even_power((x * (1 / epsilon)).clamp(0, segem_limit(n)), n)
        rest = 1 / (1 + raised)
        return grad * (raised * rest * (1 + 2 * n * rest))
    q = x.clamp(min=0).reciprocal_()
    s = _even_power(q if type(epsilon) is float and epsilon == 1 else q.mul_(epsilon), n).add_(1).reciprocal_()
    return (grad * s).mul_(s.mul_(-2 * n).add_(1 + 2 * n))


def _by_log_epsilon(x: Tensor, family: Family, n: int, scale: Tensor) -> Tensor:
    """f - x f'(x): -2n x s (1 - s) of GEM's gate s, and epsilon (t S' + S - S^2) / S^2 of SE-GEM."""
    if family == "segem":
        t, s = _rising_sum(x, n, scale)
        weighted = torch.full_like(t, 2 * n)  # S', by Horner's rule
        for power in range(2 * n - 1, 0, -1):
            weighted.mul_(t).add_(power)
        total = s + 1
        return (weighted.div_(total).mul_(t) - s).div_(total).mul_(scale).masked_fill_(x.isnan(), math.nan)
    r = torch.threshold(x, 0, 0).clamp_(max=torch.finfo(x.dtype).max)
    gate = _even_power(scale / r, n).add_(1).reciprocal_()
    return _even_power(r / scale, n).add_(1).reciprocal_().mul_(gate).mul_(r).mul_(-2 * n)


def _rising_sum(x: Tensor, n: int, scale: Tensor) -> tuple[Tensor, Tensor]:
    """t = -x / epsilon within [0, limit], and t + t^2 + ... + t^(2n)."""
    t = x.clamp(max=0).div_(-scale).clamp_(max=segem_limit(n))
    total = t + 1
    for _ in range(2 * n - 2):
        total.mul_(t).add_(1)
    return t, total.mul_(t)


def _even_power(q: Tensor, n: int) -> Tensor:
    """q^(2n) in q's own memory, multiplied in the order of gemedge.activation.even_power."""
    square = q.mul_(q)
    while not n & 1:
        square, n = square.mul_(square), n >> 1
    power = square
    while n := n >> 1:
        square = square * square
        if n & 1:
            power = power * square
    return power


def _higher_derivative(x: Tensor, activation: Activation, order: int) -> Tensor:
    """Any derivative, each branch as a quotient of polynomials in t up to 1 and in 1/t beyond."""
    t = x.abs() / activation.epsilon
    right, left = (_quotient(t, branch, order) for branch in (activation.positive, activation.negative))
    slope = torch.where(x > 0, right, left * (-1) ** order)
    try:
        scale = activation.epsilon ** (1 - order)
    except OverflowError:
        scale = float("inf")
    return torch.where(x.isnan(), x, torch.where(slope == 0, slope, slope * scale))


def _quotient(t: Tensor, branch: Branch, order: int) -> Tensor:
    numerator, denominator = branch.derivative_quotient(order)
    growth = poly.degree(numerator) - (order + 1) * poly.degree(denominator)
    small, u = t.clamp(max=1), t.clamp(min=1).reciprocal()
    near = _horner(numerator, small) / _horner(denominator, small) ** (order + 1)
    far = _horner(numerator[::-1], u) / _horner(denominator[::-1], u) ** (order + 1) * u**-growth
    return torch.where(t <= 1, near, far)


def _horner(p: poly.Polynomial, t: Tensor) -> Tensor:
    total = torch.zeros_like(t)
    for coefficient in reversed(p):
        total = total * t + float(coefficient)
    return total


def _activation(family: Family, n: int, epsilon: float) -> Activation:
    return Activation.segem(n, epsilon) if family == "segem" else Activation.egem(n, epsilon)


def _define_operator(family: Family) -> None:
    """Register gemedge::gem or gemedge::segem: the same values and gradients, opaque to exporters."""

    def value(x: Tensor, n: int = 1, epsilon: float = 1.0) -> Tensor:
        return _Value.forward(x, family, *_checked(family, n, epsilon))

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:  # noqa: ARG001
        ctx.save_for_backward(inputs[0])
        ctx.parameters = _checked(family, *inputs[1:])

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return _Slope.apply(x, grad, family, *ctx.parameters, 1), None, None

    operator = torch.library.custom_op(f"gemedge::{family}", value, mutates_args=())
    operator.register_fake(lambda x, n=1, epsilon=1.0: torch.empty_like(x))  # noqa: ARG005
    operator.register_autograd(backward, setup_context=setup_context)


def _checked(family: Family, n: int, epsilon: float) -> tuple[int, float]:
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return n, epsilon  # the compiler cannot trace the check; eager code has made it, or will
    activation = _activation(family, n, epsilon)
    return activation.n or n, activation.epsilon


for _family in ("gem", "segem"):
    _define_operator(_family)


def replace_activations(model: nn.Module, replacements: Mapping[type[nn.Module], nn.Module]) -> list[str]:
    """Swap every module of a type named in `replacements`, in place, for a copy of its replacement.

    Returns a line for each swap, `name: Old() -> New()`, in the model's order; a module used in two
    places is swapped once and stays shared. Types are compared exactly: a subclass is left alone.
    Raises UsageError where the model itself is such a module, or a replacement is no module.
    """
    for old, new in replacements.items():
        if not isinstance(new, nn.Module):
            raise UsageError(f"the replacement of {old.__name__} is {new!r}; it must be a module such as GEM(1)")
    if type(model) in replacements:
        raise UsageError(f"the model is itself a {type(model).__name__}; put it in a container first")
    swapped: dict[nn.Module, nn.Module] = {}
    lines = []
    for path, parent in model.named_modules():
        for name, child in list(parent._modules.items()):  # named_children() hides a module's second place
            if type(child) in replacements:
                swapped[child] = new = swapped.get(child) or copy.deepcopy(replacements[type(child)])
                setattr(parent, name, new.train(child.training))
                lines.append(f"{path + '.' if path else ''}{name}: {child} -> {new}")
    return lines

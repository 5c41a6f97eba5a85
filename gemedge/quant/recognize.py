"""GEM and SE-GEM written as standard operators, found by what they compute.

A chain of element-wise nodes (gemedge.quant.chains) is evaluated in float64 on a grid of numbers of both signs and
twelve decades. Where one number of it fixes epsilon, every other one must agree: then the chain becomes the node.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gemedge.activation import MAX_N, Activation, Family, even_power, rising_sum, segem_limit
from gemedge.capture import schema
from gemedge.errors import ActivationError
from gemedge.quant import chains

_MAGNITUDES = np.logspace(-6, 6, 12 * 16 + 1)
_GRID = np.concatenate([-_MAGNITUDES[::-1], [0.0], _MAGNITUDES])
_RELATIVE = 1e-6
_ABSOLUTE = 1e-8  # of epsilon: below every format's LSB
_NEAR = 0.05
_MOST_ROOTS = 8  # an activation begins at one of the last tensors of which its end is a function
_LONGEST = 200  # SE-GEM of n = 16 has 73 nodes
_EXACT = 1e-10  # epsilon is known better than float32 has it
_RATIONAL = {
    "Abs", "Add", "Clip", "Div", "Equal", "Greater", "GreaterOrEqual", "Identity", "LeakyRelu", "Less", "LessOrEqual",
    "Max", "Min", "Mul", "Neg", "Not", "Pow", "Reciprocal", "Relu", "Sign", "Sqrt", "Sub", "Sum", "Where",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Likeness:
    """An activation, and how far a function is from it: 0 where it is the same.

    distance: the largest error where |x| <= 100 epsilon, of the activation's value or of epsilon, whichever is more.
    at: the x where that is.
    """

    activation: Activation
    distance: float
    at: float


def fuse(model: ir.Model) -> list[str]:
    """Replace chains that compute GEM or SE-GEM by its node, in place; a line for each, and for each near one."""
    taken: set[ir.Node] = set()
    near: dict[ir.Node, str] = {}
    lines: list[str] = []
    for chain in chains.candidates(model.graph, taken, _is_other, _MOST_ROOTS):
        if not 3 <= len(chain.nodes) <= _LONGEST:
            continue
        found = likeness(chain, positive_only=_is_never_negative(chain.root))
        end = chain.nodes[-1]
        if found is None:
            continue
        if found.distance > 0:
            if not any(node in near for node in chain.nodes):
                near |= dict.fromkeys(chain.nodes, f"node {end.name!r}: {_difference(found)}")
            continue
        taken.update(chain.nodes)
        lines.append(f"node {end.name!r}: {len(chain.nodes)} operators compute {found.activation} and became one")
        _replace(model, chain, found.activation)
    left = {text for node, text in near.items() if node not in taken}
    return [*lines[::-1], *sorted(left)]


def _is_other(node: ir.Node) -> bool:
    """Whether a node has no part in a piecewise rational function; a Cast of a truth is 0 or 1."""
    if node.op_type == "Cast" and node.inputs[0] is not None:
        return node.inputs[0].dtype != ir.DataType.BOOL
    return node.op_type not in _RATIONAL


def likeness(function: Callable[[np.ndarray], np.ndarray], *, positive_only: bool = False) -> Likeness | None:
    """The GEM or SE-GEM nearest to a function of float64 arrays; None where it is not within 5 % of any.

    It is the same where it agrees to 1e-6 of its value, or 1e-8 of epsilon, wherever on the grid it is finite.
    positive_only: it is never asked about numbers below 0.
    """
    x = _GRID[_GRID >= 0] if positive_only else _GRID
    y = function(x)
    finite = np.isfinite(y)
    if finite.sum() < 0.6 * len(x):
        return None
    x, y = x[finite], y[finite]
    families: tuple[Family, ...] = ("gem",) if positive_only else ("gem", "segem")
    found = [like for family in families for n in range(1, MAX_N + 1) if (like := _compare(family, n, x, y))]
    return min(found, key=lambda like: like.distance, default=None)


def _compare(family: Family, n: int, x: np.ndarray, y: np.ndarray) -> Likeness | None:
    epsilon = _epsilon(family, n, x, y)
    if epsilon is None:
        return None
    wanted = (_gem if family == "gem" else _segem)(x, n, epsilon)
    error = np.abs(y - wanted)
    make = Activation.egem if family == "gem" else Activation.segem
    try:
        activation = make(n, _nice(epsilon))
    except ActivationError:
        return None
    if (error <= _RELATIVE * np.abs(wanted) + _ABSOLUTE * epsilon).all():
        return Likeness(activation, 0.0, 0.0)
    share = np.where(np.abs(x) <= 100 * epsilon, error / np.maximum(np.abs(wanted), epsilon), 0.0)
    worst = int(share.argmax())
    return Likeness(activation, max(float(share[worst]), _ABSOLUTE), float(x[worst])) if share[worst] <= _NEAR else None


def _epsilon(family: Family, n: int, x: np.ndarray, y: np.ndarray) -> float | None:
    """The epsilon that y has at the one x where y / x, which tells it, is nearest to a half."""
    side = x > 0 if family == "gem" else x < 0
    if not side.any():
        return None
    own, ratio = x[side], y[side] / x[side]
    place = int(np.abs(ratio - 0.5).argmin())
    quotient, at = float(ratio[place]), abs(float(own[place]))
    if not 0.1 < quotient < 0.9:
        return None
    if family == "gem":
        return float(at * (1 / quotient - 1) ** (1 / (2 * n)))
    low, high = 1e-9, 1e9
    for _ in range(200):  # y / x falls as t = |x| / epsilon grows
        middle = float(np.sqrt(low * high))
        total = rising_sum(min(middle, segem_limit(n)), n)
        low, high = (middle, high) if total / (1 + total) / middle > quotient else (low, middle)
    return at / low


def _gem(x: np.ndarray, n: int, epsilon: float) -> np.ndarray:
    r = np.maximum(x, 0)
    with np.errstate(all="ignore"):
        return np.asarray(r / (1 + even_power(epsilon / r, n)))


def _segem(x: np.ndarray, n: int, epsilon: float) -> np.ndarray:
    total = rising_sum(np.minimum(np.maximum(-x, 0) / epsilon, segem_limit(n)), n)
    return np.asarray(np.maximum(x, 0) - epsilon * (total / (1 + total)))


def _nice(epsilon: float) -> float:
    """The float32 meant: the one it is, else the shortest decimal within the tolerance, else the nearest."""
    nearest = float(np.float32(epsilon))
    if abs(nearest - epsilon) <= _EXACT * epsilon:
        return nearest
    short = float(np.float32(float(f"{epsilon:.6g}")))
    return short if abs(short - epsilon) <= _RELATIVE * epsilon else nearest


def _difference(found: Likeness) -> str:
    return (
        f"its operators are near {found.activation} but not it: {found.distance:.2g} of its value or of epsilon off"
        f" at x = {found.at:.3g}; they became a table, not the activation"
    )


def _is_never_negative(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.domain:
        return False
    if node.op_type not in ("Max", "Clip"):
        return node.op_type == "Relu"
    lowest = node.inputs[1:2] if node.op_type == "Clip" else node.inputs
    tensors = [one.const_value for one in lowest if one is not None and one.const_value is not None]
    return any(tensor.size > 0 and bool((tensor.numpy() >= 0).all()) for tensor in tensors)


def _replace(model: ir.Model, chain: chains.Chain, activation: Activation) -> None:
    op_type = "SEGEM" if activation.family == "segem" else "GEM"
    attributes = [ir.AttrInt64("n", activation.n or 1), ir.AttrFloat32("epsilon", activation.epsilon)]
    node = ir.Node(schema.DOMAIN, op_type, [chain.root], attributes, name=chain.nodes[-1].name)
    model.graph.opset_imports[schema.DOMAIN] = schema.VERSION
    chains.put(model.graph, chain, node)

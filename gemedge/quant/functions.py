"""Element-wise float functions of ONNX, in float64, for tables."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from gemedge.errors import UnsupportedError

Function = Callable[[np.ndarray], np.ndarray]


def of(node: ir.Node, constants: Sequence[np.ndarray | None]) -> Function:
    """The function a node computes of its first input; UnsupportedError where its other inputs are not constants."""
    if any(constant is None for constant in constants):
        raise UnsupportedError("its other inputs must be constants")
    numbers = [float(np.asarray(constant).reshape(-1)[0]) for constant in constants]
    return _MAKERS[node.op_type](node, numbers)


def _attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _plain(function: Function) -> Callable[[ir.Node, list[float]], Function]:
    return lambda node, numbers: function  # noqa: ARG005


def _erf(x: np.ndarray) -> np.ndarray:
    from math import erf

    return np.vectorize(erf, otypes=[np.float64])(x)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _gelu(node: ir.Node, _: list[float]) -> Function:
    kind: Any = node.attributes.get("approximate")
    if kind is not None and kind.as_string() == "tanh":
        return lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2)))


def _clip(_: ir.Node, numbers: list[float]) -> Function:
    low, high = [*numbers, *(-np.inf, np.inf)[len(numbers) :]]
    return lambda x: np.clip(x, low, high)


def _elu(node: ir.Node, _: list[float]) -> Function:
    alpha = _attribute(node, "alpha", 1.0)
    return lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _hard_sigmoid(node: ir.Node, _: list[float]) -> Function:
    alpha, beta = _attribute(node, "alpha", 0.2), _attribute(node, "beta", 0.5)
    return lambda x: np.clip(alpha * x + beta, 0, 1)


_MAKERS: dict[str, Callable[[ir.Node, list[float]], Function]] = {
    "Clip": _clip,
    "Elu": _elu,
    "Erf": _plain(_erf),
    "Exp": _plain(lambda x: np.exp(np.minimum(x, 700))),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Mish": _plain(lambda x: x * np.tanh(_softplus(x))),
    "Neg": _plain(np.negative),
    "Abs": _plain(np.abs),
    "Sigmoid": _plain(_sigmoid),
    "Softplus": _plain(_softplus),
    "Softsign": _plain(lambda x: x / (1 + np.abs(x))),
    "Swish": _plain(lambda x: x * _sigmoid(x)),
    "Tanh": _plain(np.tanh),
}
NAMES = tuple(_MAKERS)

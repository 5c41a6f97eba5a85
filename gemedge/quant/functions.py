"""Element-wise float functions of ONNX, in float64, for tables.

A function is either one node of ONNX, or a node of ours: `Elementwise` of domain ai.gemedge.table, whose
model-local function body is a chain of such nodes between one input and one output (gemedge.quant.chains).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import erf
from typing import Any

import numpy as np
import onnx_ir as ir

from gemedge.errors import UnsupportedError

DOMAIN = "ai.gemedge.table"
CHAIN = "Elementwise"
Function = Callable[[np.ndarray], np.ndarray]


def of(
    node: ir.Node,
    constants: Sequence[np.ndarray | None],
    bodies: Mapping[ir.OperatorIdentifier, ir.Function] | None = None,
) -> Function:
    """The function a node computes of its first input, from float64 arrays to float64 arrays of the same shape.

    bodies: the model's functions, for a node of ours. The function of a chain has a value everywhere: where the
    chain gives NaN, such as a logarithm below 0, it repeats the value at the nearest of the numbers it was given.
    Raises UnsupportedError where the other inputs are not constants.
    """
    if node.domain == DOMAIN:
        body = (bodies or {}).get(node.op_identifier())
        if body is None:
            raise UnsupportedError("its function body is missing")
        return lambda x: _without_nan(x, value_of(body, body.inputs[0], body.outputs[0], x))
    if any(constant is None for constant in constants):
        raise UnsupportedError("its other inputs must be constants")
    arrays = [np.asarray(constant, np.float64).reshape(-1)[0] for constant in constants]
    return lambda x: _OPERATORS[node.op_type](node, [x, *arrays])


def value_of(nodes: Iterable[ir.Node], start: ir.Value, end: ir.Value, x: np.ndarray) -> np.ndarray:
    """What nodes, in an order that can be computed, make of x, the float64 numbers of `start`, at `end`.

    Every other input of theirs is a constant of which all elements are equal. NaN and infinities are as in IEEE 754.
    """
    values: dict[ir.Value, np.ndarray] = {start: x}

    def read(value: ir.Value | None) -> np.ndarray | None:
        if value is None or value in values:
            return None if value is None else values[value]
        if value.const_value is None:
            raise UnsupportedError(f"input {value.name!r} is neither a tensor nor a constant")
        return _scalar(value.const_value)

    with np.errstate(all="ignore"):
        for node in nodes:
            if node.op_type == "Constant":
                values[node.outputs[0]] = _scalar(node.attributes["value"].as_tensor())
            else:
                values[node.outputs[0]] = _OPERATORS[node.op_type](node, [read(value) for value in node.inputs])
    return np.broadcast_to(values[end], x.shape).astype(np.float64)


def _scalar(tensor: ir.TensorProtocol) -> np.ndarray:
    first = tensor.numpy().reshape(-1)[0]
    return np.asarray(first if first.dtype == bool else np.float64(first))


def _without_nan(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    missing = np.isnan(y)
    if missing.all():
        raise UnsupportedError("it has no value for any input in range")
    if not missing.any():
        return y
    known, values = x[~missing], y[~missing]
    return np.where(missing, values[np.abs(known - x[..., None]).argmin(-1)], y)


def _attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


# Operators that take constants or other results: (node, inputs) to the output

Operator = Callable[[ir.Node, list[Any]], np.ndarray]


def _plain(function: Callable[..., np.ndarray]) -> Operator:
    return lambda node, inputs: function(*inputs)  # noqa: ARG005


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(erf, otypes=[np.float64])(x)


def _exp(x: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(x, 700))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1 + small)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _gelu(node: ir.Node, inputs: list[Any]) -> np.ndarray:
    x, kind = inputs[0], node.attributes.get("approximate")
    if kind is not None and kind.as_string() == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + _erf(x / np.sqrt(2))))


def _clip(_: ir.Node, inputs: list[Any]) -> np.ndarray:
    x, low, high = [*inputs, None, None][:3]
    x = x if low is None else np.maximum(x, low)
    return np.asarray(x if high is None else np.minimum(x, high))


def _elu(node: ir.Node, inputs: list[Any]) -> np.ndarray:
    x = inputs[0]
    return np.where(x > 0, x, _attribute(node, "alpha", 1.0) * np.expm1(np.minimum(x, 0)))


def _celu(node: ir.Node, inputs: list[Any]) -> np.ndarray:
    x, alpha = inputs[0], _attribute(node, "alpha", 1.0)
    return np.asarray(np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha)))


def _selu(node: ir.Node, inputs: list[Any]) -> np.ndarray:
    x, alpha = inputs[0], _attribute(node, "alpha", 1.6732632423543772)
    gamma = _attribute(node, "gamma", 1.0507009873554805)
    return np.asarray(gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))))


def _hard_sigmoid(node: ir.Node, inputs: list[Any]) -> np.ndarray:
    return np.clip(_attribute(node, "alpha", 0.2) * inputs[0] + _attribute(node, "beta", 0.5), 0, 1)


def _leaky_relu(node: ir.Node, inputs: list[Any]) -> np.ndarray:
    return np.where(inputs[0] < 0, _attribute(node, "alpha", 0.01) * inputs[0], inputs[0])


def _thresholded_relu(node: ir.Node, inputs: list[Any]) -> np.ndarray:
    return np.where(inputs[0] > _attribute(node, "alpha", 1.0), inputs[0], 0.0)


def _cast(node: ir.Node, inputs: list[Any]) -> np.ndarray:
    to_truth = node.attributes["to"].as_int() == ir.DataType.BOOL
    return np.asarray(inputs[0], bool if to_truth else np.float64)


def _folded(function: Callable[..., np.ndarray]) -> Operator:
    def fold(_: ir.Node, inputs: list[Any]) -> np.ndarray:
        total = inputs[0]
        for other in inputs[1:]:
            total = function(total, other)
        return np.asarray(total)

    return fold


_TABLES: dict[str, Operator] = {  # quantize makes a table of one such node
    "Clip": _clip,
    "Elu": _elu,
    "Erf": _plain(_erf),
    "Exp": _plain(_exp),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Mish": _plain(lambda x: x * np.tanh(_softplus(x))),
    "Neg": _plain(np.negative),
    "Abs": _plain(np.abs),
    "Sigmoid": _plain(_sigmoid),
    "Softplus": _plain(_softplus),
    "Softsign": _plain(lambda x: x / (1 + np.abs(x))),
    "Swish": lambda node, inputs: inputs[0] * _sigmoid(_attribute(node, "alpha", 1.0) * inputs[0]),
    "Tanh": _plain(np.tanh),
}
_OPERATORS: dict[str, Operator] = {
    **_TABLES,
    "Acos": _plain(np.arccos),
    "Acosh": _plain(np.arccosh),
    "Add": _plain(np.add),
    "And": _plain(np.logical_and),
    "Asin": _plain(np.arcsin),
    "Asinh": _plain(np.arcsinh),
    "Atan": _plain(np.arctan),
    "Atanh": _plain(np.arctanh),
    "Cast": _cast,
    "Ceil": _plain(np.ceil),
    "Celu": _celu,
    "Cos": _plain(np.cos),
    "Cosh": _plain(np.cosh),
    "Div": _plain(np.divide),
    "Equal": _plain(np.equal),
    "Floor": _plain(np.floor),
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Identity": _plain(np.asarray),
    "LeakyRelu": _leaky_relu,
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "Log": _plain(np.log),
    "Max": _folded(np.maximum),
    "Min": _folded(np.minimum),
    "Mul": _plain(np.multiply),
    "Not": _plain(np.logical_not),
    "Or": _plain(np.logical_or),
    "PRelu": _plain(lambda x, slope: np.where(x < 0, slope * x, x)),
    "Pow": _plain(np.power),
    "Reciprocal": _plain(lambda x: 1.0 / x),
    "Relu": _plain(lambda x: np.maximum(x, 0)),
    "Round": _plain(np.rint),
    "Selu": _selu,
    "Sign": _plain(np.sign),
    "Sin": _plain(np.sin),
    "Sinh": _plain(np.sinh),
    "Sqrt": _plain(np.sqrt),
    "Sub": _plain(np.subtract),
    "Sum": _folded(np.add),
    "Tan": _plain(np.tan),
    "ThresholdedRelu": _thresholded_relu,
    "Where": _plain(np.where),
    "Xor": _plain(np.logical_xor),
}
NAMES = tuple(_TABLES)
ELEMENTWISE = frozenset(_OPERATORS)

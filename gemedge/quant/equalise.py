"""Cross-layer equalisation: channels of one layer scaled down, and the next layer's weights for them up.

Nagel et al. 2019, section 4.1: with r1 the largest weight of an output channel of the first layer and r2 of the same
input channel of the second, the first is divided by s = sqrt(r1 / r2) and the second multiplied by it, over and over
until nothing changes. The network computes the same where everything between the two is positively homogeneous,
f(s x) = s f(x): Relu, LeakyRelu, pools. GEM is not: E-GEM(x) = epsilon GEM(x / epsilon), so a scaled channel would
need an epsilon of its own.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gemedge.capture.reading import attribute, only_reader

_WEIGHTED = ("Conv", "Gemm")
_HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout")
EQUALISED = "equalised"  # a note in the quantized model
_SWEEPS = 100
_STILL = 1.001  # a sweep whose factors all lie within this changes nothing
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Equalised:
    """A model that computes the same numbers, and what was and was not done to it."""

    model: ir.Model
    pairs: int
    note: str


@dataclass(frozen=True, slots=True)
class _Pair:
    first: "_Layer"
    second: "_Layer"


def equalise(model: ir.Model) -> Equalised:
    """A clone of the model in which the channels between layers with weights have like magnitudes.

    Pairs are Conv and Gemm nodes whose weights are constants of their own, the first read only by a chain of
    homogeneous nodes that ends in the second. Without one the clone is equal to the model.
    """
    made = model.clone()
    layers = {node: _Layer(node) for node in made.graph if node.op_type in _WEIGHTED and _is_plain(node)}
    pairs, between = [], []
    for node, layer in layers.items():
        reader, obstacle = _end_of_chain(node)
        if reader in layers and layers[reader].groups_of(layer.channels):
            pairs.append(_Pair(layer, layers[reader]))
        elif obstacle:
            between.append(obstacle)
    for _ in range(_SWEEPS):
        if max((_balance(pair) for pair in pairs), default=1.0) < _STILL:
            break
    for layer in layers.values():
        layer.store()
    return Equalised(made, len(pairs), _note(len(pairs), between))


def _note(pairs: int, obstacles: list[str]) -> str:
    told = f"{pairs} pair{'s' * (pairs != 1)} of layers equalised"
    if not obstacles:
        return told
    kinds = sorted(set(obstacles))
    shown = ", ".join(kinds[:_SHOWN]) + (" ..." if len(kinds) > _SHOWN else "")
    return f"{told}; {len(obstacles)} not, as {shown} between them would not keep the same function"


def _end_of_chain(node: ir.Node) -> tuple[ir.Node | None, str]:
    """The layer with weights that alone reads the node through homogeneous ones, or what stands in the way."""
    reader = only_reader(node.outputs[0])
    while reader is not None and _passes(reader):
        reader = only_reader(reader.outputs[0])
    if reader is None:
        return None, ""
    return (reader, "") if reader.op_type in _WEIGHTED else (None, reader.op_type)


def _passes(node: ir.Node) -> bool:
    """Whether f(s x) = s f(x) for every channel's own positive s, channels staying on axis 1 or in order behind it."""
    if node.domain not in ("", "ai.onnx") or any(value.uses() for value in node.outputs[1:]):
        return False
    match node.op_type:
        case "LeakyRelu":
            return float(attribute(node, "alpha", 0.01)) >= 0
        case "Flatten":
            return int(attribute(node, "axis", 1)) == 1
        case "Reshape":
            return _flattens(node)
        case "ReduceMean":
            return _means_places(node)
        case kind:
            return kind in _HOMOGENEOUS


def _flattens(node: ir.Node) -> bool:
    """Whether a Reshape keeps the first axis and makes one of all others."""
    given, shape = node.inputs
    target = _constant(shape)
    if target is None or target.size != 2 or given is None or given.shape is None:
        return False
    sizes = [size for size in list(given.shape)[1:] if isinstance(size, int)]
    if len(sizes) != len(given.shape) - 1:
        return False
    row = math.prod(sizes)
    return int(target[1]) == row or (int(target[0]) == 0 and int(target[1]) == -1)


def _means_places(node: ir.Node) -> bool:
    """Whether a ReduceMean leaves batch and channels alone."""
    given = node.inputs[0]
    axes = _constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or given is None or given.shape is None:
        return False
    return axes.size > 0 and int((axes % len(given.shape)).min()) >= 2


def _constant(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _is_plain(node: ir.Node) -> bool:
    """Whether weights and bias are constants that no other node reads, and scale what the node makes."""
    constants = [value for value in node.inputs[1:] if value is not None]
    own = all(value.const_value is not None and only_reader(value) is node for value in constants)
    scaled = any(attribute(node, name, 1.0) != 1 for name in ("alpha", "beta")) or attribute(node, "transA", 0)
    bias_per_channel = node.op_type == "Conv" or len(node.inputs) < 3 or _is_vector(node.inputs[2])
    return own and not scaled and bias_per_channel and len(constants) > 0


def _is_vector(value: ir.Value | None) -> bool:
    return value is None or (value.const_value is not None and value.const_value.numpy().ndim == 1)


def _balance(pair: _Pair) -> float:
    """Scale the channels of one pair; the largest factor, or its reciprocal, that was needed."""
    before, after = pair.first.outgoing(), pair.second.incoming(pair.first.channels)
    alive = (before > 0) & (after > 0) & np.isfinite(before) & np.isfinite(after)
    factors = np.sqrt(np.where(alive, before, 1.0) / np.where(alive, after, 1.0))
    pair.first.scale_outgoing(1 / factors)
    pair.second.scale_incoming(factors)
    return float(np.maximum(factors, 1 / factors).max(initial=1.0))


class _Layer:
    """A node's weights as [groups, outputs, inputs, places] in float64, and its bias."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        weight = _array(node.inputs[1])
        self._turned = node.op_type == "Gemm" and not attribute(node, "transB", 0)
        self._shape = (weight.T if self._turned else weight).shape
        self.groups = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
        self.weight = (weight.T if self._turned else weight).astype(np.float64)
        self.weight = self.weight.reshape(self.groups, self._shape[0] // self.groups, self._shape[1], -1)
        self.bias = _array(node.inputs[2]).astype(np.float64) if self._has_bias else None
        self._touched = False

    @property
    def _has_bias(self) -> bool:
        return len(self.node.inputs) > 2 and self.node.inputs[2] is not None

    @property
    def channels(self) -> int:
        return self._shape[0]

    def groups_of(self, channels: int) -> bool:
        """Whether its inputs are so many channels, each of as many numbers."""
        count = self.groups * self._shape[1]
        return count == channels or (self.node.op_type == "Gemm" and count % channels == 0)

    def outgoing(self) -> np.ndarray:
        """The largest magnitude of each output channel's weights."""
        return np.abs(self.weight).max((2, 3)).reshape(-1)

    def incoming(self, channels: int) -> np.ndarray:
        """The largest magnitude of the weights that meet each of so many input channels."""
        return np.asarray(np.abs(self.weight).max((1, 3)).reshape(channels, -1).max(1))

    def scale_outgoing(self, factors: np.ndarray) -> None:
        self._touched = True
        self.weight *= factors.reshape(self.groups, -1, 1, 1)
        if self.bias is not None:
            self.bias = self.bias * factors

    def scale_incoming(self, factors: np.ndarray) -> None:
        self._touched = True
        inputs = np.repeat(factors, self.groups * self._shape[1] // len(factors))
        self.weight *= inputs.reshape(self.groups, 1, -1, 1)

    def store(self) -> None:
        if not self._touched:
            return
        weight = self.weight.reshape(self._shape)
        _put(self.node.inputs[1], weight.T if self._turned else weight)
        if self.bias is not None:
            _put(self.node.inputs[2], self.bias)


def _array(value: ir.Value | None) -> np.ndarray:
    tensor = value.const_value if value is not None else None
    assert tensor is not None  # noqa: S101 - _is_plain looked
    return tensor.numpy()


def _put(value: ir.Value | None, array: np.ndarray) -> None:
    dtype = _array(value).dtype
    assert value is not None  # noqa: S101 - _array looked
    value.const_value = ir.tensor(np.ascontiguousarray(array, dtype), name=value.name)

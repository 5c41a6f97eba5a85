"""The layers of a quantized model as float operators between DequantizeLinear and QuantizeLinear.

A layer's mantissas and shifts are turned back into the real numbers they stand for: a weight's scale, a factor of a
sum. Factors as near to 1 as a mantissa of 15 bits can tell are 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from gemedge.activation import Activation
from gemedge.capture import schema
from gemedge.export import integer_elementwise as elementwise
from gemedge.export import integer_moving as moves
from gemedge.export.onnx_writer import OFFSET, Writer, zero_of
from gemedge.model import Op
from gemedge.moving import Clamp, Concatenate, Constant, Embed, Pad, Reshape, Spread, Take, Transpose
from gemedge.operators import (
    NORM_BITS,
    Activate,
    AveragePool,
    Choose,
    Combine,
    Convolution,
    Dense,
    GemmlowpSum,
    Interpolate,
    LayerNormalization,
    Lookup,
    MatrixMultiply,
    MaxPool,
    Multiply,
    RawAveragePool,
    Softmax,
    Tensor,
)

_ONE = 2.0**-14
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(eq=False)
class Reals:
    """A writer, and the name in the graph of each tensor's real numbers, where they were asked for."""

    to: Writer
    names: dict[str, str] = field(default_factory=dict)

    def of(self, tensor: Tensor) -> str:
        if tensor.name not in self.names:
            value = self.to.values[tensor.name]
            self.names[tensor.name] = self.to.add("DequantizeLinear", value, *self._format(tensor))
        return self.names[tensor.name]

    def aligned(self, tensor: Tensor, axes: int) -> str:
        """With as many axes behind the batch."""
        missing = axes - len(tensor.shape)
        value = self.of(tensor)
        return self.to.reshaped(value, (*(1,) * missing, *tensor.shape)) if missing > 0 else value

    def quantized(self, value: str, made: Tensor) -> str:
        return self.to.add("QuantizeLinear", value, *self._format(made))

    def activated(self, activation: Activation, given: Tensor, made: Tensor) -> str:
        """Of 8 bits as 8 bits: the three operators as one node, of which gemedge's kernel makes a table."""
        formats = (*self._format(given), *self._format(made))
        return _activation(self.to, "Quantized", activation, self.to.values[given.name], *formats)

    def constant(self, numbers: Any) -> str:
        return self.to.constant(numbers, np.float32)

    def times(self, value: str, factor: float) -> str:
        return value if abs(factor - 1) < _ONE else self.to.add("Mul", value, self.constant(factor))

    def _format(self, tensor: Tensor) -> tuple[str, str]:
        return self.constant(tensor.quantized.scale), self.to.constant(zero_of(tensor), self.to.held(tensor))


def write(reals: Reals, layer: Op) -> str:
    """The name of the integers that a layer makes."""
    to = reals.to
    given, made = [to.model.tensors[name] for name in layer.inputs], to.model.tensors[layer.output]
    match layer:
        case Constant():
            return moves.constant(to, layer, given, made)
        case Embed():
            return moves.embed(to, layer, given, made)
        case Reshape():
            return moves.reshape(to, layer, given, made)
        case Transpose():
            return moves.transpose(to, layer, given, made)
        case Take():
            return moves.take(to, layer, given, made)
        case Lookup():
            return elementwise.lookup(to, layer, given, made)
        case Interpolate():
            return elementwise.interpolate(to, layer, given, made)
        case Activate() if layer.activation.family == "rational":
            return elementwise.activate(to, layer, given, made)
        case Activate() if given[0].quantized.bits == made.quantized.bits == 8:
            return reals.activated(layer.activation, given[0], made)
    return reals.quantized(_real(reals, layer, given, made), made)


def _real(reals: Reals, layer: Op, given: list[Tensor], made: Tensor) -> str:
    """The name of the real numbers that a layer makes, before they are quantized."""
    match layer:
        case Convolution() | Dense():
            return _weighted(reals, layer, given[0], made)
        case Activate():
            return _activation(reals.to, "", layer.activation, reals.of(given[0]))
        case MatrixMultiply() | Multiply():
            left, right = (reals.aligned(tensor, len(made.shape)) for tensor in given)
            product = reals.to.add("MatMul" if isinstance(layer, MatrixMultiply) else "Mul", left, right)
            return reals.times(product, _factors(layer, given, made)[0])
        case Combine() | GemmlowpSum():
            return _sum(reals, layer, given, made)
        case Choose():
            condition = reals.to.constant(layer.condition.astype(bool), np.bool_)
            return reals.to.add("Where", condition, *_scaled(reals, layer, given, made))
        case Concatenate():
            return reals.to.add("Concat", *_scaled(reals, layer, given, made), axis=layer.axis + 1)
        case Softmax():
            return _softmax(reals, layer, given[0])
        case LayerNormalization():
            return _normalization(reals, layer, given[0], made)
        case MaxPool() | AveragePool() | RawAveragePool():
            return _pool(reals, layer, given[0], made)
    return _moved(reals, layer, given[0])


def _activation(to: Writer, kind: str, activation: Activation, *inputs: str) -> str:
    op_type = kind + ("SEGEM" if activation.family == "segem" else "GEM")
    return to.add(op_type, *inputs, domain=schema.DOMAIN, n=activation.n, epsilon=activation.epsilon)


# Sums of products


def _weighted(reals: Reals, layer: Convolution | Dense, given: Tensor, made: Tensor) -> str:
    """A Dense is a Gemm with its weights as they lie: of a MatMul onnxruntime would quantize 16-bit inputs to 8 bits.

    Where anything has 16 bits the bias is added behind: one inside would be cut to 32 bits.
    """
    to, inside = reals.to, given.quantized.bits == 8 and layer.weight.dtype == np.int8
    scale = np.maximum(_real_number(layer.mantissa, layer.shift) * made.quantized.scale / given.quantized.scale, _TINY)
    scale = np.broadcast_to(scale, len(layer.weight)).astype(np.float32)
    value, weight, axes = reals.of(given), _weight(reals, layer.weight, scale), 0
    bias = (_bias(reals, layer, given, scale),) if inside else ()
    if isinstance(layer, Convolution):
        axes = len(layer.strides)
        window: dict[str, Any] = {"strides": layer.strides, "pads": layer.pads, "dilations": layer.dilations}
        sums = to.add("Conv", value, weight, *bias, group=layer.groups, **window)
    else:
        rows = value if len(given.shape) == 1 else to.reshaped(value, given.shape[-1:])
        sums = to.add("Gemm", rows, weight, *bias, transB=1)
    if not inside:
        real = layer.bias.astype(np.float64) * given.quantized.scale * scale
        sums = to.add("Add", sums, reals.constant(real.reshape(-1, *(1,) * axes)))
    return to.reshaped(sums, made.shape) if isinstance(layer, Dense) and len(given.shape) != 1 else sums


def _weight(reals: Reals, weight: np.ndarray, scale: np.ndarray) -> str:
    """Of 8 bits as uint8, 128 above: onnxruntime's product of uint8 and int8 saturates on CPUs without VNNI."""
    to, small = reals.to, weight.dtype == np.int8
    kind, offset = (np.uint8, OFFSET) if small else (np.int16, 0)
    held = to.constant(weight.astype(np.int64) + offset, kind)
    zero = to.constant(np.full(scale.shape, offset), kind)
    return to.add("DequantizeLinear", held, reals.constant(scale), zero, axis=0)


def _bias(reals: Reals, layer: Convolution | Dense, given: Tensor, scale: np.ndarray) -> str:
    """As int32 in units of the products: below the accumulator's bound, which 32 bits hold."""
    to, unit = reals.to, np.float32(given.quantized.scale) * scale
    zero = to.constant(np.zeros(unit.shape), np.int32)
    return to.add("DequantizeLinear", to.constant(layer.bias, np.int32), reals.constant(unit), zero, axis=0)


# Sums and factors


def _real_number(mantissa: Any, shift: Any) -> np.ndarray:
    return np.ldexp(np.asarray(mantissa, np.float64), -np.asarray(shift, np.int64))


def _factors(layer: Any, given: Sequence[Tensor], made: Tensor) -> list[float]:
    """By what the real numbers of each input, or of a product of them, are multiplied."""
    scales = [tensor.quantized.scale for tensor in given]
    if isinstance(layer, MatrixMultiply | Multiply):
        scales = [scales[0] * scales[1]]
    numbers = np.broadcast_to(_real_number(layer.mantissa, layer.shift), len(scales))
    return [float(n) * made.quantized.scale / scale for n, scale in zip(numbers, scales, strict=True)]


def _scaled(reals: Reals, layer: Choose | Concatenate, given: list[Tensor], made: Tensor) -> list[str]:
    factors = _factors(layer, given, made)
    return [reals.times(reals.aligned(t, len(made.shape)), f) for t, f in zip(given, factors, strict=True)]


def _sum(reals: Reals, layer: Combine | GemmlowpSum, given: list[Tensor], made: Tensor) -> str:
    numbers = _real_number(layer.mantissa, layer.shift)
    if isinstance(layer, GemmlowpSum):
        numbers = numbers[:2] * numbers[2] * (1 << layer.left)
    total = ""
    for tensor, number in zip(given, np.broadcast_to(numbers, len(given)), strict=True):
        factor = float(number) * made.quantized.scale / tensor.quantized.scale
        part = reals.times(reals.aligned(tensor, len(made.shape)), abs(factor))
        if not total:
            total = part if factor >= 0 else reals.to.add("Neg", part)
        else:
            total = reals.to.add("Add" if factor >= 0 else "Sub", total, part)
    return total


# Over a window or an axis


def _softmax(reals: Reals, layer: Softmax, given: Tensor) -> str:
    value = reals.of(given)
    if layer.mask.size:
        mask = reals.to.constant(layer.mask.astype(bool), np.bool_)
        value = reals.to.add("Where", mask, value, reals.constant(-np.inf))
    return reals.to.add("Softmax", value, axis=-1)


def _normalization(reals: Reals, layer: LayerNormalization, given: Tensor, made: Tensor) -> str:
    scale, count = made.quantized.scale, given.shape[-1]
    weight = np.ldexp(layer.mantissa.astype(np.float64), NORM_BITS - layer.shift) * scale
    bias = np.ldexp(layer.bias.astype(np.float64), -layer.shift) * scale
    epsilon = float(layer.epsilon * Fraction(given.quantized.scale) ** 2 / count**2)
    of = (reals.of(given), reals.constant(weight), reals.constant(bias))
    return reals.to.add("LayerNormalization", *of, axis=-1, epsilon=epsilon)


def _pool(reals: Reals, layer: MaxPool | AveragePool | RawAveragePool, given: Tensor, made: Tensor) -> str:
    window: dict[str, Any] = {"kernel_shape": layer.kernel, "strides": layer.strides, "pads": layer.pads}
    if isinstance(layer, MaxPool):
        return reals.to.add("MaxPool", reals.of(given), **window)
    if isinstance(layer, AveragePool) and layer.count_padding:
        window["count_include_pad"] = 1
    mean = reals.to.add("AveragePool", reals.of(given), **window)
    if isinstance(layer, RawAveragePool):
        return mean
    count = int(np.prod(layer.kernel))  # the last mantissa is that of whole windows
    number = float(_real_number(layer.mantissa.reshape(-1)[-1], layer.shift.reshape(-1)[-1]))
    return reals.times(mean, number * count * made.quantized.scale / given.quantized.scale)


# Numbers moved


def _moved(reals: Reals, layer: Op, given: Tensor) -> str:
    to, params = reals.to, given.quantized
    match layer:
        case Pad():
            axes = len(layer.pads) // 2
            pads = to.constant((0, *layer.pads[:axes], 0, *layer.pads[axes:]), np.int64)
            return to.add(
                "Pad", reals.of(given), pads, reals.constant((layer.value - params.zero_point) * params.scale)
            )
        case Clamp():
            ends = ((end - params.zero_point) * params.scale for end in (layer.low, layer.high))
            return to.add("Clip", reals.of(given), *(reals.constant(end) for end in ends))
        case Spread():
            around = reals.constant((layer.value - params.zero_point) * params.scale)
            return moves.apart(to, reals.of(given), around, given.shape, layer.strides)
    raise AssertionError(f"{type(layer).__name__} is not written")

"""The TensorFlow Lite operators of each integer layer."""

from collections.abc import Callable

import numpy as np

from gemedge.errors import UnsupportedError
from gemedge.export import tflite_moving as moving
from gemedge.export import tflite_windows as windows
from gemedge.export.tflite_activations import by_floats, by_table
from gemedge.export.tflite_custom import by_custom
from gemedge.export.tflite_model import IntegerWriter
from gemedge.export.tflite_tensors import identity
from gemedge.model import Op
from gemedge.moving import Clamp, Concatenate, Constant, Embed, Pad, Reshape, Spread, Take, Transpose
from gemedge.operators import (
    Activate,
    AveragePool,
    Choose,
    Combine,
    Convolution,
    Dense,
    GemmlowpSum,
    Interpolate,
    Lookup,
    MatrixMultiply,
    MaxPool,
    Multiply,
    Operator,
    RawAveragePool,
)


def write(to: IntegerWriter, layer: Op) -> None:
    """The layer's operators; UnsupportedError names the layer that has none."""
    try:
        if isinstance(layer, Constant):
            to.add_constant(to.value(to.made(layer), layer.value))
            return
        call = _CALLS.get(type(layer))
        if call is None:
            raise UnsupportedError("its integers are by a law of ours (docs/numerics.md) that no operator there has")
        _check_widths(to, layer)
        to.add(to.value(to.made(layer)))
        call(to, layer)
    except UnsupportedError as error:
        raise UnsupportedError(f"layer {layer.name!r} ({type(layer).__name__}) in TensorFlow Lite: {error}") from error


def _check_widths(to: IntegerWriter, layer: Operator) -> None:
    """UnsupportedError where sums or products meet two widths, as where two schemes stand side by side."""
    bits = [tensor.quantized.bits for tensor in (*to.given(layer), to.made(layer)) if isinstance(layer, _ONE_WIDTH)]
    if len(set(bits)) > 1:
        given = " and ".join(map(str, bits[:-1]))
        raise UnsupportedError(f"{given} bits in and {bits[-1]} out; its operator there takes one width")


def _activate(to: IntegerWriter, layer: Activate) -> None:
    (given,), source = to.given(layer), layer.inputs[0]
    kernel = to.model.kernels[layer.name]
    match to.form_of(given.quantized):
        case "table":
            _tabled(to, layer, kernel(_codes(given.quantized.bits)))
        case "float":
            by_floats(to, source, layer.output, layer.activation)
        case "custom":
            by_custom(to, source, layer.output, kernel)
            to.custom[layer.name] = kernel


def _lookup(to: IntegerWriter, layer: Lookup) -> None:
    _tabled(to, layer, layer.table)


def _interpolate(to: IntegerWriter, layer: Interpolate) -> None:
    """All 65,536 outputs: TensorFlow Lite's own interpolation is of other functions."""
    position = _codes(16).astype(np.int64) + 32768
    entries = layer.table.astype(np.int64)
    low, fraction = entries[position >> 7], position & 127
    outputs = low + ((entries[(position >> 7) + 1] - low) * fraction + 64 >> 7)
    _tabled(to, layer, outputs.astype(layer.table.dtype))


def _tabled(to: IntegerWriter, layer: Op, outputs: np.ndarray) -> None:
    by_table(to, layer.inputs[0], layer.output, outputs)


def _codes(bits: int) -> np.ndarray:
    half = 1 << (bits - 1)
    return np.arange(-half, half).astype(f"i{bits // 8}")


def _clamp(to: IntegerWriter, layer: Clamp) -> None:
    made = to.values[layer.output]
    low, high = (to.graph.constant(f"{layer.name}/bound", np.array([bound], made.dtype), made.params)
                 for bound in (layer.low, layer.high))  # fmt: skip
    above = to.temporary(made, made.laid, "above")
    to.graph.operator("MAXIMUM", [*to.elementwise(layer), low], above)
    to.graph.operator("MINIMUM", [above, high], to.indices[made.name])


# Arithmetic


def _matrix_multiply(to: IntegerWriter, layer: MatrixMultiply) -> None:
    given, made = to.given(layer), to.made(layer)
    scales = [tensor.quantized.scale for tensor in given]
    mantissa, shift = int(layer.mantissa.reshape(-1)[0]), int(layer.shift.reshape(-1)[0])
    to.check_multiplier(layer, scales, made.quantized.scale, mantissa, shift)
    axes = identity(len(made.shape))
    to.write(layer.output, "BATCH_MATMUL", [to.operand(name, axes) for name in layer.inputs], axes)


def _multiply(to: IntegerWriter, layer: Multiply) -> None:
    scales = [tensor.quantized.scale for tensor in to.given(layer)]
    mantissa, shift = int(layer.mantissa.reshape(-1)[0]), int(layer.shift.reshape(-1)[0])
    to.check_multiplier(layer, scales, to.made(layer).quantized.scale, mantissa, shift)
    to.graph.operator("MUL", to.elementwise(layer), to.indices[layer.output])


def _gemmlowp_sum(to: IntegerWriter, layer: GemmlowpSum) -> None:
    scales, out = [tensor.quantized.scale for tensor in to.given(layer)], to.made(layer).quantized.scale
    twice = 2 * max(scales)
    wanted = [([scale], twice) for scale in scales] + [([twice], (1 << layer.left) * out)]
    for (numerator, denominator), mantissa, shift in zip(wanted, layer.mantissa, layer.shift, strict=True):
        to.check_multiplier(layer, numerator, denominator, abs(int(mantissa)), int(shift))
    _sum(to, layer, [int(mantissa) for mantissa in layer.mantissa[:2]])


def _combine(to: IntegerWriter, layer: Combine) -> None:
    scales, out = [tensor.quantized.scale for tensor in to.given(layer)], to.made(layer).quantized.scale
    if len(scales) != 2:
        raise UnsupportedError(f"a sum of {len(scales)} tensors; TensorFlow Lite adds two")
    for scale, mantissa in zip(scales, layer.mantissa, strict=True):
        to.check_multiplier(layer, [scale], out, abs(int(mantissa)), int(layer.shift))
    _sum(to, layer, [int(mantissa) for mantissa in layer.mantissa])


def _sum(to: IntegerWriter, layer: Combine | GemmlowpSum, signs: list[int]) -> None:
    left, right = to.elementwise(layer)
    if signs[0] < 0:
        left, right, signs = right, left, signs[::-1]
    if signs[0] < 0:
        raise UnsupportedError("a sum of two negative tensors")
    to.graph.operator("ADD" if signs[1] > 0 else "SUB", [left, right], to.indices[layer.output], potScaleInt16=False)


def _choose(to: IntegerWriter, layer: Choose) -> None:
    made = to.values[layer.output]
    condition = layer.condition.reshape(*(1,) * (len(made.shape) - layer.condition.ndim), *layer.condition.shape)
    chosen = to.graph.constant(f"{layer.name}/condition", condition.transpose(made.order)[None].astype(bool))
    to.graph.operator("SELECT_V2", [chosen, *_requantized(to, layer)], to.indices[made.name])


def _concatenate(to: IntegerWriter, layer: Concatenate) -> None:
    moving.concatenate(to, layer, _requantized(to, layer))


def _requantized(to: IntegerWriter, layer: Choose | Concatenate) -> list[int]:
    """The inputs with the output's parameters, in its order of axes."""
    parts = zip(to.elementwise(layer), layer.inputs, layer.mantissa, layer.shift, strict=True)
    return [to.requantized(layer, index, name, int(mantissa), int(shift)) for index, name, mantissa, shift in parts]


_ONE_WIDTH = (Convolution, Dense, MatrixMultiply, Combine, GemmlowpSum, Multiply, AveragePool)
_CALLS: dict[type[Operator], Callable[..., None]] = {
    Convolution: windows.convolution,
    Dense: windows.dense,
    MatrixMultiply: _matrix_multiply,
    Activate: _activate,
    Lookup: _lookup,
    Interpolate: _interpolate,
    Combine: _combine,
    GemmlowpSum: _gemmlowp_sum,
    Multiply: _multiply,
    Choose: _choose,
    Concatenate: _concatenate,
    MaxPool: windows.max_pool,
    AveragePool: windows.average_pool,
    RawAveragePool: windows.raw_average_pool,
    Embed: moving.embed,
    Reshape: moving.reshape,
    Transpose: moving.transpose,
    Take: moving.take,
    Pad: moving.pad,
    Spread: moving.spread,
    Clamp: _clamp,
}

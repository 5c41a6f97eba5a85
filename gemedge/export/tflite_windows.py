"""Convolutions, products with weights, and pools: what slides a window, and what shares its weights' law.

A signal [C, L] is written as an image of one row. TensorFlow Lite pads by the rule SAME or not at all; other
padding is an operator of its own before.
"""

from fractions import Fraction

import numpy as np

from gemedge.errors import UnsupportedError
from gemedge.export.tflite_model import Writer
from gemedge.export.tflite_tensors import channels_last, identity
from gemedge.export.tflite_writer import SAME, VALID, Scales
from gemedge.fixed import QuantParams
from gemedge.operators import AveragePool, Convolution, Dense, MaxPool, RawAveragePool, Shape

_LEAST = 2.0**-60  # of a multiplier that must come out as 0


def convolution(to: Writer, layer: Convolution) -> None:
    (given,) = to.given(layer)
    outputs, per_group, *kernel = layer.weight.shape
    weight = np.moveaxis(layer.weight, 1, -1).reshape(outputs, *(1,) * (2 - len(kernel)), *kernel, per_group)
    options = _pairs("dilation{}Factor", layer.dilations)
    depthwise = layer.groups == given.shape[0] > 1
    if depthwise:
        weight, axis, code = np.moveaxis(weight, 0, -1).reshape(1, *weight.shape[1:3], outputs), 3, "DEPTHWISE_CONV_2D"
        options["depthMultiplier"] = outputs // given.shape[0]
    else:
        axis, code = 0, "CONV_2D"
    constants = _constants(to, layer, weight, axis)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, layer.dilations, strict=True))
    _slide(to, layer, code, constants, reach, options)


def dense(to: Writer, layer: Dense) -> None:
    name = layer.inputs[0]
    places = to.values[name].places
    weight = layer.weight if places is None else layer.weight[:, places]
    index = to.indices[name] if places is not None else to.operand(name, identity(len(to.values[name].shape)))
    constants = _constants(to, layer, weight, 0)
    to.write(
        layer.output,
        "FULLY_CONNECTED",
        [index, *constants],
        identity(len(to.values[layer.output].shape)),
        keepNumDims=True,
    )


def _constants(to: Writer, layer: Convolution | Dense, weight: np.ndarray, axis: int) -> list[int]:
    """The weights and the bias, with the scales that give the layer's multipliers."""
    (given,), made = to.given(layer), to.made(layer)
    if weight.dtype != np.int8:
        raise UnsupportedError(f"its weights have {8 * weight.dtype.itemsize} bits; TensorFlow Lite takes 8")
    scales = weight_scales(layer.mantissa, layer.shift, given.quantized, made.quantized)
    for scale, mantissa, shift in zip(scales, layer.mantissa, layer.shift, strict=True):
        if mantissa:
            to.check_multiplier(
                layer, [given.quantized.scale, float(scale)], made.quantized.scale, int(mantissa), int(shift)
            )
    wide = given.quantized.bits == 16
    bias = layer.bias.astype(np.int64 if wide else np.int32)
    if not np.array_equal(bias, layer.bias):
        raise UnsupportedError("its bias is beyond 32 bits")
    bias_scales = (scales.astype(np.float64) * given.quantized.scale).astype(np.float32)
    return [
        to.graph.constant(f"{layer.name}/weight", weight, Scales(scales, axis)),
        to.graph.constant(f"{layer.name}/bias", bias, Scales(bias_scales, 0)),
    ]


def weight_scales(mantissa: np.ndarray, shift: np.ndarray, given: QuantParams, made: QuantParams) -> np.ndarray:
    """The float32 scales of weights whose multipliers are these: those that they were made of, 24 bits of 31."""
    factor = Fraction(made.scale) / Fraction(given.scale)
    reals = [Fraction(int(m), 1 << int(s)) * factor for m, s in zip(mantissa, shift, strict=True)]
    return np.array([float(real) or _LEAST * float(factor) for real in reals], np.float32)


# Pools


def max_pool(to: Writer, layer: MaxPool) -> None:
    lowest = to.given(layer)[0].quantized.raw_min
    _slide(to, layer, "MAX_POOL_2D", [], layer.kernel, _pairs("filter{}", layer.kernel), fill=lowest)


def raw_average_pool(to: Writer, layer: RawAveragePool) -> None:
    _slide(to, layer, "AVERAGE_POOL_2D", [], layer.kernel, _pairs("filter{}", layer.kernel), counts_padding=False)


def average_pool(to: Writer, layer: AveragePool) -> None:
    """A depthwise convolution with weights of 1: TensorFlow Lite's average does not rescale."""
    (given,) = to.given(layer)
    if layer.counts > 1:
        raise UnsupportedError("an average that leaves its padding out and rescales; quantize with --rounding double")
    channels = given.shape[0]
    weight = np.ones((channels, 1, *layer.kernel), np.int8)
    zeros = np.zeros(channels, np.int64)
    same = [np.repeat(array.reshape(-1), channels) for array in (layer.mantissa, layer.shift)]
    ones = (1,) * len(layer.kernel)
    fields = (layer.strides, layer.pads, ones, channels)
    convolution(to, Convolution(layer.name, layer.inputs, layer.output, weight, zeros, *fields, *same))


Windowed = Convolution | MaxPool | RawAveragePool


def _slide(
    to: Writer,
    layer: Windowed,
    code: str,
    constants: list[int],
    reach: Shape,
    options: dict[str, int],
    *,
    fill: int | None = None,
    counts_padding: bool = True,
) -> None:
    """The operator on the input, padded as the layer says; padding is `fill`, by default what stands for 0."""
    given, made = to.values[layer.inputs[0]], to.values[layer.output]
    axes = len(layer.strides)
    index = to.operand(given.name, channels_last(axes + 1))
    padding = _padding(layer, given.shape[1:], reach)
    if padding is None:
        if not counts_padding:
            raise UnsupportedError(
                f"pads {list(layer.pads)} are not TensorFlow Lite's SAME, and padding must not count"
            )
        index, padding = _padded(to, layer, index, fill), VALID
    if axes == 1:
        size, channels = to.graph.shape(index)
        index = to.reshape(index, to.temporary(given, (1, size, channels), f"{layer.name}/image"))
    options = {**options, **_pairs("stride{}", layer.strides), "padding": padding}
    if axes == 2:
        to.write(made.name, code, [index, *constants], channels_last(3), **options)
        return
    channels, size = made.shape
    image = to.graph.operator(code, [index, *constants], to.temporary(made, (1, size, channels), "image"), **options)
    if made.order == channels_last(2):
        to.reshape(image, to.indices[made.name])
    else:
        signal = to.reshape(image, to.temporary(made, (size, channels), "signal"))
        axes_of = to.graph.constant("axes", np.array([0, 2, 1], np.int32))
        to.graph.operator("TRANSPOSE", [signal, axes_of], to.indices[made.name])


def _padding(layer: Windowed, sizes: Shape, reach: Shape) -> int | None:
    """SAME or VALID where one of them is the layer's padding."""
    if not any(layer.pads):
        return VALID
    axes = len(sizes)
    for axis, (size, width, stride) in enumerate(zip(sizes, reach, layer.strides, strict=True)):
        total = max((-(-size // stride) - 1) * stride + width - size, 0)
        if (layer.pads[axis], layer.pads[axis + axes]) != (total // 2, total - total // 2):
            return None
    return SAME


def _padded(to: Writer, layer: Windowed, index: int, fill: int | None) -> int:
    axes = len(layer.strides)
    given = to.values[layer.inputs[0]]
    pairs = [(0, 0), *zip(layer.pads[:axes], layer.pads[axes:], strict=True), (0, 0)]
    laid = tuple(size + sum(pair) for size, pair in zip(to.graph.shape(index), pairs[1:], strict=True))
    made = to.temporary(given, laid, f"{layer.name}/padded")
    return pad(to, index, pairs, fill, made, given.params)


def pad(
    to: Writer, index: int, pairs: list[tuple[int, int]], fill: int | None, made: int, params: QuantParams | None
) -> int:
    """Before and after each axis, batch included, so many integers `fill`, None for what stands for 0."""
    widths = to.graph.constant("pads", np.array(pairs, np.int32))
    if fill is None or (params is not None and fill == params.zero_point):
        return to.graph.operator("PAD", [index, widths], made)
    dtype = "int32" if params is None else f"int{params.bits}"
    return to.graph.operator("PADV2", [index, widths, to.graph.constant("fill", np.array([fill], dtype), params)], made)


def _pairs(name: str, numbers: Shape) -> dict[str, int]:
    """The options of height and width; a signal's is its width."""
    short = {"filter{}": ("Height", "Width")}.get(name, ("H", "W"))
    height, width = (1,) * (2 - len(numbers)) + tuple(numbers)
    return {name.format(short[0]): int(height), name.format(short[1]): int(width)}

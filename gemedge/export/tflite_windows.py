"""Convolutions, products with weights, and pools: what slides a window, and what shares its weights' law.

A signal [C, L] is written as an image of one row. TensorFlow Lite pads by the rule SAME or not at all; other
padding is an operator of its own before.
"""

import numpy as np

from gemedge.errors import UnsupportedError
from gemedge.export.tflite_model import Writer
from gemedge.export.tflite_tensors import Value, channels_last, identity
from gemedge.export.tflite_writer import SAME, VALID
from gemedge.operators import AveragePool, Convolution, Dense, MaxPool, RawAveragePool, Shape


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
    constants = to.constants(layer, weight, axis)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, layer.dilations, strict=True))
    _slide(to, layer, code, constants, reach, options)


def dense(to: Writer, layer: Dense) -> None:
    name = layer.inputs[0]
    places = to.values[name].places
    weight = layer.weight if places is None else layer.weight[:, places]
    index = to.indices[name] if places is not None else to.operand(name, identity(len(to.values[name].shape)))
    constants = to.constants(layer, weight, 0)
    to.write(
        layer.output,
        "FULLY_CONNECTED",
        [index, *constants],
        identity(len(to.values[layer.output].shape)),
        keepNumDims=True,
    )


# Pools


def max_pool(to: Writer, layer: MaxPool) -> None:
    params = to.given(layer)[0].params
    lowest = -np.inf if params is None else params.raw_min
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
    fill: float | None = None,
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


def _padded(to: Writer, layer: Windowed, index: int, fill: float | None) -> int:
    axes = len(layer.strides)
    given = to.values[layer.inputs[0]]
    pairs = [(0, 0), *zip(layer.pads[:axes], layer.pads[axes:], strict=True), (0, 0)]
    laid = tuple(size + sum(pair) for size, pair in zip(to.graph.shape(index), pairs[1:], strict=True))
    made = to.temporary(given, laid, f"{layer.name}/padded")
    return pad(to, index, pairs, fill, made, given)


def pad(to: Writer, index: int, pairs: list[tuple[int, int]], fill: float | None, made: int, like: Value) -> int:
    """So many numbers `fill` before and after each axis, batch included; None is what stands for 0."""
    widths = to.graph.constant("pads", np.array(pairs, np.int32))
    zero = 0 if like.params is None else like.params.zero_point
    if fill is None or fill == zero:
        return to.graph.operator("PAD", [index, widths], made)
    filled = to.graph.constant("fill", np.array([fill], like.dtype), like.params)
    return to.graph.operator("PADV2", [index, widths, filled], made)


def _pairs(name: str, numbers: Shape) -> dict[str, int]:
    """The options of height and width; a signal's is its width."""
    short = {"filter{}": ("Height", "Width")}.get(name, ("H", "W"))
    height, width = (1,) * (2 - len(numbers)) + tuple(numbers)
    return {name.format(short[0]): int(height), name.format(short[1]): int(width)}

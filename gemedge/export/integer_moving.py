"""Integers put elsewhere, in ONNX's operators."""

from collections.abc import Sequence

import numpy as np

from gemedge.export.onnx_writer import Writer, narrow, offset_of, widened
from gemedge.moving import Clamp, Constant, Embed, Pad, Reshape, Spread, Take, Transpose
from gemedge.operators import Tensor


def constant(to: Writer, layer: Constant, _: list[Tensor], made: Tensor) -> str:
    """Repeated for every sample of the first input."""
    samples = to.add("Shape", to.source, start=0, end=1)
    shape = to.add("Concat", samples, to.constant(made.shape, np.int64), axis=0)
    value = to.constant(layer.value[None].astype(np.int64) + offset_of(made), to.held(made))
    return to.add("Expand", value, shape)


def embed(to: Writer, layer: Embed, given: list[Tensor], made: Tensor) -> str:
    table = to.constant(layer.table.astype(np.int64) + offset_of(made), narrow(made))
    found = to.add("Gather", table, to.values[given[0].name], axis=0)
    return widened(to, found, made)


def reshape(to: Writer, layer: Reshape, given: list[Tensor], _: Tensor) -> str:
    return to.reshaped(to.values[given[0].name], layer.shape)


def transpose(to: Writer, layer: Transpose, given: list[Tensor], _: Tensor) -> str:
    return to.add("Transpose", to.values[given[0].name], perm=(0, *(axis + 1 for axis in layer.order)))


def take(to: Writer, layer: Take, given: list[Tensor], _: Tensor) -> str:
    """As a Slice where the places are evenly spaced."""
    value, places = to.values[given[0].name], layer.places.astype(np.int64)
    step = int(places[1] - places[0]) if places.size > 1 else 1
    if step and (np.diff(places) == step).all():
        end = int(places[-1]) + (1 if step > 0 else -1)
        numbers = (int(places[0]), end if end >= 0 else -(1 << 31), layer.axis + 1, step)
        return to.add("Slice", value, *(to.constant([number], np.int64) for number in numbers))
    return to.add("Gather", value, to.constant(places, np.int64), axis=layer.axis + 1)


def pad(to: Writer, layer: Pad, given: list[Tensor], made: Tensor) -> str:
    axes = len(layer.pads) // 2
    pads = (0, *layer.pads[:axes], 0, *layer.pads[axes:])
    around = to.constant(layer.value + offset_of(made), to.held(made))
    return to.add("Pad", to.values[given[0].name], to.constant(pads, np.int64), around)


def spread(to: Writer, layer: Spread, given: list[Tensor], made: Tensor) -> str:
    around = to.constant(layer.value + offset_of(made), to.held(made))
    return apart(to, to.values[given[0].name], around, given[0].shape, layer.strides)


def apart(to: Writer, value: str, around: str, shape: Sequence[int], strides: Sequence[int]) -> str:
    """A value [batch, C, *size] with strides - 1 times `around` between neighbours of each axis.

    Each number becomes the first of a small block, and what lies behind the last one is cut off.
    """
    channels, *size = shape
    single = to.reshaped(value, (channels, *(part for s in size for part in (s, 1))))
    behind = (0, 0, *(part for stride in strides for part in (0, stride - 1)))
    blocks = to.add("Pad", single, to.constant((*(0,) * len(behind), *behind), np.int64), around)
    whole = to.reshaped(blocks, (channels, *(s * t for s, t in zip(size, strides, strict=True))))
    ends = tuple((s - 1) * t + 1 for s, t in zip(size, strides, strict=True))
    numbers = ((0,) * len(size), ends, range(2, 2 + len(size)))
    return to.add("Slice", whole, *(to.constant(list(number), np.int64) for number in numbers))


def clamp(to: Writer, layer: Clamp, given: list[Tensor], made: Tensor) -> str:
    limits = (to.constant(end + offset_of(made), to.held(made)) for end in (layer.low, layer.high))
    return to.add("Clip", to.values[given[0].name], *limits)

"""The TensorFlow Lite operators that put integers elsewhere, or put known ones beside them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from gemedge.export.layout import same_in_memory
from gemedge.export.tflite_model import Writer, flat_places
from gemedge.export.tflite_tensors import identity
from gemedge.export.tflite_windows import pad as padded
from gemedge.moving import Concatenate, Embed, Pad, Reshape, Spread, Take, Transpose


def embed(to: Writer, layer: Embed) -> None:
    made = to.made(layer)
    table = to.graph.constant(f"{layer.name}/table", layer.table, made.params)
    index = to.operand(layer.inputs[0], identity(len(to.values[layer.inputs[0]].shape)))
    to.write(layer.output, "GATHER", [table, index], identity(len(made.shape)))


def reshape(to: Writer, layer: Reshape) -> None:
    """Where only products with weights read a flattened image, it stays as it lies and the weights are shuffled."""
    source, made = to.values[layer.inputs[0]], to.values[layer.output]
    moved = not same_in_memory(source.shape, source.order, made.shape, made.order)
    if moved and source.value is None and len(made.shape) == 1 and to.read_by_dense_alone(made.name):
        to.values[made.name] = replace(made, places=flat_places(source))
        to.reshape(to.operand(source.name), to.indices[made.name])
        return
    to.move(source.name, made.name)


def transpose(to: Writer, layer: Transpose) -> None:
    """The output's axis a is the input's axis order[a]: memory follows the input's axes in the output's order."""
    given, made = to.values[layer.inputs[0]], to.values[layer.output]
    wanted = tuple(layer.order[axis] for axis in made.order)
    index = to.operand(given.name, given.order)
    places = [0, *(1 + given.order.index(axis) for axis in wanted)]
    if places == list(range(len(places))):
        to.reshape(index, to.indices[made.name])
        return
    axes = to.graph.constant("axes", np.array(places, np.int32))
    to.graph.operator("TRANSPOSE", [index, axes], to.indices[made.name])


def take(to: Writer, layer: Take) -> None:
    given, made = to.values[layer.inputs[0]], to.values[layer.output]
    places = [int(place) for place in layer.places]
    strides = {b - a for a, b in pairwise(places)} or {1}
    axis = 1 + made.order.index(layer.axis)
    index = to.operand(given.name, made.order)
    if len(strides) > 1 or min(strides) < 1:
        listed = to.graph.constant("places", np.array(places, np.int32))
        to.graph.operator("GATHER", [index, listed], to.indices[made.name], axis=axis)
        return
    begin, end = np.zeros(len(made.order) + 1, np.int32), np.array([0, *to.graph.shape(index)], np.int32)
    step = np.ones(len(begin), np.int32)
    begin[axis], end[axis], step[axis] = places[0], places[-1] + 1, min(strides)
    slice_of(to, index, begin, end, step, to.indices[made.name])


def slice_of(to: Writer, index: int, begin: np.ndarray, end: np.ndarray, step: np.ndarray, made: int) -> int:
    """The whole batch, and of each other axis from begin to end."""
    bounds = [to.graph.constant("bounds", array) for array in (begin, end, step)]
    return to.graph.operator("STRIDED_SLICE", [index, *bounds], made, beginMask=1, endMask=1)


def pad(to: Writer, layer: Pad) -> None:
    made = to.values[layer.output]
    axes = len(made.shape)
    pairs = [(0, 0), *((layer.pads[axis], layer.pads[axis + axes]) for axis in made.order)]
    index = to.operand(layer.inputs[0], made.order)
    padded(to, index, pairs, layer.value, to.indices[made.name], made.params)


def spread(to: Writer, layer: Spread) -> None:
    """Axis by axis: an axis of 1 behind it is padded to the stride, joined with it, and the last padding cut off."""
    given, made = to.values[layer.inputs[0]], to.values[layer.output]
    index = to.operand(given.name, made.order)
    strides = dict(enumerate(layer.strides, 1))
    for place, axis in enumerate(made.order):
        stride, laid = strides.get(axis, 1), to.graph.shape(index)
        if stride == 1:
            continue
        before, size, after = int(np.prod(laid[:place])), laid[place], int(np.prod(laid[place + 1 :]))
        rows = to.reshape(index, to.temporary(made, (before * size, 1, after), f"rows{axis}"))
        wide = to.temporary(made, (before * size, stride, after), f"wide{axis}")
        padded(to, rows, [(0, 0), (0, 0), (0, stride - 1), (0, 0)], layer.value, wide, made.params)
        joined = to.reshape(
            wide, to.temporary(made, (*laid[:place], size * stride, *laid[place + 1 :]), f"joined{axis}")
        )
        end = np.array([0, *to.graph.shape(joined)], np.int32)
        end[place + 1] -= stride - 1
        cut = to.temporary(made, tuple(int(size) for size in end[1:]), f"cut{axis}")
        index = slice_of(to, joined, np.zeros(len(end), np.int32), end, np.ones(len(end), np.int32), cut)
    to.reshape(index, to.indices[made.name])


def concatenate(to: Writer, layer: Concatenate) -> None:
    made = to.values[layer.output]
    indices = [
        to.requantized(layer, index, name, int(mantissa), int(shift))
        for index, name, mantissa, shift in zip(
            to.elementwise(layer), layer.inputs, layer.mantissa, layer.shift, strict=True
        )
    ]
    if len(indices) == 1:
        to.reshape(indices[0], to.indices[made.name])
        return
    to.graph.operator("CONCATENATION", indices, to.indices[made.name], axis=1 + made.order.index(layer.axis))

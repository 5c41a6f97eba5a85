"""Nodes that put integers elsewhere: shapes, slices, tables of rows, padding, neighbours."""

import math

import numpy as np
import onnx_ir as ir

from gemedge.capture.reading import attribute, input_of, ints
from gemedge.errors import UnsupportedError
from gemedge.fixed import quantize as to_integers
from gemedge.moving import Concatenate, Embed, Pad, Reshape, Take, Transpose
from gemedge.operators import Tensor
from gemedge.quant.lower.lowering import Handler, Lowering, Real, Target


def same(q: Lowering, node: ir.Node) -> None:
    q.alias(node, q.source(input_of(node)))


def cast(q: Lowering, node: ir.Node) -> None:
    given = q.source(input_of(node))
    kind = ir.DataType(attribute(node, "to", 1))
    if (given.params is None) != kind.is_integer():
        raise UnsupportedError(f"to {kind.name} would change what its numbers are")
    q.alias(node, given)


# Shapes


def reshape(q: Lowering, node: ir.Node) -> None:
    value = input_of(node)
    before = q.shape(value)
    match node.op_type:
        case "Flatten":
            axis = int(attribute(node, "axis", 1)) % (len(before) + 1)
            after = [math.prod(before[:axis]), math.prod(before[axis:])]
        case "Squeeze":
            named = q.optional(node, 1)
            axes = [a % len(before) for a in _axes(node, named, [a for a, size in enumerate(before) if size == 1])]
            after = [size for axis, size in enumerate(before) if axis not in axes]
        case "Unsqueeze":
            wanted = _axes(node, q.optional(node, 1), [])
            after = list(before)
            for axis in sorted(a % (len(before) + len(wanted)) for a in wanted):
                after.insert(axis, 1)
        case _:
            after = _resolved([int(size) for size in q.required(node, 1)], before, attribute(node, "allowzero", 0))
    batch, beside = _batch_of(after, before, q.batch, q.batch_axis(value))
    after[batch : batch + 1] = [beside] if beside > 1 else []
    q.add(node, Reshape, [q.source(value)], tuple(after), batch=batch, merged=beside > 1)


def _axes(node: ir.Node, named: np.ndarray | None, default: list[int]) -> list[int]:
    return list(ints(node, "axes", tuple(default))) if named is None else [int(axis) for axis in named.reshape(-1)]


def _resolved(target: list[int], before: list[int], allow_zero: int) -> list[int]:
    """ONNX's Reshape: 0 keeps a size, -1 takes what is left."""
    after = [before[i] if size == 0 and not allow_zero and i < len(before) else size for i, size in enumerate(target)]
    if after.count(-1) == 1:
        rest = math.prod(size for size in after if size != -1)
        after[after.index(-1)] = math.prod(before) // rest if rest else 0
    if math.prod(after) != math.prod(before):
        raise UnsupportedError(f"shape {before} into {target}, the batch being {before[0]}")
    return after


def _batch_of(after: list[int], before: list[int], size: int, axis: int) -> tuple[int, int]:
    """Where the batch is in the new shape, as many numbers lying before it as did, and what it is merged with."""
    ahead = math.prod(before[:axis])
    places = [place for place, found in enumerate(after) if found % size == 0 and math.prod(after[:place]) == ahead]
    if not places:
        raise UnsupportedError(f"the batch, {size}, does not stay together: {before} into {after}")
    place = next((place for place in places if after[place] == size), places[0])
    return place, after[place] // size


def transpose(q: Lowering, node: ir.Node) -> None:
    value = input_of(node)
    axes = len(q.shape(value))
    order = ints(node, "perm", tuple(reversed(range(axes))))
    batch = order.index(q.batch_axis(value))
    if q.is_merged(node):
        sample = order
    else:
        sample = tuple(q.axis(value, axis) for place, axis in enumerate(order) if place != batch)
    if sample == tuple(range(len(sample))):
        q.alias(node, q.source(value), batch)
        return
    q.add(node, Transpose, [q.source(value)], sample, batch=batch)


# Parts


def take_slice(q: Lowering, node: ir.Node) -> None:
    value = input_of(node)
    shape = q.shape(value)
    starts, ends = (q.required(node, index).reshape(-1) for index in (1, 2))
    named, stepped = q.optional(node, 3), q.optional(node, 4)
    axes = range(len(starts)) if named is None else [int(axis) % len(shape) for axis in named.reshape(-1)]
    steps = np.ones(len(starts), int) if stepped is None else stepped.reshape(-1)
    parts = []
    for axis, *bounds in zip(axes, starts, ends, steps, strict=True):
        places = np.arange(shape[axis])[slice(*(int(bound) for bound in bounds))]
        if np.array_equal(places, np.arange(shape[axis])):
            continue  # all of it, as the batch must be
        parts.append((q.axis(value, axis), places))
    _take(q, node, q.source(value), parts)


def _take(
    q: Lowering, node: ir.Node, given: Tensor, parts: list[tuple[int, np.ndarray]], batch: int | None = None
) -> None:
    """Places along several axes, one layer each; places that are all of an axis in order need none."""
    parts = [(a, p) for a, p in parts if not np.array_equal(p, np.arange(given.shape[a]))]
    if not parts:
        q.alias(node, given, batch)
    for index, (axis, places) in enumerate(parts):
        last = index == len(parts) - 1
        step = "" if last else f"axis {axis}"
        given = q.add(node, Take, [given], axis, places.astype(np.int64), step=step, batch=batch)


def split(q: Lowering, node: ir.Node) -> None:
    value = input_of(node)
    given = q.source(value)
    axis = q.axis(value, int(attribute(node, "axis", 0)))
    size, count = given.shape[axis], len(node.outputs)
    named = q.optional(node, 1)
    even = -(-size // count)
    sizes = [even] * (count - 1) + [size - even * (count - 1)] if named is None else [int(s) for s in named]
    starts = np.cumsum([0, *sizes])
    if starts[-1] != size:
        raise UnsupportedError(f"parts {sizes} of an axis of {size}")
    for output, start, part in zip(node.outputs, starts, sizes, strict=False):
        target = Target(output, given.quantized)
        q.add(node, Take, [given], axis, np.arange(start, start + part, dtype=np.int64), target=target)


def gather(q: Lowering, node: ir.Node) -> None:
    data, indices = input_of(node), input_of(node, 1)
    axis = int(attribute(node, "axis", 0))
    table, places = q.constant(data), q.constant(indices)
    if table is not None:
        if axis != 0:
            raise UnsupportedError("a table is read by its first axis")
        _embed(q, node, table)
        return
    if places is None:
        raise UnsupportedError("indices computed from data need a constant table")
    given, inner = q.source(data), q.axis(data, axis)
    flat = places.reshape(-1).astype(np.int64)
    flat = np.where(flat < 0, flat + given.shape[inner], flat)
    batch = q.batch_axis(data)
    batch += (places.ndim - 1) * (axis % len(q.shape(data)) < batch)
    if places.ndim == 1:
        q.add(node, Take, [given], inner, flat, batch=batch)
        return
    part = q.add(node, Take, [given], inner, flat, step="places")
    shape = (*given.shape[:inner], *places.shape, *given.shape[inner + 1 :])
    q.add(node, Reshape, [part], shape, batch=batch)


def _embed(q: Lowering, node: ir.Node, table: np.ndarray) -> None:
    """Rows of a table; its own range gives the parameters, as only its numbers appear."""
    given = q.source(input_of(node, 1))
    if given.params is not None:
        raise UnsupportedError("indices must be integers of the model's input")
    params = q.formats(node).params(float(table.min()), float(table.max()))
    codes = to_integers(table, params).astype(f"i{params.bits // 8}")
    real = Real(weight=table.astype(np.float64))
    q.add(node, Embed, [given], codes, target=Target(node.outputs[0], params), real=real)


def expand(q: Lowering, node: ir.Node) -> None:
    value = input_of(node)
    given, before = q.source(value, node), q.shape(value)
    if q.is_merged(node):
        raise UnsupportedError("its batch shares an axis")
    wanted = [int(size) for size in q.required(node, 1).reshape(-1)]
    after = [int(size) for size in np.broadcast_shapes(tuple(before), tuple(wanted))]
    extra = len(after) - len(before)
    batch = q.batch_axis(value) + extra
    shape = [size for axis, size in enumerate([1] * extra + before) if axis != batch]
    sizes = [size for axis, size in enumerate(after) if axis != batch]
    if tuple(shape) != given.shape:
        given = q.add(node, Reshape, [given], tuple(shape), step="axes")
    parts = [(a, np.zeros(new, np.int64)) for a, (old, new) in enumerate(zip(shape, sizes, strict=True)) if old != new]
    _take(q, node, given, parts, batch)


# Around and between


def concat(q: Lowering, node: ir.Node) -> None:
    given = q.sources(node)
    first = next(value for value in node.inputs if value is not None and q.constant(value) is None)
    axis, target = q.axis(first, int(attribute(node, "axis", 0))), q.target(node)
    reals = [q.real([tensor.quantized.scale], target.params.scale) for tensor in given]
    q.rescaled(node, Concatenate, given, axis, reals=reals, target=target)


def pad(q: Lowering, node: ir.Node) -> None:
    value = input_of(node)
    given = q.source(value)
    pads, axes, named = [int(p) for p in q.required(node, 1)], len(q.shape(value)), q.optional(node, 3)
    over = range(axes) if named is None else [int(axis) % axes for axis in named.reshape(-1)]
    around = np.zeros((2, axes), int)
    around[:, list(over)] = np.array(pads).reshape(2, -1)
    batch = q.batch_axis(value)
    if q.is_merged(node):
        raise UnsupportedError("its batch shares an axis")
    if attribute(node, "mode", "constant") != "constant" or around[:, batch].any() or around.min() < 0:
        raise UnsupportedError(f"mode constant and pads of 0 or more after the batch are supported, not {pads}")
    fill = q.optional(node, 2)
    code = int(to_integers(np.float64(0 if fill is None else fill.item()), given.quantized))
    q.add(node, Pad, [given], tuple(int(p) for p in np.delete(around, batch, 1).reshape(-1)), code)


def resize(q: Lowering, node: ir.Node) -> None:
    value = input_of(node)
    before = q.shape(value)
    stretched = attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
    if attribute(node, "mode", "nearest") != "nearest" or "axes" in node.attributes or not stretched:
        raise UnsupportedError("mode nearest over all axes, stretched, is supported")
    scales, sizes = q.optional(node, 2), q.optional(node, 3)
    if sizes is not None and sizes.size:
        after = [int(size) for size in sizes]
        factors = [new / old for new, old in zip(after, before, strict=True)]
    else:
        factors = [float(scale) for scale in q.required(node, 2)] if scales is not None else []
        after = [math.floor(size * factor) for size, factor in zip(before, factors, strict=True)]
    parts = []
    if after == before:  # whatever the factors, as onnxruntime
        factors = [1.0] * len(before)
    for axis, (old, new, factor) in enumerate(zip(before, after, factors, strict=True)):
        if factor != 1:
            parts.append((q.axis(value, axis), _nearest(node, old, new, factor)))
    _take(q, node, q.source(value), parts)


def _nearest(node: ir.Node, old: int, new: int, factor: float) -> np.ndarray:
    """Which of `old` numbers each of `new` is nearest to, as ONNX defines and, in float32, onnxruntime computes it."""
    x, scale, pixel = np.arange(new, dtype=np.float32), np.float32(factor), np.float32(0.5)
    middle = (x + pixel) / scale
    match attribute(node, "coordinate_transformation_mode", "half_pixel"):
        case "half_pixel":
            at = middle - pixel
        case "pytorch_half_pixel":
            at = middle - pixel if new > 1 else np.zeros(1)
        case "asymmetric":
            at = x / scale
        case "align_corners":
            at = x * np.float32(old - 1) / np.float32(new - 1) if new > 1 else np.zeros(1)
        case other:
            raise UnsupportedError(f"coordinate_transformation_mode {other!r}")
    match attribute(node, "nearest_mode", "round_prefer_floor"):
        case "round_prefer_floor":
            places = np.ceil(at - 0.5)
        case "round_prefer_ceil":
            places = np.floor(at + 0.5)
        case "floor":
            places = np.floor(at)
        case _:
            places = np.ceil(at)
    return np.clip(places, 0, old - 1).astype(np.int64)


HANDLERS: dict[str, Handler] = {
    "Identity": same,
    "Dropout": same,
    "Cast": cast,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    "Transpose": transpose,
    "Slice": take_slice,
    "Split": split,
    "Gather": gather,
    "Expand": expand,
    "Concat": concat,
    "Pad": pad,
    "Resize": resize,
}

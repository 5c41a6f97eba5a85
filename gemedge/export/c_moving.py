"""The C of the operators that put integers elsewhere, or put known ones beside them."""

import math
from itertools import pairwise

from gemedge.arena import bytes_of
from gemedge.errors import UnsupportedError
from gemedge.export.c_writer import Writer, bytes_per, table_of
from gemedge.export.layout import in_memory, loops, same_in_memory
from gemedge.model import Op, QuantizedModel
from gemedge.moving import Concatenate, Constant, Embed, Pad, Reshape, Spread, Take, Transpose
from gemedge.operators import Shape


def _copied(to: Writer, layer: Op, sizes: Shape, given: Shape, made: Shape, starts: tuple[int, int] = (0, 0)) -> str:
    """Numbers from steps in the input to steps in the output, from these numbers on."""
    (source,), target = to.tensors(layer)
    width = bytes_per(target)
    found = to.loops("loops", loops(sizes, [given, made], to.orders[target.name]))
    places = [
        f"{to.address(tensor.name)} + {start * width}" for tensor, start in zip((source, target), starts, strict=True)
    ]
    return f"gemedge_copy({', '.join(places)}, {width}u, {found});"


def constant(to: Writer, layer: Constant) -> str:
    _, made = to.tensors(layer)
    value = to.constants.array("value", f"int{8 * bytes_per(made)}_t", in_memory(layer.value, to.orders[made.name]))
    return f"gemedge_load({to.address(made.name)}, {value}, {bytes_of(made)}u);"


def embed(to: Writer, layer: Embed) -> str:
    (given,), made = to.tensors(layer)
    if layer.table.ndim > 2:
        raise UnsupportedError(f"a table of shape {list(layer.table.shape)}; its rows may have one axis")
    axes = len(given.shape)
    own = to.steps(made)
    rows = to.loops("rows", loops(given.shape, [to.steps(given), own[:axes]], tuple(range(axes)), rows=True))
    size = math.prod(layer.table.shape[1:])
    status = (
        f"gemedge_embed({to.address(given.name)}, {bytes_per(given)}u, {table_of(to, layer, layer.table)},"
        f" {len(layer.table)}, {size}u, {own[-1] if layer.table.ndim > 1 else 0}u, {to.address(made.name)},"
        f" {bytes_per(made)}u, {rows})"
    )
    return f"const int status = {status};\n        if (status != GEMEDGE_OK) {{\n            return status;\n        }}"


def reshape(to: Writer, layer: Reshape) -> str:
    (given,), made = to.tensors(layer)
    source, target = to.address(given.name), to.address(made.name)
    if not is_moved(to.model, to.orders, layer):
        return "" if source == target else f"memcpy({target}, {source}, {bytes_of(made)});"
    walks = [
        to.loops(role, loops(t.shape, [to.steps(t)], tuple(range(len(t.shape))), rows=True))
        for role, t in (("from", given), ("to", made))
    ]
    return f"gemedge_reorder({source}, {walks[0]}, {target}, {walks[1]}, {bytes_per(made)}u);"


def is_moved(model: QuantizedModel, orders: dict[str, Shape], layer: Reshape) -> bool:
    """Whether the two shapes' orders differ, so that the numbers must be put elsewhere."""
    given, made = model.tensors[layer.inputs[0]], model.tensors[layer.output]
    return not same_in_memory(given.shape, orders[given.name], made.shape, orders[made.name])


def transpose(to: Writer, layer: Transpose) -> str:
    (given,), made = to.tensors(layer)
    own = to.steps(given)
    return _copied(to, layer, made.shape, tuple(own[axis] for axis in layer.order), to.steps(made))


def take(to: Writer, layer: Take) -> str:
    (given,), made = to.tensors(layer)
    places = [int(place) for place in layer.places]
    own = to.steps(given)
    strides = {b - a for a, b in pairwise(places)} or {1}
    if len(strides) == 1 and (stride := min(strides)) >= 0:
        moved = tuple(step * stride if axis == layer.axis else step for axis, step in enumerate(own))
        return _copied(to, layer, made.shape, moved, to.steps(made), (places[0] * own[layer.axis], 0))
    inner, size = own[layer.axis], given.shape[layer.axis]
    outer = math.prod(given.shape) // (inner * size)
    listed = to.constants.array("places", "uint32_t", places)
    return (
        f"gemedge_take({to.address(given.name)}, {listed}, {len(places)}u, {size}u, {outer}u, {inner}u,"
        f" {to.address(made.name)}, {bytes_per(made)}u);"
    )


def pad(to: Writer, layer: Pad) -> str:
    (given,), made = to.tensors(layer)
    own = to.steps(made)
    start = sum(before * step for before, step in zip(layer.pads, own, strict=False))
    return _filled(to, layer) + _copied(to, layer, given.shape, to.steps(given), own, (0, start))


def spread(to: Writer, layer: Spread) -> str:
    (given,), made = to.tensors(layer)
    wide = tuple(step * stride for step, stride in zip(to.steps(made), (1, *layer.strides), strict=True))
    return _filled(to, layer) + _copied(to, layer, given.shape, to.steps(given), wide)


def _filled(to: Writer, layer: Pad | Spread) -> str:
    _, made = to.tensors(layer)
    count = math.prod(made.shape)
    return f"gemedge_fill({to.address(made.name)}, {bytes_per(made)}u, {layer.value}, {count}u);\n        "


def concatenate(to: Writer, layer: Concatenate) -> str:
    given, made = to.tensors(layer)
    own = to.steps(made)
    lines, start = [to.operands(layer, layer.mantissa, layer.shift).rstrip()], 0
    for i, tensor in enumerate(given):
        found = to.loops(f"loops{i}", loops(tensor.shape, [to.steps(tensor), own], to.orders[made.name]))
        target = f"{to.address(made.name)} + {start * own[layer.axis] * bytes_per(made)}"
        lines.append(f"gemedge_rescaled(&of[{i}], {to.law(layer)}, {target}, {to.format(made)}, {found});")
        start += tensor.shape[layer.axis]
    return "\n        ".join(lines)

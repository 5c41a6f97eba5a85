"""The C call of each operator, with the constants that it needs.

Addresses are C expressions: `memory + 96` in the arena, or the name of an array in flash.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from gemedge.arena import Plan, bytes_of
from gemedge.errors import UnsupportedError
from gemedge.export.c_constants import Constants, number
from gemedge.export.layout import Loops, broadcast_steps, in_memory, loops, same_in_memory, steps
from gemedge.model import Op, QuantizedModel, uses_gemmlowp
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
    LayerNormalization,
    Lookup,
    MatrixMultiply,
    MaxPool,
    Multiply,
    Operator,
    RawAveragePool,
    Shape,
    Softmax,
    Tensor,
)

MOST_AXES, MOST_OPERANDS = 8, 8  # GEMEDGE_MOST_AXES, GEMEDGE_MOST_OPERANDS
_INDEX_BYTES = 4


class Layers:
    """Writes the layers of one model; constants collects what they need."""

    def __init__(self, model: QuantizedModel, orders: dict[str, Shape], plan: Plan) -> None:
        self.model, self.orders, self.plan = model, orders, plan
        self.constants = Constants()
        self._placed = {placement.tensor: placement for placement in plan.placements}
        self._values = {layer.output: layer.value for layer in model.layers if isinstance(layer, Constant)}

    def call(self, index: int, layer: Op) -> str:
        """The C statement that runs a layer, or "" where there is nothing to do; UnsupportedError names the layer."""
        self.constants.prefix = f"L{index}_{kind(layer)}"
        if layer.output in self.plan.stored:
            return ""
        try:
            return _CALLS[type(layer)](self, layer)
        except UnsupportedError as error:
            raise UnsupportedError(f"layer {layer.name!r} ({type(layer).__name__}) in C: {error}") from error

    # What the calls below share

    def address(self, tensor: str) -> str:
        if tensor in self._placed:
            return f"memory + {self._placed[tensor].offset}"
        value = self._values[self.plan.stored[tensor]]
        laid = in_memory(value.reshape(self.model.tensors[tensor].shape), self.orders[tensor])
        return self.constants.array("value", f"int{8 * bytes_per(self.model.tensors[tensor])}_t", laid)

    def tensors(self, layer: Op) -> tuple[list[Tensor], Tensor]:
        return [self.model.tensors[name] for name in layer.inputs], self.model.tensors[layer.output]

    def steps(self, tensor: Tensor) -> Shape:
        return steps(tensor.shape, self.orders[tensor.name])

    def format(self, tensor: Tensor) -> str:
        return self.constants.structure("format", "format", _format(tensor))

    def law(self, layer: Op) -> str:
        gemmlowp = uses_gemmlowp(layer, self.tensors(layer)[0], self.model.rounding)
        return "GEMEDGE_DOUBLE" if gemmlowp else "GEMEDGE_SINGLE"

    def loops(self, role: str, found: Loops) -> str:
        if len(found.sizes) > MOST_AXES or len(found.steps) > MOST_OPERANDS:
            raise UnsupportedError(
                f"{len(found.steps)} operands in {len(found.sizes)} loops; {MOST_OPERANDS} in {MOST_AXES} at most"
            )
        return self.constants.loops(role, found)

    def elementwise(self, layer: Op, *others: Shape) -> str:
        """Loops over the output's numbers: operands are the inputs, others by their shapes as written, the output."""
        given, made = self.tensors(layer)
        axes = len(made.shape)
        operands = [broadcast_steps(t.shape, self.orders[t.name], axes) for t in given]
        operands += [broadcast_steps(shape, tuple(range(len(shape))), axes) for shape in others]
        return self.loops("loops", loops(made.shape, [*operands, self.steps(made)], self.orders[made.name]))

    def rows(self, layer: Op, *others: Shape) -> tuple[str, list[int]]:
        """Loops over rows along the last axis of input, output and others, and the step of each along it."""
        (given,), made = self.tensors(layer)
        operands = [self.steps(given), self.steps(made)]
        operands += [broadcast_steps(shape, tuple(range(len(shape))), len(given.shape)) for shape in others]
        last = len(given.shape) - 1
        order = [axis for axis in self.orders[made.name] if axis != last]
        found = loops((*given.shape[:-1], 1), operands, tuple(order), rows=True)
        return self.loops("rows", found), [operand[last] for operand in operands]

    def operands(self, layer: Op, mantissas: Sequence[int], shifts: Sequence[int], condition: str = "") -> str:
        given, _ = self.tensors(layer)
        written = [
            f"{{{self.address(t.name)}, {_format(t)}, {number(int(m))}, {int(s)}}}"
            for t, m, s in zip(given, mantissas, shifts, strict=True)
        ]
        written += [f"{{{condition}, {{1, 0}}, 0, 0}}"] if condition else []
        return f"const struct gemedge_operand of[{len(written)}] = {{{', '.join(written)}}};\n        "

    def window(self, layer: Op, kernel: Shape, dilations: Shape | None = None) -> str:
        (given,), made = self.tensors(layer)
        axes = len(layer.strides)  # type: ignore[union-attr]
        fields = (
            given.shape[1:],
            made.shape[1:],
            kernel,
            layer.strides,  # type: ignore[union-attr]
            layer.pads[:axes],  # type: ignore[union-attr]
            dilations or (1,) * axes,
        )
        alone = (1, 1, 1, 1, 0, 1)  # along the axis that a signal does not have
        pairs = [f"{{{a if axes == 1 else f[0]}, {f[-1]}}}" for f, a in zip(fields, alone, strict=True)]
        return "&" + self.constants.structure("window", "window", f"{{{', '.join(pairs)}, {given.shape[0]}}}")


def kind(layer: Op) -> str:
    """The operator's name in an identifier: `max_pool`."""
    name = type(layer).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def bytes_per(tensor: Tensor) -> int:
    return _INDEX_BYTES if tensor.params is None else tensor.params.bits // 8


def _format(tensor: Tensor) -> str:
    return f"{{{bytes_per(tensor)}, {0 if tensor.params is None else tensor.params.zero_point}}}"


# Sums of products


def _weights(to: Layers, layer: Convolution | Dense, weight: np.ndarray) -> tuple[str, str, str]:
    """The operator's suffix, the input's address as its type, and the address of the weights."""
    (given,), _ = to.tensors(layer)
    suffix = f"i{given.quantized.bits}w{8 * weight.dtype.itemsize}"
    names = (
        to.constants.array("weight", f"int{8 * weight.dtype.itemsize}_t", weight),
        to.constants.array("bias", "int32_t" if suffix == "i8w8" else "int64_t", layer.bias),
        to.constants.array("mantissa", "int32_t", np.broadcast_to(layer.mantissa, (len(layer.bias),))),
        to.constants.array("shift", "uint8_t", np.broadcast_to(layer.shift, (len(layer.bias),))),
    )
    held = to.constants.structure("weights", f"weights_{suffix}", f"{{{', '.join(names)}, {to.law(layer)}}}")
    ctype = "int8_t" if given.quantized.bits == 8 else "gemedge_int16"
    return suffix, f"(const {ctype} *)({to.address(given.name)})", f"&{held}"


def _convolution(to: Layers, layer: Convolution) -> str:
    (given,), made = to.tensors(layer)
    outputs, group_in = layer.weight.shape[:2]
    depthwise = layer.groups == given.shape[0] == outputs
    weight = np.moveaxis(layer.weight, 1, -1)
    suffix, source, by = _weights(to, layer, np.moveaxis(weight, 0, -1) if depthwise else weight)
    window = to.window(layer, layer.weight.shape[2:], layer.dilations)
    groups = "" if depthwise else f" {layer.groups}, {group_in}, {outputs // layer.groups},"
    name = f"gemedge_{'depthwise' if depthwise else 'convolution'}_{suffix}"
    zero = given.quantized.zero_point
    return f"{name}({source}, {zero}, {window},{groups} {by}, {to.address(made.name)}, {to.format(made)});"


def _dense(to: Layers, layer: Dense) -> str:
    (given,), made = to.tensors(layer)
    outputs, inputs = layer.weight.shape
    suffix, source, by = _weights(to, layer, layer.weight)
    rows, (in_step, out_step) = to.rows(layer)
    return (
        f"gemedge_dense_{suffix}({source}, {given.quantized.zero_point}, {inputs}u, {in_step}u, {by},"
        f" {to.address(made.name)}, {to.format(made)}, {outputs}u, {out_step}u, {rows});"
    )


def _matrix_multiply(to: Layers, layer: MatrixMultiply) -> str:
    given, made = to.tensors(layer)
    axes = len(made.shape)
    left, right = (broadcast_steps(t.shape, to.orders[t.name], axes) for t in given)
    own = to.steps(made)
    order = [axis for axis in to.orders[made.name] if axis < axes - 2]
    found = to.loops("matrices", loops((*made.shape[:-2], 1, 1), [left, right, own], tuple(order), rows=True))
    size = to.constants.array("size", "uint32_t", (made.shape[-2], given[0].shape[-1], made.shape[-1]))
    step = to.constants.array("step", "uint32_t", (*left[-2:], *right[-2:], *own[-2:]))
    return (
        f"{to.operands(layer, (0, 0), (0, 0))}gemedge_matrix_multiply(of, {size}, {step}, {_rescaling(layer)},"
        f" {to.law(layer)}, {to.address(made.name)}, {to.format(made)}, {found});"
    )


def _rescaling(layer: MatrixMultiply | Multiply) -> str:
    return f"{int(layer.mantissa.reshape(-1)[0])}, {int(layer.shift.reshape(-1)[0])}u"


# One number at a time


def _mapped(to: Layers, layer: Op, name: str, by: str) -> str:
    (given,), made = to.tensors(layer)
    count = math.prod(made.shape)
    return f"{name}({to.address(given.name)}, {by}, {to.address(made.name)}, {bytes_per(made)}u, {count}u);"


def _table(to: Layers, layer: Op, table: np.ndarray | Sequence[int]) -> str:
    return to.constants.array("table", f"int{8 * bytes_per(to.tensors(layer)[1])}_t", table)


def _activate(to: Layers, layer: Activate) -> str:
    constants = to.model.kernels[layer.name].constants
    if constants.table:
        return _mapped(to, layer, "gemedge_lookup", _table(to, layer, constants.table))
    return _mapped(to, layer, "gemedge_activate", to.constants.kernel(constants))


def _lookup(to: Layers, layer: Lookup) -> str:
    return _mapped(to, layer, "gemedge_lookup", _table(to, layer, layer.table))


def _interpolate(to: Layers, layer: Interpolate) -> str:
    return _mapped(to, layer, "gemedge_interpolate", _table(to, layer, layer.table))


def _clamp(to: Layers, layer: Clamp) -> str:
    (given,), made = to.tensors(layer)
    places = f"{to.address(given.name)}, {to.address(made.name)}, {bytes_per(made)}u"
    return f"gemedge_clamp({places}, {layer.low}, {layer.high}, {math.prod(made.shape)}u);"


def _combine(to: Layers, layer: Combine) -> str:
    _, made = to.tensors(layer)
    count, found = len(layer.inputs), to.elementwise(layer)
    return (
        f"{to.operands(layer, layer.mantissa, [0] * count)}gemedge_combine(of, {count}u, {int(layer.shift)}u,"
        f" {to.address(made.name)}, {to.format(made)}, {found});"
    )


def _gemmlowp_sum(to: Layers, layer: GemmlowpSum) -> str:
    _, made = to.tensors(layer)
    operands = to.operands(layer, layer.mantissa[:2], layer.shift[:2])
    return (
        f"{operands}gemedge_gemmlowp_sum(of, {layer.left}u, {int(layer.mantissa[2])}, {int(layer.shift[2])}u,"
        f" {to.address(made.name)}, {to.format(made)}, {to.elementwise(layer)});"
    )


def _multiply(to: Layers, layer: Multiply) -> str:
    _, made = to.tensors(layer)
    return (
        f"{to.operands(layer, (0, 0), (0, 0))}gemedge_multiply(of, {_rescaling(layer)}, {to.law(layer)},"
        f" {to.address(made.name)}, {to.format(made)}, {to.elementwise(layer)});"
    )


def _choose(to: Layers, layer: Choose) -> str:
    _, made = to.tensors(layer)
    condition = to.constants.array("condition", "int8_t", layer.condition)
    return (
        f"{to.operands(layer, layer.mantissa, layer.shift, condition)}gemedge_choose(of, {to.law(layer)},"
        f" {to.address(made.name)}, {to.format(made)}, {to.elementwise(layer, layer.condition.shape)});"
    )


# Over a window or an axis


def _max_pool(to: Layers, layer: MaxPool) -> str:
    (given,), made = to.tensors(layer)
    window = to.window(layer, layer.kernel)
    return f"gemedge_max_pool({to.address(given.name)}, {window}, {to.address(made.name)}, {bytes_per(made)}u);"


def _average_pool(to: Layers, layer: AveragePool) -> str:
    _, made = to.tensors(layer)
    mantissa = to.constants.array("mantissa", "int32_t", layer.mantissa)
    shift = to.constants.array("shift", "uint8_t", layer.shift)
    return (
        f"{to.operands(layer, (0,), (0,))}gemedge_average_pool(of, {to.window(layer, layer.kernel)}, {mantissa},"
        f" {shift}, {layer.counts}u, {to.address(made.name)}, {to.format(made)});"
    )


def _raw_average_pool(to: Layers, layer: RawAveragePool) -> str:
    (given,), made = to.tensors(layer)
    operand = f"{{{to.address(given.name)}, {{{bytes_per(given)}, 0}}, 0, 0}}"
    window = to.window(layer, layer.kernel)
    return (
        f"const struct gemedge_operand of[1] = {{{operand}}};\n"
        f"        gemedge_raw_average_pool(of, {window}, {to.address(made.name)});"
    )


def _softmax(to: Layers, layer: Softmax) -> str:
    (given,), made = to.tensors(layer)
    if max(int(layer.fine.max()), int(layer.coarse.max())) >= 1 << 32:
        raise UnsupportedError("a table with numbers beyond 32 bits")
    tables = [to.constants.array(name, "uint32_t", getattr(layer, name)) for name in ("fine", "coarse")]
    by = to.constants.structure("by", "exponential", f"{{{', '.join(tables)}, {layer.shift}, {layer.one}}}")
    mask = to.constants.array("mask", "int8_t", layer.mask) if layer.mask.size else "0"
    rows, moves = to.rows(layer, *([layer.mask.shape] if layer.mask.size else []))
    step = to.constants.array("step", "uint32_t", moves)
    return (
        f"gemedge_softmax({to.address(given.name)}, {bytes_per(given)}u, {mask}, &{by}, {given.shape[-1]}u, {step},"
        f" {to.address(made.name)}, {to.format(made)}, {rows});"
    )


def _layer_normalization(to: Layers, layer: LayerNormalization) -> str:
    (given,), made = to.tensors(layer)
    mantissa = to.constants.array("mantissa", "int32_t", layer.mantissa)
    bias = to.constants.array("bias", "int64_t", layer.bias)
    rows, moves = to.rows(layer)
    step = to.constants.array("step", "uint32_t", moves)
    return (
        f"gemedge_layer_normalization({to.address(given.name)}, {bytes_per(given)}u, {number(layer.epsilon)},"
        f" {mantissa}, {bias}, {layer.shift}u, {given.shape[-1]}u, {step}, {to.address(made.name)},"
        f" {to.format(made)}, {rows});"
    )


# Integers moved


def _copied(to: Layers, layer: Op, sizes: Shape, given: Shape, made: Shape, starts: tuple[int, int] = (0, 0)) -> str:
    """Numbers from steps in the input to steps in the output, from these numbers on."""
    (source,), target = to.tensors(layer)
    width = bytes_per(target)
    found = to.loops("loops", loops(sizes, [given, made], to.orders[target.name]))
    places = [
        f"{to.address(tensor.name)} + {start * width}"
        for tensor, start in zip((source, target), starts, strict=True)
    ]
    return f"gemedge_copy({', '.join(places)}, {width}u, {found});"


def _constant(to: Layers, layer: Constant) -> str:
    _, made = to.tensors(layer)
    value = to.constants.array("value", f"int{8 * bytes_per(made)}_t", in_memory(layer.value, to.orders[made.name]))
    return f"memcpy({to.address(made.name)}, {value}, {bytes_of(made)});"


def _embed(to: Layers, layer: Embed) -> str:
    (given,), made = to.tensors(layer)
    if layer.table.ndim > 2:
        raise UnsupportedError(f"a table of shape {list(layer.table.shape)}; its rows may have one axis")
    axes = len(given.shape)
    own = to.steps(made)
    rows = to.loops("rows", loops(given.shape, [to.steps(given), own[:axes]], tuple(range(axes)), rows=True))
    size = math.prod(layer.table.shape[1:])
    status = (
        f"gemedge_embed({to.address(given.name)}, {bytes_per(given)}u, {_table(to, layer, layer.table)},"
        f" {len(layer.table)}, {size}u, {own[-1] if layer.table.ndim > 1 else 0}u, {to.address(made.name)},"
        f" {bytes_per(made)}u, {rows})"
    )
    return f"const int status = {status};\n        if (status != GEMEDGE_OK) {{\n            return status;\n        }}"


def _reshape(to: Layers, layer: Reshape) -> str:
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


def _transpose(to: Layers, layer: Transpose) -> str:
    (given,), made = to.tensors(layer)
    own = to.steps(given)
    return _copied(to, layer, made.shape, tuple(own[axis] for axis in layer.order), to.steps(made))


def _take(to: Layers, layer: Take) -> str:
    (given,), made = to.tensors(layer)
    places = [int(place) for place in layer.places]
    own = to.steps(given)
    if len({b - a for a, b in zip(places, places[1:], strict=False)}) <= 1:
        stride = places[1] - places[0] if len(places) > 1 else 1
        moved = tuple(step * stride if axis == layer.axis else step for axis, step in enumerate(own))
        return _copied(to, layer, made.shape, moved, to.steps(made), (places[0] * own[layer.axis], 0))
    inner, size = own[layer.axis], given.shape[layer.axis]
    outer = math.prod(given.shape) // (inner * size)
    listed = to.constants.array("places", "uint32_t", places)
    return (
        f"gemedge_take({to.address(given.name)}, {listed}, {len(places)}u, {size}u, {outer}u, {inner}u,"
        f" {to.address(made.name)}, {bytes_per(made)}u);"
    )


def _pad(to: Layers, layer: Pad) -> str:
    (given,), made = to.tensors(layer)
    own = to.steps(made)
    start = sum(before * step for before, step in zip(layer.pads, own, strict=False))
    return _filled(to, layer) + _copied(to, layer, given.shape, to.steps(given), own, (0, start))


def _spread(to: Layers, layer: Spread) -> str:
    (given,), made = to.tensors(layer)
    wide = tuple(step * stride for step, stride in zip(to.steps(made), (1, *layer.strides), strict=True))
    return _filled(to, layer) + _copied(to, layer, given.shape, to.steps(given), wide)


def _filled(to: Layers, layer: Pad | Spread) -> str:
    _, made = to.tensors(layer)
    count = math.prod(made.shape)
    return f"gemedge_fill({to.address(made.name)}, {bytes_per(made)}u, {layer.value}, {count}u);\n        "


def _concatenate(to: Layers, layer: Concatenate) -> str:
    given, made = to.tensors(layer)
    own = to.steps(made)
    lines, start = [to.operands(layer, layer.mantissa, layer.shift).rstrip()], 0
    for i, tensor in enumerate(given):
        found = to.loops(f"loops{i}", loops(tensor.shape, [to.steps(tensor), own], to.orders[made.name]))
        target = f"{to.address(made.name)} + {start * own[layer.axis] * bytes_per(made)}"
        lines.append(f"gemedge_rescaled(&of[{i}], {to.law(layer)}, {target}, {to.format(made)}, {found});")
        start += tensor.shape[layer.axis]
    return "\n        ".join(lines)


_CALLS: dict[type[Operator], Callable[..., str]] = {
    Constant: _constant,
    Convolution: _convolution,
    Dense: _dense,
    MatrixMultiply: _matrix_multiply,
    Activate: _activate,
    Lookup: _lookup,
    Interpolate: _interpolate,
    Combine: _combine,
    GemmlowpSum: _gemmlowp_sum,
    Multiply: _multiply,
    Choose: _choose,
    Concatenate: _concatenate,
    MaxPool: _max_pool,
    AveragePool: _average_pool,
    RawAveragePool: _raw_average_pool,
    Softmax: _softmax,
    LayerNormalization: _layer_normalization,
    Embed: _embed,
    Reshape: _reshape,
    Transpose: _transpose,
    Take: _take,
    Pad: _pad,
    Spread: _spread,
    Clamp: _clamp,
}

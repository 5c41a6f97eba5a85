"""The C call of each operator, with the constants that it needs."""

import math
from collections.abc import Callable

from gemedge.errors import UnsupportedError
from gemedge.export import c_activations, c_moving, c_sums
from gemedge.export.c_constants import number
from gemedge.export.c_writer import Writer, bytes_per, kind, table_of
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
    LayerNormalization,
    Lookup,
    MatrixMultiply,
    MaxPool,
    Multiply,
    Operator,
    RawAveragePool,
    Softmax,
)


def call(to: Writer, index: int, layer: Op) -> str:
    """The C statement that runs a layer, or "" where there is nothing to do; UnsupportedError names the layer."""
    to.constants.prefix = f"L{index}_{kind(layer)}"
    if layer.output in to.plan.stored:
        return ""
    try:
        return _CALLS[type(layer)](to, layer)
    except UnsupportedError as error:
        raise UnsupportedError(f"layer {layer.name!r} ({type(layer).__name__}) in C: {error}") from error


# One number at a time


def _rescaling(layer: Multiply) -> str:
    return f"{int(layer.mantissa.reshape(-1)[0])}, {int(layer.shift.reshape(-1)[0])}u"


def _mapped(to: Writer, layer: Op, name: str, by: str) -> str:
    (given,), made = to.tensors(layer)
    count = math.prod(made.shape)
    return f"{name}({to.address(given.name)}, {by}, {to.address(made.name)}, {bytes_per(made)}u, {count}u);"


def _activate(to: Writer, layer: Activate) -> str:
    kernel = to.model.kernels[layer.name]
    if kernel.constants.table:
        return _mapped(to, layer, "gemedge_lookup", table_of(to, layer, kernel.constants.table))
    (given,), made = to.tensors(layer)
    name = c_activations.function(to.constants, kernel, to.activation)
    return f"{name}({to.address(given.name)}, {to.address(made.name)}, {math.prod(made.shape)}u);"


def _lookup(to: Writer, layer: Lookup) -> str:
    return _mapped(to, layer, "gemedge_lookup", table_of(to, layer, layer.table))


def _interpolate(to: Writer, layer: Interpolate) -> str:
    return _mapped(to, layer, "gemedge_interpolate", table_of(to, layer, layer.table))


def _clamp(to: Writer, layer: Clamp) -> str:
    (given,), made = to.tensors(layer)
    places = f"{to.address(given.name)}, {to.address(made.name)}, {bytes_per(made)}u"
    return f"gemedge_clamp({places}, {layer.low}, {layer.high}, {math.prod(made.shape)}u);"


def _combine(to: Writer, layer: Combine) -> str:
    _, made = to.tensors(layer)
    count, found = len(layer.inputs), to.elementwise(layer)
    return (
        f"{to.operands(layer, layer.mantissa, [0] * count)}gemedge_combine(of, {count}u, {int(layer.shift)}u,"
        f" {to.address(made.name)}, {to.format(made)}, {found});"
    )


def _gemmlowp_sum(to: Writer, layer: GemmlowpSum) -> str:
    _, made = to.tensors(layer)
    operands = to.operands(layer, layer.mantissa[:2], layer.shift[:2])
    return (
        f"{operands}gemedge_gemmlowp_sum(of, {layer.left}u, {int(layer.mantissa[2])}, {int(layer.shift[2])}u,"
        f" {to.address(made.name)}, {to.format(made)}, {to.elementwise(layer)});"
    )


def _multiply(to: Writer, layer: Multiply) -> str:
    _, made = to.tensors(layer)
    return (
        f"{to.operands(layer, (0, 0), (0, 0))}gemedge_multiply(of, {_rescaling(layer)}, {to.law(layer)},"
        f" {to.address(made.name)}, {to.format(made)}, {to.elementwise(layer)});"
    )


def _choose(to: Writer, layer: Choose) -> str:
    _, made = to.tensors(layer)
    condition = to.constants.array("condition", "int8_t", layer.condition)
    return (
        f"{to.operands(layer, layer.mantissa, layer.shift, condition)}gemedge_choose(of, {to.law(layer)},"
        f" {to.address(made.name)}, {to.format(made)}, {to.elementwise(layer, layer.condition.shape)});"
    )


# Over a window or an axis


def _max_pool(to: Writer, layer: MaxPool) -> str:
    (given,), made = to.tensors(layer)
    window = to.window(layer, layer.kernel)
    return f"gemedge_max_pool({to.address(given.name)}, {window}, {to.address(made.name)}, {bytes_per(made)}u);"


def _average_pool(to: Writer, layer: AveragePool) -> str:
    _, made = to.tensors(layer)
    mantissa = to.constants.array("mantissa", "int32_t", layer.mantissa)
    shift = to.constants.array("shift", "uint8_t", layer.shift)
    return (
        f"{to.operands(layer, (0,), (0,))}gemedge_average_pool(of, {to.window(layer, layer.kernel)}, {mantissa},"
        f" {shift}, {layer.counts}u, {to.address(made.name)}, {to.format(made)});"
    )


def _raw_average_pool(to: Writer, layer: RawAveragePool) -> str:
    (given,), made = to.tensors(layer)
    operand = f"{{{to.place(given.name)}, {{{bytes_per(given)}, 0}}, 0, 0}}"
    window = to.window(layer, layer.kernel)
    return (
        f"const struct gemedge_operand of[1] = {{{operand}}};\n"
        f"        gemedge_raw_average_pool(of, {window}, {to.address(made.name)});"
    )


def _softmax(to: Writer, layer: Softmax) -> str:
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


def _layer_normalization(to: Writer, layer: LayerNormalization) -> str:
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


_CALLS: dict[type[Operator], Callable[..., str]] = {
    Constant: c_moving.constant,
    Convolution: c_sums.convolution,
    Dense: c_sums.dense,
    MatrixMultiply: c_sums.matrix_multiply,
    Activate: _activate,
    Lookup: _lookup,
    Interpolate: _interpolate,
    Combine: _combine,
    GemmlowpSum: _gemmlowp_sum,
    Multiply: _multiply,
    Choose: _choose,
    Concatenate: c_moving.concatenate,
    MaxPool: _max_pool,
    AveragePool: _average_pool,
    RawAveragePool: _raw_average_pool,
    Softmax: _softmax,
    LayerNormalization: _layer_normalization,
    Embed: c_moving.embed,
    Reshape: c_moving.reshape,
    Transpose: c_moving.transpose,
    Take: c_moving.take,
    Pad: c_moving.pad,
    Spread: c_moving.spread,
    Clamp: _clamp,
}

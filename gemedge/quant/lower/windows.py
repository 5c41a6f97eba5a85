"""Pools and means, Softmax and LayerNormalization: what reads many numbers of one tensor for each it makes."""

import math
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from gemedge.capture.reading import attribute, input_of, ints, name_of, pads_of
from gemedge.errors import QuantizationError, UnsupportedError
from gemedge.fixed import QuantParams, Rounding
from gemedge.moving import Pad, Reshape, Transpose
from gemedge.operators import (
    NORM_BITS,
    AveragePool,
    LayerNormalization,
    MaxPool,
    RawAveragePool,
    Shape,
    Softmax,
    Tensor,
)
from gemedge.quant.lower.lowering import Handler, Lowering, Real, Target

_TABLE_BITS = {8: 15, 16: 23}  # of exp, by the input's width


def max_pool(q: Lowering, node: ir.Node) -> None:
    kernel, strides, pads = _window(node)
    if len(node.outputs) > 1:
        raise UnsupportedError("its indices are not supported")
    q.add(node, MaxPool, [q.channels_first(node)], kernel, strides, pads)


def average_pool(q: Lowering, node: ir.Node) -> None:
    kernel, strides, pads = _window(node)
    _average(q, node, q.channels_first(node), kernel, strides, pads, bool(attribute(node, "count_include_pad", 0)))


def _window(node: ir.Node) -> tuple[Shape, Shape, Shape]:
    kernel = ints(node, "kernel_shape", ())
    if attribute(node, "ceil_mode", 0) or any(d != 1 for d in ints(node, "dilations", (1,))):
        raise UnsupportedError("ceil_mode and dilations must have their defaults")
    return kernel, ints(node, "strides", (1,) * len(kernel)), pads_of(node, len(kernel))


def global_average_pool(q: Lowering, node: ir.Node) -> None:
    given = q.channels_first(node)
    kernel = given.shape[1:]
    _average(q, node, given, kernel, (1,) * len(kernel), (0,) * (2 * len(kernel)), False)


def reduce_mean(q: Lowering, node: ir.Node) -> None:
    """A mean over any axes: they go last, and one window covers them."""
    value = input_of(node)
    given = q.source(value)
    named = q.optional(node, 1)
    wanted = ints(node, "axes", ()) if named is None else tuple(int(axis) for axis in named.reshape(-1))
    if not wanted:
        raise UnsupportedError("a mean over all axes would cross the batch")
    axes = sorted({q.axis(value, axis) for axis in wanted})
    others = [axis for axis in range(len(given.shape)) if axis not in axes]
    keeps = bool(attribute(node, "keepdims", 1))
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(given.shape) if keeps or axis not in axes)
    if others + axes != list(range(len(given.shape))):
        given = q.add(node, Transpose, [given], (*others, *axes), step="axes")
    rest = math.prod(given.shape[: len(others)])
    count = math.prod(given.shape[len(others) :])
    if given.shape != (rest, count):
        given = q.add(node, Reshape, [given], (rest, count), step="rows")
    pooled = _average(q, node, given, (count,), (1,), (0, 0), False, step="mean")
    batch = q.batch_axis(value) - (0 if keeps else sum(axis < q.batch_axis(value) for axis in axes))
    q.add(node, Reshape, [pooled], shape, batch=batch)


def _average(
    q: Lowering,
    node: ir.Node,
    given: Tensor,
    kernel: Shape,
    strides: Shape,
    pads: Shape,
    count_padding: bool,
    step: str = "",
) -> Tensor:
    if q.rounding is Rounding.DOUBLE:
        if count_padding and any(pads):
            margins = (0, *pads[: len(kernel)], 0, *pads[len(kernel) :])
            given = q.add(node, Pad, [given], margins, given.quantized.zero_point, step="pad")
            pads = (0,) * len(pads)
        return q.add(node, RawAveragePool, [given], kernel, strides, pads, step=step)
    target = Target(node.outputs[0], q.params(node.outputs[0], node))
    real = q.real([given.quantized.scale], target.params.scale)
    size, empty = math.prod(kernel), np.zeros(1, np.int64)
    draft = AveragePool(node.name or "", (given.name,), "", kernel, strides, pads, count_padding, empty, empty)
    counts = range(1, size + 1) if draft.counts > 1 else [size]
    mantissa, shift = q.scalings(draft, [given], [real / count for count in counts])
    fields = (kernel, strides, pads, count_padding, mantissa, shift)
    return q.add(node, AveragePool, [given], *fields, target=target, step=step)


def softmax(q: Lowering, node: ir.Node) -> None:
    value = input_of(node)
    given = q.source(value)
    mask = q.masks.get(name_of(value), np.zeros(0, np.int8))
    last = len(given.shape) - 1
    axis = q.axis(value, int(attribute(node, "axis", -1)))
    order = tuple(last if a == axis else axis if a == last else a for a in range(last + 1))
    if axis != last:
        if mask.size:
            raise UnsupportedError("a mask needs a softmax over the last axis")
        given = q.add(node, Transpose, [given], order, step="axes")
    bits = q.formats(node).bits
    whole = 8 if bits == 8 and q.formats(node).affine else bits - 1
    params = QuantParams(2.0**-whole, -128 if whole == 8 else 0, bits)
    target = Target(node.outputs[0], params)
    fields = (*_exponentials(given.quantized), 1 << whole, mask)
    made = q.add(node, Softmax, [given], *fields, target=target, step="" if axis == last else "shares")
    if axis != last:
        q.add(node, Transpose, [made], order)


def _exponentials(params: QuantParams) -> tuple[np.ndarray, np.ndarray, int]:
    """exp(-scale * d) for d = 256 high + low as coarse[high] * fine[low] * 2**-shift, of 15 or 23 bits."""
    bits = _TABLE_BITS[params.bits]
    fine = np.rint(np.exp(-params.scale * np.arange(256)) * 2.0**bits).astype(np.int64)
    if params.bits == 8:
        return fine, np.ones(1, np.int64), 0
    coarse = np.rint(np.exp(-params.scale * 256 * np.arange(256)) * 2.0**bits).astype(np.int64)
    return fine, coarse, bits


def layer_normalization(q: Lowering, node: ir.Node) -> None:
    value = input_of(node)
    given = q.source(value)
    first = q.axis(value, int(attribute(node, "axis", -1)))
    if q.batch_axis(value) > first:
        raise UnsupportedError("it would cross the batch")
    weight, bias = q.required(node, 1), q.optional(node, 2)
    size = math.prod(given.shape[first:])
    target = Target(node.outputs[0], q.params(node.outputs[0]))
    several = first != len(given.shape) - 1
    flat = q.add(node, Reshape, [given], (*given.shape[:first], size), step="rows") if several else given
    weight = np.broadcast_to(weight, given.shape[first:]).reshape(-1)
    offset = np.zeros(size) if bias is None else np.broadcast_to(bias, given.shape[first:]).reshape(-1)
    epsilon = Fraction(float(np.float32(attribute(node, "epsilon", 1e-5))))
    scaled = max(1, round(epsilon * size**2 / Fraction(given.quantized.scale) ** 2))
    if scaled >= 1 << 60:
        raise QuantizationError("its input's range is far below the root of its epsilon")
    fields = _affine(weight, offset, target.params)
    step = "normalise" if several else ""
    real = Real(weight.astype(np.float64), offset.astype(np.float64), np.array(float(epsilon)))
    made = q.add(node, LayerNormalization, [flat], scaled, *fields, target=target, step=step, real=real)
    if several:
        q.add(node, Reshape, [made], given.shape, target=target)


def _affine(weight: np.ndarray, offset: np.ndarray, params: QuantParams) -> tuple[np.ndarray, np.ndarray, int]:
    """Mantissas, biases and one shift that take a normalised number with NORM_BITS fraction bits to the output."""
    scale = params.scale
    largest = max(float(np.abs(weight).max()) / scale, float(np.abs(offset).max()) / scale / 4, 1e-30)
    shift = min(62, NORM_BITS + 30 - max(0, math.ceil(math.log2(largest))))
    if shift < NORM_BITS:
        raise QuantizationError(f"weights up to {np.abs(weight).max():.4g} do not fit an output scale of {scale:.4g}")
    mantissa = np.rint(weight.astype(np.float64) / scale * 2.0 ** (shift - NORM_BITS)).astype(np.int64)
    bias = np.rint(offset.astype(np.float64) / scale * 2.0**shift).astype(np.int64)
    return mantissa, bias, shift


HANDLERS: dict[str, Handler] = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "ReduceMean": reduce_mean,
    "Softmax": softmax,
    "LayerNormalization": layer_normalization,
}

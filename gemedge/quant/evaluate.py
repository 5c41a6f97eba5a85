"""Each operator's integers: what `simulate` runs layer by layer.

Every function takes the operator, the integers [batch, *shape] of its inputs, their tensors, the tensor it makes and
the run it belongs to. That nothing overflows was proven when the model was made.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from weakref import WeakKeyDictionary

import numpy as np

from gemedge.errors import DataError
from gemedge.fixed import Rounding, dequantize, requantize
from gemedge.model import Op, QuantizedModel, uses_gemmlowp
from gemedge.moving import Clamp, Concatenate, Constant, Embed, Pad, Reshape, Spread, Take, Transpose
from gemedge.operators import (
    NORM_BITS,
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
    Tensor,
)

_KEPT: WeakKeyDictionary[Operator, dict[str | int, np.ndarray]] = WeakKeyDictionary()
_JOINED = 64  # rows at most
Arrays = list[np.ndarray]
Tensors = list[Tensor]


@dataclass(slots=True)
class Run:
    """The model, the samples in this batch, and where given the count of numbers saturated in each layer."""

    model: QuantizedModel
    samples: int
    saturated: Counter[str] | None = None


def evaluate(op: Op, given: Arrays, tensors: Tensors, made: Tensor, run: Run) -> np.ndarray:
    """The integers [batch, *made.shape] that an operator makes, in the smallest type that holds them."""
    return _EVALUATE[type(op)](op, given, tensors, made, run)


def stored_type(tensor: Tensor) -> np.dtype:
    """The type of a tensor's integers; of indices, int64."""
    return np.dtype(np.int64 if tensor.params is None else f"i{tensor.params.bits // 8}")


# Sums of products


def _convolution(op: Convolution, given: Arrays, tensors: Tensors, made: Tensor, run: Run) -> np.ndarray:
    """Channels lie last in memory, whatever the shape says: then the copies below move whole rows."""
    weight = _weight(op, tensors)
    sums = slide(op, _centred(given[0], tensors[0], weight.dtype.type), weight)
    return np.moveaxis(_weighted(sums, op, tensors, made, run), -1, 1)


def slide(op: Convolution, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The sums [batch, *spots, O] of a convolution over x [batch, I, *size], in the type of both."""
    x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    axes = len(op.strides)
    margins = [(0, 0), *((op.pads[a], op.pads[a + axes]) for a in range(axes)), (0, 0)]
    windows = _windows(np.pad(x, margins), weight.shape[2:], op.strides, op.dilations)
    multiply = _depthwise if op.groups == x.shape[-1] == len(weight) > 1 else _grouped
    return multiply(windows, weight, op.groups, axes)


def _grouped(windows: np.ndarray, weight: np.ndarray, groups: int, axes: int) -> np.ndarray:
    """Windows [batch, *spots, channels, *kernel] times weights, a matrix product for each group."""
    rows = np.moveaxis(windows, 1 + axes, -1)
    per_group = weight.shape[1]
    products = []
    for group, part in enumerate(np.split(weight, groups)):
        columns = rows[..., group * per_group : (group + 1) * per_group].reshape(-1, part[0].size)
        products.append(np.matmul(columns, np.moveaxis(part, 1, -1).reshape(len(part), -1).T))
    return np.concatenate(products, axis=1).reshape(*windows.shape[: 1 + axes], -1)


def _depthwise(windows: np.ndarray, weight: np.ndarray, _: int, axes: int) -> np.ndarray:
    """One weight for each channel and place in the kernel: place by place, all channels at once."""
    sums = np.zeros(windows.shape[: 2 + axes], windows.dtype)
    for place in np.ndindex(*weight.shape[2:]):
        sums += windows[(..., *place)] * weight[(slice(None), 0, *place)]
    return sums


def _dense(op: Dense, given: Arrays, tensors: Tensors, made: Tensor, run: Run) -> np.ndarray:
    weight = _weight(op, tensors)
    x = _centred(given[0], tensors[0], weight.dtype.type)
    return _weighted(np.matmul(x, weight.T), op, tensors, made, run)


def _weight(op: Convolution | Dense, tensors: Tensors) -> np.ndarray:
    """The weights in the type in which their products add exactly, with channels last in memory."""
    known, key = _kept(op), "weights"
    if key not in known:
        last: np.ndarray = np.moveaxis(op.weight, 1, -1).astype(_exact_type(op.accumulator_bound(tensors)))
        known[key] = np.moveaxis(last, -1, 1)
    return known[key]


def _repeated(op: Convolution | Dense, times: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bias, mantissa and shift of each channel, all channels one after another so many times."""
    known = _kept(op)
    if times not in known:
        known[times] = np.tile(np.stack([op.bias, op.mantissa, op.shift]).astype(np.int64), times)
    bias, mantissa, shift = known[times]
    return bias, mantissa, shift


def _kept(op: Operator) -> dict[str | int, np.ndarray]:
    """What is derived from a layer once for all batches, by what it is or how often repeated."""
    return _KEPT.setdefault(op, {})


def _weighted(sums: np.ndarray, op: Convolution | Dense, tensors: Tensors, made: Tensor, run: Run) -> np.ndarray:
    """Sums [..., channels], whose memory is used, with bias, rescaled and stored.

    Rows are joined and the channels' numbers repeated with them, as NumPy's loops over few channels are slow.
    """
    rows = gcd(sums.size // sums.shape[-1], _JOINED)
    bias, mantissa, shift = _repeated(op, rows)
    values = sums.reshape(-1, rows * sums.shape[-1])
    if sums.dtype != np.int64 and _floats_round_exactly(op, tensors, made, run):
        values += bias.astype(values.dtype)
        nearest = np.multiply(values, np.ldexp(mantissa.astype(np.float64), -shift), dtype=np.float64)
        nearest += made.quantized.zero_point + 0.5
        np.floor(nearest, out=nearest)
        stored = _clipped(nearest, op, made, run)
    else:
        accumulator = values.astype(np.int64)
        accumulator += bias
        stored = _stored(_scaled(accumulator, mantissa, shift, op, tensors, run), op, made, run)
    return stored.reshape(sums.shape)


def _floats_round_exactly(op: Convolution | Dense, tensors: Tensors, made: Tensor, run: Run) -> bool:
    """That floor(fl(fl(accumulator * factor) + zero_point + 1/2)) in float64, saturated, is the integer to store.

    Let r = v + zero_point + 1/2 with v = accumulator * mantissa * 2**-shift, exactly, and b the output's bits. The
    factor mantissa * 2**-shift is a float64, so is the accumulator; each of the two operations rounds once.
    Where r lies from raw_min to raw_max + 1, |v| <= 2**b + 1/2 and |r| <= 2**(b - 1), and the two roundings move r
    by less than 2**(b - 52). r is a multiple of 2**-shift (of 1/2 for shift 0): no integer lies that close to it if
    shift <= 52 - b, unless r is one. Then v is a half-integer below 2**53, so both operations are exact. Elsewhere
    r saturates, and so does the float: both operations are monotonic, and exact where r is raw_min or raw_max + 1.
    """
    once = not uses_gemmlowp(op, tensors, run.model.rounding)
    return once and int(op.shift.max()) <= 52 - made.quantized.bits


def _matrix_multiply(op: MatrixMultiply, given: Arrays, tensors: Tensors, made: Tensor, run: Run) -> np.ndarray:
    dtype = _exact_type(op.accumulator_bound(tensors))
    left, right = (aligned(_centred(x, t, dtype), made) for x, t in zip(given, tensors, strict=True))
    sums = np.matmul(left, right).astype(np.int64)
    return _stored(_scaled(sums, op.mantissa, op.shift, op, tensors, run), op, made, run)


def _scaled(
    accumulator: np.ndarray, mantissa: np.ndarray, shift: np.ndarray, op: Op, tensors: Tensors, run: Run
) -> np.ndarray:
    """fixed.rescale, or fixed.requantize for gemmlowp's law; the former works in the accumulator's own memory."""
    if uses_gemmlowp(op, tensors, run.model.rounding):
        return requantize(accumulator, mantissa, 31 - shift, Rounding.DOUBLE)
    accumulator *= mantissa
    accumulator += np.left_shift(np.int64(1), shift) >> 1
    accumulator >>= shift
    return accumulator


def _stored(values: np.ndarray, op: Operator, made: Tensor, run: Run) -> np.ndarray:
    values += made.quantized.zero_point
    return _clipped(values, op, made, run)


def _clipped(values: np.ndarray, op: Operator, made: Tensor, run: Run) -> np.ndarray:
    """Whole numbers, of floats or integers, saturated in their own memory and counted where that is asked."""
    params = made.quantized
    if run.saturated is not None:
        below = 0 if made.bounded in ("low", "both") else (values < params.raw_min).sum()
        above = 0 if made.bounded in ("high", "both") else (values > params.raw_max).sum()
        run.saturated[op.name] += int(below + above)
    return np.clip(values, params.raw_min, params.raw_max, out=values).astype(stored_type(made))


# One number at a time


def _activate(op: Activate, given: Arrays, tensors: Tensors, made: Tensor, run: Run) -> np.ndarray:
    """By a table of the kernel's outputs for all codes, in the order of their bits: 0 and up, then the negative."""
    known, unsigned = _kept(op), f"u{given[0].itemsize}"
    if "outputs" not in known:
        codes = np.arange(1 << given[0].itemsize * 8).astype(unsigned).view(given[0].dtype)
        params = made.quantized
        exact = op.activation(dequantize(codes, tensors[0].quantized)) / params.scale + params.zero_point
        known["saturated"] = (exact < params.raw_min - 0.5) | (exact > params.raw_max + 0.5)
        known["outputs"] = run.model.kernels[op.name](codes).astype(
            stored_type(made)
        )  # last: another thread looks here
    if run.saturated is not None:
        run.saturated[op.name] += int(known["saturated"][given[0].view(unsigned)].sum())
    return known["outputs"][given[0].view(unsigned)]


def _lookup(op: Lookup, given: Arrays, tensors: Tensors, _: Tensor, __: Run) -> np.ndarray:
    return op.table[given[0].astype(np.intp) - tensors[0].quantized.raw_min]


def _interpolate(op: Interpolate, given: Arrays, _: Tensors, made: Tensor, __: Run) -> np.ndarray:
    position = given[0].astype(np.int64) + 32768
    index, fraction = position >> 7, position & 127
    entries = op.table.astype(np.int64)
    low = entries[index]
    return (low + ((entries[index + 1] - low) * fraction + 64 >> 7)).astype(stored_type(made))


def _combine(op: Combine, given: Arrays, tensors: Tensors, made: Tensor, run: Run) -> np.ndarray:
    """In 32 bits where the sum, with the half that rounds it and the zero point, stays within; else in 64."""
    half = 1 << int(op.shift) >> 1
    wide = np.int32 if op.accumulator_bound(tensors) + half + 128 < 1 << 31 else np.int64
    parts = [aligned(_centred(x, t, wide), made) * wide(m) for x, t, m in zip(given, tensors, op.mantissa, strict=True)]
    total: np.ndarray = sum(parts[1:], parts[0])
    total += wide(half)
    np.right_shift(total, wide(op.shift), out=total)
    return _stored(total, op, made, run)


def _gemmlowp_sum(op: GemmlowpSum, given: Arrays, tensors: Tensors, made: Tensor, run: Run) -> np.ndarray:
    total = np.zeros((), np.int64)
    for x, tensor, mantissa, shift in zip(given, tensors, op.mantissa, op.shift, strict=False):
        wide = aligned(_centred(x, tensor, np.int64), made) << op.left
        part = requantize(wide, abs(mantissa), 31 - shift, Rounding.DOUBLE)
        total = np.add(total, part if mantissa > 0 else -part)
    return _stored(requantize(total, op.mantissa[2], 31 - op.shift[2], Rounding.DOUBLE), op, made, run)


def _multiply(op: Multiply, given: Arrays, tensors: Tensors, made: Tensor, run: Run) -> np.ndarray:
    left, right = (aligned(_centred(x, t, np.int64), made) for x, t in zip(given, tensors, strict=True))
    return _stored(_scaled(left * right, op.mantissa, op.shift, op, tensors, run), op, made, run)


def _choose(op: Choose, given: Arrays, tensors: Tensors, made: Tensor, run: Run) -> np.ndarray:
    parts = [
        _scaled(aligned(_centred(x, t, np.int64), made), m, s, op, tensors, run)
        for x, t, m, s in zip(given, tensors, op.mantissa, op.shift, strict=True)
    ]
    return _stored(np.where(op.condition, *parts), op, made, run)


# Over a window or an axis


def _max_pool(op: MaxPool, given: Arrays, tensors: Tensors, _: Tensor, __: Run) -> np.ndarray:
    windows = pool_windows(op, given[0], tensors[0].quantized.raw_min)
    places = list(np.ndindex(*op.kernel))
    largest = windows[(..., *places[0])].copy()
    for place in places[1:]:
        np.maximum(largest, windows[(..., *place)], out=largest)
    return np.moveaxis(largest, -1, 1)


def _average_pool(op: AveragePool, given: Arrays, tensors: Tensors, made: Tensor, run: Run) -> np.ndarray:
    counts = _counts(op, given[0]) - 1 if op.counts > 1 else np.zeros((), np.int64)
    sums = _window_sums(op, _centred(given[0], tensors[0], np.int64))
    scaled = _scaled(sums, op.mantissa[counts], op.shift[counts], op, tensors, run)
    return np.moveaxis(_stored(scaled, op, made, run), -1, 1)


def _raw_average_pool(op: RawAveragePool, given: Arrays, _: Tensors, made: Tensor, __: Run) -> np.ndarray:
    counts = _counts(op, given[0])
    sums = _window_sums(op, given[0].astype(np.int64))
    return np.moveaxis(np.sign(sums) * ((np.abs(sums) + counts // 2) // counts), -1, 1).astype(stored_type(made))


def _counts(op: AveragePool | RawAveragePool, x: np.ndarray) -> np.ndarray:
    """How many numbers of x lie in each window, [1, *spots, 1]."""
    return _window_sums(op, np.ones((1, 1, *x.shape[2:]), np.int64))


def _window_sums(op: AveragePool | RawAveragePool, x: np.ndarray) -> np.ndarray:
    sums: np.ndarray = pool_windows(op, x, 0).sum(tuple(range(-len(op.kernel), 0)))
    return sums


def pool_windows(op: MaxPool | AveragePool | RawAveragePool, x: np.ndarray, padding: float) -> np.ndarray:
    """Views [batch, *spots, channels, *kernel] of x [batch, channels, *size], padded."""
    axes = len(op.strides)
    margins = [(0, 0), *((op.pads[a], op.pads[a + axes]) for a in range(axes)), (0, 0)]
    padded = np.pad(np.moveaxis(x, 1, -1), margins, constant_values=padding)
    return _windows(padded, op.kernel, op.strides, (1,) * axes)


def _softmax(op: Softmax, given: Arrays, tensors: Tensors, made: Tensor, run: Run) -> np.ndarray:
    x = given[0].astype(np.int64)
    mask = op.mask.astype(bool) if op.mask.size else np.True_
    top = np.where(mask, x, tensors[0].quantized.raw_min).max(-1, keepdims=True)
    below = np.where(mask, top - x, 0)
    shares = op.coarse[below >> 8] * op.fine[below & 255]
    shares = np.where(mask, (shares + (1 << op.shift >> 1)) >> op.shift, 0)
    total = shares.sum(-1, keepdims=True)
    return _stored((2 * shares * op.one + total) // (2 * total), op, made, run)


def _layer_normalization(op: LayerNormalization, given: Arrays, _: Tensors, made: Tensor, run: Run) -> np.ndarray:
    """Widths, for N <= 2**14 numbers of 16 bits: d < 2**30, spread < 2**61, d * inverse < 2**62."""
    x = given[0].astype(np.int64)
    count = x.shape[-1]
    total = x.sum(-1, keepdims=True)
    spread = count * np.square(x).sum(-1, keepdims=True) - np.square(total) + op.epsilon
    up = (62 - np.frexp(spread.astype(np.float64))[1].astype(np.int64)) // 2
    up += (spread << 2 * up) < 1 << 60  # the exponent of a rounded float may be one too large
    root = _root(spread << 2 * up)
    inverse = (1 << 61) // root
    down = 61 - NORM_BITS - up
    norm = ((count * x - total) * inverse + (np.int64(1) << (down - 1))) >> down
    half = 1 << op.shift >> 1
    return _stored((norm * op.mantissa + op.bias + half) >> op.shift, op, made, run)


def _root(values: np.ndarray) -> np.ndarray:
    """The integer part of the square root, for 2**60 <= values < 2**62: float64 is off by one at most."""
    root = np.sqrt(values.astype(np.float64)).astype(np.int64)
    root -= root * root > values
    root += (root + 1) * (root + 1) <= values
    return root


# Integers moved


def _constant(op: Constant, _: Arrays, __: Tensors, ___: Tensor, run: Run) -> np.ndarray:
    return np.broadcast_to(op.value, (run.samples, *op.value.shape))


def _embed(op: Embed, given: Arrays, _: Tensors, __: Tensor, ___: Run) -> np.ndarray:
    if given[0].size and not 0 <= given[0].min() <= given[0].max() < len(op.table):
        raise DataError(
            f"layer {op.name!r}: index {_first_outside(given[0], len(op.table))} of a table of {len(op.table)} rows"
        )
    return op.table[given[0]]


def _first_outside(indices: np.ndarray, rows: int) -> int:
    return int(indices[(indices < 0) | (indices >= rows)][0])


def _reshape(op: Reshape, given: Arrays, *_: object) -> np.ndarray:
    return given[0].reshape(len(given[0]), *op.shape)


def _transpose(op: Transpose, given: Arrays, *_: object) -> np.ndarray:
    return given[0].transpose(0, *(axis + 1 for axis in op.order))


def _take(op: Take, given: Arrays, *_: object) -> np.ndarray:
    return given[0].take(op.places, axis=op.axis + 1)


def _pad(op: Pad, given: Arrays, *_: object) -> np.ndarray:
    axes = len(op.pads) // 2
    margins = [(0, 0), *((op.pads[a], op.pads[a + axes]) for a in range(axes))]
    return np.pad(given[0], margins, constant_values=op.value)


def _spread(op: Spread, given: Arrays, _: Tensors, made: Tensor, run: Run) -> np.ndarray:
    spread = np.full((run.samples, *made.shape), op.value, stored_type(made))
    spread[(slice(None), slice(None), *(slice(None, None, stride) for stride in op.strides))] = given[0]
    return spread


def _clamp(op: Clamp, given: Arrays, *_: object) -> np.ndarray:
    return np.clip(given[0], op.low, op.high)


def _concatenate(op: Concatenate, given: Arrays, tensors: Tensors, made: Tensor, run: Run) -> np.ndarray:
    parts = [
        _stored(_scaled(_centred(x, t, np.int64), m, s, op, tensors, run), op, made, run)
        for x, t, m, s in zip(given, tensors, op.mantissa, op.shift, strict=True)
    ]
    return np.concatenate(parts, axis=op.axis + 1)


_EVALUATE: dict[type[Operator], Callable[..., np.ndarray]] = {
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


# What they share


def _exact_type(bound: int) -> type:
    """The narrowest float type in which every partial sum is exact, or int64."""
    return np.float32 if bound < 1 << 24 else np.float64 if bound < 1 << 53 else np.int64


def _centred(raw: np.ndarray, tensor: Tensor, dtype: type) -> np.ndarray:
    """raw - zero_point, which is exact in every type that _exact_type gives."""
    centred: np.ndarray = raw.astype(dtype) - dtype(tensor.quantized.zero_point)
    return centred


def aligned(x: np.ndarray, made: Tensor) -> np.ndarray:
    """[batch, *shape] with as many axes as the output has, so that broadcasting leaves the batch alone."""
    return x.reshape(len(x), *(1,) * (len(made.shape) + 1 - x.ndim), *x.shape[1:])


def _windows(
    x: np.ndarray, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> np.ndarray:
    """Views [batch, *spots, channels, *kernel] of x [batch, *size, channels]."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(1, x.ndim - 1)))
    steps = [slice(None, None, s) for s in strides]
    inner = [slice(None, None, d) for d in dilations]
    return views[(slice(None), *steps, slice(None), *inner)]

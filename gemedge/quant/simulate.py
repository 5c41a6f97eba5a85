"""The one meaning of a quantized model: integers from the border's quantize to its dequantize.

The only floats inside are matrix products of integers in float32 or float64, taken where no partial sum can
reach 2**24 or 2**53: in whatever order BLAS adds, every sum is exact; and rescalings in float64 where they are
proven to round as the integers do (_floats_round_exactly).
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import gcd
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from gemedge.errors import DataError, UsageError
from gemedge.fixed import Rounding, dequantize, quantize, requantize
from gemedge.model import (
    Activate,
    AveragePool,
    Combine,
    Concatenate,
    Constant,
    Convolution,
    Dense,
    Interpolate,
    Lookup,
    MaxPool,
    Multiply,
    Op,
    Pad,
    QuantizedModel,
    Reshape,
    Tensor,
    Transpose,
)

_JOINED = 64  # rows at most
Integers = dict[str, np.ndarray]
_KEPT: WeakKeyDictionary[QuantizedModel, dict[tuple[str, int], np.ndarray]] = WeakKeyDictionary()
_SAMPLES = 8  # at a time: what is between two layers stays in the cache


def simulate(
    model: QuantizedModel,
    inputs: Mapping[str, np.ndarray],
    *,
    layers: Iterable[str] = (),
    raw: bool = False,
    workers: int | None = None,
) -> dict[str, np.ndarray]:
    """The model's outputs, dequantized to float32, for a batch of float inputs by name.

    inputs: arrays [batch, *shape]; a lone input may have any name. layers: names of layers whose integers are
    wanted too. raw gives the outputs' integers. workers: threads, None for one a processor, each with a few samples
    at a time; the results are the same whatever their number. (BLAS has threads of its own, which gain nothing here:
    set OMP_NUM_THREADS=1.) Raises DataError for inputs that do not fit, naming the input, and UsageError.
    """
    wanted = {name: model.layer(name).output for name in layers}
    keep = {*wanted.values(), *model.outputs.values()}
    given = border(model, inputs)
    samples = len(next(iter(given.values())))

    def part(start: int) -> Integers:
        few = {name: array[start : start + _SAMPLES] for name, array in given.items()}
        return run(model, {name: _entered(model.tensors[name], array) for name, array in few.items()}, keep=keep)

    parts = _in_order(part, range(0, max(samples, 1), _SAMPLES), workers)
    integers = {name: np.concatenate([part[name] for part in parts]) for name in keep}
    results = {name: integers[tensor] for name, tensor in model.outputs.items()}
    if not raw:
        results = {
            name: dequantize(results[name], model.tensors[tensor].quantized).astype(np.float32)
            for name, tensor in model.outputs.items()
        }
    return results | {name: integers[tensor] for name, tensor in wanted.items()}


def _in_order(part: Callable[[int], Integers], starts: range, workers: int | None) -> list[Integers]:
    """What part gives for each start; the first error in that order, whoever was faster."""
    count = min(workers if workers is not None else os.cpu_count() or 1, len(starts))
    if count < 1:
        raise UsageError(f"workers={workers} must be at least 1")
    if count == 1:
        return [part(start) for start in starts]
    pool = ThreadPoolExecutor(count)
    try:
        return list(pool.map(part, starts))
    finally:
        pool.shutdown(cancel_futures=True)


def border(model: QuantizedModel, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs under the model's names; DataError where one is missing, of another shape, or not finite."""
    given = {model.inputs[0]: next(iter(inputs.values()))} if len(inputs) == len(model.inputs) == 1 else dict(inputs)
    if set(given) != set(model.inputs):
        raise DataError(f"inputs {', '.join(map(repr, inputs))}; the model takes {', '.join(map(repr, model.inputs))}")
    for name, array in given.items():
        tensor = model.tensors[name]
        if array.shape[1:] != tensor.shape or array.ndim == 0:
            raise DataError(f"input {name!r} has shape {list(array.shape)}; the model takes [batch, {_list(tensor)}]")
        if tensor.params is not None and not np.isfinite(array).all():
            raise DataError(f"input {name!r} holds NaN or infinity")
    if len({len(array) for array in given.values()}) > 1:
        shown = ", ".join(f"{len(array)} in {name!r}" for name, array in given.items())
        raise DataError(f"inputs must have as many samples each; there are {shown}")
    return given


def _entered(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    """Floats as the integers of the tensor; indices as they are."""
    if tensor.params is None:
        return array.astype(np.int64)
    return quantize(array, tensor.params).astype(_type(tensor))


def run(model: QuantizedModel, integers: Integers, *, keep: Iterable[str]) -> Integers:
    """The integers of the tensors to keep, from those of the inputs; others are dropped after their last use."""
    kept = set(keep)
    last_use = {name: index for index, layer in enumerate(model.layers) for name in layer.inputs}
    known = dict(integers)
    samples = len(next(iter(integers.values())))
    for index, layer in enumerate(model.layers):
        given = [known[name] for name in layer.inputs]
        tensors = [model.tensors[name] for name in layer.inputs]
        made = model.tensors[layer.output]
        if isinstance(layer, Constant):
            known[layer.output] = np.broadcast_to(layer.value, (samples, *layer.value.shape))
        else:
            evaluate: Callable[..., np.ndarray] = _EVALUATE[type(layer)]
            known[layer.output] = evaluate(layer, given, tensors, made, model)
        for name in layer.inputs:
            if last_use[name] == index and name not in kept:
                known.pop(name, None)
    return {name: array for name, array in known.items() if name in kept}


def _convolution(
    op: Convolution, given: list[np.ndarray], tensors: list[Tensor], made: Tensor, model: QuantizedModel
) -> np.ndarray:
    """Channels lie last in memory, whatever the shape says: then the copies below move whole rows."""
    weight = _weight(op, tensors, model)
    x = np.ascontiguousarray(np.moveaxis(_centred(given[0], tensors[0], weight.dtype.type), 1, -1))
    axes = len(op.strides)
    margins = [(0, 0), *((op.pads[a], op.pads[a + axes]) for a in range(axes)), (0, 0)]
    windows = _windows(np.pad(x, margins), op.weight.shape[2:], op.strides, op.dilations)
    multiply = _depthwise if op.groups == x.shape[-1] == len(op.weight) > 1 else _grouped
    sums = multiply(windows, weight, op.groups, axes)
    return np.moveaxis(_requantized(sums, op, made, model), -1, 1)


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


def _dense(
    op: Dense, given: list[np.ndarray], tensors: list[Tensor], made: Tensor, model: QuantizedModel
) -> np.ndarray:
    weight = _weight(op, tensors, model)
    x = _centred(given[0], tensors[0], weight.dtype.type)
    return _requantized(np.matmul(x, weight.T), op, made, model)


def _weight(op: Convolution | Dense, tensors: list[Tensor], model: QuantizedModel) -> np.ndarray:
    """The weights in the type in which their products add exactly, with channels last in memory."""
    known, key = _kept(model), (op.name, 0)
    if key not in known:
        last: np.ndarray = np.moveaxis(op.weight, 1, -1).astype(_exact_type(op.accumulator_bound(tensors)))
        known[key] = np.moveaxis(last, -1, 1)
    return known[key]


def _repeated(op: Convolution | Dense, times: int, model: QuantizedModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bias, mantissa and shift of each channel, all channels one after another so many times."""
    known, key = _kept(model), (op.name, times)
    if key not in known:
        known[key] = np.tile(np.stack([op.bias, op.mantissa, op.shift]).astype(np.int64), times)
    bias, mantissa, shift = known[key]
    return bias, mantissa, shift


def _kept(model: QuantizedModel) -> dict[tuple[str, int], np.ndarray]:
    """What is derived from layers once for all batches, by a layer's name and how often repeated (0: its weights
    or table); it goes with the model.
    """
    return _KEPT.setdefault(model, {})


def _requantized(sums: np.ndarray, op: Convolution | Dense, made: Tensor, model: QuantizedModel) -> np.ndarray:
    """Sums [..., channels], whose memory is used, with bias, rescaled and stored.

    Rows are joined and the channels' numbers repeated with them, as NumPy's loops over few channels are slow.
    """
    rows = gcd(sums.size // sums.shape[-1], _JOINED)
    bias, mantissa, shift = _repeated(op, rows, model)
    values = sums.reshape(-1, rows * sums.shape[-1])
    if sums.dtype != np.int64 and _floats_round_exactly(op, made, model):
        values += bias.astype(values.dtype)
        nearest = np.multiply(values, np.ldexp(mantissa.astype(np.float64), -shift), dtype=np.float64)
        nearest += made.quantized.zero_point + 0.5
        np.floor(nearest, out=nearest)
        params = made.quantized
        stored = np.clip(nearest, params.raw_min, params.raw_max, out=nearest).astype(_type(made))
    else:
        accumulator = values.astype(np.int64)
        accumulator += bias
        stored = _stored(_scaled(accumulator, mantissa, shift, model), made)
    return stored.reshape(sums.shape)


def _floats_round_exactly(op: Convolution | Dense, made: Tensor, model: QuantizedModel) -> bool:
    """That floor(fl(fl(accumulator * factor) + zero_point + 1/2)) in float64, saturated, is the integer to store.

    Let r = v + zero_point + 1/2 with v = accumulator * mantissa * 2**-shift, exactly, and b the output's bits. The
    factor mantissa * 2**-shift is a float64, so is the accumulator; each of the two operations rounds once.
    Where r lies from raw_min to raw_max + 1, |v| <= 2**b + 1/2 and |r| <= 2**(b - 1), and the two roundings move r
    by less than 2**(b - 52). r is a multiple of 2**-shift (of 1/2 for shift 0): no integer lies that close to it if
    shift <= 52 - b, unless r is one. Then v is a half-integer below 2**53, so both operations are exact. Elsewhere
    r saturates, and so does the float: both operations are monotonic, and exact where r is raw_min or raw_max + 1.
    """
    return model.rounding is Rounding.SINGLE and int(op.shift.max()) <= 52 - made.quantized.bits


def _scaled(accumulator: np.ndarray, mantissa: np.ndarray, shift: np.ndarray, model: QuantizedModel) -> np.ndarray:
    """fixed.rescale, or fixed.requantize for rounding double; single works in the accumulator's own memory.

    That nothing leaves 64 bits was proven when the model was made: mantissas fit the accumulators' bounds.
    """
    if model.rounding is Rounding.DOUBLE:
        return requantize(accumulator, mantissa, 31 - shift, Rounding.DOUBLE)
    accumulator *= mantissa
    accumulator += np.left_shift(np.int64(1), shift) >> 1
    accumulator >>= shift
    return accumulator


def _stored(values: np.ndarray, made: Tensor) -> np.ndarray:
    params = made.quantized
    values += params.zero_point
    return np.clip(values, params.raw_min, params.raw_max, out=values).astype(_type(made))


def _activate(
    op: Activate, given: list[np.ndarray], _: list[Tensor], made: Tensor, model: QuantizedModel
) -> np.ndarray:
    """By a table of the kernel's outputs for all codes, in the order of their bits: 0 and up, then the negative."""
    known, key = _kept(model), (op.name, 0)
    if key not in known:
        codes = np.arange(1 << given[0].itemsize * 8).astype(f"u{given[0].itemsize}").view(given[0].dtype)
        known[key] = model.kernels[op.name](codes).astype(_type(made))
    return known[key][given[0].view(f"u{given[0].itemsize}")]


def _lookup(op: Lookup, given: list[np.ndarray], tensors: list[Tensor], *_: Any) -> np.ndarray:
    return op.table[given[0].astype(np.intp) - tensors[0].quantized.raw_min]


def _interpolate(
    op: Interpolate, given: list[np.ndarray], _: list[Tensor], made: Tensor, __: QuantizedModel
) -> np.ndarray:
    position = given[0].astype(np.int64) + 32768
    index, fraction = position >> 7, position & 127
    entries = op.table.astype(np.int64)
    low = entries[index]
    return (low + ((entries[index + 1] - low) * fraction + 64 >> 7)).astype(_type(made))


def _combine(
    op: Combine, given: list[np.ndarray], tensors: list[Tensor], made: Tensor, _: QuantizedModel
) -> np.ndarray:
    """In 32 bits where the sum, with the half that rounds it and the zero point, stays within; else in 64."""
    half = 1 << int(op.shift) >> 1
    wide = np.int32 if op.accumulator_bound(tensors) + half + 128 < 1 << 31 else np.int64
    parts = [_centred(x, t, wide) * wide(m) for x, t, m in zip(given, tensors, op.mantissa, strict=True)]
    total: np.ndarray = sum(parts[1:], parts[0])
    total += wide(half)
    np.right_shift(total, wide(op.shift), out=total)
    return _stored(total, made)


def _multiply(
    op: Multiply, given: list[np.ndarray], tensors: list[Tensor], made: Tensor, model: QuantizedModel
) -> np.ndarray:
    left, right = (_centred(x, t, np.int64) for x, t in zip(given, tensors, strict=True))
    return _stored(_scaled(left * right, op.mantissa, op.shift, model), made)


def _concatenate(
    op: Concatenate, given: list[np.ndarray], tensors: list[Tensor], made: Tensor, model: QuantizedModel
) -> np.ndarray:
    parts = [
        _stored(_scaled(_centred(x, tensors[i], np.int64), op.mantissa[i], op.shift[i], model), made)
        for i, x in enumerate(given)
    ]
    return np.concatenate(parts, axis=op.axis + 1)


def _max_pool(op: MaxPool, given: list[np.ndarray], tensors: list[Tensor], *_: Any) -> np.ndarray:
    windows = _pool_windows(op, given[0], tensors[0].quantized.raw_min)
    places = list(np.ndindex(*op.kernel))
    largest = windows[(..., *places[0])].copy()
    for place in places[1:]:
        np.maximum(largest, windows[(..., *place)], out=largest)
    return np.moveaxis(largest, -1, 1)


def _average_pool(
    op: AveragePool, given: list[np.ndarray], tensors: list[Tensor], made: Tensor, model: QuantizedModel
) -> np.ndarray:
    window_axes = tuple(range(-len(op.kernel), 0))
    inside = np.ones((1, 1, *given[0].shape[2:]), np.int64)
    counts = _pool_windows(op, inside, int(op.count_padding)).sum(window_axes) - 1
    sums = _pool_windows(op, _centred(given[0], tensors[0], np.int64), 0).sum(window_axes)
    return np.moveaxis(_stored(_scaled(sums, op.mantissa[counts], op.shift[counts], model), made), -1, 1)


def _pool_windows(op: MaxPool | AveragePool, x: np.ndarray, padding: int) -> np.ndarray:
    axes = len(op.strides)
    margins = [(0, 0), *((op.pads[a], op.pads[a + axes]) for a in range(axes)), (0, 0)]
    padded = np.pad(np.moveaxis(x, 1, -1), margins, constant_values=padding)
    return _windows(padded, op.kernel, op.strides, (1,) * axes)


def _reshape(op: Reshape, given: list[np.ndarray], *_: Any) -> np.ndarray:
    return given[0].reshape(len(given[0]), *op.shape)


def _transpose(op: Transpose, given: list[np.ndarray], *_: Any) -> np.ndarray:
    return given[0].transpose(0, *(axis + 1 for axis in op.order))


def _pad(op: Pad, given: list[np.ndarray], *_: Any) -> np.ndarray:
    axes = len(op.pads) // 2
    margins = [(0, 0), *((op.pads[a], op.pads[a + axes]) for a in range(axes))]
    return np.pad(given[0], margins, constant_values=op.value)


_EVALUATE: dict[type[Op], Callable[..., np.ndarray]] = {
    Convolution: _convolution,
    Dense: _dense,
    Activate: _activate,
    Lookup: _lookup,
    Interpolate: _interpolate,
    Combine: _combine,
    Multiply: _multiply,
    Concatenate: _concatenate,
    MaxPool: _max_pool,
    AveragePool: _average_pool,
    Reshape: _reshape,
    Transpose: _transpose,
    Pad: _pad,
}


def _exact_type(bound: int) -> type:
    """The narrowest float type in which every partial sum is exact, or int64."""
    return np.float32 if bound < 1 << 24 else np.float64 if bound < 1 << 53 else np.int64


def _centred(raw: np.ndarray, tensor: Tensor, dtype: type) -> np.ndarray:
    """raw - zero_point, which is exact in every type that _exact_type gives."""
    return raw.astype(dtype) - dtype(tensor.quantized.zero_point)


def _windows(
    x: np.ndarray, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> np.ndarray:
    """Views [batch, *spots, channels, *kernel] of x [batch, *size, channels]."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(1, x.ndim - 1)))
    steps = [slice(None, None, s) for s in strides]
    inner = [slice(None, None, d) for d in dilations]
    return views[(slice(None), *steps, slice(None), *inner)]


def _type(tensor: Tensor) -> np.dtype:
    return np.dtype(f"i{tensor.quantized.bits // 8}")


def _list(tensor: Tensor) -> str:
    return ", ".join(map(str, tensor.shape))

"""Over a window or an axis, in ONNX's integer operators."""

import numpy as np

from gemedge.export.integer_elementwise import centred, gathered
from gemedge.export.integer_sums import Sum, Term, stored
from gemedge.export.onnx_writer import Writer, offset_of, zero_of
from gemedge.operators import (
    NORM_BITS,
    AveragePool,
    LayerNormalization,
    MaxPool,
    RawAveragePool,
    Softmax,
    Tensor,
)

_NEWTON_STEPS = 6  # from 2**31 to the root of 2**60 to 2**62: 2, 1.25, 1.025, 1.0004, 1 + 5e-8, 1 + 2e-15, exact
_ROOM = 62  # bits


def max_pool(to: Writer, layer: MaxPool, given: list[Tensor], made: Tensor) -> str:
    value = to.values[given[0].name]
    inside = all(pad < size for pad, size in zip(layer.pads, layer.kernel * 2, strict=True))
    if to.held(made) is np.uint8 and inside:
        return to.add("MaxPool", value, kernel_shape=layer.kernel, strides=layer.strides, pads=layer.pads)
    lowest = given[0].quantized.raw_min + offset_of(given[0])
    return _slid(to, "Max", _padded(to, layer, value, lowest, to.held(given[0])), layer, made)


def average_pool(to: Writer, layer: AveragePool, given: list[Tensor], made: Tensor) -> str:
    sums = _window_sums(to, layer, given[0], centred(to, given[0], to.values[given[0].name]), made)
    counts = _counts(layer, given[0], made) - 1 if layer.counts > 1 else np.zeros((), np.int64)
    numbers = Sum([Term(sums)], 0, layer.accumulator_bound(given))
    return stored(to, numbers, layer.mantissa[counts], layer.shift[counts], made, gemmlowp=False)


def raw_average_pool(to: Writer, layer: RawAveragePool, given: list[Tensor], made: Tensor) -> str:
    """Ties away from zero: what is divided has no sign."""
    offset = offset_of(given[0])
    value = to.values[given[0].name]
    raw = to.add("Sub", to.cast(value, np.int32), to.constant(offset, np.int32)) if offset else value
    sums = to.cast(_window_sums(to, layer, given[0], raw, made), np.int64)
    counts = _counts(layer, given[0], made)
    raised = to.add_constant(to.add("Abs", sums), counts // 2, np.int64)
    size = to.add("Div", raised, to.constant(counts, np.int64))
    signed = to.add("Mul", size, to.add("Sign", sums))
    return to.cast(to.add_constant(signed, offset, np.int64), to.held(made))


def softmax(to: Writer, layer: Softmax, given: list[Tensor], made: Tensor) -> str:
    """Each share by a table of all distances below the row's largest integer; distances do not know offsets."""
    (tensor,), value = given, to.values[given[0].name]
    mask = to.constant(layer.mask.astype(bool), np.bool_) if layer.mask.size else ""
    code = value if to.held(tensor) is np.int32 else to.cast(value, np.int32)
    seen = code
    if mask:
        lowest = to.constant(tensor.quantized.raw_min + offset_of(tensor), np.int32)
        seen = to.add("Where", mask, code, lowest)
    below = to.add("Sub", to.reduced("ReduceMax", seen, [-1], since=18), seen)
    distance = np.arange(1 << tensor.quantized.bits)
    shares = layer.coarse[distance >> 8].astype(np.int64) * layer.fine[distance & 255]
    shares = (shares + (1 << layer.shift >> 1)) >> layer.shift
    share = gathered(to, to.constant(shares, np.int32), below, made.shape)
    if mask:
        share = to.add("Where", mask, share, to.constant(0, np.int32))
    share = to.cast(share, np.int64)
    whole = to.reduced("ReduceSum", share, [-1], since=13)
    twice = to.add("Mul", share, to.constant(2 * layer.one, np.int64))
    quotient = to.add("Div", to.add("Add", twice, whole), to.add("Add", whole, whole))
    raised = to.add_constant(quotient, zero_of(made), np.int64)
    low, high = (end + offset_of(made) for end in (made.quantized.raw_min, made.quantized.raw_max))
    clipped = to.add("Clip", raised, to.constant(low, np.int64), to.constant(high, np.int64))
    return to.cast(clipped, to.held(made))


def layer_normalization(to: Writer, layer: LayerNormalization, given: list[Tensor], made: Tensor) -> str:
    """The steps of docs/numerics.md, with numbers as they lie in the graph: an offset changes neither d nor W."""
    x = to.cast(to.values[given[0].name], np.int64)
    count = to.constant(given[0].shape[-1], np.int64)
    whole = to.reduced("ReduceSum", x, [-1], since=13)
    squares = to.reduced("ReduceSum", to.add("Mul", x, x), [-1], since=13)
    spread = to.add("Sub", to.add("Mul", squares, count), to.add("Mul", whole, whole))
    wide, up = normalised(to, to.add("Add", spread, to.constant(layer.epsilon, np.int64)))
    inverse = to.add("Div", to.constant(1 << 61, np.int64), root_of(to, wide))
    product = to.add("Mul", to.add("Sub", to.add("Mul", x, count), whole), inverse)
    norm = _quotient(to, product, to.cast(up, np.uint64))
    mantissa, bias = layer.mantissa.astype(object), layer.bias.astype(object)
    bound = (1 << 27) * max(abs(mantissa)) + max(abs(bias))
    return stored(to, Sum([Term(norm, mantissa)], bias, int(bound)), 1, layer.shift, made, gemmlowp=False)


def normalised(to: Writer, spread: str) -> tuple[str, str]:
    """spread * 4**up from 2**60 to 2**62, and up, both int64."""
    up = ""
    for step in (16, 8, 4, 2, 1):
        small = to.add("Less", spread, to.constant(1 << (_ROOM - 2 * step), np.int64))
        raised = to.add("Mul", spread, to.constant(1 << (2 * step), np.int64))
        spread = to.add("Where", small, raised, spread)
        taken = to.add("Where", small, to.constant(step, np.int64), to.constant(0, np.int64))
        up = to.add("Add", up, taken) if up else taken
    return spread, up


def root_of(to: Writer, square: str) -> str:
    """The integer part of the square root by Newton's steps, which come from above and may end one too high."""
    root = to.constant(1 << 31, np.int64)
    for _ in range(_NEWTON_STEPS):
        both = to.add("Add", root, to.add("Div", square, root))
        root = to.add("Div", both, to.constant(2, np.int64))
    over = to.add("Less", square, to.add("Mul", root, root))
    return to.add("Sub", root, to.cast(over, np.int64))


def _quotient(to: Writer, product: str, up: str) -> str:
    """floor(product / 2**down + 1/2) for down = 61 - NORM_BITS - up, as uint64 modulo 2**64."""
    most = 61 - NORM_BITS
    down = to.add("Sub", to.constant(most, np.uint64), up)
    half = to.add("BitShift", to.constant(1 << (most - 1), np.uint64), up, direction="RIGHT")
    guard = to.constant(1 << _ROOM, np.uint64)
    raised = to.add("Add", to.cast(product, np.uint64), to.add("Add", half, guard))
    quotient = to.add("BitShift", raised, down, direction="RIGHT")
    return to.add("Sub", quotient, to.add("BitShift", guard, down, direction="RIGHT"))


# Windows


def _padded(to: Writer, layer: MaxPool | AveragePool | RawAveragePool, value: str, around: int, kind: type) -> str:
    if not any(layer.pads):
        return value
    axes = len(layer.strides)
    pads = (0, 0, *layer.pads[:axes], 0, 0, *layer.pads[axes:])
    return to.add("Pad", value, to.constant(pads, np.int64), to.constant(around, kind))


def _slid(to: Writer, op_type: str, value: str, layer: MaxPool | AveragePool | RawAveragePool, made: Tensor) -> str:
    """The largest or the sum of each window of a padded value, one axis after the other."""
    for axis, (size, stride, spots) in enumerate(zip(layer.kernel, layer.strides, made.shape[1:], strict=True)):
        found = ""
        for start in range(size):
            numbers = (start, start + (spots - 1) * stride + 1, axis + 2, stride)
            part = to.add("Slice", value, *(to.constant([number], np.int64) for number in numbers))
            found = to.add(op_type, found, part) if found else part
        value = found
    return value


def _window_sums(to: Writer, layer: AveragePool | RawAveragePool, given: Tensor, numbers: str, made: Tensor) -> str:
    """The sums of each window of int32 numbers around which padding is 0, as int32 or int64."""
    kind: type = np.int32
    if layer.accumulator_bound([given]) >= 1 << 31:
        kind, numbers = np.int64, to.cast(numbers, np.int64)
    if layer.kernel == given.shape[1:] and not any(layer.pads):
        return to.reduced("ReduceSum", numbers, range(2, 2 + len(layer.kernel)), since=13)
    return _slid(to, "Add", _padded(to, layer, numbers, 0, kind), layer, made)


def _counts(layer: AveragePool | RawAveragePool, given: Tensor, made: Tensor) -> np.ndarray:
    """How many numbers of the input lie in each window, [1, *spots]; 1 where there is none, as they sum to 0."""
    axes, counts = len(layer.kernel), np.ones((1,) * (1 + len(layer.kernel)), np.int64)
    for axis in range(axes):
        start = np.arange(made.shape[1 + axis]) * layer.strides[axis] - layer.pads[axis]
        inside = np.minimum(start + layer.kernel[axis], given.shape[1 + axis]) - np.maximum(start, 0)
        counts = counts * np.maximum(inside, 0).reshape([-1 if a == axis + 1 else 1 for a in range(1 + axes)])
    return np.maximum(counts, 1)

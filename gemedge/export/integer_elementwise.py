"""One number at a time in ONNX's integer operators: tables, and sums and products of tensors."""

import numpy as np

from gemedge.export.integer_sums import Sum, Term, settled, stored
from gemedge.export.onnx_writer import Writer, narrow, offset_of, widened, zero_of
from gemedge.fixed import Rounding, requantize
from gemedge.model import uses_gemmlowp
from gemedge.moving import Concatenate
from gemedge.operators import Activate, Choose, Combine, GemmlowpSum, Interpolate, Lookup, Multiply, Tensor


def activate(to: Writer, layer: Activate, given: list[Tensor], made: Tensor) -> str:
    """The kernel's outputs for all codes."""
    params = given[0].quantized
    codes = np.arange(params.raw_min, params.raw_max + 1).astype(f"i{params.bits // 8}")
    return _by_table(to, given[0], made, to.model.kernels[layer.name](codes))


def lookup(to: Writer, layer: Lookup, given: list[Tensor], made: Tensor) -> str:
    return _by_table(to, given[0], made, layer.table)


def interpolate(to: Writer, layer: Interpolate, given: list[Tensor], made: Tensor) -> str:
    """Interpolated here for all 65,536 inputs."""
    entries, places = layer.table.astype(np.int64), np.arange(1 << 16)
    low, high = entries[places >> 7], entries[(places >> 7) + 1]
    return _by_table(to, given[0], made, low + ((high - low) * (places & 127) + 64 >> 7))


def gathered(to: Writer, table: str, index: str, shape: tuple[int, ...]) -> str:
    """The table's number for each index of a value [batch, *shape]; flat, as that is ten times as fast as Gather."""
    flat = to.add("Reshape", index, to.constant([-1], np.int64))
    return to.reshaped(to.add("GatherElements", table, flat, axis=0), shape)


def combine(to: Writer, layer: Combine, given: list[Tensor], made: Tensor) -> str:
    axes = len(made.shape)
    terms = [Term(to.broadcast(t, axes), int(m)) for t, m in zip(given, layer.mantissa, strict=True)]
    zero = sum(int(m) * zero_of(t) for t, m in zip(given, layer.mantissa, strict=True))
    return stored(to, Sum(terms, -zero, layer.accumulator_bound(given)), 1, layer.shift, made, gemmlowp=False)


def gemmlowp_sum(to: Writer, layer: GemmlowpSum, given: list[Tensor], made: Tensor) -> str:
    parts = [_part(to, layer, index, tensor, made) for index, tensor in enumerate(given)]
    terms, constants = zip(*parts, strict=True)
    numbers = Sum(terms, sum(constants), layer.accumulator_bound(given))
    return stored(to, numbers, layer.mantissa[2], layer.shift[2], made, gemmlowp=True)


def _part(to: Writer, layer: GemmlowpSum, index: int, tensor: Tensor, made: Tensor) -> tuple[Term, int]:
    """One input requantized, and what is to be added to it; of 8 bits by a table, which is faster."""
    value, mantissa, shift = to.broadcast(tensor, len(made.shape)), int(layer.mantissa[index]), int(layer.shift[index])
    if tensor.quantized.bits == 8:
        codes = np.arange(256) - zero_of(tensor)
        outputs = np.sign(mantissa) * requantize(codes << layer.left, abs(mantissa), 31 - shift, Rounding.DOUBLE)
        shape = (*(1,) * (len(made.shape) - len(tensor.shape)), *tensor.shape)
        return Term(gathered(to, to.constant(outputs, np.int32), to.cast(value, np.int32), shape)), 0
    wide = Sum([Term(value, 1 << layer.left)], -zero_of(tensor) << layer.left, tensor.reach << layer.left)
    found = settled(to, wide, abs(mantissa), shift)
    sign = 1 if mantissa > 0 else -1
    return Term(found.value, sign), -sign * int(found.guard)


def multiply(to: Writer, layer: Multiply, given: list[Tensor], made: Tensor) -> str:
    left, right = (centred(to, tensor, to.broadcast(tensor, len(made.shape))) for tensor in given)
    numbers = Sum([Term(to.add("Mul", left, right))], 0, layer.accumulator_bound(given))
    gemmlowp = uses_gemmlowp(layer, given, to.model.rounding)
    return stored(to, numbers, layer.mantissa.reshape(()), layer.shift.reshape(()), made, gemmlowp=gemmlowp)


def choose(to: Writer, layer: Choose, given: list[Tensor], made: Tensor) -> str:
    """Each is stored as the output before one of them is taken: the same integers."""
    parts = _each_stored(to, layer, given, made)
    return to.add("Where", to.constant(layer.condition.astype(bool), np.bool_), *parts)


def concatenate(to: Writer, layer: Concatenate, given: list[Tensor], made: Tensor) -> str:
    return to.add("Concat", *_each_stored(to, layer, given, made), axis=layer.axis + 1)


def centred(to: Writer, tensor: Tensor, value: str) -> str:
    """A tensor's value less its zero point, as int32."""
    wide = value if to.held(tensor) is np.int32 else to.cast(value, np.int32)
    return to.add_constant(wide, -zero_of(tensor), np.int32)


def _each_stored(to: Writer, layer: Choose | Concatenate, given: list[Tensor], made: Tensor) -> list[str]:
    """Every input rescaled to the output's parameters; one that has them already is taken as it is."""
    gemmlowp, parts = uses_gemmlowp(layer, given, to.model.rounding), []
    for tensor, mantissa, shift in zip(given, layer.mantissa, layer.shift, strict=True):
        value = to.broadcast(tensor, len(made.shape))
        same = (tensor.quantized.bits, tensor.quantized.zero_point) == (made.quantized.bits, made.quantized.zero_point)
        if not same or int(mantissa) != 1 << int(shift):
            numbers = Sum([Term(value)], -zero_of(tensor), tensor.reach)
            value = stored(to, numbers, mantissa, shift, made, gemmlowp=gemmlowp)
        parts.append(value)
    return parts


def _by_table(to: Writer, given: Tensor, made: Tensor, outputs: np.ndarray) -> str:
    """outputs: for all codes from the lowest on. A negative index counts from the table's end, as a negative code."""
    index = to.values[given.name]
    if offset_of(given) == 0:
        outputs = np.roll(outputs, -given.quantized.raw_min)
    if to.held(given) is not np.int32:
        index = to.cast(index, np.int32)
    table = to.constant(outputs.astype(np.int64) + offset_of(made), narrow(made))
    return widened(to, gathered(to, table, index, made.shape), made)

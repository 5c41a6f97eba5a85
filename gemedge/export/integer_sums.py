"""Exact sums, rescaled and stored, in ONNX's integer operators.

A sum is held modulo 2**32 or 2**64 in an unsigned type, because only those can be shifted. What is shifted to the right
was first raised by a multiple of 2**shift that makes it non-negative whatever the input, below 2**32 or 2**64: the
accumulator's bound says by how much. The raise that is left afterwards, the guard, is taken away when storing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemedge.export.onnx_writer import Writer, offset_of, zero_of
from gemedge.operators import Tensor

_MANTISSA_BITS = 31  # gemmlowp's high multiply
_HIGH_GUARD = 1 << 31  # above |high| < 2**31, and the highest bit of 32: it tells a number's sign


@dataclass(frozen=True, slots=True)
class Term:
    """A value of any integer type in the graph, times an integer or one for each channel."""

    value: str
    factor: Any = 1


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum of terms and a constant, which broadcasts against them; its magnitude stays within bound."""

    terms: Sequence[Term]
    constant: Any
    bound: int


@dataclass(frozen=True, slots=True)
class Guarded:
    """What stands in the graph, in an unsigned type: a number plus its guard, which is never negative."""

    value: str
    kind: type
    guard: np.ndarray


def stored(to: Writer, numbers: Sum, mantissa: Any, shift: Any, made: Tensor, *, gemmlowp: bool) -> str:
    """A sum rescaled by gemmlowp's two roundings or by one, its zero point added, saturated, in the tensor's type."""
    factor, down = _exact(mantissa), _exact(shift)
    found = _twice_rounded(to, numbers, factor, down, made) if gemmlowp else _rounded(to, numbers, factor, down, made)
    return _saturated(to, found, made)


def settled(to: Writer, numbers: Sum, mantissa: int, shift: int) -> Guarded:
    """A sum rescaled by gemmlowp's two roundings."""
    return _twice_rounded(to, numbers, _exact(mantissa), _exact(shift), None)


def total(to: Writer, numbers: Sum, factor: Any, extra: Any, kind: type) -> str:
    """The sum times a factor, and a constant, modulo 2**32 or 2**64."""
    parts = []
    for term in numbers.terms:
        value = to.cast(term.value, kind)
        times = _exact(term.factor) * factor
        parts.append(value if np.all(times == 1) else to.add("Mul", value, to.constant(times, kind)))
    found = parts[0]
    for part in parts[1:]:
        found = to.add("Add", found, part)
    return to.add_constant(found, _exact(numbers.constant) * factor + extra, kind)


def shifted(to: Writer, value: str, shift: Any, kind: type) -> str:
    return to.add("BitShift", value, to.constant(shift, kind), direction="RIGHT") if np.any(shift) else value


def _rounded(to: Writer, numbers: Sum, mantissa: np.ndarray, shift: np.ndarray, made: Tensor) -> Guarded:
    """floor(sum * mantissa * 2**-shift + 1/2) + zero point.

    One guard for all channels, a multiple of 256, takes the fewest operators. Where that passes 64 bits (a channel of
    a far larger shift than others) each has its own, below 2**62 + 2**shift when shifted: then the sum of everything
    stays below 2**64, but for the zero point, which is added behind the shift.
    """
    half = (1 << shift) >> 1
    largest = numbers.bound * mantissa
    beyond = (largest + half) >> shift
    guard = -(-(int(np.max(beyond)) + 1) // 256) * 256
    zero = zero_of(made)
    highest = int(np.max(largest + half + ((guard + zero) << shift)))
    for kind, bits in ((np.uint32, 32), (np.uint64, 64)):
        if highest < 1 << bits:
            raised = total(to, numbers, mantissa, half + ((guard + zero) << shift), kind)
            return Guarded(shifted(to, raised, shift, kind), kind, _exact(guard))
    own = beyond + 1
    raised = total(to, numbers, mantissa, half + (own << shift), np.uint64)
    return Guarded(shifted(to, raised, shift, np.uint64), np.uint64, own - zero)


def _twice_rounded(to: Writer, numbers: Sum, mantissa: np.ndarray, shift: np.ndarray, made: Tensor | None) -> Guarded:
    """gemmlowp's law, plus the zero point of the tensor made.

    The high multiply rounds as above, to high + 2**31, of which bit 31 says that high is not negative. Then ties go
    away from zero: (high + half - [high < 0]) >> down, where there is a shift at all; in 32 bits where that fits.
    """
    left, down = np.maximum(_MANTISSA_BITS - shift, 0), np.maximum(shift - _MANTISSA_BITS, 0)
    largest = numbers.bound * (mantissa << left)
    raise_by = (1 << (_MANTISSA_BITS - 1)) + (_HIGH_GUARD << _MANTISSA_BITS)
    high = shifted(to, total(to, numbers, mantissa << left, raise_by, np.uint64), _MANTISSA_BITS, np.uint64)
    guard = -(-int(np.max((largest >> (_MANTISSA_BITS + down)) + 2)) // 256) * 256
    half, there = (1 << down) >> 1, _exact(np.where(down > 0, 1, 0))
    extra = ((guard + (zero_of(made) if made is not None else 0)) << down) + half - there
    kind: type = np.uint64
    if int(np.max((largest >> _MANTISSA_BITS) + 2 + extra)) < 1 << 32:
        kind, high = np.uint32, to.cast(high, np.uint32)
    if np.any(there):
        positive = shifted(to, high, 31, kind)
        if not np.all(there):
            positive = to.add("Mul", positive, to.constant(there, kind))
        high = to.add("Add", high, positive)
    nudged = to.add_constant(high, extra - _HIGH_GUARD, kind)
    return Guarded(shifted(to, nudged, down, kind), kind, _exact(guard))


def _saturated(to: Writer, found: Guarded, made: Tensor) -> str:
    """In the tensor's type. A cast to a narrower type keeps the low bits: a guard of whole 256s goes by itself."""
    params, kind = made.quantized, to.held(made)
    low, high = (end + offset_of(made) for end in (params.raw_min, params.raw_max))
    if found.guard.size > 1 or int(found.guard) < -low:
        signed = to.add("Add", to.cast(found.value, np.int64), to.constant(-found.guard, np.int64))
        limits = (to.constant(end, np.int64) for end in (low, high))
        return to.cast(to.add("Clip", signed, *limits), kind)
    guard = int(found.guard)
    limits = (to.constant(guard + end, found.kind) for end in (low, high))
    clipped = to.add("Clip", found.value, *limits)
    if kind is not np.uint8 or guard % 256:
        clipped = to.add("Sub", clipped, to.constant(guard, found.kind))
    return to.cast(clipped, kind)


def _exact(numbers: Any) -> np.ndarray:
    """As Python's integers, which have no width."""
    return np.asarray(numbers).astype(object)

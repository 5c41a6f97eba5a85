"""Fixed-point arithmetic on integer arrays.

A raw integer `raw` in a format Qm.n stands for the real number raw * 2**-n; an affine quantized integer
q stands for scale * (q - zero_point). Nothing here rounds silently: an operation is exact, or takes a
Rounding, or says `saturate` in its name. Arrays of any integer type go in, int64 arrays come out, and a
value outside the stated domain raises QuantizationError instead of wrapping.
"""

import enum
import operator
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from gemedge.errors import FormatError, QuantizationError

WIDTHS = (8, 16, 32)
_INT64_MAX = 2**63 - 1


class Rounding(enum.Enum):
    """How a requantized accumulator is rounded; a model records which.

    SINGLE: floor(v + 1/2), once. DOUBLE: gemmlowp's doubling high multiply, then a rounding shift with
    ties away from zero.
    """

    SINGLE = "single"
    DOUBLE = "double"


@dataclass(frozen=True, slots=True)
class QFormat:
    """Signed Qm.n: m integer bits, the sign not counted, and n fraction bits; 8, 16 or 32 bits in all.

    raw stands for raw * 2**-n. Arm counts bits this way; TI's Qn names the fraction bits alone.
    """

    int_bits: int
    frac_bits: int

    def __post_init__(self) -> None:
        for name in ("int_bits", "frac_bits"):
            object.__setattr__(self, name, _whole(getattr(self, name), name))
        if self.int_bits < 0 or self.frac_bits < 0:
            raise FormatError(f"{self}: both bit counts must be 0 or more")
        if self.total_bits not in WIDTHS:
            raise FormatError(f"{self} is {self.total_bits} bits wide with its sign; it must be 8, 16 or 32")

    @classmethod
    def parse(cls, text: str) -> "QFormat":
        """The format written as `Q3.12`."""
        found = re.fullmatch(r"[Qq](\d{1,3})\.(\d{1,3})", text.strip(), re.ASCII)
        if not found:
            raise FormatError(f"format {text[:40]!r} cannot be read; write for example Q3.12")
        return cls(int(found[1]), int(found[2]))

    @property
    def total_bits(self) -> int:
        return self.int_bits + self.frac_bits + 1

    @property
    def raw_min(self) -> int:
        return -(1 << (self.total_bits - 1))

    @property
    def raw_max(self) -> int:
        return (1 << (self.total_bits - 1)) - 1

    @property
    def lsb(self) -> Fraction:
        return Fraction(1, 1 << self.frac_bits)

    @property
    def min(self) -> Fraction:
        return self.raw_min * self.lsb

    @property
    def max(self) -> Fraction:
        return self.raw_max * self.lsb

    @property
    def params(self) -> "QuantParams":
        """The same integers as an affine scale, with zero point 0."""
        return QuantParams(float(self.lsb), 0, self.total_bits)

    def to_raw(self, x: Any) -> np.ndarray:
        """The raw integers nearest to the real numbers x, ties to even, saturated."""
        return quantize(x, self.params)

    def to_real(self, raw: Any) -> np.ndarray:
        """The real numbers that raw integers of this format stand for, exactly, as float64."""
        return dequantize(raw, self.params)

    def __str__(self) -> str:
        return f"Q{self.int_bits}.{self.frac_bits}"


@dataclass(frozen=True, slots=True)
class QuantParams:
    """What a signed integer q of `bits` bits stands for: scale * (q - zero_point).

    scale is a float32 number, rounded once when made. The zero point must be 0 at 16 and 32 bits.
    """

    scale: float
    zero_point: int
    bits: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _float32(self.scale))
        for name in ("zero_point", "bits"):
            object.__setattr__(self, name, _whole(getattr(self, name), name))
        if self.bits not in WIDTHS:
            raise FormatError(f"bits={self.bits} must be 8, 16 or 32")
        if self.bits != 8 and self.zero_point:
            raise FormatError(f"zero_point={self.zero_point} at {self.bits} bits; only 8-bit integers may have one")
        if not self.raw_min <= self.zero_point <= self.raw_max:
            raise FormatError(f"zero_point={self.zero_point} must be from {self.raw_min} to {self.raw_max}")

    @property
    def raw_min(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def raw_max(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def exact_scale(self) -> Fraction:
        return Fraction(self.scale)

    @property
    def format(self) -> QFormat | None:
        """The Qm.n format with the same integers, where there is one."""
        bits = self.exact_scale.denominator.bit_length() - 1
        if self.zero_point or self.exact_scale.numerator != 1 or bits >= self.bits:
            return None
        return QFormat(self.bits - 1 - bits, bits)

    def __str__(self) -> str:
        scale = str(np.float32(self.scale))  # the shortest text that reads back
        return str(self.format or f"int{self.bits}(scale={scale}, zero_point={self.zero_point})")


@dataclass(frozen=True, slots=True)
class Multiplier:
    """A positive real number as mantissa * 2**(shift - 31), the mantissa from 2**30 to 2**31 - 1.

    shift is from -31 to 30; a number below 2**-32 has mantissa 0.
    """

    mantissa: int
    shift: int

    def __post_init__(self) -> None:
        if not (self.mantissa == 0 or 1 << 30 <= self.mantissa < 1 << 31) or not -31 <= self.shift <= 30:
            raise FormatError(
                f"multiplier {self.mantissa} * 2^({self.shift} - 31): the mantissa must be 0 or from 2^30 to 2^31 - 1,"
                " the shift from -31 to 30"
            )

    @classmethod
    def from_real(cls, real: float | Fraction) -> "Multiplier":
        """The multiplier nearest to a real number from 0 up to, not including, 2**30 - 1/4; ties upward."""
        try:
            exact = Fraction(real)
        except (TypeError, ValueError, OverflowError):
            exact = Fraction(-1)
        if not exact >= 0:
            raise FormatError(f"multiplier {real!r} must be a finite number, 0 or more")
        if exact < Fraction(1, 1 << 32):
            return cls(0, 0)
        shift = exact.numerator.bit_length() - exact.denominator.bit_length()
        shift += exact >= Fraction(2) ** shift
        mantissa = (exact * Fraction(2) ** (31 - shift) + Fraction(1, 2)).__floor__()
        if mantissa == 1 << 31:
            mantissa, shift = 1 << 30, shift + 1
        if shift > 30:
            raise FormatError(f"multiplier {real!r} is too large; it must be below 2^30")
        return cls(mantissa, shift)

    @property
    def exact(self) -> Fraction:
        return self.mantissa * Fraction(2) ** (self.shift - 31)


def quantize(x: Any, params: QuantParams) -> np.ndarray:
    """The integers nearest to x / scale + zero_point, ties to even, saturated to params.bits.

    x: float array of any shape; infinities saturate; NaN raises QuantizationError naming its first
    index. The quotient is taken in float64. Returns an int64 array of the same shape.
    """
    nearest = np.array(x, np.float64)  # in place from here on, which is three times as fast
    if nearest.size and np.isnan(nearest.min()):
        index = tuple(int(i) for i in np.argwhere(np.isnan(nearest))[0])
        raise QuantizationError(f"the value at index {list(index)} is NaN, which has no integer in {params}")
    with np.errstate(over="ignore"):
        nearest /= params.scale
    np.rint(nearest, out=nearest)
    nearest += params.zero_point
    return np.clip(nearest, params.raw_min, params.raw_max, out=nearest).astype(np.int64)


def dequantize(raw: Any, params: QuantParams) -> np.ndarray:
    """scale * (raw - zero_point) in float64: exact for every raw integer of params."""
    integers = _integers(raw, "raw", params.raw_min, params.raw_max)
    return (integers - params.zero_point) * params.scale


def saturate(values: Any, bits: int) -> np.ndarray:
    """The nearest integers that fit in `bits` signed bits, 1 to 64. Domain: every int64."""
    if not 1 <= bits <= 64:
        raise FormatError(f"bits={bits} must be from 1 to 64")
    integers = _integers(values, "values", -_INT64_MAX - 1, _INT64_MAX)
    return np.clip(integers, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def shift_right(values: Any, shift: Any, rounding: Rounding) -> np.ndarray:
    """values / 2**shift rounded to an integer.

    SINGLE: ties toward +infinity. DOUBLE: ties away from zero, gemmlowp's RoundingDivideByPOT.
    Domain: values of |v| < 2**62, shifts from 0 to 62, scalar or of the same shape; nothing saturates.
    """
    v = _integers(values, "values", -(1 << 62) + 1, (1 << 62) - 1)
    s = _integers(shift, "shift", 0, 62)
    half = np.left_shift(np.int64(1), s) >> 1
    if rounding is Rounding.SINGLE:
        return (v + half) >> s
    return np.sign(v) * ((np.abs(v) + half) >> s)


def requantize(accumulator: Any, multiplier: Any, shift: Any, rounding: Rounding) -> np.ndarray:
    """accumulator * multiplier * 2**(shift - 31) rounded to an integer, not saturated.

    multiplier, shift: a Multiplier's two numbers, scalars or arrays that broadcast (per channel).
    SINGLE: floor(v + 1/2) of the exact product. DOUBLE: accumulator * 2**max(shift, 0), then gemmlowp's
    SaturatingRoundingDoublingHighMul and RoundingDivideByPOT, as TensorFlow Lite's reference kernels.
    Domain: int32 accumulators (the product is below 2**62), multipliers from 0 to 2**31 - 1, shifts from
    -31 to 30; for DOUBLE also the accumulator shifted left must fit in 32 bits.
    """
    acc = _integers(accumulator, "accumulator", -(1 << 31), (1 << 31) - 1)
    mantissa = _integers(multiplier, "multiplier", 0, (1 << 31) - 1)
    exponent = _integers(shift, "shift", -31, 30)
    if rounding is Rounding.SINGLE:
        down = 31 - exponent
        return (acc * mantissa + (np.int64(1) << (down - 1))) >> down
    left = np.left_shift(acc, np.maximum(exponent, 0))
    product = _integers(left, "accumulator * 2^shift", -(1 << 31), (1 << 31) - 1) * mantissa
    high = (product + (1 << 30)) >> 31  # gemmlowp nudges and truncates: ties toward +infinity, too
    return shift_right(high, np.maximum(-exponent, 0), Rounding.DOUBLE)


def rescale(accumulator: Any, mantissa: Any, shift: Any) -> np.ndarray:
    """floor(accumulator * mantissa * 2**-shift + 1/2), not saturated.

    mantissa, shift: integers that broadcast against the accumulator; a mantissa of 1 makes it a shift.
    Domain: mantissas from 0 to 2**31 - 1, |accumulator * mantissa| < 2**62, shifts from 0 to 62.
    """
    acc = _integers(accumulator, "accumulator", -_INT64_MAX, _INT64_MAX)
    m = _integers(mantissa, "mantissa", 0, (1 << 31) - 1)
    largest = max((abs(int(acc.min())), abs(int(acc.max()))) if acc.size else (0,))
    if largest * int(m.max(initial=0)) >= 1 << 62:
        raise QuantizationError(f"accumulator {largest} times mantissa {int(m.max())} must be below 2^62")
    return shift_right(acc * m, shift, Rounding.SINGLE)


def scaling(real: Fraction, bound: int, *, power_of_two: bool = False) -> tuple[int, int]:
    """The mantissa and shift of `rescale` nearest to a positive real, for accumulators up to `bound`.

    The mantissa has as many bits as 2**62 and 31 leave it; with power_of_two it is a power of two exactly.
    Raises QuantizationError where the number is out of reach.
    """
    if real <= 0:
        raise QuantizationError(f"scaling factor {float(real):.6g} must be positive")
    if 2 * real * bound < 1:
        return 0, 0  # every accumulator rounds to 0
    bits = min(31, 62 - max(bound, 1).bit_length())
    exponent = real.numerator.bit_length() - real.denominator.bit_length()
    exponent += real >= Fraction(2) ** exponent  # 2**(exponent - 1) <= real < 2**exponent
    shift = min(bits - exponent, 62)
    if power_of_two:
        if real != Fraction(2) ** (exponent - 1):
            raise QuantizationError(f"scaling factor {real} must be a power of two")
        shift = max(1 - exponent, 0)
    mantissa = (real * Fraction(2) ** shift + Fraction(1, 2)).__floor__() if shift >= 0 else 0
    if mantissa == 1 << bits and shift > 0:
        mantissa, shift = mantissa >> 1, shift - 1
    if bits < 15 or not 0 <= shift <= 62 or not 0 < mantissa < 1 << 31 or mantissa * bound >= 1 << 62:
        raise QuantizationError(f"scaling factor {float(real):.6g} does not fit accumulators up to {bound}")
    return mantissa, shift


def _integers(values: Any, name: str, low: int, high: int) -> np.ndarray:
    """The values as int64, each checked to lie in low .. high."""
    given = np.asarray(values)
    if given.dtype.kind not in "iu":
        raise QuantizationError(f"{name} must be integers, not {given.dtype}")
    if given.size and not low <= int(given.min()) <= int(given.max()) <= high:
        worst = int(given.min()) if int(given.min()) < low else int(given.max())
        raise QuantizationError(f"{name} holds {worst}; it must be from {low} to {high}")
    return given.astype(np.int64)


def _whole(value: Any, name: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise FormatError(f"{name}={value!r} must be a whole number") from None


def _float32(scale: float) -> float:
    try:
        with np.errstate(over="ignore", under="ignore"):
            rounded = float(np.float32(scale))
    except (TypeError, ValueError, OverflowError):
        rounded = float("nan")
    if not 0 < rounded < float("inf"):
        raise FormatError(f"scale={scale!r} must be positive and finite in float32")
    return rounded

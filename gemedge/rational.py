"""A rational function of an integer, rounded to the nearest integer: the straight integer code of the kernels.

A piece stands for v(u) = affine(u) + numerator(u) / denominator(u) on start <= u < stop and is evaluated as
floor(v + 1/2) with adds, multiplies, shifts, a count of leading zeros, compares and one table look-up; a C
twin repeats it line by line. Polynomials are kept normalised: a mantissa of 44 bits and an exponent. The
quotient is estimated from below by a reciprocal from a 128-byte table with one cubic correction, and the
remainder decides whether to add one. docs/numerics.md has the proofs; the widths here are checked where
`Arithmetic.checked` is set. Right shifts are arithmetic (rounded down), and those by more than 63 are
by 63, as NumPy does; a C twin says so. Rounding down is what keeps a fraction on its true side: a negative one,
however small, is never rounded to 0.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from gemedge import polynomial as poly
from gemedge.errors import PromiseError

MANTISSA_BITS = 44
FRACTION_BITS = 18  # |numerator / denominator| of a piece for up to 16 bits out is below 2**18
WIDE_FRACTION_BITS = 34  # and for 32 bits out below 2**34
BIAS = 1 << 14  # a quarter: what makes the estimate, which is nearer than that, an underestimate

# 2**16 / x, rounded, for the middles x = (129 + 2 i) / 128 of 64 intervals that cover [1, 2).
RECIPROCALS = tuple(round(Fraction(1 << 23, 129 + 2 * i)) for i in range(64))


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How the integer code is run: with its widths checked or not, with a long multiply or without.

    Without one (Cortex-M0+), every product is built from products of 16 by 16 bits, to the same bits.
    """

    checked: bool = False
    long_multiply: bool = True

    def times(self, a: Any, b: Any) -> Any:
        """a * b modulo 2**64."""
        if self.long_multiply:
            return a * b
        a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
        limbs_a, limbs_b = ([(x >> (16 * i)) & 0xFFFF for i in range(4)] for x in (a, b))
        total = np.zeros(np.broadcast_shapes(a.shape, b.shape), np.uint64)
        for i, low in enumerate(limbs_a):
            for j, high in enumerate(limbs_b[: 4 - i]):
                partial = (low.astype(np.uint32) * high.astype(np.uint32)).astype(np.uint64)
                total += partial << np.uint64(16 * (i + j))
        return total.view(np.int64)

    def watch(self, name: str, values: Any, low: int, high: int) -> None:
        """Raise PromiseError where a checked run leaves low <= values < high."""
        if self.checked and np.size(values) and not low <= int(np.min(values)) <= int(np.max(values)) < high:
            raise PromiseError(
                f"{name} is from {np.min(values)} to {np.max(values)}, outside its proven {low} to {high - 1}"
            )


@dataclass(frozen=True, slots=True)
class NormalPolynomial:
    """Sum of mantissa * 2**exponent * u**power, lowest power first, every term 0 or more.

    A mantissa is 0 or has its top bit at 2**43, rounded down from the exact coefficient.
    """

    mantissas: tuple[int, ...]
    exponents: tuple[int, ...]

    @classmethod
    def of(cls, coefficients: poly.Polynomial) -> "NormalPolynomial":
        pairs = [_normalised(coefficient) for coefficient in coefficients]
        return cls(tuple(m for m, _ in pairs), tuple(e for _, e in pairs))

    def value(self, m: tuple[Any, ...], lead: Any, run: Arithmetic) -> tuple[Any, Any]:
        """Mantissa and exponent at u = m * 2**-lead, by Horner's rule, each step rounded down.

        Widths: a product is in [2**58, 2**60), a sum below 2**45, a mantissa in [2**43, 2**44).
        """
        mantissa: Any = np.int64(self.mantissas[-1])
        exponent: Any = np.int64(self.exponents[-1])
        for c, c_exponent in zip(self.mantissas[-2::-1], self.exponents[-2::-1], strict=True):
            product = _times_input(mantissa, m, run)
            run.watch("product", product, 1 << 58, 1 << 60)
            down = (product >> 59) + 15
            mantissa = product >> down
            exponent = exponent + (down - lead)
            if c:
                mantissa, exponent = _add(mantissa, exponent, c, c_exponent, run)
            run.watch("mantissa", mantissa, 1 << 43, 1 << 44)
        return mantissa, exponent


@dataclass(frozen=True, slots=True)
class Piece:
    """affine(u) + (plus(u) - minus(u)) / (above(u) - below(u)) for start <= u < stop.

    form says where it comes from: `far` or `near` of gemedge.construct, or `affine`, which has no fraction.
    affine(u) = (slope * u + offset) * 2**-affine_bits, where for wide input slope holds 16 bits more.
    wide: the output has 32 bits, and a second estimate is taken from the first one's remainder.
    """

    form: str
    start: int
    stop: int
    slope: int
    offset: int
    affine_bits: int
    plus: NormalPolynomial | None
    minus: NormalPolynomial | None
    above: NormalPolynomial | None
    below: NormalPolynomial | None
    wide: bool

    def rounded(self, u: np.ndarray, run: Arithmetic) -> np.ndarray:
        """floor(v(u) + 1/2) for int64 u in start .. stop - 1, not saturated; the remainder's sign decides.

        Widths, with den in [2**43, 2**44) and |num| < 2**44: |num / den| < 2**18 as up < 18, so num << 18 is
        below 2**62 in size; (num >> 14) * inverse below 2**62 + 2**42; the estimate is within one of the result, so
        |gap| < 2**19, den * gap is below 2**63, and the remainder below 2 * den. For 32 bits out up < 34, products
        are taken modulo 2**64, and the two remainders are again small: the first estimate is within 2**13.3.
        """
        run.watch("u", u, max(self.start, 1), self.stop)
        affine = self._affine(u, run)
        run.watch("affine", affine, -(1 << 62), 1 << 62)
        half = 1 << (self.affine_bits - 1)
        if self.above is None:
            return (affine + half) >> self.affine_bits
        m, lead = self._normalise(u)
        den, den_exponent = self._difference(self.above, self.below, m, lead, run)
        den, den_exponent = _renormalise(den, den_exponent) if self.below else (den, den_exponent)
        run.watch("denominator", den, 1 << 43, 1 << 44)
        num, num_exponent = self._difference(self.plus, self.minus, m, lead, run)
        run.watch("numerator", num, -(1 << 44), 1 << 44)
        up = num_exponent - den_exponent
        run.watch("the exponent of the fraction", up, -(1 << 20), WIDE_FRACTION_BITS if self.wide else FRACTION_BITS)
        inverse = reciprocal(den, run)
        down = FRACTION_BITS - up
        estimate = self._estimate(affine, num, down, inverse, run)
        if self.wide:
            shifted = (num << np.maximum(up, 0)) >> np.maximum(-up, 0)
            rest = self._remainder(affine + half - (estimate << self.affine_bits), den, shifted, run)
            run.watch("rest", rest, -(1 << 59), 1 << 59)
            step = run.times(rest >> 29, inverse) >> 30
            estimate = estimate + ((step - BIAS) >> 16)
        else:
            shifted = (num << FRACTION_BITS) >> down
        gap = affine + half - ((estimate + 1) << self.affine_bits)
        remainder = self._remainder(gap, den, shifted, run)
        run.watch("remainder", remainder, -(1 << 45), 1 << 45)
        return estimate + 1 + (remainder >> 63)

    def _affine(self, u: np.ndarray, run: Arithmetic) -> Any:
        if not self.slope:
            return np.int64(self.offset)
        if self.input_is_wide:
            high, low = run.times(self.slope, u >> 16), run.times(self.slope, u & 0xFFFF)
            return high + (low >> 16) + self.offset
        return run.times(u, self.slope) + self.offset

    @property
    def input_is_wide(self) -> bool:
        return self.stop > 1 << 16

    def _normalise(self, u: np.ndarray) -> tuple[tuple[Any, ...], Any]:
        """m and lead with u = m * 2**-lead and m in [2**15, 2**16); wide input: m's 16 fraction bits, too."""
        if not self.input_is_wide:
            lead = 16 - bit_length(u)
            return (u << lead,), lead
        lead = 32 - bit_length(u)
        m = u << lead
        return (m >> 16, m & 0xFFFF), lead - 16

    def _difference(
        self,
        plus: NormalPolynomial | None,
        minus: NormalPolynomial | None,
        m: tuple[Any, ...],
        lead: Any,
        run: Arithmetic,
    ) -> tuple[Any, Any]:
        if minus is None and plus is not None:
            return plus.value(m, lead, run)
        if minus is None:
            return np.int64(0), np.int64(0)
        taken, taken_exponent = minus.value(m, lead, run)
        if plus is None:
            return -taken, taken_exponent
        given, given_exponent = plus.value(m, lead, run)
        exponent = np.maximum(given_exponent, taken_exponent)
        return (given >> (exponent - given_exponent)) - (taken >> (exponent - taken_exponent)), exponent

    def _estimate(self, affine: Any, num: Any, down: Any, inverse: Any, run: Arithmetic) -> Any:
        """v + 1/2 less a quarter, in whole LSB: at most v + 1/2, and more than that minus 1."""
        product = run.times(num >> 14, inverse)
        fraction = product >> (down + (45 - FRACTION_BITS))
        extra = self.affine_bits - 16
        run.watch("fraction", fraction, -(1 << 51), 1 << 51)
        whole = affine >> extra if extra >= 0 else affine << -extra
        return (whole + fraction + ((1 << 15) - BIAS)) >> 16

    def _remainder(self, gap: Any, den: Any, num: Any, run: Arithmetic) -> Any:
        """den * gap + num in units of den's last bit, modulo 2**64; gap has affine_bits fraction bits."""
        bits = self.affine_bits
        if not self.wide:
            run.watch("gap", gap >> bits, -(1 << 19), 1 << 19)
        total = run.times(den, gap >> bits) + num
        if bits == 16:
            return total + (run.times(den, gap & 0xFFFF) >> 16)
        low = gap & ((1 << bits) - 1)
        low = low >> (bits - 32) if bits >= 32 else low << (32 - bits)
        part = run.times(den, low >> 16) + (run.times(den, low & 0xFFFF) >> 16)
        run.watch("partial remainder", part, 0, 1 << 61)
        return total + (part >> 16)


def reciprocal(den: Any, run: Arithmetic) -> Any:
    """2**63 / (den >> 12) to a relative 2**-20.7, for den in [2**43, 2**44).

    With r from the table and e = 1 - d r, |e| <= 1/120, the cubic step is r (1 + e + e^2) = (1 - e^3) / d.
    Widths: d < 2**32, r < 2**16, so d r < 2**48; e < 2**25 in units of 2**-31, so e^2 < 2**50 and
    r (e + e^2) < 2**42; the result is at most 2**32 (1 + 2**-20).
    """
    d = den >> 12
    first = RECIPROCAL_ARRAY[(d >> 25) - 64]
    error = ((1 << 47) - run.times(d, first)) >> 16
    run.watch("reciprocal error", error, -(1 << 25), 1 << 25)
    correction = error + (run.times(error, error) >> 31)
    inverse = (first << 16) + (run.times(first, correction) >> 15)
    run.watch("reciprocal", inverse, 1 << 30, (1 << 32) + (1 << 12))
    return inverse


RECIPROCAL_ARRAY = np.array(RECIPROCALS, np.int64)


def bit_length(u: np.ndarray) -> Any:
    """The number of bits of 0 < u < 2**53, read from the exponent of the exact float64."""
    return (u.astype(np.float64).view(np.int64) >> 52) - 1022


def _times_input(mantissa: Any, m: tuple[Any, ...], run: Arithmetic) -> Any:
    product = run.times(m[0], mantissa)
    return product + (run.times(m[1], mantissa) >> 16) if len(m) == 2 else product


def _add(mantissa: Any, exponent: Any, c: int, c_exponent: int, run: Arithmetic) -> tuple[Any, Any]:
    short = c_exponent - exponent
    down = np.maximum(short, 0)
    total = (mantissa >> down) + (np.int64(c) >> (down - short))
    run.watch("sum", total, 1 << 43, 1 << 45)
    carry = total >> 44
    return total >> carry, exponent + (down + carry)


def _renormalise(mantissa: Any, exponent: Any) -> tuple[Any, Any]:
    up = MANTISSA_BITS - bit_length(mantissa)
    return mantissa << up, exponent - up


def _normalised(coefficient: Fraction) -> tuple[int, int]:
    """The largest mantissa * 2**exponent that is not above the coefficient."""
    if not coefficient:
        return 0, 0
    exponent = coefficient.numerator.bit_length() - coefficient.denominator.bit_length() - MANTISSA_BITS
    exponent += coefficient >= Fraction(2) ** (exponent + MANTISSA_BITS)
    return (coefficient / Fraction(2) ** exponent).__floor__(), exponent

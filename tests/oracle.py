"""The judge: what the numbers must be, in exact rational arithmetic, straight from the definitions.

Nothing here imports gemedge. Slow and plain on purpose.
"""

from fractions import Fraction
from math import factorial


def gem(n: int, epsilon: Fraction, x: Fraction) -> Fraction:
    t = abs(x) / epsilon
    return x * t ** (2 * n) / (1 + t ** (2 * n)) if x > 0 else Fraction(0)


def segem(n: int, epsilon: Fraction, x: Fraction) -> Fraction:
    t = abs(x) / epsilon
    return x if x > 0 else -epsilon * (1 - 1 / sum((t**k for k in range(2 * n + 1)), Fraction(0)))


class Series:
    """A power series in h, cut off after h^order: arithmetic on it gives derivatives."""

    def __init__(self, coefficients: list[Fraction]) -> None:
        self.c = coefficients

    def __add__(self, other: "Series") -> "Series":
        return Series([a + b for a, b in zip(self.c, other.c, strict=True)])

    def __mul__(self, other: "Series") -> "Series":
        return Series(
            [sum((self.c[i] * other.c[k - i] for i in range(k + 1)), Fraction(0)) for k in range(len(self.c))]
        )

    def __truediv__(self, other: "Series") -> "Series":
        quotient: list[Fraction] = []
        for k in range(len(self.c)):
            known = sum((quotient[i] * other.c[k - i] for i in range(k)), Fraction(0))
            quotient.append((self.c[k] - known) / other.c[0])
        return Series(quotient)


def _constant(value: Fraction | int, order: int) -> Series:
    return Series([Fraction(value)] + [Fraction(0)] * order)


def _power(base: Series, exponent: int) -> Series:
    result = _constant(1, len(base.c) - 1)
    for _ in range(exponent):
        result = result * base
    return result


def derivatives(family: str, n: int, epsilon: Fraction, x: Fraction, order: int, right: bool) -> list[Fraction]:
    """The derivatives 0 .. order at x of the branch for x > 0 (right) or x < 0."""
    h = Series([x, Fraction(1)] + [Fraction(0)] * order) if order else Series([x])
    h = Series(h.c[: order + 1])
    sign = 1 if right else -1
    t = h * _constant(sign / epsilon, order)
    one = _constant(1, order)
    if family == "gem":
        power = _power(t, 2 * n)
        value = h * power / (one + power) if right else _constant(0, order)
    elif right:
        value = h
    else:
        total = one
        for k in range(1, 2 * n + 1):
            total = total + _power(t, k)
        value = _constant(epsilon, order) * (one / total + _constant(-1, order))
    return [coefficient * factorial(k) for k, coefficient in enumerate(value.c)]


# Integer arithmetic: the rounding laws, and the codes an activation must give


def round_half_up(v: Fraction) -> int:
    return (v + Fraction(1, 2)).__floor__()


def round_half_even(v: Fraction) -> int:
    return round(v)


def round_half_away(v: Fraction) -> int:
    return round_half_up(v) if v >= 0 else -round_half_up(-v)


def truncated(a: int, b: int) -> int:
    """a / b as C divides: toward zero."""
    return abs(a) // b if a >= 0 else -(abs(a) // b)


def gemmlowp_requantize(accumulator: int, mantissa: int, shift: int) -> int:
    """gemmlowp's MultiplyByQuantizedMultiplier, as its C reads: two roundings."""
    a = accumulator * (1 << max(shift, 0))
    product = a * mantissa
    nudge = 1 << 30 if product >= 0 else 1 - (1 << 30)
    high = truncated(product + nudge, 1 << 31)
    exponent = max(-shift, 0)
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    return (high >> exponent) + (1 if high & mask > threshold else 0)


def tflite_requantize(accumulator: int, mantissa: int, shift: int) -> int:
    """TensorFlow Lite's MultiplyByQuantizedMultiplier with single rounding, as its C reads."""
    total = 31 - shift
    return (accumulator * mantissa + (1 << (total - 1))) >> total


def saturated(value: int, bits: int) -> int:
    return min(max(value, -(1 << (bits - 1))), (1 << (bits - 1)) - 1)


def codes(family: str, n: int, epsilon: Fraction, step: Fraction, lsb: Fraction, bits: int, raws: range) -> list[int]:
    """floor(v + 1/2), saturated to bits, of the activation at raw * step, in LSB, for every raw.

    With t = a / b, numerators and denominators are written out in whole numbers.
    """
    t_per_raw = step / epsilon
    p, q = t_per_raw.numerator, t_per_raw.denominator
    found = []
    for raw in raws:
        a, b = p * abs(raw), q
        if family == "gem":
            scale = step * max(raw, 0) / lsb
            top, bottom = a ** (2 * n), a ** (2 * n) + b ** (2 * n)
        elif raw > 0:
            scale, top, bottom = step * raw / lsb, 1, 1
        else:
            scale = -epsilon / lsb
            bottom = sum(a**k * b ** (2 * n - k) for k in range(2 * n + 1))
            top = bottom - b ** (2 * n)
        numerator, denominator = scale.numerator * top, scale.denominator * bottom
        found.append(saturated((2 * numerator + denominator) // (2 * denominator), bits))
    return found

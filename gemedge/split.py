"""The two forms of an activation between two formats, exact, and the pieces of integers made of them.

On one sign of x, with u = |raw|, the output in LSB is v(u) = affine(u) + numerator(u) / denominator(u). There
are two such forms: `far`, the branch as it is given, whose fraction fades as u grows; and `near`, whose affine
part is the tangent at 0, so that its fraction fades as u shrinks.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from gemedge import polynomial as poly
from gemedge.activation import Activation, Branch
from gemedge.errors import PromiseError
from gemedge.fixed import QuantParams
from gemedge.rational import FRACTION_BITS, WIDE_FRACTION_BITS, NormalPolynomial, Piece


@dataclass(frozen=True, slots=True)
class Task:
    """One sign of an activation between two formats; u is |raw| there."""

    activation: Activation
    sign: int
    in_params: QuantParams
    out_params: QuantParams

    @property
    def branch(self) -> Branch:
        return self.activation.positive if self.sign > 0 else self.activation.negative

    @property
    def t_per_u(self) -> Fraction:
        return self.in_params.exact_scale / self.activation.exact_epsilon

    @property
    def lsb_per_unit(self) -> Fraction:
        return self.activation.exact_epsilon / self.out_params.exact_scale

    @property
    def largest(self) -> int:
        return self.in_params.raw_max if self.sign > 0 else -self.in_params.raw_min

    def value(self, u: int) -> Fraction:
        """The exact output at u, in LSB with the zero point."""
        x = self.sign * u * self.in_params.exact_scale
        return self.activation.exact(x) / self.out_params.exact_scale + self.out_params.zero_point

    def code(self, u: int) -> int:
        nearest = (self.value(u) + Fraction(1, 2)).__floor__()
        return min(max(nearest, self.out_params.raw_min), self.out_params.raw_max)

    def __str__(self) -> str:
        return f"{self.activation} from {self.in_params} to {self.out_params}"


@dataclass(frozen=True, slots=True)
class Form:
    """slope * u + offset + numerator(u) / denominator(u), in LSB."""

    name: str
    slope: Fraction
    offset: Fraction
    numerator: poly.Polynomial
    denominator: poly.Polynomial

    def affine(self, u: int) -> Fraction:
        return self.slope * u + self.offset


def far_form(task: Task) -> Form:
    """The branch in u: its fraction is proper, and fades for large u."""
    branch = task.branch
    return _form("far", task, branch.slope, branch.offset, branch.numerator)


def near_form(task: Task) -> Form:
    """The tangent at u = 0 and what is missing from it: a fraction that begins with u^2."""
    branch = task.branch
    zeros = (Fraction(0), Fraction(0))
    p, q = (*branch.numerator, *zeros), (*branch.denominator, *zeros)
    offset = branch.offset + p[0] / q[0]
    slope = branch.slope + (p[1] * q[0] - p[0] * q[1]) / q[0] ** 2
    given = poly.multiply((branch.offset - offset, branch.slope - slope), branch.denominator)
    return _form("near", task, slope, offset, poly.add(branch.numerator, given))


def _form(name: str, task: Task, slope: Fraction, offset: Fraction, numerator: poly.Polynomial) -> Form:
    """The form in u, its polynomials with integer coefficients that have no common factor."""
    k, e = task.t_per_u, task.lsb_per_unit
    above = [e * c * k**i for i, c in enumerate(numerator)]
    below = [c * k**i for i, c in enumerate(task.branch.denominator)]
    whole = lcm(*(c.denominator for c in above + below))
    common = gcd(*(int(c * whole) for c in above + below))
    factor = Fraction(whole, common)
    return Form(
        name,
        slope * k * e,
        offset * e + task.out_params.zero_point,
        poly.scale(tuple(above), factor),
        poly.scale(tuple(below), factor),
    )


def make_piece(form: Form, start: int, stop: int, *, wide: bool) -> Piece:
    """The piece for start <= u < stop; raises PromiseError where its affine part has no width for that.

    slope and offset are rounded against the fraction's sign: down where the fraction is negative and up
    where it is positive, so that near a tie of the affine part the sum stays on the fraction's side.
    """
    bits = affine_bits(form, start, stop, wide)
    input_bits = 16 if stop > 1 << 16 else 0
    up = all(c >= 0 for c in form.numerator)
    slope = _rounded(form.slope * 2 ** (bits + input_bits), up=up)
    return Piece(
        form.name if form.numerator else "affine",
        start,
        stop,
        slope,
        _rounded(form.offset * 2**bits, up=up),
        bits,
        *_signed(form.numerator),
        *(_signed(form.denominator) if form.numerator else (None, None)),
        wide,
    )


def affine_bits(form: Form, start: int, stop: int, wide: bool) -> int:
    """Fraction bits of the affine part: 16 where they hold it exactly, else what 62 bits leave."""
    limit = WIDE_FRACTION_BITS if wide else FRACTION_BITS
    largest = max(abs(form.affine(start)), abs(form.slope) * (stop - 1), abs(form.offset), Fraction(1))
    if largest >= 1 << limit:
        raise PromiseError(f"the affine part reaches {float(largest):.4g} LSB, outside 2^{limit}")
    if stop <= 1 << 16:
        exact = all((1 << 15) % c.denominator == 0 for c in (form.slope, form.offset))
        return 16 if exact else 61 - limit
    return min(61 - limit, 30 - int(abs(form.slope)).bit_length())


def _signed(p: poly.Polynomial) -> tuple[NormalPolynomial | None, NormalPolynomial | None]:
    """The terms of each sign, as polynomials with no negative coefficient."""
    parts = (poly.polynomial(c if c > 0 else 0 for c in p), poly.polynomial(-c if c < 0 else 0 for c in p))
    plus, minus = (NormalPolynomial.of(part) if part else None for part in parts)
    return plus, minus


def _rounded(exact: Fraction, *, up: bool) -> int:
    return exact.__ceil__() if up else exact.__floor__()


def fraction_size(task: Task, form: Form, u: np.ndarray) -> np.ndarray:
    """The terms of numerator / denominator without their signs, in float64; in 1 / t beyond t = 1 against overflow."""
    t = u * float(task.t_per_u)
    p, q = ([float(c / task.t_per_u**i / form.denominator[0]) for i, c in enumerate(side)]
            for side in (form.numerator, form.denominator))  # fmt: skip
    if not p:
        return np.zeros(u.size)
    p = [abs(c) for c in p]
    with np.errstate(all="ignore"):
        small = np.polyval(p[::-1], t) / np.polyval(q[::-1], t)
        large = np.polyval(p, 1 / t) / np.polyval(q, 1 / t) * t ** float(len(p) - len(q))
    return np.abs(np.where(t <= 1, small, large))

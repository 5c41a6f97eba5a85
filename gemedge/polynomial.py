"""Exact polynomials: tuples of Fractions, lowest power first, without trailing zeros.

The zero polynomial is the empty tuple, and its degree is -1. Nothing here rounds.
"""

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise, zip_longest

Polynomial = tuple[Fraction, ...]


def polynomial(coefficients: Iterable[int | float | Fraction]) -> Polynomial:
    """The polynomial with these coefficients, lowest power first, each taken exactly."""
    return _trim([Fraction(coefficient) for coefficient in coefficients])


def degree(p: Polynomial) -> int:
    return len(p) - 1


def value(p: Polynomial, t: Fraction) -> Fraction:
    total = Fraction(0)
    for coefficient in reversed(p):
        total = total * t + coefficient
    return total


def add(p: Polynomial, q: Polynomial) -> Polynomial:
    return _trim([a + b for a, b in zip_longest(p, q, fillvalue=Fraction(0))])


def scale(p: Polynomial, factor: int | Fraction) -> Polynomial:
    return _trim([factor * coefficient for coefficient in p])


def multiply(p: Polynomial, q: Polynomial) -> Polynomial:
    product = [Fraction(0)] * max(len(p) + len(q) - 1, 0)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            product[i + j] += a * b
    return _trim(product)


def derivative(p: Polynomial) -> Polynomial:
    return _trim([power * coefficient for power, coefficient in enumerate(p)][1:])


def remainder(p: Polynomial, q: Polynomial) -> Polynomial:
    """What is left of p after division by q; q is not zero."""
    rest = list(p)
    while len(rest) >= len(q):
        factor = rest[-1] / q[-1]
        shift = len(rest) - len(q)
        for i, coefficient in enumerate(q):
            rest[shift + i] -= factor * coefficient
        rest.pop()
    return _trim(rest)


def is_positive_from_zero(p: Polynomial) -> bool:
    """Whether p(t) > 0 for every real t >= 0.

    Sturm's theorem: the sign changes that the chain p, p', -rem, ... loses between 0 and infinity
    are the distinct roots of p in (0, infinity).
    """
    if not p or p[0] <= 0:
        return False
    chain = [p, derivative(p)]
    while chain[-1]:
        chain.append(scale(remainder(chain[-2], chain[-1]), -1))
    at_zero = [q[0] for q in chain if q]
    at_infinity = [q[-1] for q in chain if q]
    return _sign_changes(at_zero) == _sign_changes(at_infinity)


def _sign_changes(numbers: list[Fraction]) -> int:
    signs = [number > 0 for number in numbers if number]
    return sum(a != b for a, b in pairwise(signs))


def _trim(coefficients: list[Fraction]) -> Polynomial:
    while coefficients and not coefficients[-1]:
        coefficients.pop()
    return tuple(coefficients)

"""Tabulated kernels: GEM of order 1 by a table of its fraction and the remainder, in products of 32 bits alone.

For CPUs that take dozens of instructions for a product of 64 bits. With u = raw and c = epsilon^2, a whole number of
squared LSB, GEM is u - f with f = u c / (u^2 + c), where input and output have one scale. Linear interpolation between
entries gives k, which is ceil(f - 1/2) or one less, and the sign of k D + D/2 - u c with D = u^2 + c tells which.
That number is less than 2 D away from 0, and D < 2^31 / 2, so that 32 bits modulo 2^32 keep its sign. Whether k
is near enough is not proven, but tried on all codes.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from gemedge.kernel import FixedActivation

ENTRY_BITS = 4  # of fraction in an entry
_STEPS = (9, 8, 7)  # input bits between two entries: 65, 129 or 257 of them
_WORD = (1 << 32) - 1
_ALL = np.arange(-(1 << 15), 1 << 15)


@dataclass(frozen=True, slots=True)
class Tabulated:
    """entries: the fraction at multiples of 2^step up to 2^15, in 2^-ENTRY_BITS LSB. square: c."""

    entries: tuple[int, ...]
    square: int
    step: int

    def __call__(self, raw: Any) -> np.ndarray:
        """The outputs of int16 codes, as int16."""
        u = np.maximum(np.asarray(raw).astype(np.int64), 0)
        entries = np.array(self.entries, np.int64)
        first = entries[u >> self.step]
        rise = entries[(u >> self.step) + 1] - first
        k = ((first << self.step) + rise * (u & ((1 << self.step) - 1))) >> (self.step + ENTRY_BITS)
        d = u * u + self.square
        remainder = (k * d + (d >> 1) - u * self.square) & _WORD
        return (u - k - (remainder >> 31)).astype(np.int16)


@lru_cache(maxsize=256)
def find(kernel: FixedActivation) -> Tabulated | None:
    """A tabulated kernel that gives the same integer for every code, or None."""
    activation, given = kernel.activation, kernel.in_params
    square = (activation.exact_epsilon / given.exact_scale) ** 2
    if (activation.family, activation.n) != ("gem", 1) or given != kernel.out_params or given.bits != 16:
        return None
    if square.denominator != 1 or square >= 1 << 30:
        return None
    truth, c = kernel(_ALL), int(square)
    for step in _STEPS:
        at = range(0, (1 << 15) + 1, 1 << step)
        exact = [Fraction((u << ENTRY_BITS) * c, u * u + c).__floor__() for u in at]
        if max(exact) + (1 << ENTRY_BITS) >= 1 << 16:
            continue
        for more in range(1 << ENTRY_BITS):
            found = Tabulated(tuple(entry + more for entry in exact), c, step)
            if np.array_equal(found(_ALL), truth):
                return found
    return None

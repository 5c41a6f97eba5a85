"""Compact kernels: GEM and SE-GEM of 16-bit numbers by one reciprocal in products of 32 by 32 bits.

A compact kernel is not proven, it is found: constants are tried, some moved by a few last bits, until every one of the
65,536 codes gives the certified kernel's integer. Formats where none is found keep that kernel.

With u = |raw| and e = epsilon in input LSB the fraction is N / D, where GEM has N = sigma e^2n u, D = e^2n + u^2n, and
SE-GEM N = tau e^2n, D = e^2n + e^(2n-1) u + ... + u^2n; sigma u less GEM's fraction, or SE-GEM's less tau, is the
output in LSB. D is normalised to a word m, whose reciprocal r comes from 32 lines to 2^-13; with g = N r the
quotient is g (2 - m r). Each step is one of c_runtime/gemedge_activation.h and wraps as its words do.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, lru_cache
from itertools import product
from typing import Any

import numpy as np

from gemedge.kernel import FixedActivation

MAX_ORDER = 3
SEGMENTS = 32
_WORD = (1 << 32) - 1
_POSITION_BITS = 12  # of m, within a segment
_FRACTION_BITS = (16, 18, 20, 22, 15, 14, 13)  # of the output before it is rounded
_MOVES = (0, 1, -1, 2, -2, 4, -4, 8, -8, 16, -16, 32, -32)
_MOST_TRIED, _MOST_WEIGHED = 1000, 40000
_LIMITS = {"power": 1 << 63, "half": 1 << 31}
_ALL = np.arange(-(1 << 15), 1 << 15)


def _line(segment: int) -> int:
    """2^31 / x on a segment of [1/2, 1): the intercept in the upper half, the negative slope in the lower.

    line + slope * position leaves the slope's bits in the sum: the intercept makes up for them.
    """
    a, b = (Fraction(SEGMENTS + segment + side, 2 * SEGMENTS) for side in (0, 1))
    slope = round((1 / b - 1 / a) * (1 << (31 - _POSITION_BITS))) % 65536
    above = (1 / a + 1 / b) / 2 - 2 / (a + b)
    return (min(round(((1 / a - above / 2) * (1 << 31) - slope) / 65536), 65535) << 16) + slope


LINES = tuple(_line(segment) for segment in range(SEGMENTS))
_LINE_ARRAY = np.array(LINES, np.int64)


@dataclass(frozen=True, slots=True)
class Compact:
    """The constants of one kernel, words of 32 bits but for `power`, which has 64.

    square: e^2. linear: e * 2^16, SE-GEM's alone. power: e^4, or e^6 / 2^32, GEM's from order 2 on.
    numerator: N * 2^s is (u << up << s) * numerator / 2^32, without numerator where that is 0; with down
    (u << 16) * numerator / 2^32 >> (down - s). SE-GEM's is without u: numerator << s, or with down
    numerator >> (down - s), or 2^32 >> (down - s) without numerator.
    slope: sigma * 2^(16 + bits), or 0 where sigma is 1. half: added where x > 0 before the shift by bits;
    offset: likewise elsewhere, less tau, with bits_below. saturates: outputs may have to be saturated.
    """

    is_segem: bool
    order: int
    square: int
    linear: int
    power: int
    numerator: int
    up: int
    down: int
    slope: int
    half: int
    offset: int
    bits: int
    bits_below: int
    saturates: bool

    def __call__(self, raw: Any) -> np.ndarray:
        """The outputs of int16 codes, as int16."""
        x = np.asarray(raw).astype(np.int64)
        y = self.unsaturated(x)
        return (np.clip(y, -(1 << 15), (1 << 15) - 1) if self.saturates else y).astype(np.int16)

    def unsaturated(self, x: np.ndarray) -> np.ndarray:
        """What the outputs are before they are saturated, as int64."""
        u = np.maximum(x, 0)
        if not self.is_segem:
            return self._above(u, self._fraction(u))
        return np.where(x > 0, self._above(u, np.zeros_like(u)), self._below(np.maximum(-x, 0)))

    @property
    def is_wide(self) -> bool:
        """Whether the upper word of a denominator of 64 bits may be 0."""
        return self.order > 1 and self._smallest < 1 << 32

    @property
    def _smallest(self) -> int:
        """The denominator at u = 0."""
        if self.order == 1:
            return self.square
        if self.is_segem:
            return self.square**2 if self.order == 2 else self.square**3 >> 32
        return self.power

    def _above(self, u: np.ndarray, fraction: np.ndarray) -> np.ndarray:
        if not self.slope:
            return u + (_signed(self.half - fraction) >> self.bits)
        return _signed(_high(self.slope, u << 16) + self.half - fraction) >> self.bits

    def _below(self, u: np.ndarray) -> np.ndarray:
        return _signed(self._fraction(u) + self.offset) >> self.bits_below

    def _fraction(self, u: np.ndarray) -> np.ndarray:
        """The fraction in 2^-bits LSB, to a few units."""
        m, s = self.denominator(u)
        line = _LINE_ARRAY[(m >> 26) & (SEGMENTS - 1)]
        slope = ((line & 0xFFFF) ^ 0x8000) - 0x8000
        r = (line + slope * ((m >> 14) & 0xFFF)) & _WORD
        is_shift = self.is_segem and not self.numerator
        g = r >> (self.down - s) if is_shift else _high(self._numerator(u, s), r)
        return g - _high(g, _high(m, r))

    def denominator(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """D 2^s as its upper word, which begins with a 1, and s."""
        w = u * u
        b = (self.square + _high(self.linear, u << 16)) & _WORD
        first = _wide(w + b & _WORD)
        if self.order == 1:
            return _normalised(first << np.uint64(32))
        if not self.is_segem:
            power = _wide(w) * _wide(w) if self.order == 2 else _upper(_wide(w) * _wide(w), w)
            return _normalised(power + np.uint64(self.power))
        c = _wide(self.square)
        if self.order == 2:
            return _normalised(_wide(w) * first + c * _wide(b))
        inner = c * _wide(b)
        return _normalised(_upper(_wide(w) * first + inner, w) + _upper(inner, self.square))

    def _numerator(self, u: np.ndarray, s: np.ndarray) -> np.ndarray:
        down = np.minimum(self.down - s, 31)
        if self.is_segem:
            return (self.numerator << s & _WORD) if not self.down else np.int64(self.numerator) >> down
        if self.down:
            return _high(self.numerator, u << 16) >> down
        given = (u << self.up & _WORD) << s & _WORD
        return _high(self.numerator, given) if self.numerator else given


@lru_cache(maxsize=256)
def find(kernel: FixedActivation) -> Compact | None:
    """A compact kernel that gives the same integer for every code, or None."""
    order = kernel.activation.n
    formats = (kernel.in_params, kernel.out_params)
    if order is None or order > MAX_ORDER or any(params.bits != 16 for params in formats):
        return None
    exact = _Exact(kernel, order)
    truth = kernel(_ALL).astype(np.int64)
    if exact.is_segem:  # the two sides of 0 share no constant that is moved
        above = _first_right(exact.candidates("slope", "half"), truth, _ALL > 0)
        names = ("square", "linear", "numerator", "offset")
        found = above and _first_right(exact.candidates(*names, above=above), truth, _ALL <= 0)
    else:
        found = _first_right(exact.candidates("square", "power", "numerator", "slope", "half"), truth, _ALL >= 0)
    return found and replace(found, saturates=bool((found.unsaturated(_ALL) != truth).any()))


def _first_right(candidates: Iterator[Compact], truth: np.ndarray, where: np.ndarray) -> Compact | None:
    """The first that is right at all these codes; some that others got wrong are tried first."""
    codes, wanted = _ALL[where], truth[where]
    hard = np.empty(0, np.int64)
    for compact in candidates:
        if (compact(codes[hard]) == wanted[hard]).all():
            wrong = np.flatnonzero(compact(codes) != wanted)
            if not wrong.size:
                return compact
            hard = np.union1d(hard, wrong[:: max(wrong.size // 32, 1)])
    return None


@cache
def _moves(count: int) -> list[tuple[int, ...]]:
    """By how many steps so many numbers are moved, the least in all first."""
    choices = range(min(len(_MOVES), int(_MOST_WEIGHED ** (1 / count))))
    least = sorted(product(choices, repeat=count), key=lambda move: (sum(move), move))[:_MOST_TRIED]
    return [tuple(_MOVES[i] for i in move) for move in least]


class _Exact:
    """The exact numbers that a compact kernel's constants are rounded from."""

    def __init__(self, kernel: FixedActivation, order: int) -> None:
        activation = kernel.activation
        self.order, self.is_segem = order, activation.family == "segem"
        self.e = activation.exact_epsilon / kernel.in_params.exact_scale
        self.square = self.e * self.e
        self.sigma = kernel.in_params.exact_scale / kernel.out_params.exact_scale
        self.tau = activation.exact_epsilon / kernel.out_params.exact_scale

    def candidates(self, *names: str, above: Compact | None = None) -> Iterator[Compact]:
        """Constants with those named moved by some last bits, the least moved first; above: what x > 0 has."""
        for bits in _FRACTION_BITS:
            found = self.compact(bits)
            if found is None or ("slope" in names and found.slope > _WORD):
                continue
            if above:
                found = replace(found, slope=above.slope, half=above.half, bits=above.bits)
            values = {name: value for name in names if (value := getattr(found, name))}
            steps = [max(value >> 27, 1) if name in ("numerator", "power") else 1 for name, value in values.items()]
            for move in _moves(len(values)):
                pairs = zip(values.items(), steps, move, strict=True)
                tried: dict[str, Any] = {name: value + step * by for (name, value), step, by in pairs}
                if all(0 <= value < _LIMITS.get(name, _WORD) for name, value in tried.items() if name != "offset"):
                    yield replace(found, **tried)

    def compact(self, bits: int) -> Compact | None:
        """The constants rounded to the nearest, or None where a word does not hold one of them."""
        low = 32 if self.order == 3 else 0
        slope = 0 if self.sigma == 1 else round(self.sigma * (1 << (16 + bits)))
        half = 1 << (bits - 1)
        empty = Compact(
            is_segem=self.is_segem,
            order=self.order,
            square=round(self.square),
            linear=round(self.e * 65536) if self.is_segem else 0,
            power=0 if self.is_segem or self.order == 1 else round(self.e ** (2 * self.order) / (1 << low)),
            numerator=0,
            up=0,
            down=0,
            slope=slope,
            half=half,
            offset=half - round(self.tau * (1 << bits)) if self.is_segem else 0,
            bits=bits,
            bits_below=bits,
            saturates=True,
        )
        words = (empty.square, empty.linear, empty.power >> 32)
        if max(words) > _WORD or -empty.offset > _WORD >> 1 or not 1 <= empty.square < 1 << 31:
            return None
        return self._with_numerator(empty)

    def _with_numerator(self, empty: Compact) -> Compact | None:
        u = np.arange(1 << 15)
        _, s = empty.denominator(u)
        value, largest = self._numerator(empty), int(s.max())
        shift = value.numerator.bit_length() - 1
        is_power = value == 1 << shift
        room = 32 - int((u << np.minimum(s, 31)).max()).bit_length()
        found = empty
        if self.is_segem and is_power and 0 < shift <= 32 - largest:
            found = replace(empty, down=32 - shift)
        elif self.is_segem and value.denominator == 1 and value * 2**largest <= _WORD:
            found = replace(empty, numerator=int(value))
        elif self.is_segem:
            found = replace(empty, numerator=round(value * 2**largest), down=largest)
        elif is_power and shift <= room:
            found = replace(empty, up=shift)
        elif room >= 0:
            found = replace(empty, numerator=round(value * 2 ** (32 - room)), up=room)
        else:
            found = replace(empty, numerator=round(value * 2 ** (16 + largest)), down=largest)
        return found if found.numerator <= _WORD else None

    def _numerator(self, compact: Compact) -> Fraction:
        """N, without u, where the quotient comes out in 2^-bits LSB."""
        one = self.e ** (2 * self.order) / (1 << (32 * (self.order - 1)))
        return (self.tau if self.is_segem else self.sigma) * one * Fraction(2) ** (compact.bits - 30)


def _high(a: Any, b: Any) -> Any:
    """The upper word of a product of words."""
    return (_wide(a) * _wide(b) >> np.uint64(32)).astype(np.int64)


def _upper(a: Any, b: Any) -> Any:
    """a * b / 2^32 rounded down, of 64 by 32 bits, modulo 2^64."""
    b = _wide(b)
    return ((a & np.uint64(_WORD)) * b >> np.uint64(32)) + (a >> np.uint64(32)) * b


def _wide(a: Any) -> Any:
    return np.asarray(a).astype(np.uint64)


def _signed(values: Any) -> Any:
    """A word as int32 has it."""
    return ((np.asarray(values) + (1 << 31)) & _WORD) - (1 << 31)


def _normalised(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = 64 - _bit_length(d)
    return (d << s.astype(np.uint64) >> np.uint64(32)).astype(np.int64), s


def _bit_length(d: np.ndarray) -> np.ndarray:
    """The number of bits of 0 < d < 2^64, from the exponents of its two words."""
    high, low = (
        (word.astype(np.float64).view(np.int64) >> 52) - 1022 for word in (d >> np.uint64(32), d & np.uint64(_WORD))
    )
    return np.where(d >> np.uint64(32), high + 32, low)

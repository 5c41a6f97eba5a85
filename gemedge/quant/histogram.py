"""Streaming histograms that merge exactly: the same counts whatever the batches, their order and who counted them.

A bin holds the float32 numbers whose upper 16 bits are equal: sign, exponent and 7 bits of the mantissa (a bfloat16
rounded toward zero). So bins need no range known beforehand, are 2^-7 wide relative to their place, and number
65,536: memory does not grow with the samples. Counts are integers, minimum and maximum are exact, and a merge adds
the ones and compares the others. Infinities are counted apart; a NaN has no place here.

What is read off assumes that numbers lie evenly within a bin (the outermost bins end at minimum and maximum);
magnitudes below 2^-133 count as zero.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

_BINS = 1 << 16
_CHUNK = 1 << 20  # numbers binned at a time: their temporaries stay small
_CODES = np.arange(_BINS, dtype=np.uint32)
with np.errstate(invalid="ignore"):  # the upper codes are NaN
    _INNER = (_CODES << 16).view(np.float32).astype(np.float64)  # the bin's end nearer to zero
_ORDER = np.concatenate([np.arange(0xFF7F, 0x7FFF, -1), np.arange(0x7F80)])  # finite bins, from -inf to +inf
_LARGEST = 2.0**128


@dataclass(slots=True)
class Histogram:
    """Counts of the numbers added so far. lowest and highest are of the finite ones; inf and -inf before the first."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    lowest: float = np.inf
    highest: float = -np.inf
    infinities: int = 0

    def add(self, values: np.ndarray) -> None:
        """Count a float array of any shape without NaN. float64 is binned by its nearest float32."""
        flat = values.reshape(-1)
        for first in range(0, flat.size, _CHUNK):
            self._add(flat[first : first + _CHUNK])

    def _add(self, values: np.ndarray) -> None:
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            finite = values[np.isfinite(values)]
            self.infinities += values.size - finite.size
            if finite.size == 0:
                return
            values, low, high = finite, float(finite.min()), float(finite.max())
        self.lowest, self.highest = min(self.lowest, low + 0.0), max(self.highest, high + 0.0)  # never -0.0
        if values.dtype == np.float64:
            largest = np.finfo(np.float32).max
            values = np.clip(values, -largest, largest)
        codes = np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16
        self.counts += np.bincount(codes, minlength=_BINS)

    def merge(self, other: "Histogram") -> None:
        """Count what the other counted as well."""
        self.counts += other.counts
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)
        self.infinities += other.infinities

    @property
    def total(self) -> int:
        """How many finite numbers were added."""
        return int(self.counts.sum())

    def magnitudes(self) -> "Histogram":
        """The same numbers without their signs."""
        half = _BINS // 2
        counts = np.concatenate([self.counts[:half] + self.counts[half:], np.zeros(half, np.int64)])
        least = max(self.lowest, -self.highest, 0.0)
        return Histogram(counts, least, max(-self.lowest, self.highest), self.infinities)

    def typical(self) -> float:
        """The median magnitude of the numbers that are not 0, to a part in 128; 0 where there is none."""
        half = _BINS // 2
        counts = self.counts[:half] + self.counts[half:]
        counts[0] = 0
        reached = np.cumsum(counts)
        return float(_INNER[np.searchsorted(reached, (reached[-1] + 1) // 2)]) if reached[-1] else 0.0

    def bins(self) -> "Bins":
        """The occupied bins from the lowest to the highest."""
        counts = self.counts[_ORDER]
        occupied = np.flatnonzero(counts)
        codes = _ORDER[occupied]
        inner = _INNER[codes]
        outer = np.where(
            codes % 0x8000 == 0x7F7F, np.copysign(_LARGEST, inner), _INNER[np.minimum(codes + 1, _BINS - 1)]
        )
        outer = np.where(codes % 0x8000 == 0, 0.0, outer)
        lower, upper = np.minimum(inner, outer), np.maximum(inner, outer)
        return Bins(
            np.clip(lower, self.lowest, self.highest), np.clip(upper, self.lowest, self.highest), counts[occupied]
        )

    def __getstate__(self) -> tuple[Any, ...]:
        """The occupied bins only: what crosses a network."""
        occupied = np.flatnonzero(self.counts)
        return occupied.astype(np.uint16), self.counts[occupied], self.lowest, self.highest, self.infinities

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        occupied, counts, self.lowest, self.highest, self.infinities = state
        self.counts = np.zeros(_BINS, np.int64)
        self.counts[occupied] = counts


@dataclass(frozen=True, slots=True)
class Bins:
    """Numbers spread evenly over intervals in rising order: float64 ends, int64 counts. An interval may be a point."""

    lower: np.ndarray
    upper: np.ndarray
    counts: np.ndarray

    def below(self, edges: np.ndarray) -> np.ndarray:
        """How many numbers are at most each edge, as float64: a part of a bin counts in proportion."""
        width = self.upper - self.lower
        total = np.concatenate([[0.0], np.cumsum(self.counts, dtype=np.float64)])
        place = np.searchsorted(self.lower, edges, side="right")  # bins that begin at or before the edge
        last = np.maximum(place - 1, 0)
        beyond = edges >= self.upper[last]
        divisor = np.where(width[last] > 0, width[last], 1.0)
        part = np.where(beyond, 1.0, (edges - self.lower[last]) / divisor)
        return np.where(place == 0, 0.0, total[last] + part * self.counts[last])

    def quantile(self, share: float) -> float:
        """The number that a share of all numbers, 0 to 1, are at most."""
        reached = np.cumsum(self.counts)
        wanted = share * float(reached[-1])
        place = min(int(np.searchsorted(reached, wanted)), len(reached) - 1)
        before = float(reached[place]) - float(self.counts[place])
        part = (wanted - before) / float(self.counts[place])
        return float(self.lower[place] + part * (self.upper[place] - self.lower[place]))

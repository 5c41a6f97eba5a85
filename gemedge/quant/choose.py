"""Which range of a tensor an integer format should span: four answers from its histogram.

minmax      all finite numbers that were seen.
percentile  all but the share 1 - percentile / 100 of them, half of it on either side (as onnxruntime).
mse         the range for which the expected squared difference between a number and its nearest code is least.
            Each bin's share is an integral in closed form; the search goes over octaves, then finer steps.
entropy     the range whose 128 levels lose least information: TensorRT's method on 2,048 equal steps of |x|, on
            which the histogram's bins are spread evenly.

mse and entropy choose among ranges that hold zero, because an integer format has a code for it. `symmetric` asks
for a range -m to m.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from gemedge.errors import UsageError
from gemedge.quant.histogram import Bins, Histogram
from gemedge.quant.ranges import Range

Method = Literal["minmax", "percentile", "mse", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)

_STEPS = 2048  # entropy's equal steps of |x|
_LEVELS = 128  # and its levels: those of a signed byte's magnitude
_ROUNDS = 3  # mse: one end after the other
_OCTAVES = 24  # mse: how far an end may move
_MOST_BITS = 32


@dataclass(frozen=True, slots=True)
class Choice:
    """A method and what it depends on. percentile: 50 to 100; bits: 2 to 32, of the codes the range is for."""

    method: Method = "minmax"
    percentile: float = 99.99
    bits: int = 8
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"method {self.method!r} is not one of {', '.join(METHODS)}")
        if not 50 <= self.percentile <= 100:
            raise UsageError(f"percentile {self.percentile} is not between 50 and 100")
        if not 2 <= self.bits <= _MOST_BITS:
            raise UsageError(f"bits={self.bits} is not between 2 and {_MOST_BITS}")
        if self.method == "entropy" and self.bits != 8:
            raise UsageError(f"method entropy is defined for 8 bits, not {self.bits}; mse serves any width")

    def __str__(self) -> str:
        detail = {"percentile": f"({self.percentile!r})", "mse": f"(bits={self.bits})"}.get(self.method, "")
        return f"{self.method}{detail}{', symmetric' if self.symmetric else ''}"

    def range_of(self, histogram: Histogram) -> Range:
        """The range for the numbers of a histogram that has at least one."""
        return Range(*(self._symmetric if self.symmetric else self._affine)(histogram))

    def _symmetric(self, histogram: Histogram) -> tuple[float, float]:
        magnitudes = histogram.magnitudes()
        most = magnitudes.highest
        if self.method == "percentile":
            most = magnitudes.bins().quantile(self.percentile / 100)
        elif self.method == "mse":
            bins, steps = magnitudes.bins(), (1 << (self.bits - 1)) - 1
            most = _best(most, lambda end: squared_error(bins, 0.0, end, steps))
        elif self.method == "entropy":
            most = _entropy(magnitudes)
        return 0.0 - most, most

    def _affine(self, histogram: Histogram) -> tuple[float, float]:
        low, high = histogram.lowest, histogram.highest
        if self.method == "percentile":
            bins, cut = histogram.bins(), (100 - self.percentile) / 200
            return bins.quantile(cut), bins.quantile(1 - cut)
        if self.method == "mse":
            return _mse_affine(histogram.bins(), low, high, self.bits)
        if self.method == "entropy":
            most = _entropy(histogram.magnitudes())
            return max(min(low, 0.0), -most), min(max(high, 0.0), most)
        return low, high


# Least squared error


def squared_error(bins: Bins, low: float, high: float, steps: int) -> float:
    """The expected sum of (x - nearest code)^2 for steps + 1 codes evenly spaced from low to high."""
    scale = (high - low) / steps
    if scale == 0:
        scale, steps = 1.0, 0  # the one code 0
    start, stop = (bins.lower - low) / scale, (bins.upper - low) / scale
    width = stop - start
    integral = _integral(stop, steps) - _integral(start, steps)
    point = (start - np.clip(np.rint(start), 0, steps)) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(width > _narrow(start, stop), integral / width, point)
    return float((mean * bins.counts).sum() * scale * scale)


def _narrow(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Widths at which a difference of integrals would be rounding error."""
    return 1e-9 * (1.0 + np.abs(start) + np.abs(stop))


def _integral(u: np.ndarray, steps: int) -> np.ndarray:
    """From 0 to u of (v - nearest integer of 0 ... steps)^2 dv: a twelfth for each step, and cubes beyond the ends."""
    inside = np.clip(u, 0, steps)
    nearest = np.rint(inside)
    return nearest / 12 + (inside - nearest) ** 3 / 3 + (u - inside) ** 3 / 3


def _mse_affine(bins: Bins, low: float, high: float, bits: int) -> tuple[float, float]:
    steps = (1 << bits) - 1
    least, greatest = min(low, 0.0), max(high, 0.0)
    if least == 0 or greatest == 0:
        return _low_end(bins, least, greatest, steps), _high_end(bins, least, greatest, steps)
    # Both ends together first: while an outlier stands on one side, the other gains nothing by moving.
    end = _best(max(-least, greatest), lambda end: squared_error(bins, max(least, -end), min(greatest, end), steps))
    low, high = max(least, -end), min(greatest, end)
    for _ in range(_ROUNDS):
        before = low, high
        high = _high_end(bins, low, greatest, steps)
        low = _low_end(bins, least, high, steps)
        if (low, high) == before:
            break
    return low, high


def _high_end(bins: Bins, low: float, greatest: float, steps: int) -> float:
    return _best(greatest, lambda end: squared_error(bins, low, end, steps))


def _low_end(bins: Bins, least: float, high: float, steps: int) -> float:
    return -_best(-least, lambda end: squared_error(bins, -end, high, steps)) + 0.0


def _best(most: float, error: Callable[[float], float]) -> float:
    """The end at or below `most` with the least error, to a 64th of an octave; the wider one of two equals."""
    if most == 0:
        return 0.0
    candidates = {0.0: error(most)}

    def lowest() -> float:
        return min(candidates, key=lambda octaves: (candidates[octaves], octaves))

    def look(octaves: Iterable[float]) -> None:
        for octave in octaves:
            if octave > 0 and octave not in candidates:
                candidates[octave] = error(most * 2.0**-octave)

    look(range(_OCTAVES))
    for finer in (8, 64):
        centre = lowest()
        look(centre + step / finer for step in range(-7, 8))
    return most * 2.0 ** -lowest()


# Least loss of information


def _entropy(magnitudes: Histogram) -> float:
    """The end of |x| at which 128 levels describe the 2,048 steps' distribution with the least divergence.

    As TensorRT: the first step, next to zero, takes the second's count; P is the distribution up to the
    end with everything beyond it in its last step; Q is P without that, averaged within each level over its occupied
    steps. The least KL(P || Q) wins, the wider end of two equals.
    """
    most = magnitudes.highest
    if most == 0:
        return 0.0
    edges = np.linspace(0.0, most, _STEPS + 1)
    counts = np.diff(magnitudes.bins().below(edges))
    counts[0] = counts[1]
    if counts.sum() == 0:
        return most
    ends = range(_STEPS, _LEVELS - 1, -_LEVELS // 16)
    divergences = [_divergence(counts, end) for end in ends]
    return float(edges[ends[int(np.argmin(divergences))]])


def _divergence(counts: np.ndarray, end: int) -> float:
    inside = counts[:end]
    reference = inside.copy()
    reference[-1] += counts[end:].sum()
    occupied = reference > 0
    level = np.arange(end) * _LEVELS // end
    members = np.bincount(level, occupied, _LEVELS)
    averages = np.bincount(level, inside, _LEVELS) / np.maximum(members, 1)
    candidate = np.where(occupied, averages[level], 0.0)
    p, q = reference[occupied] / reference.sum(), candidate[occupied] / max(candidate.sum(), 1e-300)
    if (q == 0).any():
        return np.inf
    return float((p * np.log(p / q)).sum())

"""Which integers stand for a tensor: the parameters that each scheme gives a range, and weights in them."""

from dataclasses import dataclass

import numpy as np

from gemedge.errors import QuantizationError
from gemedge.fixed import QuantParams
from gemedge.model import Scheme

_ACTIVATION_BITS = {"int8": 8, "q7": 8, "int16x8": 16, "q15": 16}
_WEIGHT_BITS = {"int8": 8, "q7": 8, "int16x8": 8, "q15": 16}
_POWER_OF_TWO = {"q7", "q15"}
_LEAST, _MOST = 2.0**-133, 2.0**127  # of a range: a scale of 16 bits is a float32 number, and so is its width


@dataclass(frozen=True, slots=True)
class Formats:
    """A scheme: everything that depends on it when numbers become integers."""

    scheme: Scheme

    @property
    def bits(self) -> int:
        return _ACTIVATION_BITS[self.scheme]

    @property
    def affine(self) -> bool:
        return self.scheme == "int8"

    @property
    def power_of_two(self) -> bool:
        return self.scheme in _POWER_OF_TWO

    def params(self, low: float, high: float) -> QuantParams:
        """The parameters for a range, widened to hold zero exactly.

        int8: affine, per tensor. int16x8: symmetric. q7, q15: the finest power of two that holds the range.
        """
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        if not np.isfinite([low, high]).all():
            raise QuantizationError(f"range {low} to {high} must be finite")
        largest = max(-low, high) or 1.0
        if not _LEAST < largest < _MOST:
            raise QuantizationError(f"range {low:.4g} to {high:.4g} leaves no float32 scale; give another")
        if self.affine:
            scale = float(np.float32(((high - low) or 1.0) / 255))
            zero_point = int(np.clip(np.rint(-128 - low / scale), -128, 127))
            return QuantParams(scale, zero_point, 8)
        return QuantParams(float(self._symmetric(np.array([largest]), self.bits)[0]), 0, self.bits)

    def weights(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights [O, ...] as symmetric integers with one scale for each of O, and those scales (float32)."""
        bits = _WEIGHT_BITS[self.scheme]
        largest = np.abs(weight).reshape(len(weight), -1).max(1).astype(np.float64)
        scales = self._symmetric(np.where(largest == 0, 1.0, largest), bits)
        limit = (1 << (bits - 1)) - 1
        codes = np.divide(weight, scales.reshape(-1, *[1] * (weight.ndim - 1)), dtype=np.float64)
        np.clip(np.rint(codes, out=codes), -limit, limit, out=codes)  # in place: a copy costs memory
        return codes.astype(f"i{bits // 8}"), scales

    def _symmetric(self, largest: np.ndarray, bits: int) -> np.ndarray:
        """The scales, float32 numbers, with which 2**(bits - 1) - 1 stands for the largest magnitudes or more."""
        limit = (1 << (bits - 1)) - 1
        if not self.power_of_two:
            return (largest / limit).astype(np.float32).astype(np.float64)
        fine = np.exp2(np.ceil(np.log2(largest / (limit + 0.5))))  # limit + 1/2 still rounds to the limit
        return np.asarray(np.where(largest / fine < limit + 0.5, fine, 2 * fine))

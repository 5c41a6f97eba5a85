"""The usual way, to compare with: an activation as a table, with linear interpolation or the nearest entry."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np

from gemedge.activation import Activation
from gemedge.errors import FormatError
from gemedge.fixed import QFormat, QuantParams
from gemedge.kernel import checked_raw

Interpolation = Literal["linear", "nearest"]


@dataclass(frozen=True)
class Table:
    """Entries at evenly spaced inputs from raw_min on, as LiteRT's 513-entry 16-bit tables and ESP-DL's.

    entries: 2^k, or 2^k + 1 with the right end of the range, k from 1 to the input's bits. `linear`
    (2^k + 1 only) interpolates in integers: a + ((b - a) * f + half) >> shift. `nearest` takes the entry
    nearest to the input, ties upward. The entries are correctly rounded.
    """

    activation: Activation
    in_params: QuantParams
    out_params: QuantParams
    entries: int
    interpolation: Interpolation

    def __init__(
        self,
        activation: Activation,
        in_params: QuantParams | QFormat,
        out_params: QuantParams | QFormat,
        *,
        entries: int,
        interpolation: Interpolation,
    ) -> None:
        for name, given in (("in_params", in_params), ("out_params", out_params)):
            object.__setattr__(self, name, given.params if isinstance(given, QFormat) else given)
        for name, value in (("activation", activation), ("entries", entries), ("interpolation", interpolation)):
            object.__setattr__(self, name, value)
        if self.in_params.bits == 32 or self.out_params.bits == 32:
            raise FormatError(f"a table from {self.in_params} to {self.out_params}; it is for 8 and 16 bits")
        if interpolation not in ("linear", "nearest"):
            raise FormatError(f"interpolation={interpolation!r} must be 'linear' or 'nearest'")
        cells = entries - entries % 2
        if not 2 <= cells <= 1 << self.in_params.bits or cells & (cells - 1):
            raise FormatError(f"entries={entries} must be 2^k or 2^k + 1, k from 1 to {self.in_params.bits}")
        if interpolation == "linear" and entries == cells:
            raise FormatError(f"entries={entries}: linear interpolation needs the right end, {cells + 1} entries")

    @property
    def shift(self) -> int:
        """Input bits between two entries."""
        return self.in_params.bits - self.entries.bit_length() + 1

    @property
    def flash_bytes(self) -> int:
        return self.entries * self.out_params.bits // 8

    @cached_property
    def values(self) -> np.ndarray:
        raw = self.in_params.raw_min + (np.arange(self.entries) << self.shift)
        return np.array([self._exact_code(int(r)) for r in raw], np.int32)

    def __call__(self, raw: Any) -> np.ndarray:
        """The outputs for raw integers of in_params, in the integer type of out_params' width.

        Raises QuantizationError for a value outside in_params.
        """
        index = checked_raw(raw, self.in_params).astype(np.int32) - self.in_params.raw_min
        out = np.dtype(f"i{self.out_params.bits // 8}")
        half = (1 << self.shift) >> 1
        if self.interpolation == "nearest":
            return self.values[np.minimum((index + half) >> self.shift, self.entries - 1)].astype(out)
        cell = index >> self.shift
        left, right = self.values[cell], self.values[cell + 1]
        return (left + (((right - left) * (index & ((1 << self.shift) - 1)) + half) >> self.shift)).astype(out)

    def _exact_code(self, raw: int) -> int:
        x = (raw - self.in_params.zero_point) * self.in_params.exact_scale
        v = self.activation.exact(x) / self.out_params.exact_scale + self.out_params.zero_point
        return min(max((v + Fraction(1, 2)).__floor__(), self.out_params.raw_min), self.out_params.raw_max)

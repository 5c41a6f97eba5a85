"""An activation in integers: raw codes in, the correctly rounded raw codes out, without division or float.

8-bit input is a table of 256 outputs. 16- and 32-bit input is cut by the sign of x and by u = |raw| into
constant stretches and pieces of gemedge.rational. A kernel for 16-bit input has been compared with the exact
value of every code when it is made: a code it would round wrongly is stored (8 at most) or it is refused.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gemedge import intervals, rational
from gemedge import polynomial as poly
from gemedge.activation import Activation, Branch
from gemedge.certificate import Certificate, certify
from gemedge.construct import Constants, build
from gemedge.errors import QuantizationError
from gemedge.fixed import QFormat, QuantParams
from gemedge.rational import Arithmetic

_CHUNK = 1 << 15  # elements at a time: what the intermediates need stays in the cache


@dataclass(frozen=True, init=False)
class FixedActivation:
    """An activation on raw integers of in_params, giving raw integers of out_params.

    in_params, out_params: QFormat or QuantParams, 8, 16 or 32 bits in any mixture. For up to 16 bits in
    and out every output is floor(v + 1/2) of the exact value v in LSB, saturated. With 32 bits on a side
    it is within 1 LSB of v saturated: with polynomials of degree d and a fraction below F LSB the error before
    rounding is below F (8 d + 2) 2**-43 + 1/64, which is at most 25/64 or the kernel is refused.
    Raises UnsupportedError with its reason where a pair cannot be kept to that.
    """

    activation: Activation
    in_params: QuantParams
    out_params: QuantParams
    constants: Constants

    def __init__(
        self,
        activation: Activation,
        in_params: QuantParams | QFormat,
        out_params: QuantParams | QFormat,
        constants: Constants | None = None,
    ) -> None:
        """constants: those of a kernel that was stored; without them they are found."""
        object.__setattr__(self, "activation", activation)
        for name, given in (("in_params", in_params), ("out_params", out_params)):
            object.__setattr__(self, name, given.params if isinstance(given, QFormat) else given)
        found = constants or build(activation, self.in_params, self.out_params)
        object.__setattr__(self, "constants", found)

    def __call__(self, raw: Any) -> np.ndarray:
        """The outputs for an integer array of any shape, in the integer type of out_params' width.

        Raises QuantizationError for a value outside in_params.
        """
        return self.evaluate(raw, Arithmetic())

    def evaluate(self, raw: Any, run: Arithmetic) -> np.ndarray:
        """As a call, with or without checks and a long multiply.

        A checked run is for tests: it raises PromiseError where a constant or an intermediate leaves the
        interval that is proven for it.
        """
        given = checked_raw(raw, self.in_params)
        if run.checked:
            intervals.check(self.activation, self.in_params, self.out_params, self.constants)
        out = np.empty(given.shape, f"i{self.out_params.bits // 8}")
        if self.constants.table:
            table = np.array(self.constants.table, out.dtype)
            return table[given.astype(np.intp) - self.in_params.raw_min]
        flat_in, flat_out = given.reshape(-1), out.reshape(-1)
        for begin in range(0, flat_in.size, _CHUNK):
            self._evaluate(flat_in[begin : begin + _CHUNK], flat_out[begin : begin + _CHUNK], run)
        return out

    def _evaluate(self, x: np.ndarray, out: np.ndarray, run: Arithmetic) -> None:
        negative, positive = self.constants.sides
        out.fill(negative.head)
        if positive.head != negative.head:
            out[x > 0] = positive.head
        if positive.stop <= self.in_params.raw_max:
            out[x >= positive.stop] = positive.tail
        if negative.stop <= -self.in_params.raw_min:
            out[x <= -negative.stop] = negative.tail
        for sign, side in ((-1, negative), (1, positive)):
            for piece in side.pieces:
                first, last = sorted((sign * piece.start, sign * (piece.stop - 1)))
                where = np.flatnonzero((x >= first) & (x <= last))
                u = sign * x[where].astype(np.int64)
                y = piece.rounded(u, run)
                out[where] = np.minimum(np.maximum(y, self.out_params.raw_min), self.out_params.raw_max)
        for code, value in self.constants.exceptions:
            out[x == code] = value

    @property
    def digest(self) -> str:
        """SHA-256 of all constants, with those that kernels share: another constant is another digest."""
        everything = [asdict(self.constants), rational.RECIPROCALS, rational.BIAS]
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()

    def certify(self) -> Certificate:
        """Compare the outputs with the exact values: all codes of 8- and 16-bit input, 65,536 of 32-bit input."""
        return certify(self, self.activation, self.in_params, self.out_params, self.digest)

    @cached_property
    def derivative(self) -> "FixedActivation":
        """The slope of the activation in the same formats, rounded as well; at x = 0 the one from the left."""
        return FixedActivation(derivative_of(self.activation), self.in_params, self.out_params)


def checked_raw(raw: Any, params: QuantParams) -> np.ndarray:
    """The raw integers in the integer type of params' width; QuantizationError names one outside params."""
    given = np.asarray(raw)
    if given.dtype.kind not in "iu":
        raise QuantizationError(f"raw input must be integers, not {given.dtype}")
    own = np.dtype(f"i{params.bits // 8}")
    low, high = params.raw_min, params.raw_max
    if given.dtype != own and given.size and not low <= int(given.min()) <= int(given.max()) <= high:
        worst = int(given.min()) if int(given.min()) < low else int(given.max())
        raise QuantizationError(f"raw input holds {worst}; {params} is from {low} to {high}")
    return given.astype(own, copy=False)


def derivative_of(activation: Activation) -> Activation:
    """The derivative, which is itself a pair of rational branches: slope + (P'Q - PQ') / Q^2."""

    def slope(branch: Branch, sign: int) -> Branch:
        p, q = branch.numerator, branch.denominator
        gained = poly.multiply(poly.derivative(p), q)
        lost = poly.multiply(p, poly.derivative(q))
        factor = sign / activation.exact_epsilon
        return Branch(
            offset=branch.slope * factor,
            numerator=poly.scale(poly.add(gained, poly.scale(lost, -1)), factor),
            denominator=poly.multiply(q, q) if p else q,
        )

    return Activation.rational(
        negative=slope(activation.negative, -1), positive=slope(activation.positive, 1), epsilon=activation.epsilon
    )

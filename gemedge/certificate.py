"""What an integer kernel did on all its codes, judged by exact rational arithmetic.

The judge starts from the branches of the activation and works in Python integers; it shares no code with
gemedge.construct and gemedge.rational, and it sees a kernel only through the outputs it gives.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np

from gemedge.activation import Activation, Branch
from gemedge.fixed import QuantParams

_SAMPLE = 1 << 16


@dataclass(frozen=True, slots=True)
class Certificate:
    """Every 8- and 16-bit input is checked; of 32-bit inputs the edges and 65,536 spread by a fixed seed.

    Errors are in LSB of the output, against the exact value saturated to the output's range.
    """

    checked: int
    exhaustive: bool
    misrounded: int
    max_error: float
    worst_raw: int
    rms_error: float  # against the activation in float64
    monotonicity_violations: int  # neighbours whose outputs are ordered against their exact values
    outputs: str  # SHA-256 of the outputs, little-endian, by rising input
    constants: str  # SHA-256 of the kernel's constants

    def __str__(self) -> str:
        what = f"all {self.checked:,} inputs" if self.exhaustive else f"{self.checked:,} inputs of 2^32"
        return (
            f"{what}: {self.misrounded:,} misrounded, largest error {self.max_error:.6g} LSB at raw {self.worst_raw},"
            f" RMS error {self.rms_error:.4g} LSB, {self.monotonicity_violations} monotonicity violations"
        )


def certify(
    kernel: Callable[[np.ndarray], np.ndarray],
    activation: Activation,
    in_params: QuantParams,
    out_params: QuantParams,
    constants: str,
) -> Certificate:
    """Compare a kernel's outputs with the exact values; constants: the SHA-256 of what it is made of."""
    raw = inputs_to_check(in_params)
    outputs = np.asarray(kernel(raw))
    above, below = _exact(activation, in_params, out_params, raw)
    low, high = out_params.raw_min, out_params.raw_max
    nearest = np.clip((2 * above + below) // (2 * below), low, high).astype(np.int64)
    saturated_above = np.minimum(np.maximum(above, low * below), high * below)
    errors = np.abs((outputs.astype(object) * below - saturated_above) / below).astype(np.float64)
    exact = (saturated_above / below).astype(np.float64)
    rising, exactly_rising = np.sign(np.diff(outputs.astype(np.int64))), np.sign(np.diff(exact))
    worst = int(np.argmax(errors))
    return Certificate(
        checked=raw.size,
        exhaustive=in_params.bits < 32,
        misrounded=int(np.count_nonzero(outputs != nearest)),
        max_error=float(errors[worst]),
        worst_raw=int(raw[worst]),
        rms_error=_rms_error(activation, in_params, out_params, raw, outputs),
        monotonicity_violations=int(np.count_nonzero(rising * exactly_rising < 0)),
        outputs=hashlib.sha256(outputs.astype(f"<i{out_params.bits // 8}").tobytes()).hexdigest(),
        constants=constants,
    )


def inputs_to_check(in_params: QuantParams) -> np.ndarray:
    """The raw inputs of a certificate, rising, in the integer type of in_params' width."""
    low, high = in_params.raw_min, in_params.raw_max
    if in_params.bits < 32:
        return np.arange(low, high + 1).astype(f"i{in_params.bits // 8}")
    rng = np.random.default_rng(0)
    powers = np.concatenate([(1 << np.arange(31)) + d for d in (-1, 0, 1)])
    magnitudes = np.concatenate([powers, rng.integers(0, 1 << 31, _SAMPLE // 2), _log_uniform(rng, _SAMPLE // 2)])
    signs = rng.choice([-1, 1], magnitudes.size)
    return np.unique(np.concatenate([magnitudes * signs, powers, -powers, [low, high]])).astype(np.int32)


def _log_uniform(rng: np.random.Generator, count: int) -> np.ndarray:
    return (2 ** rng.uniform(0, 31, count)).astype(np.int64)


def _exact(
    activation: Activation, in_params: QuantParams, out_params: QuantParams, raw: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of Python integers whose quotient is the exact output in LSB, zero point included."""
    centred = raw.astype(object) - in_params.zero_point
    above, below = np.empty(raw.size, object), np.empty(raw.size, object)
    positive = raw.astype(np.int64) > in_params.zero_point
    for side, branch in ((positive, activation.positive), (~positive, activation.negative)):
        top, bottom = _integer_polynomials(activation, branch, in_params, out_params)
        magnitude = np.abs(centred[side])
        above[side], below[side] = _horner(top, magnitude), _horner(bottom, magnitude)
    return above, below


def _integer_polynomials(
    activation: Activation, branch: Branch, in_params: QuantParams, out_params: QuantParams
) -> tuple[list[int], list[int]]:
    """Numerator and denominator, in the input's magnitude, of the branch in LSB plus the zero point."""
    numerator, denominator = branch.quotient()
    step = in_params.exact_scale / activation.exact_epsilon
    lsb = activation.exact_epsilon / out_params.exact_scale
    length = max(len(numerator), len(denominator))
    p = [*numerator, *[Fraction(0)] * (length - len(numerator))]
    q = [*denominator, *[Fraction(0)] * (length - len(denominator))]
    top = [(p[i] * lsb + q[i] * out_params.zero_point) * step**i for i in range(length)]
    bottom = [q[i] * step**i for i in range(length)]
    whole = lcm(*(c.denominator for c in top + bottom))
    return [int(c * whole) for c in top], [int(c * whole) for c in bottom]


def _horner(coefficients: list[int], u: np.ndarray) -> np.ndarray:
    total = np.zeros(u.size, object)
    for coefficient in reversed(coefficients):
        total = total * u + coefficient
    return total


def _rms_error(
    activation: Activation, in_params: QuantParams, out_params: QuantParams, raw: np.ndarray, outputs: np.ndarray
) -> float:
    x = (raw.astype(np.float64) - in_params.zero_point) * in_params.scale
    value = activation.derivative(x, 0, side="left")  # a call would refuse 0 where the branches do not meet
    ideal = np.clip(value / out_params.scale + out_params.zero_point, out_params.raw_min, out_params.raw_max)
    return float(np.sqrt(np.mean((outputs - ideal) ** 2)))

"""How a kernel's constants are found: exact rationals and float64 are allowed here, at build time.

For 16-bit input the candidates are tried from the simplest on, and the exact output of every code decides; for
32-bit input proven bounds do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np

from gemedge import polynomial as poly
from gemedge.activation import Activation
from gemedge.errors import PromiseError, UnsupportedError
from gemedge.fixed import QuantParams
from gemedge.rational import FRACTION_BITS, WIDE_FRACTION_BITS, Arithmetic, Piece
from gemedge.split import Form, Task, far_form, fraction_size, make_piece, near_form

MAX_EXCEPTIONS = 8
_FLOAT_ERROR = 1e-11  # relative, of activation(x) in float64 for the family: hundreds of times what is seen
_WIDE_ERROR = 0.375  # LSB before the rounding, that of the fraction's polynomials; 1/64 more for all else

Wrong = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Side:
    """One sign of x: `head` for u < start, the pieces for start <= u < stop, `tail` from stop on."""

    start: int
    stop: int
    head: int
    tail: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Constants:
    """All that a kernel consists of: the table of an 8-bit input, or two sides and the stored exceptions."""

    table: tuple[int, ...]
    sides: tuple[Side, ...]  # the negative one first; none beside a table
    exceptions: Wrong


def build(activation: Activation, in_params: QuantParams, out_params: QuantParams) -> Constants:
    """The constants of a kernel; UnsupportedError where it could not be right."""
    negative, positive = (Task(activation, sign, in_params, out_params) for sign in (-1, 1))
    if in_params.bits == 8:
        offsets = range(in_params.raw_min - in_params.zero_point, in_params.raw_max - in_params.zero_point + 1)
        return Constants(tuple((positive if d > 0 else negative).code(abs(d)) for d in offsets), (), ())
    make = _side_by_codes if in_params.bits == 16 else _side_by_bounds
    made = [make(negative), make(positive)]
    exceptions = tuple(pair for _, wrong in made for pair in wrong)
    if len(exceptions) > MAX_EXCEPTIONS:
        raise UnsupportedError(
            f"{negative}: {len(exceptions)} codes would be rounded wrongly, {exceptions[0][0]} first;"
            f" at most {MAX_EXCEPTIONS} can be stored"
        )
    return Constants((), tuple(side for side, _ in made), exceptions)


# 16-bit input: every code decides


def _side_by_codes(task: Task) -> tuple[Side, Wrong]:
    """The side as simple as the exact outputs of all its codes allow, and the codes to store."""
    u = np.arange(0 if task.sign < 0 else 1, task.largest + 1)
    truth = exact_codes(task, u)
    head, tail = int(truth[0]), int(truth[-1])
    if not (truth != head).any():
        return Side(task.largest + 1, task.largest + 1, head, head, ()), ()
    start = int(u[np.argmax(truth != head)])
    stop = int(u[np.flatnonzero(truth != tail)[-1]]) + 1
    if stop <= start:
        return Side(start, start, head, tail, ()), ()
    inner = slice(start - int(u[0]), stop - int(u[0]))
    pieces, wrong = _best(task, u[inner], truth[inner])
    return Side(start, stop, head, tail, pieces), wrong


def _best(task: Task, u: np.ndarray, truth: np.ndarray) -> tuple[tuple[Piece, ...], Wrong]:
    best: tuple[tuple[Piece, ...], np.ndarray] | None = None
    reason = ""
    for makers in _candidates(task, u):
        try:
            pieces = tuple(make_piece(*maker, wide=task.out_params.bits == 32) for maker in makers)
            wrong = np.flatnonzero(_differs(task, _outputs(task, pieces, u), truth))
        except PromiseError as error:
            reason = str(error)
            continue
        if best is None or wrong.size < best[1].size:
            best = pieces, wrong
        if not wrong.size:
            break
    if best is None:
        raise UnsupportedError(f"{task}: no integer form of it fits; {reason}")
    return best[0], tuple((task.sign * int(u[i]), int(truth[i])) for i in best[1])


def _candidates(task: Task, u: np.ndarray) -> Iterator[list[tuple[Form, int, int]]]:
    """Lists of (form, start, stop), the simplest first: affine, one fraction, near and far.

    The affine part alone is also tried a hair lower: so a vanishing negative fraction turns each tie down.
    """
    start, stop = int(u[0]), int(u[-1]) + 1
    far, near = far_form(task), near_form(task)
    for form in (form for form in (far, near) if form.slope):
        for nudge in (Fraction(0), Fraction(-1, 1 << 40)):
            yield [(Form(form.name, form.slope, form.offset + nudge, (), form.denominator), start, stop)]
    yield [(far, start, stop)]
    cut = _cut(task, far, near, u)
    yield [(form, a, b) for form, a, b in ((near, start, cut), (far, cut, stop)) if a < b]


def _cut(task: Task, far: Form, near: Form, u: np.ndarray) -> int:
    """Where to go from near to far so that the largest fraction is smallest."""
    sizes = [fraction_size(task, form, u) for form in (near, far)]
    below = np.concatenate([[0.0], np.maximum.accumulate(sizes[0])])
    above = np.concatenate([np.maximum.accumulate(sizes[1][::-1])[::-1], [0.0]])
    return int(np.append(u, u[-1] + 1)[np.argmin(np.maximum(below, above))])


def _outputs(task: Task, pieces: tuple[Piece, ...], u: np.ndarray) -> np.ndarray:
    run = Arithmetic(checked=True)
    parts = [piece.rounded(u[(u >= piece.start) & (u < piece.stop)], run) for piece in pieces]
    return np.clip(np.concatenate(parts), task.out_params.raw_min, task.out_params.raw_max)


def _differs(task: Task, outputs: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.abs(outputs - truth) > (1 if task.out_params.bits == 32 else 0)


def exact_codes(task: Task, u: np.ndarray) -> np.ndarray:
    """The exactly rounded outputs: by float64 where its error cannot matter, by rationals elsewhere."""
    if task.activation.family == "rational":
        return _rational_codes(task, u)
    v = task.activation(u * (task.sign * task.in_params.scale)) / task.out_params.scale + task.out_params.zero_point
    margin = np.abs(v) * _FLOAT_ERROR + 1e-9
    low, high = np.clip(
        np.floor([v + 0.5 - margin, v + 0.5 + margin]), task.out_params.raw_min, task.out_params.raw_max
    ).astype(np.int64)
    unsure = np.flatnonzero(low != high)
    low[unsure] = _rational_codes(task, u[unsure])
    return low


def _rational_codes(task: Task, u: np.ndarray) -> np.ndarray:
    """floor(v + 1/2) = (2 (affine * D + N) + D) // 2 D with Python integers, saturated."""
    form = far_form(task)
    whole = lcm(form.slope.denominator, form.offset.denominator)
    affine = poly.multiply((form.offset, form.slope), form.denominator)
    above = poly.scale(poly.add(poly.scale(poly.add(affine, form.numerator), 2), form.denominator), whole)
    below = poly.scale(form.denominator, 2 * whole)
    exact_u = u.astype(object)
    quotient = _value(above, exact_u) // _value(below, exact_u)
    return np.clip(quotient, task.out_params.raw_min, task.out_params.raw_max).astype(np.int64)


def _value(p: poly.Polynomial, u: np.ndarray) -> np.ndarray:
    total = np.zeros(u.shape, object)
    for coefficient in reversed(p):
        total = total * u + int(coefficient)
    return total


# 32-bit input: bounds decide


def _side_by_bounds(task: Task) -> tuple[Side, Wrong]:
    """The side with both forms where far alone would be too large; within 1 LSB of the exact value."""
    stop = _saturated_from(task)
    tail = task.code(min(stop, task.largest))
    head = task.code(0)
    if stop <= 1:
        return Side(1, 1, head, tail, ()), ()
    far, near = far_form(task), near_form(task)
    if not far.slope and not far.numerator:
        return Side(task.largest + 1, task.largest + 1, head, head, ()), ()
    wide = task.out_params.bits == 32
    u = np.unique(np.concatenate([np.geomspace(1, stop - 1, 4096).astype(np.int64), [1, stop - 1]]))
    sizes = fraction_size(task, far, u)
    cut = 1
    if sizes.max() >= 2.0 ** ((WIDE_FRACTION_BITS if wide else FRACTION_BITS) - 2):
        cut = _cut(task, far, near, u)
        sizes = np.where(u < cut, fraction_size(task, near, u), sizes)
    error = sizes.max() * (8 * poly.degree(far.denominator) + 2) * 2.0**-43
    if error > _WIDE_ERROR:
        raise UnsupportedError(f"{task}: the error before rounding is bounded by {error:.3g} LSB, not by {_WIDE_ERROR}")
    try:
        pieces = tuple(make_piece(form, a, b, wide=wide) for form, a, b in ((near, 1, cut), (far, cut, stop)) if a < b)
        _outputs(task, pieces, u)
    except PromiseError as error:
        raise UnsupportedError(f"{task}: no integer form of it fits; {error}") from error
    return Side(1, stop, head, tail, pieces), ()


def _saturated_from(task: Task) -> int:
    """The smallest u found from which on every output is saturated; largest + 1 if there is none."""
    top = task.value(task.largest)
    bound = task.out_params.raw_max + 1 if top > 0 else task.out_params.raw_min - 1
    sign = 1 if top > 0 else -1
    low, high = 0, task.largest + 1
    if sign * top < sign * bound:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sign * task.value(middle) >= sign * bound else (middle, high)
    form = far_form(task)
    affine = poly.multiply((form.offset - bound, form.slope), form.denominator)
    beyond = poly.scale(_shifted(poly.add(affine, form.numerator), high), sign)
    if not poly.is_positive_from_zero(poly.add(beyond, (Fraction(1, 1 << 200),))):  # it may be 0 at high itself
        raise UnsupportedError(f"{task}: it leaves the output's range at raw {task.sign * high} and comes back")
    return high


def _shifted(p: poly.Polynomial, by: int) -> poly.Polynomial:
    """p(u + by)."""
    total: poly.Polynomial = ()
    for coefficient in reversed(p):
        total = poly.add(poly.multiply(total, (Fraction(by), Fraction(1))), (coefficient,))
    return total

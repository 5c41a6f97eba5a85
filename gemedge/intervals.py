"""The proven interval of every constant of a kernel, found again from exact rationals.

Inside it the estimate of gemedge.rational is within one of the result, so that the remainder decides
rightly (docs/numerics.md). A constant outside raises PromiseError that names it, its value and its interval.
"""

from fractions import Fraction

import numpy as np

from gemedge import rational
from gemedge.activation import Activation
from gemedge.construct import Constants, Side, build
from gemedge.errors import PromiseError
from gemedge.fixed import QuantParams
from gemedge.rational import NormalPolynomial, Piece

_TABLE_ERROR = Fraction(1, 120)  # |1 - d r|: its cube, 2**-20.7, times 2**18 LSB is below 0.16 LSB
_ESTIMATE_ERROR = 10_600  # of the estimate, in 2**-16 LSB


def check(activation: Activation, in_params: QuantParams, out_params: QuantParams, constants: Constants) -> None:
    """Raise PromiseError if a constant of the kernel, or one that all kernels share, left its interval."""
    _check_shared()
    proven = build(activation, in_params, out_params)
    _within("the table", constants.table, proven.table)
    _within("the stored exceptions", constants.exceptions, proven.exceptions)
    _within("the number of sides", len(constants.sides), len(proven.sides))
    for name, side, exact in zip(("negative", "positive"), constants.sides, proven.sides, strict=False):
        _check_side(f"the {name} side's", side, exact)


def _check_shared() -> None:
    for i, entry in enumerate(rational.RECIPROCALS):
        low = (1 - _TABLE_ERROR) * (1 << 22) / (64 + i)  # at the interval's ends d = 64 + i and 65 + i
        high = (1 + _TABLE_ERROR) * (1 << 22) / (65 + i)
        _between(f"reciprocal {i}", entry, low.__ceil__(), high.__floor__())
    _between("the bias", rational.BIAS, _ESTIMATE_ERROR, (1 << 16) - 1 - _ESTIMATE_ERROR)
    if list(rational.RECIPROCAL_ARRAY) != list(rational.RECIPROCALS):
        raise PromiseError("the reciprocals in use are not the table")


def _check_side(whose: str, side: Side, exact: Side) -> None:
    _between(f"{whose} start", side.start, min(1, exact.start), exact.start)
    largest = max(exact.stop, exact.pieces[-1].stop if exact.pieces else exact.stop)
    _between(f"{whose} stop", side.stop, exact.stop, largest)
    for name in ("head", "tail"):
        _within(f"{whose} {name}", getattr(side, name), getattr(exact, name))
    _within(f"{whose} forms", [p.form for p in side.pieces], [p.form for p in exact.pieces])
    for index, (piece, proven) in enumerate(zip(side.pieces, exact.pieces, strict=True)):
        _check_piece(f"{whose} piece {index}:", piece, proven)


def _check_piece(whose: str, piece: Piece, exact: Piece) -> None:
    for name in ("start", "stop", "affine_bits", "wide"):
        _within(f"{whose} {name}", getattr(piece, name), getattr(exact, name))
    for name in ("slope", "offset"):
        value = getattr(exact, name)
        _between(f"{whose} {name}", getattr(piece, name), value - 1, value + 1)
    for name in ("plus", "minus", "above", "below"):
        _check_polynomial(f"{whose} {name}", getattr(piece, name), getattr(exact, name))


def _check_polynomial(whose: str, given: NormalPolynomial | None, exact: NormalPolynomial | None) -> None:
    if given is None or exact is None:
        _within(whose, given, exact)
        return
    _within(f"{whose} exponents", given.exponents, exact.exponents)
    _within(f"{whose} number of mantissas", len(given.mantissas), len(exact.mantissas))
    for power, (mantissa, proven) in enumerate(zip(given.mantissas, exact.mantissas, strict=True)):
        around = 1 if proven else 0
        low, high = max(proven - around, min(proven, 1 << 43)), min(proven + around, (1 << 44) - 1)
        _between(f"{whose} mantissa {power}", mantissa, low, high)


def _within(name: str, value: object, proven: object) -> None:
    if value != proven:
        raise PromiseError(f"{name} is {_short(value)}; proven is {_short(proven)} alone")


def _between(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise PromiseError(f"{name} is {value}, outside its proven interval {low} to {high}")


def _short(value: object) -> str:
    text = repr(np.asarray(value).tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) < 60 else text[:57] + "..."

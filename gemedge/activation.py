"""Rational activation functions: what they are, exactly and in float.

An activation is a pair of branches, one per sign of x. With t = |x| / epsilon a branch stands for

    epsilon * (slope * t + offset + P(t) / Q(t)),    deg P < deg Q,  Q > 0 on t >= 0.

GEM, E-GEM and SE-GEM (arXiv 2604.21677) are three constructors. The paper states SE-GEM's properties;
the closed form with one division that is used here is gemedge's. epsilon is a float32 number, rounded
once when the activation is made; "exact" always means that rational number.
"""

import ast
import operator
import warnings
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np

from gemedge import polynomial as poly
from gemedge.errors import ActivationError

MAX_N = 16
MAX_DEGREE = 64
_MAX_ORDER = 2 * MAX_N + 1  # one more than any member of the family is smooth
_LONGEST_TEXT = 2000

Side = Literal["left", "right"]
Family = Literal["gem", "segem", "rational"]
_Number = TypeVar("_Number", bound=Any)


@dataclass(frozen=True, slots=True)
class Branch:
    """One side of 0 in units of epsilon: slope * t + offset + numerator(t) / denominator(t).

    The two polynomials are given by their coefficients, lowest power first, each taken exactly.
    Raises ActivationError if the fraction is not proper or its denominator has a root on t >= 0.
    """

    slope: Fraction = Fraction(0)
    offset: Fraction = Fraction(0)
    numerator: poly.Polynomial = ()
    denominator: poly.Polynomial = (Fraction(1),)

    def __post_init__(self) -> None:
        for name, make in _BRANCH_FIELDS.items():
            given = getattr(self, name)
            try:
                object.__setattr__(self, name, make(given))
            except (TypeError, ValueError, OverflowError) as error:
                raise ActivationError(f"branch {name}={given!r} is not made of finite numbers") from error
        if max(map(poly.degree, (self.numerator, self.denominator))) > MAX_DEGREE:
            raise ActivationError(f"a branch's polynomials may have degree {MAX_DEGREE} at most")
        if not poly.is_positive_from_zero(self.denominator):
            raise ActivationError(
                f"denominator {_list(self.denominator)} is not positive for every t >= 0; a branch must have no pole"
            )
        if poly.degree(self.numerator) >= poly.degree(self.denominator) and self.numerator:
            raise ActivationError(
                f"numerator {_list(self.numerator)} must have a lower degree than denominator"
                f" {_list(self.denominator)}; put the whole part into slope and offset"
            )

    def exact(self, t: Fraction) -> Fraction:
        """The branch at t >= 0, without rounding."""
        return self.slope * t + self.offset + poly.value(self.numerator, t) / poly.value(self.denominator, t)

    def quotient(self) -> tuple[poly.Polynomial, poly.Polynomial]:
        """The branch as a single fraction, numerator and denominator."""
        affine = poly.multiply((self.offset, self.slope), self.denominator)
        return poly.add(affine, self.numerator), self.denominator

    def derivative_quotient(self, order: int) -> tuple[poly.Polynomial, poly.Polynomial]:
        """N and D with N / D^(order + 1) the derivative of that order with respect to t."""
        return _derivative_quotient(self, order)

    def __str__(self) -> str:
        return (
            f"branch(slope={self.slope}, offset={self.offset}, "
            f"numerator={_list(self.numerator)}, denominator={_list(self.denominator)})"
        )


_BRANCH_FIELDS: dict[str, Any] = {
    "slope": Fraction,
    "offset": Fraction,
    "numerator": poly.polynomial,
    "denominator": poly.polynomial,
}


@dataclass(frozen=True, slots=True)
class Activation:
    """A rational activation function of one real variable; x = 0 belongs to the negative branch.

    `family` and `n` are recognised from the branches: egem(n=1, epsilon=1.0) is gem(n=1).
    Raises ActivationError where epsilon is not a positive finite float32 number.
    """

    negative: Branch
    positive: Branch
    epsilon: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", _float32(self.epsilon))

    @classmethod
    def gem(cls, n: int) -> "Activation":
        """x * t^(2n) / (1 + t^(2n)) with t = x for x > 0, and 0 elsewhere; n from 1 to MAX_N."""
        return cls.egem(n, 1.0)

    @classmethod
    def egem(cls, n: int, epsilon: float) -> "Activation":
        """GEM at another scale: epsilon * GEM(x / epsilon)."""
        return cls(*_gem_branches(_checked_n(n)), epsilon)

    @classmethod
    def segem(cls, n: int, epsilon: float) -> "Activation":
        """x for x > 0, and -epsilon * (1 - 1 / (1 + t + ... + t^(2n))) elsewhere: no dead neurons."""
        return cls(*_segem_branches(_checked_n(n)), epsilon)

    @classmethod
    def rational(cls, *, negative: Branch, positive: Branch, epsilon: float = 1.0) -> "Activation":
        """Any pair of branches; nothing asks them to meet at 0."""
        return cls(negative, positive, epsilon)

    @classmethod
    def parse(cls, text: str) -> "Activation":
        """The activation that `str()` wrote as `text`, for example `egem(n=1, epsilon=0.01)`."""
        return _parse(text)

    @property
    def n(self) -> int | None:
        """The paper's N, or None for an activation outside the family."""
        return _recognise(self.negative, self.positive)[1]

    @property
    def family(self) -> Family:
        return _recognise(self.negative, self.positive)[0]

    @property
    def exact_epsilon(self) -> Fraction:
        return Fraction(self.epsilon)

    def exact(self, x: Fraction) -> Fraction:
        """The value at x, without rounding."""
        branch = self.positive if x > 0 else self.negative
        return self.exact_epsilon * branch.exact(abs(x) / self.exact_epsilon)

    def __call__(self, x: Any) -> Any:
        """The value at x in x's own float type, elementwise; integers count as float64.

        x: array or number of any shape. Sixteen-bit floats are computed in float32. -0, denormals,
        infinities and NaN are as in the limit. The family's formulas give the same bits in NumPy,
        torch and onnxruntime; other rational functions are computed in float64.
        """
        given = np.asarray(x)
        with np.errstate(all="ignore"):
            result = self._value(given.astype(_working_type(given.dtype)))
            return result.astype(_result_type(given.dtype))[()]

    def derivative(self, x: Any, order: int = 1, *, side: Side | None = None) -> Any:
        """The derivative of the given order at x, elementwise, computed in float64, in x's own float type.

        order: from 0 to 2 * MAX_N + 1. side: which branch x = 0 belongs to. Needed, else ActivationError,
        where x holds a 0 and the two one-sided derivatives differ there.
        """
        order = _checked_order(order)
        if side not in (None, "left", "right"):
            raise ActivationError(f"side={side!r} must be 'left' or 'right'")
        given = np.asarray(x)
        wide = given.astype(np.float64)
        if side is None and not self._sides_agree(order) and np.any(wide == 0):
            raise ActivationError(
                f"the two sides of 0 have different derivatives of order {order} of {self}; say side='left' or 'right'"
            )
        is_right = (wide > 0) | ((wide == 0) & (side == "right"))
        with np.errstate(all="ignore"):
            right = _slope(self.positive, order, np.abs(wide), self.epsilon)
            left = _slope(self.negative, order, np.abs(wide), self.epsilon) * (-1) ** order
            result = np.where(np.isnan(wide), wide, np.where(is_right, right, left))
            return result.astype(_result_type(given.dtype))[()]

    def _value(self, x: np.ndarray) -> np.ndarray:
        epsilon = x.dtype.type(self.epsilon)
        match _recognise(self.negative, self.positive):
            case "gem", int(n):
                r = np.maximum(x, 0)
                return r / (1 + even_power(epsilon / r, n))
            case "segem", int(n):
                t = np.minimum(np.maximum(-x, 0) / epsilon, segem_limit(n))
                s = rising_sum(t, n)
                return np.maximum(x, 0) - epsilon * (s / (1 + s))
        return np.asarray(self.derivative(x, 0, side="left")).astype(x.dtype)

    def _sides_agree(self, order: int) -> bool:
        left = _derivative_quotient(self.negative, order)
        right = _derivative_quotient(self.positive, order)
        return _at_zero(left, order) * (-1) ** order == _at_zero(right, order)

    def __str__(self) -> str:
        family, n = _recognise(self.negative, self.positive)
        epsilon = str(np.float32(self.epsilon))  # the shortest text that reads back
        match family:
            case "gem" if self.epsilon == 1:
                return f"gem(n={n})"
            case "gem":
                return f"egem(n={n}, epsilon={epsilon})"
            case "segem":
                return f"segem(n={n}, epsilon={epsilon})"
        return f"rational(negative={self.negative}, positive={self.positive}, epsilon={epsilon})"


def epsilon_from_denominator(c: float, n: int) -> float:
    """The epsilon of an E-GEM written with x^(2n) + c in its denominator: c^(1/(2n)).

    Raises ActivationError unless c is positive and finite.
    """
    if not 0 < c < float("inf"):
        raise ActivationError(f"c={c} must be positive and finite")
    return _float32(c ** (1 / (2 * _checked_n(n))))


def even_power(q: _Number, n: int) -> _Number:
    """q^(2n) by squaring, lowest bit of n first: the one order that every runtime multiplies in."""
    square = q * q
    while not n & 1:
        square, n = square * square, n >> 1
    power = square
    while n := n >> 1:
        square = square * square
        if n & 1:
            power = power * square
    return power


def rising_sum(t: _Number, n: int) -> _Number:
    """t + t^2 + ... + t^(2n) by Horner's rule."""
    total = t
    for _ in range(2 * n - 1):
        total = (total + 1) * t
    return total


def segem_limit(n: int) -> float:
    """A t beyond which SE-GEM is -epsilon in every float type; clamping there keeps t^(2n) finite."""
    return float(2 ** (126 // (2 * n)))


def _checked_n(n: int) -> int:
    try:
        whole = operator.index(n)
    except TypeError:
        raise ActivationError(f"n={n!r} must be a whole number from 1 to {MAX_N}") from None
    if isinstance(n, bool) or not 1 <= whole <= MAX_N:
        raise ActivationError(f"n={n!r} must be a whole number from 1 to {MAX_N}")
    return whole


def _checked_order(order: int) -> int:
    try:
        whole = operator.index(order)
    except TypeError:
        whole = -1
    if not 0 <= whole <= _MAX_ORDER:
        raise ActivationError(f"order={order!r} must be a whole number from 0 to {_MAX_ORDER}")
    return whole


def _float32(epsilon: float) -> float:
    try:
        with np.errstate(over="ignore", under="ignore"):
            rounded = float(np.float32(epsilon))
    except (TypeError, ValueError, OverflowError):
        rounded = float("nan")
    if not 0 < rounded < float("inf"):
        raise ActivationError(f"epsilon={epsilon!r} must be positive and finite in float32")
    return rounded


@cache
def _gem_branches(n: int) -> tuple[Branch, Branch]:
    one_plus_power = poly.polynomial([1] + [0] * (2 * n - 1) + [1])
    return Branch(), Branch(slope=Fraction(1), numerator=poly.polynomial([0, -1]), denominator=one_plus_power)


@cache
def _segem_branches(n: int) -> tuple[Branch, Branch]:
    geometric_sum = poly.polynomial([1] * (2 * n + 1))
    negative = Branch(offset=Fraction(-1), numerator=poly.polynomial([1]), denominator=geometric_sum)
    return negative, Branch(slope=Fraction(1))


@cache
def _recognise(negative: Branch, positive: Branch) -> tuple[Family, int | None]:
    for n in range(1, MAX_N + 1):
        if (negative, positive) == _gem_branches(n):
            return "gem", n
        if (negative, positive) == _segem_branches(n):
            return "segem", n
    return "rational", None


# Float evaluation of a branch and its derivatives


def _working_type(dtype: np.dtype) -> type:
    if dtype == np.float32 or _is_half(dtype):
        return np.float32
    return np.float64


def _result_type(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.kind == "f" or _is_half(dtype) else np.dtype(np.float64)


def _is_half(dtype: np.dtype) -> bool:
    return dtype == np.float16 or dtype.name == "bfloat16"


def _slope(branch: Branch, order: int, magnitude: np.ndarray, epsilon: float) -> np.ndarray:
    """The derivative, with respect to |x|, of a branch of the function at |x|, in float64.

    Up to t = 1 the fraction is evaluated in t, beyond it in 1/t, so that no power overflows.
    """
    numerator, denominator = _derivative_quotient(branch, order)
    t = magnitude / epsilon
    if not numerator:
        return np.zeros_like(t)
    exponent = order + 1
    u = 1 / t
    growth = poly.degree(numerator) - exponent * poly.degree(denominator)
    small = _horner(numerator, t) / _horner(denominator, t) ** exponent
    large = _horner(numerator[::-1], u) / _horner(denominator[::-1], u) ** exponent
    if order == 0 and growth == 1:  # a part proportional to x: t itself may overflow where x does not
        return np.where(t <= 1, small * epsilon, large * magnitude)
    scale = np.float64(epsilon) ** (1 - order)
    if not np.isfinite(scale):  # it, but not its product with a high power of t, leaves float64
        log = growth * np.log2(t) + (1 - order) * np.log2(epsilon)
        return np.where(t <= 1, np.where(small == 0, 0, small * scale), large * np.exp2(log))
    return np.where(t <= 1, small, large * t ** float(growth)) * scale


@cache
def _derivative_quotient(branch: Branch, order: int) -> tuple[poly.Polynomial, poly.Polynomial]:
    """N and D with branch^(order)(t) = N / D^(order + 1)."""
    if order == 0:
        return branch.quotient()
    n, d = _derivative_quotient(branch, order - 1)
    gained = poly.multiply(poly.derivative(n), d)
    lost = poly.scale(poly.multiply(n, poly.derivative(d)), order)
    return poly.add(gained, poly.scale(lost, -1)), d


def _at_zero(quotient: tuple[poly.Polynomial, poly.Polynomial], order: int) -> Fraction:
    n, d = quotient
    return poly.value(n, Fraction(0)) / d[0] ** (order + 1)


def _horner(p: poly.Polynomial, t: np.ndarray) -> np.ndarray:
    total = np.zeros_like(t)
    for coefficient in reversed(p):
        total = total * t + float(coefficient)
    return total


# The short form


def _list(p: poly.Polynomial) -> str:
    return "[" + ", ".join(map(str, p)) + "]"


def _parse(text: str) -> Activation:
    constructors: dict[str, Any] = {
        "gem": Activation.gem,
        "egem": Activation.egem,
        "segem": Activation.segem,
        "rational": Activation.rational,
        "branch": Branch,
    }

    def read(node: ast.expr) -> Any:
        match node:
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in constructors:
                named: dict[str, Any] = {}
                for keyword in keywords:
                    if keyword.arg is None or keyword.arg in named:
                        raise ActivationError(f"{ast.unparse(keyword)!r} is no argument, or is given twice")
                    named[keyword.arg] = read(keyword.value)
                return constructors[name](*map(read, args), **named)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return [read(element) for element in elements]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -read(operand)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                return Fraction(read(left)) / Fraction(read(right))
            case ast.Constant(value=int() | float() as number):
                return number
        raise ActivationError(f"{ast.unparse(node)!r} is not a number, a list or one of {', '.join(constructors)}")

    try:
        if len(text) > _LONGEST_TEXT:
            raise ActivationError(f"it is {len(text)} characters long; the longest allowed is {_LONGEST_TEXT}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # where Python would print a line of its own
            parsed = ast.parse(text.strip(), mode="eval")
        made = read(parsed.body)
        if not isinstance(made, Activation):
            raise ActivationError("it is no activation")
    except (ActivationError, SyntaxError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        unreadable = isinstance(error, RecursionError | MemoryError | SyntaxError | SyntaxWarning | DeprecationWarning)
        division = isinstance(error, ZeroDivisionError)
        reason = "it cannot be read" if unreadable else "it divides by 0" if division else str(error)
        raise ActivationError(
            f"activation {text[:80]!r}: {reason}; write for example 'gem(n=1)', 'egem(n=1, epsilon=0.01)'"
            " or 'segem(n=2, epsilon=1.0)'"
        ) from error
    return made

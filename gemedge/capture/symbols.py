"""The shape expressions of torch.export, held to a grammar before torch evaluates them as Python.

torch writes them as sympy's srepr, for example Mul(Integer(8), Symbol('s53', positive=True, integer=True)).
Only calls of the functions below on numbers and symbols are let through, and no power that could grow large.
"""

import ast
import re
import warnings
from functools import lru_cache

from gemedge.errors import ModelError

MAX_LENGTH = 4000
MAX_DEPTH = 60
MAX_BITS = 8192

_SYMBOL = re.compile(r"(?:s|u|f|zf|zuf)\d{1,5}")
_FLOAT = re.compile(r"-?\d{1,20}(?:\.\d{0,40})?(?:e[+-]?\d{1,3})?")
_ASSUMPTIONS = {"positive", "nonnegative", "nonzero", "negative", "integer", "real", "finite", "extended_real", "zero"}
_SYMBOL_BITS = 64
_FUNCTIONS = """
    Add Mul Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv ModularIndexing IntTrueDiv FloatTrueDiv ToFloat
    TruncToInt TruncToFloat CeilToInt FloorToInt RoundToInt Where Identity Equality Unequality
    GreaterThan StrictGreaterThan LessThan StrictLessThan Eq Ne Ge Gt Le Lt And Or Not
"""
_POWERS = ("Pow", "PowByNatural")
_CONSTANTS = ("true", "false")
_ALLOWED = frozenset(_FUNCTIONS.split())


def check_expression(text: object) -> str:
    """The text itself. Raises ModelError unless it is an expression of the grammar above."""
    if type(text) is not str or len(text) > MAX_LENGTH or not text.isascii() or "\n" in text:
        raise ModelError(f"it has a shape expression that is no ASCII text of up to {MAX_LENGTH} characters")
    _check_text(text)
    return text


@lru_cache(maxsize=1000)
def _check_text(text: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _bits(ast.parse(text, mode="eval").body, MAX_DEPTH)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"the shape expression {text[:80]!r} is not in the form that torch writes") from error


def check_symbol(name: object) -> str:
    """The name itself. Raises ModelError unless torch could have given it to a symbol, as s53 or u0."""
    if type(name) is not str or not _SYMBOL.fullmatch(name):
        raise ModelError(f"{name!r:.80} is no symbol of a shape; torch's are as s53 and u0")
    return name


def _bits(node: ast.expr, depth: int) -> int:
    """A bound on the bits of the value; ValueError where the node is outside the grammar."""
    if depth == 0:
        raise ValueError("too deep")
    match node:
        case ast.Name(id=name) if name in _CONSTANTS:
            return 1
        case ast.Call(func=ast.Name(id="Integer"), args=[value], keywords=[]):
            return _limited(abs(_integer(value)).bit_length())
        case ast.Call(func=ast.Name(id="Rational"), args=[above, below], keywords=[]) if _integer(below) > 0:
            return _limited(abs(_integer(above)).bit_length() + _integer(below).bit_length())
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(text))], keywords=[precision]):
            if not _FLOAT.fullmatch(text) or precision.arg != "precision" or _integer(precision.value) != 53:
                raise ValueError("a float outside the grammar")
            return 1100
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=assumptions):
            check_symbol(name)
            if not all(_is_assumption(assumption) for assumption in assumptions):
                raise ValueError("an assumption outside the grammar")
            return _SYMBOL_BITS
        case ast.Call(func=ast.Name(id=function), args=[base, ast.Call() as exponent], keywords=[]) if (
            function in _POWERS
        ):
            return _limited(_bits(base, depth - 1) * max(1, abs(_constant(exponent))))
        case ast.Call(func=ast.Name(id=function), args=arguments, keywords=[]) if function in _ALLOWED and arguments:
            return _limited(sum(_bits(argument, depth - 1) for argument in arguments) + len(arguments))
    raise ValueError("outside the grammar")


def _limited(bits: int) -> int:
    if bits > MAX_BITS:
        raise ValueError("too large a number")
    return bits


def _integer(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(value)) if type(value) is int:
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))) if type(value) is int:
            return -value
    raise ValueError("no whole number")


def _constant(node: ast.Call) -> int:
    """The exponent of a power: a whole number or 1/2, small."""
    match node:
        case ast.Call(func=ast.Name(id="Integer"), args=[value], keywords=[]) if abs(_integer(value)) <= 16:
            return _integer(value)
        case ast.Call(func=ast.Name(id="Rational"), args=[above, below], keywords=[]) if (
            _integer(above),
            _integer(below),
        ) == (1, 2):
            return 1
    raise ValueError("an exponent outside the grammar")


def _is_assumption(keyword: ast.keyword) -> bool:
    return keyword.arg in _ASSUMPTIONS and isinstance(keyword.value, ast.Constant) and type(keyword.value.value) is bool

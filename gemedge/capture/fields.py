"""Checks of JSON values, made of one another: each takes a value and returns a copy that is sound.

All raise ModelError with a short reason, UnsupportedError where the value is of a kind that gemedge does not
read. A field that no check asks for is dropped, so nothing comes through unlooked at.
"""

import json
import keyword
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from gemedge.errors import ModelError, UnsupportedError

MAX_BYTES = 1 << 25

_MAX_INT = 1 << 63
_MAX_SIZE = 1 << 48
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,250}")
_PATH = re.compile(r"[A-Za-z0-9_-]{1,250}(?:\.[A-Za-z0-9_-]{1,250}){0,60}")

Check: TypeAlias = Callable[[Any], Any]


def read_json(data: memoryview, what: str) -> Any:
    """The JSON value in data. ModelError where it is none, or longer or deeper than any model's."""
    if len(data) > MAX_BYTES:
        raise ModelError(f"{what} has {len(data)} bytes; {MAX_BYTES} are allowed")
    try:
        return json.loads(bytes(data).decode())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what} is not JSON that torch could have written") from error


def write_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def struct(required: dict[str, Check], optional: dict[str, Check] | None = None) -> Check:
    """A dict with these fields; others are dropped."""

    def check(value: Any) -> dict[str, Any]:
        exactly(value, dict)
        missing = required.keys() - value.keys()
        if missing:
            raise ModelError(f"it lacks the field {min(missing)!r}")
        fields = required | (optional or {})
        return {name: inner(value[name]) for name, inner in fields.items() if name in value}

    return check


def union(cases: dict[str, Check], what: str) -> Check:
    """A dict with exactly one of these fields."""

    def check(value: Any) -> dict[str, Any]:
        exactly(value, dict)
        if len(value) != 1:
            raise ModelError(f"{what} has {len(value)} fields instead of one")
        ((name, content),) = value.items()
        if name not in cases:
            raise UnsupportedError(f"{what} of the kind {name[:40]!r} is not what gemedge reads")
        return {name: cases[name](content)}

    return check


def list_of(inner: Check, longest: int = 1_000_000) -> Check:
    def check(value: Any) -> list[Any]:
        exactly(value, list)
        if len(value) > longest:
            raise ModelError(f"it has a list of {len(value)} values; {longest} are allowed")
        return [inner(item) for item in value]

    return check


def dict_of(key: Check, inner: Check) -> Check:
    def check(value: Any) -> dict[str, Any]:
        exactly(value, dict)
        return {key(name): named(name, inner, item) for name, item in value.items()}

    return check


def named(name: str, inner: Check, value: Any) -> Any:
    """inner(value), with the name before the reason where it raises."""
    try:
        return inner(value)
    except (ModelError, UnsupportedError) as error:
        raise type(error)(f"{name!r:.80}: {error}") from error


def optional(inner: Check) -> Check:
    return lambda value: None if value is None else inner(value)


def boolean(value: Any) -> bool:
    return exactly(value, bool)


def whole(value: Any) -> int:
    if type(value) is not int or not -_MAX_INT <= value < _MAX_INT:
        raise ModelError(f"{value!r:.60} is not a whole number of 64 bits")
    return value


def size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_SIZE:
        raise ModelError(f"{value!r:.60} is not a size or stride from 0 to 2^48")
    return value


def number(value: Any) -> float | str:
    if value in ("Infinity", "-Infinity", "NaN"):  # torch writes these as texts, and reads them with float()
        return str(value)
    return value if type(value) is float else float(whole(value))


def text(value: Any) -> str:
    if type(value) is not str or len(value) > 10_000:
        raise ModelError("it has a text argument that is no text of up to 10000 characters")
    return value


def identifier(value: Any) -> str:
    """A name that torch puts into Python source as it is."""
    if type(value) is not str or not _IDENTIFIER.fullmatch(value) or keyword.iskeyword(value):
        raise ModelError(f"{value!r:.80} is no Python identifier; torch writes no other names into a graph")
    return value


def path(value: Any) -> str:
    """The dotted name of a parameter or buffer."""
    if type(value) is not str or not _PATH.fullmatch(value):
        raise ModelError(f"{value!r:.80} is no name of a parameter; it is made of letters, digits, '_', '-' and dots")
    return value


def exactly(value: Any, kind: type) -> Any:
    """The value itself, of this very type."""
    if type(value) is not kind:
        raise ModelError(f"{value!r:.60} stands where torch writes a {kind.__name__}")
    return value

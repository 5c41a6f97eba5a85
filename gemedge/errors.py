"""Every error that gemedge raises on purpose.

A message names the thing, its value, and what is allowed, in one line. `exit_status` is what the
command line ends with; anything that is not a GemedgeError is a bug of ours and keeps its traceback.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

_WHERE_IN_ONNXRUNTIME = re.compile(r"/onnxruntime_src/\S+:\d+ [^)]*\) |^\[ONNXRuntimeError\] : \d+ : \w+ : ")


class GemedgeError(Exception):
    """The common parent, so that a caller can catch all of ours and nothing else."""

    exit_status = 70


class ActivationError(GemedgeError, ValueError):
    """An activation function that cannot be: n, epsilon or a branch outside its domain."""

    exit_status = 2


class FormatError(GemedgeError, ValueError):
    """A number format that cannot be, or that the operation does not take."""

    exit_status = 2


class UsageError(GemedgeError, ValueError):
    """Arguments that contradict each other or miss something."""

    exit_status = 2


class PromiseError(GemedgeError):
    """A check failed: the result would differ from what gemedge promises."""

    exit_status = 1


class ModelError(GemedgeError):
    """A model file that is damaged, hostile, or not what it says it is."""

    exit_status = 3


class UnsupportedError(GemedgeError):
    """A sound model that asks for something gemedge does not do."""

    exit_status = 4


class ToolError(GemedgeError):
    """A program that gemedge needs for this is missing or failed; its own message is part of the text."""

    exit_status = 4


class DataError(GemedgeError):
    """Input data that is damaged or does not fit the model."""

    exit_status = 5


class QuantizationError(DataError):
    """Values that have no integer in the format asked for."""


class OutputError(GemedgeError):
    """A result that could not be written."""

    exit_status = 6


def reason(error: BaseException) -> str:
    """What an error of a library says, in one line of up to 200 characters; its class where it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = _WHERE_IN_ONNXRUNTIME.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def innermost(error: BaseException) -> BaseException:
    """The error that an error came from, and that one from, and so on."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def about(name: object) -> Iterator[None]:
    """Put what an error is about before its text: the file, where inner code does not know it."""
    try:
        yield
    except GemedgeError as error:
        raise type(error)(f"{name}: {error}") from error


class GemedgeWarning(UserWarning):
    """Something gemedge went on without; the text says what, why, and what happens instead."""

"""Data for a model as a stream of batches, {input name: array}; what is in memory is a batch, never the data set.

Every number is checked before a model sees it: shape, kind of type, finite. An error names the file (or the
callable), the array and the sample.
"""

import importlib
import math
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx_ir as ir

from gemedge.data import is_zip, npy_header, npz_entries, open_regular, reading
from gemedge.errors import DataError, UnsupportedError, UsageError

Batch = dict[str, np.ndarray]

_LABELS = ("labels", "y")  # beside the inputs in many .npz files; of no use here
_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_KINDS = {"f": "f", "i": "iu", "u": "iu", "b": "b"}  # kind of an input: the kinds of data it takes


@dataclass(frozen=True, slots=True)
class Input:
    """What a model takes: None in shape is a size that may vary, a shape of None is any."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: np.dtype

    def __str__(self) -> str:
        sizes = "..." if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"input {self.name!r}, which takes {self.dtype} [{sizes}]"


def inputs_of(model: ir.Model) -> tuple[Input, ...]:
    """The inputs of a float ONNX model. UnsupportedError names one that NumPy has no type for."""
    return tuple(map(_input, model.graph.inputs))


def _input(value: ir.Value) -> Input:
    dtype = value.dtype.numpy() if value.dtype is not None else np.dtype("O")
    if dtype.kind not in _KINDS:
        raise UnsupportedError(f"input {value.name!r} is of type {value.dtype}; it must be float, integer or bool")
    shape = None if value.shape is None else tuple(size if isinstance(size, int) else None for size in value.shape)
    return Input(value.name or "", shape, dtype)


@dataclass(frozen=True, slots=True)
class Data:
    """A stream that can be gone through again and again. samples is None where only reading would tell."""

    samples: int | None
    notes: tuple[str, ...]
    _pieces: Callable[[], Iterator[Batch]]
    _size: int
    _exact: bool
    _limit: int | None

    def __iter__(self) -> Iterator[Batch]:
        """Batches of the size asked for, the last one smaller; DataError where there are no samples at all."""
        return _rebatched(_limited(self._pieces(), self._limit), self._size, exact=self._exact)


def open_data(where: str | Path, inputs: tuple[Input, ...], *, batch: int = 64, limit: int | None = None) -> Data:
    """The samples of a .npy or .npz file, of a folder of them by name, or of what `module:callable` yields.

    The first axis of every array counts samples. batch: samples in a batch, where the model itself does not fix
    it; limit: the most samples to take. Headers are checked now, numbers as they are read. Raises DataError.
    """
    for name, value in (("batch", batch), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value} must be at least 1")
    size, exact = _batch_size(inputs, batch)
    path, text = Path(where), os.fspath(where)
    if is_code(path):
        made = _called(text)
        return Data(None, (), lambda: checked(made(), inputs, text), size, exact, limit)
    files, notes = _files(path)
    opened = [_open(file, inputs) for file in files]
    notes += sorted({note for file in opened for note in file.notes})
    samples = sum(file.samples for file in opened)
    if samples == 0:
        raise DataError(f"{path}: it holds no samples")
    samples = min(samples, limit or samples)
    if exact and samples % size:
        notes.append(f"the model takes {size} samples at a time; the last {samples % size} are left out")
        samples -= samples % size
        if samples == 0:
            raise DataError(f"{path}: the model takes {size} samples at a time, which is more than there are")
    return Data(samples, tuple(notes), lambda: _all_pieces(opened, size), size, exact, limit)


def samples_of(
    where: str | Path, inputs: tuple[Input, ...], *, batch: int = 64, limit: int | None = None
) -> tuple[int | None, tuple[str, ...]]:
    """How many samples open_data will give, as far as files say, and its notes; nobody's code is imported."""
    if is_code(where):
        return None, ()
    data = open_data(where, inputs, batch=batch, limit=limit)
    return data.samples, data.notes


def is_code(where: str | Path) -> bool:
    """Whether it names code, `module:callable`, and no file of that name is there."""
    with reading(Path(where)):
        return not Path(where).exists() and _CALLABLE.fullmatch(os.fspath(where)) is not None


def checked(batches: Iterable[Any], inputs: tuple[Input, ...], where: str = "the data") -> Iterator[Batch]:
    """Batches that somebody's code makes: each a dict by input name, or an array where the model has one input."""
    first = 0
    for number, given in enumerate(batches):
        place = f"{where}: batch {number}"
        arrays = given if isinstance(given, Mapping) else {"": given}
        if isinstance(given, tuple | list) or not all(isinstance(name, str) for name in arrays):
            raise DataError(f"{place} is a {type(given).__name__}; it must be an array or a dict of them by input name")
        named = _named(place, {name: np.asarray(array) for name, array in arrays.items()}, inputs)[0]
        for entry in inputs:
            _check_header(f"{place}: array", named[entry.name].shape, named[entry.name].dtype, entry)
        count = _one_length(place, {name: array.shape for name, array in named.items()})
        yield {entry.name: _cast(where, first, named[entry.name], entry) for entry in inputs}
        first += count


def _batch_size(inputs: tuple[Input, ...], wanted: int) -> tuple[int, bool]:
    """Samples in a batch, and whether the model takes no other number."""
    fixed = {entry.shape[0] for entry in inputs if entry.shape} - {None}
    if len(fixed) > 1:
        raise UnsupportedError(f"the inputs fix different numbers of samples: {sorted(f for f in fixed if f)}")
    size = fixed.pop() if fixed else None
    return (wanted, False) if size is None else (size, True)


# Streams


def _limited(pieces: Iterator[Batch], limit: int | None) -> Iterator[Batch]:
    left = limit
    for piece in pieces:
        count = _count(piece)
        if left is None or count < left:
            yield piece
            left = left if left is None else left - count
        else:
            yield {name: array[:left] for name, array in piece.items()}
            return


def _rebatched(pieces: Iterator[Batch], size: int, *, exact: bool) -> Iterator[Batch]:
    """The same samples `size` at a time. Where other axes change, a batch ends early unless the size is exact."""
    held: list[Batch] = []
    count, seen = 0, False
    for piece in pieces:
        if held and any(array.shape[1:] != held[0][name].shape[1:] for name, array in piece.items()):
            if not exact:
                yield _joined(held)
            held, count = [], 0
        held.append(piece)
        count += _count(piece)
        while count >= size:
            joined, seen = _joined(held), True
            yield {name: array[:size] for name, array in joined.items()}
            count -= size
            held = [{name: array[size:] for name, array in joined.items()}] if count else []
    if held and not exact:
        yield _joined(held)
    elif not seen:
        raise DataError(f"the data has no samples, or fewer than the {size} that the model takes at a time")


def _joined(held: list[Batch]) -> Batch:
    return held[0] if len(held) == 1 else {name: np.concatenate([piece[name] for piece in held]) for name in held[0]}


def _count(batch: Batch) -> int:
    return len(next(iter(batch.values())))


# Checks


def _named(where: str, arrays: Mapping[str, Any], inputs: tuple[Input, ...]) -> tuple[dict[str, Any], list[str]]:
    """The arrays by input name, and notes. Arrays without a name (.npy, np.savez's arr_0) go by their place."""
    wanted = [entry.name for entry in inputs]
    labels = [name for name in arrays if name in _LABELS and name not in wanted]
    kept = {name: array for name, array in arrays.items() if name not in labels}
    if list(kept) == [f"arr_{place}" for place in range(len(wanted))] or (list(kept) == [""] and len(wanted) == 1):
        kept = dict(zip(wanted, kept.values(), strict=True))
    if set(kept) != set(wanted):
        has = ", ".join(repr(name) if name else "one array without a name" for name in arrays) or "nothing"
        raise DataError(f"{where} has {has}; the model takes {', '.join(map(repr, wanted))}")
    return kept, [f"the data's array {name!r} is no input of the model and is ignored" for name in labels]


def _check_header(where: str, shape: tuple[int, ...], dtype: np.dtype, wanted: Input) -> None:
    sizes = wanted.shape if wanted.shape is not None else (None,) * max(len(shape), 1)
    fits = len(shape) == len(sizes) and all(
        size is None or size == given for size, given in zip(sizes[1:], shape[1:], strict=True)
    )
    if not fits or 0 in shape[1:]:
        raise DataError(f"{where} of shape {list(shape)} does not fit {wanted}")
    if dtype.kind not in _KINDS[wanted.dtype.kind]:
        raise DataError(f"{where} of type {dtype} does not fit {wanted}")


def _one_length(where: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    lengths = {name: shape[0] for name, shape in shapes.items()}
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise DataError(f"{where}: the arrays have different numbers of samples: {shown}")
    return next(iter(lengths.values()))


def _cast(where: str, first: int, array: np.ndarray, wanted: Input) -> np.ndarray:
    """The array in the model's type. first: the number of its first sample."""
    with np.errstate(over="ignore", invalid="ignore"):
        made = np.ascontiguousarray(array, wanted.dtype)
    bad = ~np.isfinite(made) if wanted.dtype.kind == "f" else made != array
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        value = array[index]
        reason = "every number must be finite"
        if array.dtype.kind != "f" or np.isfinite(value):
            reason = f"it does not fit {wanted.dtype}"
        element = f"sample {first + index[0]}, element {list(index[1:])}" if index[1:] else f"sample {first + index[0]}"
        raise DataError(f"{where}: array {wanted.name!r}, {element} is {value}; {reason}")
    return made


# Files


@dataclass(frozen=True, slots=True)
class _Stored:
    """One array in a file: the entry of an .npz or the whole of a .npy, and what its header says."""

    entry: str | None
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    arrays: dict[Input, _Stored]
    samples: int
    notes: tuple[str, ...]


def _files(path: Path) -> tuple[list[Path], list[str]]:
    """The data files that a path stands for, and notes."""
    with reading(path):
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
            found = [entry for entry in inside if entry.suffix in (".npy", ".npz") and entry.is_file()]
            if not found:
                raise DataError(f"{path}: the folder has no .npy or .npz files")
            others = len(inside) - len(found)
            return found, [f"{path}: {others} entries are no .npy or .npz files and are ignored"] if others else []
        if not path.is_file():
            kind = "is not a regular file" if path.exists() else "is not there"
            raise DataError(f"{path}: it {kind}; name a .npy or .npz file, a folder of them, or module:callable")
    return [path], []


def _open(path: Path, inputs: tuple[Input, ...]) -> _File:
    """Every header of a file, checked against the model."""
    with reading(path), open_regular(path) as file:
        headers = _headers(file, path.stat().st_size)
    named, notes = _named(f"{path}: it", headers, inputs)
    for entry in inputs:
        _check_header(f"{path}: array {entry.name!r}", named[entry.name].shape, named[entry.name].dtype, entry)
    samples = _one_length(str(path), {name: stored.shape for name, stored in named.items()})
    return _File(path, {entry: named[entry.name] for entry in inputs}, samples, tuple(notes))


def _headers(file: IO[bytes], size: int) -> dict[str, _Stored]:
    if not is_zip(file):
        return {"": _Stored(None, *npy_header(file, size))}
    found = {}
    with zipfile.ZipFile(file) as archive:
        for name, entry in npz_entries(archive).items():
            with archive.open(entry) as inner:
                found[name] = _Stored(entry.filename, *npy_header(inner, entry.file_size))
    return found


def _all_pieces(files: list[_File], size: int) -> Iterator[Batch]:
    for file in files:
        with reading(file.path), ExitStack() as stack:
            rows = {entry: _rows(file.path, stored, size, stack) for entry, stored in file.arrays.items()}
            for first in range(0, file.samples, size):
                where = str(file.path)
                yield {entry.name: _cast(where, first, next(made), entry) for entry, made in rows.items()}


def _rows(path: Path, stored: _Stored, size: int, stack: ExitStack) -> Iterator[np.ndarray]:
    """The array `size` samples at a time, read in order. In Fortran order the file is mapped, an entry read whole."""
    file: IO[bytes] = stack.enter_context(open_regular(path))
    if stored.entry is not None:
        archive = stack.enter_context(zipfile.ZipFile(file))
        file = stack.enter_context(archive.open(stored.entry))
        npy_header(file, archive.getinfo(stored.entry).file_size)
    else:
        npy_header(file, path.stat().st_size)
    length, row = stored.shape[0], math.prod(stored.shape[1:])
    if stored.fortran_order:
        if stored.entry is not None:
            whole = np.frombuffer(file.read(), stored.dtype).reshape(stored.shape, order="F")
        else:
            whole = np.memmap(path, stored.dtype, "r", file.tell(), stored.shape, "F")
        yield from (whole[first : first + size] for first in range(0, length, size))
        return
    for first in range(0, length, size):
        count = min(size, length - first)
        raw = file.read(count * row * stored.dtype.itemsize)
        if len(raw) != count * row * stored.dtype.itemsize:
            raise ValueError(f"it ended at sample {first}; its header promised {length}")
        yield np.frombuffer(raw, stored.dtype).reshape(count, *stored.shape[1:])


# The user's code


def _called(text: str) -> Callable[[], Iterator[Any]]:
    """What `module:callable` gives, as an iterator; the current folder comes last on the path."""
    module, _, name = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UsageError(f"data {text}: {error}") from error
    except AttributeError as error:
        raise UsageError(f"data {text}: module {module!r} has no {name!r}") from error

    def made() -> Iterator[Any]:
        try:
            yield from function()
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise DataError(f"data {text} failed: {type(error).__name__}: {reason}") from error

    return made

"""Arrays from .npy and .npz files: checked against the file's size before memory is taken, never unpickled."""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from gemedge.errors import DataError

_MOST_BYTES = 8 << 30
_MOST_INFLATION = 2000  # deflate reaches about 1000


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name, or the one array of a .npy file under the name "".

    Native byte order, C order. Raises DataError naming the file (and the array) and the cause.
    """
    with reading(path), path.open("rb") as file:
        arrays = _npz(file) if is_zip(file) else {"": _npy(file, path.stat().st_size)}
    if not arrays:
        raise DataError(f"{path}: it holds no arrays")
    return arrays


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a data file is read, as a DataError naming it."""
    try:
        yield
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise DataError(f"{path}: {reason.splitlines()[0]}") from error


def is_zip(file: IO[bytes]) -> bool:
    """Whether the file begins as an .npz does; it is left at its start."""
    begins = file.read(4)
    file.seek(0)
    return begins in (b"PK\3\4", b"PK\5\6")


def npz_entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries of an .npz file by array name. ValueError names one that is no array or claims too much."""
    for entry in archive.infolist():
        if not entry.filename.endswith(".npy"):
            raise ValueError(f"{entry.filename!r} is no .npy array; an .npz file holds nothing else")
        if entry.file_size > _MOST_INFLATION * max(entry.compress_size, 100):
            raise ValueError(f"{entry.filename!r} claims {entry.file_size} bytes from {entry.compress_size}")
    return {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}


def npy_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and type of a .npy file of `size` bytes, read up to its first number.

    ValueError where the type is no number or the shape does not fill the file.
    """
    version = npy.read_magic(file)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f".npy version {version} is not 1.0 or 2.0")
    shape, fortran_order, dtype = read_header(file)
    if dtype.kind not in "biuf":
        raise ValueError(f"its type is {dtype}; it must be a number type")
    if min(shape, default=0) < 0 or file.tell() + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(
            f"its header says shape {shape} of {dtype}, which is not the {size - file.tell()} bytes it has"
        )
    return shape, fortran_order, dtype


def check_finite(name: str, array: np.ndarray) -> None:
    """Raise DataError naming the first NaN or infinity of a float array."""
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise DataError(f"{name}: element {list(index)} is {array[index]}; every number must be finite")


def _npz(file: IO[bytes]) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for name, entry in npz_entries(archive).items():
            if entry.file_size > _MOST_BYTES:
                raise ValueError(f"{entry.filename!r} has {entry.file_size} bytes; {_MOST_BYTES} are the most")
            with archive.open(entry) as inner:
                arrays[name] = _npy(inner, entry.file_size)
    return arrays


def _npy(file: IO[bytes], size: int) -> np.ndarray:
    shape, fortran_order, dtype = npy_header(file, size)
    array = np.frombuffer(file.read(), dtype, math.prod(shape)).reshape(shape, order="F" if fortran_order else "C")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))

"""Arrays from .npy and .npz files: checked against the file's size before memory is taken, never unpickled."""

import math
import os
import stat
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from gemedge.errors import DataError, GemedgeError, reason

_BYTES_FROM_NOTHING = 256 << 20  # what the arrays of an .npz may hold, and how much more for each byte of the file
_MOST_INFLATION = 8
_DEFLATED_AT_MOST = 2000  # deflate reaches about 1000


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name, or the one array of a .npy file under the name "".

    Native byte order, C order. Raises DataError naming the file (and the array) and the cause.
    """
    with reading(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        arrays = _npz(file, size) if is_zip(file) else {"": _npy(file, size)}
    if not arrays:
        raise DataError(f"{path}: it holds no arrays")
    return arrays


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a data file is read, as a DataError naming it."""
    try:
        yield
    except GemedgeError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen classes for damaged files
        raise DataError(f"{path}: {reason(error)}") from error


def open_regular(path: Path) -> IO[bytes]:
    """The file, which must be a regular one: opening a pipe would wait for its other end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


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
        if entry.file_size > _DEFLATED_AT_MOST * max(entry.compress_size, 100):
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
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a header of Python 2, which NumPy would repair
        shape, fortran_order, dtype = read_header(file)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"its type is {dtype}; it must be bool, or an integer or float of up to 64 bits")
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


def _npz(file: IO[bytes], size: int) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        entries = npz_entries(archive)
        total, most = sum(entry.file_size for entry in entries.values()), _BYTES_FROM_NOTHING + _MOST_INFLATION * size
        if total > most:
            raise ValueError(f"its arrays claim {total} bytes; a file of {size} bytes may hold {most}")
        for name, entry in entries.items():
            with archive.open(entry) as inner:
                arrays[name] = _npy(inner, entry.file_size)
    return arrays


def _npy(file: IO[bytes], size: int) -> np.ndarray:
    shape, fortran_order, dtype = npy_header(file, size)
    array = np.frombuffer(file.read(), dtype, math.prod(shape)).reshape(shape, order="F" if fortran_order else "C")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))

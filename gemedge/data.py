"""Arrays from .npy and .npz files: checked against the file's size before memory is taken, never unpickled."""

import os
import stat
import warnings
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from gemedge.errors import DataError, reason

_BYTES_FROM_NOTHING = 256 << 20  # what the arrays of an .npz may hold, and how much more for each byte of the file
_MOST_INFLATION = 8


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name, or the one array of a .npy file under the name "".

    Native byte order, C order. Raises DataError naming the file (and the array) and the cause.
    """
    try:
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            arrays = _npz(file, size) if file.read(4) == b"PK\3\4" else {"": _npy(file, size)}
    except Exception as error:  # zipfile and NumPy raise a dozen classes for damaged files
        raise DataError(f"{path}: {reason(error)}") from error
    if not arrays:
        raise DataError(f"{path}: it holds no arrays")
    return arrays


def check_finite(name: str, array: np.ndarray) -> None:
    """Raise DataError naming the first NaN or infinity of a float array."""
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise DataError(f"{name}: element {list(index)} is {array[index]}; every number must be finite")


def _open(path: Path) -> IO[bytes]:
    """The file, which must be a regular one: opening a pipe would wait for its other end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def _npz(file: IO[bytes], size: int) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        total, most = sum(entry.file_size for entry in archive.infolist()), _BYTES_FROM_NOTHING + _MOST_INFLATION * size
        if total > most:
            raise ValueError(f"its arrays claim {total} bytes; a file of {size} bytes may hold {most}")
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                raise ValueError(f"{entry.filename!r} is no .npy array; an .npz file holds nothing else")
            with archive.open(entry) as inner:
                arrays[entry.filename.removesuffix(".npy")] = _npy(inner, entry.file_size)
    return arrays


def _npy(file: IO[bytes], size: int) -> np.ndarray:
    file.seek(0)
    version = npy.read_magic(file)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f".npy version {version} is not 1.0 or 2.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a header of Python 2, which NumPy would repair
        shape, fortran_order, dtype = read_header(file)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"its type is {dtype}; it must be bool, or an integer or float of up to 64 bits")
    count = 1
    for length in shape:
        count *= length
    if file.tell() + count * dtype.itemsize != size:
        raise ValueError(
            f"its header says shape {shape} of {dtype}, which is not the {size - file.tell()} bytes it has"
        )
    array = np.frombuffer(file.read(), dtype, count).reshape(shape, order="F" if fortran_order else "C")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))

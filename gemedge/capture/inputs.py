"""What goes into a model: shapes as the user writes them, examples, and the probes a check runs on.

Random inputs come from a fixed seed: the same model gives the same bytes and the same figures.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gemedge.data import check_finite
from gemedge.errors import DataError, UsageError

Arrays = dict[str, np.ndarray]

DTYPES = ("float16", "float32", "float64", "int32", "int64", "uint8", "int8", "bool")
_SHAPE = re.compile(
    r"(?:(?P<name>(?!\d+:)[^:,]+):)?(?P<dims>(?:[1-9]\d*|\?|[A-Za-z_]\w*)(?:,(?:[1-9]\d*|\?|[A-Za-z_]\w*))*)(?::(?P<dtype>\w+))?"
)
MOST_ELEMENTS = 1 << 26
_FREE_SIZES = (2, 8)  # what a dimension that may vary is traced with: the first of an input, and any other


@dataclass(frozen=True, slots=True)
class InputShape:
    """One `--input-shape`: a name or "" for the next input, sizes or names of dimensions, a type or ""."""

    name: str
    dims: tuple[int | str, ...]
    dtype: str = ""

    @classmethod
    def parse(cls, text: str) -> "InputShape":
        """From `1,3,32,32`, `x:?,3,32,32` or `tokens:batch,sequence:int64`; `?` or a name may vary."""
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise UsageError(
                f"--input-shape {text!r} is not sizes such as 1,3,32,32 or name:batch,128 or name:1,128:int64"
            )
        name, sizes, dtype = match["name"] or "", match["dims"], match["dtype"] or ""
        if sizes in DTYPES and not dtype:  # batch:int64 is a dimension and a type, not a name and a dimension
            name, sizes, dtype = "", name, sizes
        dims = tuple(int(dim) if dim.isdigit() else dim for dim in sizes.split(","))
        if dtype and dtype not in DTYPES:
            raise UsageError(f"--input-shape {text!r}: type {dtype!r} is not one of {', '.join(DTYPES)}")
        if np.prod([float(dim) for dim in dims if isinstance(dim, int)]) > MOST_ELEMENTS:
            raise UsageError(f"--input-shape {text!r} has more than {MOST_ELEMENTS} elements")
        return cls(name, dims, dtype)

    @property
    def free(self) -> dict[int, str]:
        """The dimensions that may vary, with their names; `?` is called batch where it comes first."""
        names = {axis: dim for axis, dim in enumerate(self.dims) if isinstance(dim, str)}
        return {axis: dim if dim != "?" else ("batch" if axis == 0 else f"dim{axis}") for axis, dim in names.items()}

    def sizes(self) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else _FREE_SIZES[axis > 0] for axis, dim in enumerate(self.dims))


def by_input(shapes: Sequence[InputShape], names: Sequence[str]) -> dict[str, InputShape]:
    """Each shape under its input's name; UsageError where there is no such input or one has two shapes."""
    found: dict[str, InputShape] = {}
    for index, shape in enumerate(shapes):
        place = names.index(shape.name) if shape.name in names else (len(names) if shape.name else index)
        if place >= len(names):
            what = f"input {shape.name!r}" if shape.name else f"input number {index + 1}"
            raise UsageError(
                f"--input-shape: the model has no {what}; it takes {', '.join(map(repr, names)) or 'none'}"
            )
        if names[place] in found:
            raise UsageError(f"--input-shape: the input {names[place]!r} has two shapes")
        found[names[place]] = shape
    return found


def random_input(shape: Sequence[int], dtype: str, seed: int) -> np.ndarray:
    """Normal numbers for a float type; zeros and ones for an integer type, which any table has rows for."""
    generator = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def check_example(arrays: Mapping[str, np.ndarray], shapes: Sequence[InputShape]) -> None:
    """Raise DataError where an example is empty, not finite, or contradicts a shape of the same place or name."""
    for array_name, array in arrays.items():
        if array.size == 0:
            raise DataError(f"example {array_name!r} of shape {array.shape} is empty")
        check_finite(f"example {array_name!r}", array)
    for index, shape in enumerate(shapes):
        name = shape.name or (list(arrays)[index] if index < len(arrays) else "")
        if name not in arrays:
            raise DataError(f"the example has no input {shape.name!r}; it has {', '.join(map(repr, arrays))}")
        given = arrays[name].shape
        if len(given) != len(shape.dims) or any(
            isinstance(d, int) and d != g for d, g in zip(shape.dims, given, strict=True)
        ):
            raise DataError(f"example {name!r} has shape {given}, which is not {','.join(map(str, shape.dims))}")


def probes(example: Mapping[str, np.ndarray], free_batch: bool) -> dict[str, Arrays]:
    """Inputs to compare two forms of a model on: the example, and edges made from it.

    free_batch: whether the first dimension of every input may vary; then one probe has three samples.
    Integer inputs keep the example's values, because only those are known to be in range.
    """

    def scaled(factor: float) -> Arrays:
        with np.errstate(all="ignore"):
            return {
                name: np.asarray(array * array.dtype.type(factor)) if array.dtype.kind == "f" else array
                for name, array in example.items()
            }

    made = {"example": dict(example)}
    if any(array.dtype.kind == "f" for array in example.values()):
        made |= {"zeros": scaled(0), "negated": scaled(-1), "large": scaled(2.0**10), "tiny": scaled(2.0**-20)}
    if free_batch:
        made["three samples"] = {name: np.resize(array, (3, *array.shape[1:])) for name, array in example.items()}
    return made


def in_rows(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Each array with its numbers in row order, as safetensors takes them; copied only where they are not."""
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}

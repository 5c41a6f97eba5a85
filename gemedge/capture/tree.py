"""The plain data that a pickle of torch becomes: nothing here was made by code that the file names.

A tree is made of None, bool, int, float, str, tuple, list, set of str, dict with keys str or int, and the
records below. A tensor record is sound when it exists: its bytes are there and it reaches no others.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from gemedge.errors import ModelError, UnsupportedError

MAX_DEPTH = 300
MAX_VALUES = 3_000_000
MAX_DIMENSIONS = 64

Tree: TypeAlias = Any

ITEM_SIZES = {
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
}


@dataclass(frozen=True, slots=True)
class Name:
    """A class, function or dtype that the file names; only a name."""

    module: str
    qualname: str

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"


class Size(tuple[int, ...]):
    """A torch.Size."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Device:
    """A torch.device, by its text."""

    text: str


@dataclass(frozen=True, slots=True)
class StorageRef:
    """The record data/<key> of the archive, `numel` elements of `dtype`. Equal references share memory."""

    dtype: str
    key: str
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True, eq=False)
class TensorRecord:
    """A view of a storage; offset and stride count elements of `dtype`. A tied parameter is one object."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    is_parameter: bool = False

    def __post_init__(self) -> None:
        check_extent(
            f"record 'data/{self.storage.key}'",
            self.storage.nbytes,
            self.dtype,
            self.offset,
            self.shape,
            self.stride,
        )


@dataclass(slots=True, eq=False)
class ObjectRecord:
    """An instance of the class that the file names, with the attributes it was saved with."""

    module: str
    qualname: str
    state: dict[str, Tree] | None = None

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"


def check_extent(
    record: str, nbytes: int, dtype: str, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    """Raise ModelError unless a strided view of a record stays within its nbytes and needs no more elements."""
    check_dtype(dtype)
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise ModelError(
            f"a tensor in {record} has {len(shape)} sizes and {len(stride)} strides;"
            f" they must be as many, and {MAX_DIMENSIONS} at most"
        )
    if any(type(value) is not int for value in (offset, *shape, *stride)):
        raise ModelError(f"a tensor in {record}: its offset, sizes and strides must be whole numbers")
    view = f"a tensor of shape {shape} with stride {stride} and offset {offset}"
    if min((offset, *shape, *stride)) < 0 or max((offset, *shape, *stride)) >= 1 << 62:
        raise ModelError(f"{view} in {record} has a number below 0 or over 2^62")
    numel = nbytes // ITEM_SIZES[dtype]
    count = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if count else offset - 1
    if last >= numel or count > numel:
        raise ModelError(f"{view} does not fit {record} of {numel} elements")


def check_dtype(dtype: str) -> None:
    """Raise UnsupportedError unless gemedge reads tensors of this dtype."""
    if dtype not in ITEM_SIZES:
        raise UnsupportedError(f"it holds a tensor of {dtype}; gemedge reads {', '.join(ITEM_SIZES)}")


def check_tree(tree: Tree) -> None:
    """Raise ModelError where the tree holds itself, is deeper than MAX_DEPTH or unfolds to over MAX_VALUES values.

    Every walker of a tree that passed may recurse and need not look out for shared parts.
    """
    unfolded: dict[int, tuple[int, int]] = {}  # of a finished part, its number of values and its depth
    open_parts: set[int] = set()
    stack: list[tuple[Tree, bool]] = [(tree, False)]
    while stack:
        part, is_finished = stack.pop()
        if is_finished:
            below = [unfolded.get(id(child), (1, 0)) for child in _children(part)]
            count, depth = 1 + sum(c for c, _ in below), 1 + max((d for _, d in below), default=0)
            if count > MAX_VALUES or depth > MAX_DEPTH:
                raise ModelError(
                    f"its pickle nests values over {MAX_DEPTH} deep or unfolds to over {MAX_VALUES}; no model does"
                )
            unfolded[id(part)] = count, depth
            open_parts.discard(id(part))
        elif id(part) in open_parts:
            raise ModelError("its pickle holds a value that contains itself")
        elif id(part) not in unfolded and isinstance(part, dict | list | tuple | ObjectRecord):
            open_parts.add(id(part))
            stack.append((part, True))
            stack.extend((child, False) for child in _children(part))


def classes(tree: Tree) -> set[str]:
    """The classes of all objects in a tree, as module.Class."""
    found: set[str] = set()
    seen: set[int] = set()
    stack = [tree]
    while stack:
        part = stack.pop()
        if id(part) not in seen:
            seen.add(id(part))
            stack.extend(_children(part))
            if isinstance(part, ObjectRecord):
                found.add(str(part))
    return found


def _children(part: Tree) -> list[Tree]:
    match part:
        case dict():
            return list(part.values())
        case list() | tuple():
            return list(part)
        case ObjectRecord(state=state):
            return [state]
    return []

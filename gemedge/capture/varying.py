"""Dimensions that may vary: those asked for exist, are traced at more than one, and are seen to vary.

torch.export fixes a dimension of size one, and keeps some free that its own guards hold to one size. So a
program is run at other sizes before a dimension of it is called free.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram

from gemedge.errors import UnsupportedError, UsageError


def asked(dynamic: Mapping[str, Mapping[int, str]], names: Sequence[str], inputs: Sequence[Tensor]) -> list[set[int]]:
    """For each input, the dimensions that were asked to vary. UsageError names an input or axis that is not there."""
    if unknown := sorted(dynamic.keys() - set(names)):
        there = ", ".join(map(repr, names))
        raise UsageError(f"no input is called {unknown[0]!r}, so none of its dimensions can vary; there is {there}")
    for name, tensor in zip(names, inputs, strict=True):
        for axis in dynamic.get(name, ()):
            if not 0 <= axis < tensor.dim():
                raise UsageError(
                    f"input {name!r} of shape {list(tensor.shape)} has no dimension {axis} that could vary"
                )
    return [set(dynamic.get(name, ())) for name in names]


def at_least_two(
    arguments: tuple, keywords: dict[str, Tensor], free: Sequence[set[int]]
) -> tuple[tuple, dict[str, Tensor]]:
    """The inputs with each free dimension of size one repeated."""

    def enlarged(x: Tensor, axes: set[int]) -> Tensor:
        return x.repeat([2 if axis in axes and size == 1 else 1 for axis, size in enumerate(x.shape)])

    made = [enlarged(x, axes) for x, axes in zip((*arguments, *keywords.values()), free, strict=True)]
    return tuple(made[: len(arguments)]), dict(zip(keywords, made[len(arguments) :], strict=True))


def check(program: ExportedProgram, inputs: Mapping[str, Tensor], wanted: Sequence[Mapping[int, str]] = ()) -> None:
    """UnsupportedError where the program has fixed a dimension that is wanted, or a free one cannot vary.

    inputs: the program's tensor inputs, in order, with the shapes it knows; wanted: for each of them the
    dimensions that must be free, with their names.
    """
    for (name, value), names in zip(inputs.items(), wanted or [{}] * len(inputs), strict=True):
        for axis, label in names.items():
            if (size := fixed(value.shape[axis])) is not None:
                reason = f"the model fixes it at {size}"
                raise UnsupportedError(f"input {name!r}: dimension {axis} ({label}) cannot vary: {reason}")
    module = program.module()
    for symbol, (name, axis) in _symbols(inputs).items():
        size = _example(program)[list(inputs).index(name)].shape[axis]
        others = [other for other in (size + 1, size - 1, 2 * size, size // 2) if other > 0 and other != size]
        if not any(_runs(module, program, inputs, symbol, other) for other in others):
            raise UnsupportedError(f"input {name!r}: dimension {axis} cannot vary: the model runs only at {size}")


def fixed(size: Any) -> int | None:
    """The number a size of a traced tensor is, or None where it may vary; torch leaves numbers in symbols."""
    if isinstance(size, int):
        return size
    return int(size.node.expr) if size.node.expr.is_number else None


def _symbol(size: Any) -> Any:
    """The symbol that a size is, or None where it is a number or an expression."""
    return size.node.expr if fixed(size) is None and size.node.expr.is_Symbol else None


def _symbols(inputs: Mapping[str, Tensor]) -> dict[Any, tuple[str, int]]:
    """Each symbol that is a size of an input, with the first place where it is."""
    found: dict[Any, tuple[str, int]] = {}
    for name, value in inputs.items():
        for axis, size in enumerate(value.shape):
            if (symbol := _symbol(size)) is not None:
                found.setdefault(symbol, (name, axis))
    return found


def _example(program: ExportedProgram) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(program.example_inputs) if isinstance(leaf, Tensor)]


def _runs(
    module: torch.nn.Module, program: ExportedProgram, inputs: Mapping[str, Tensor], symbol: Any, to: int
) -> bool:
    """Whether the program runs with every dimension of this symbol at another size."""

    def resized(tensor: Tensor, shape: Sequence[Any]) -> Tensor:
        for axis, size in enumerate(shape):
            if _symbol(size) == symbol:
                tensor = tensor.index_select(axis, torch.arange(to) % tensor.shape[axis])
        return tensor

    shapes = iter([value.shape for value in inputs.values()])
    leaves, spec = pytree.tree_flatten(program.example_inputs)
    arguments, keywords = pytree.tree_unflatten(
        [resized(leaf, next(shapes)) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec
    )
    try:
        with torch.no_grad():
            module(*arguments, **keywords)
    except Exception:
        return False
    return True

"""In which order a tensor's numbers lie in the C's memory, and the loops that visit them.

A tensor is [channels, *size] to the model and lies channels last in memory where a convolution or a pool reads or
makes it, and where it meets such a tensor number by number; others lie as they are written. An order lists the
model's axes, outermost in memory first; a step is how many numbers lie between two neighbours along an axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gemedge.export.float_operators import Arithmetic, FloatModel, Function, Mean, Normalize, Shares
from gemedge.model import QuantizedModel
from gemedge.moving import Clamp, Concatenate, Pad, Reshape, Spread, Take
from gemedge.operators import (
    Activate,
    AveragePool,
    Choose,
    Combine,
    Convolution,
    GemmlowpSum,
    Interpolate,
    LayerNormalization,
    Lookup,
    MaxPool,
    Multiply,
    Operator,
    RawAveragePool,
    Shape,
    Softmax,
)

_LAST = (Convolution, MaxPool, AveragePool, RawAveragePool)
_ONE_TO_ONE = (Activate, Lookup, Interpolate, Combine, GemmlowpSum, Multiply, Choose, Concatenate, Clamp)
_ALIKE = (*_ONE_TO_ONE, Softmax, LayerNormalization, Take, Pad, Spread, Function, Arithmetic, Mean, Shares, Normalize)


def orders(model: QuantizedModel | FloatModel) -> dict[str, Shape]:
    """The order of each tensor. What one layer reads and makes number by number lies alike."""
    group = {name: name for name in model.tensors}
    wanted = set()

    def head(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    for layer in model.layers:
        if isinstance(layer, _LAST):
            wanted |= {layer.inputs[0], layer.output}
        for name in _alike(model, layer):
            group[head(name)] = head(layer.output)
    last = {head(name) for name in wanted}
    return {name: _order(len(tensor.shape), head(name) in last) for name, tensor in model.tensors.items()}


def _alike(model: QuantizedModel | FloatModel, layer: Operator) -> list[str]:
    """The inputs that are to lie as the output does."""
    made = model.tensors[layer.output].shape
    shapes = {name: model.tensors[name].shape for name in layer.inputs}
    if isinstance(layer, Reshape):
        return [name for name, shape in shapes.items() if min(len(shape), len(made)) > 1 and shape[0] == made[0]]
    return [name for name, shape in shapes.items() if isinstance(layer, _ALIKE) and len(shape) == len(made)]


def _order(axes: int, last: bool) -> Shape:
    return (*range(1, axes), 0) if last and axes else tuple(range(axes))


def steps(shape: Shape, order: Shape) -> Shape:
    """The step along each of the model's axes."""
    found = [0] * len(shape)
    step = 1
    for axis in reversed(order):
        found[axis] = step
        step *= shape[axis]
    return tuple(found)


def broadcast_steps(shape: Shape, order: Shape, axes: int) -> Shape:
    """The steps of a tensor read as one of so many axes: 0 along those that it repeats itself on."""
    own = [0 if size == 1 else step for size, step in zip(shape, steps(shape, order), strict=True)]
    return (*(0,) * (axes - len(shape)), *own)


def in_memory(array: np.ndarray, order: Shape) -> np.ndarray:
    """The numbers of [*shape] one after another as they lie in memory."""
    return array.transpose(order).reshape(-1)


def from_memory(numbers: np.ndarray, shape: Shape, order: Shape) -> np.ndarray:
    """What in_memory undoes, for one sample, or for many along axes before the numbers' own: [..., *shape]."""
    many = numbers.ndim - 1
    laid = numbers.reshape(*numbers.shape[:-1], *(shape[axis] for axis in order))
    back = [many + order.index(axis) for axis in range(len(shape))]
    return laid.transpose(*range(many), *back)


def same_in_memory(shape: Shape, order: Shape, other: Shape, other_order: Shape) -> bool:
    """Whether a tensor read in another shape lies in memory as it is."""
    numbers = np.arange(math.prod(shape))
    return np.array_equal(in_memory(numbers.reshape(shape), order), in_memory(numbers.reshape(other), other_order))


@dataclass(frozen=True, slots=True)
class Loops:
    """Nested loops, the last one inside, and the step of each operand along each."""

    sizes: Shape
    steps: tuple[Shape, ...]


def loops(sizes: Shape, operands: Sequence[Shape], order: Shape, *, rows: bool = False) -> Loops:
    """Loops over the model's axes in this order, as few as visit the same places.

    rows: what is visited is rows, matrices or single numbers, not inner loops: the last loop goes round once.
    """
    kept: list[tuple[int, Shape]] = []
    for axis in (axis for axis in order if sizes[axis] > 1):
        size, own = sizes[axis], tuple(operand[axis] for operand in operands)
        if kept and all(outer == inner * size for outer, inner in zip(kept[-1][1], own, strict=True)):
            kept[-1] = (kept[-1][0] * size, own)
        else:
            kept.append((size, own))
    if rows or not kept:
        kept.append((1, (0,) * len(operands)))
    return Loops(tuple(size for size, _ in kept), tuple(zip(*(own for _, own in kept), strict=True)))

"""Operators on real numbers that the integer ones of gemedge.operators do not name, for exporting float models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gemedge.errors import FormatError
from gemedge.operators import Operator, Shape, Tensor


@dataclass(frozen=True, eq=False)
class Function(Operator):
    """A TensorFlow Lite operator of one tensor, number by number, with its options."""

    code: str
    options: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Arithmetic(Operator):
    """A TensorFlow Lite operator of two tensors that are broadcast."""

    code: str

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        try:
            return tuple(np.broadcast_shapes(*shapes))
        except ValueError:
            raise FormatError(f"shapes {', '.join(map(str, shapes))} do not combine") from None


@dataclass(frozen=True, eq=False)
class Mean(Operator):
    """The mean over some axes, which stay as axes of 1 where keeps says so."""

    axes: Shape
    keeps: bool

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        sizes = enumerate(shapes[0])
        return tuple(1 if axis in self.axes else size for axis, size in sizes if self.keeps or axis not in self.axes)


@dataclass(frozen=True, eq=False)
class Shares(Operator):
    """Softmax along an axis."""

    axis: int


@dataclass(frozen=True, eq=False)
class Normalize(Operator):
    """(x - mean) / sqrt(variance + epsilon) over the axes of the weight, the last ones, times it, plus the bias."""

    weight: np.ndarray
    bias: np.ndarray
    epsilon: float


@dataclass(frozen=True, slots=True)
class FloatModel:
    """A network on float32 numbers: tensors [*shape] without the batch, layers in order.

    constants: tensors whose numbers are known, by name. indices: tensors of whole numbers.
    """

    inputs: tuple[str, ...]
    outputs: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    layers: tuple[Operator, ...]
    constants: Mapping[str, np.ndarray]
    indices: frozenset[str]

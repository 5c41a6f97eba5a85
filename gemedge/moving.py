"""The integer operators that compute nothing: they put integers elsewhere, or put known ones beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gemedge.errors import FormatError
from gemedge.operators import Operator, Shape, Tensor


@dataclass(frozen=True, eq=False)
class Moving(Operator):
    """An operator without an accumulator."""

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:  # noqa: ARG002
        return 0


@dataclass(frozen=True, eq=False)
class Constant(Moving):
    """The same integers for every sample."""

    value: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:  # noqa: ARG002
        return tuple(self.value.shape)


@dataclass(frozen=True, eq=False)
class Embed(Moving):
    """Row `index` of a table [V, *row], for each index of the input."""

    table: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        self.require(self.table.ndim >= 1, "a table without rows")
        return (*shapes[0], *self.table.shape[1:])


@dataclass(frozen=True, eq=False)
class Reshape(Moving):
    """The same integers in another shape; where the output's scale differs, they stand for other numbers."""

    shape: Shape

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        self.require(math.prod(self.shape) == math.prod(shapes[0]), f"{list(shapes[0])} into {list(self.shape)}")
        return self.shape


@dataclass(frozen=True, eq=False)
class Transpose(Moving):
    """Axes in another order; 0 is the first after the batch."""

    order: Shape

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        self.require(sorted(self.order) == list(range(len(shapes[0]))), f"order {list(self.order)}")
        return tuple(shapes[0][axis] for axis in self.order)


@dataclass(frozen=True, eq=False)
class Take(Moving):
    """The integers at these places of an axis, in this order: a slice, a part, a repetition, nearest neighbours."""

    axis: int
    places: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        self.require(0 <= self.axis < len(shape), f"axis {self.axis} of shape {list(shape)}")
        self.require(self.places.ndim == 1 and self.places.size > 0, "its places must be a list")
        inside = int(self.places.min()) >= 0 and int(self.places.max()) < shape[self.axis]
        self.require(inside, f"a place outside an axis of {shape[self.axis]}")
        return (*shape[: self.axis], self.places.size, *shape[self.axis + 1 :])


@dataclass(frozen=True, eq=False)
class Pad(Moving):
    """One integer around the input; pads: before each axis after the batch, then after each."""

    pads: Shape
    value: int

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        axes = len(shapes[0])
        self.require(len(self.pads) == 2 * axes and min(self.pads, default=0) >= 0, f"pads {list(self.pads)}")
        return tuple(size + self.pads[a] + self.pads[a + axes] for a, size in enumerate(shapes[0]))


@dataclass(frozen=True, eq=False)
class Spread(Moving):
    """An input [C, *size] with strides - 1 integers `value` between neighbours of each axis."""

    strides: Shape
    value: int

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        channels, *size = shapes[0]
        self.require(len(self.strides) == len(size) and min(self.strides, default=0) > 0, f"strides {self.strides}")
        return (channels, *((s - 1) * stride + 1 for s, stride in zip(size, self.strides, strict=True)))


@dataclass(frozen=True, eq=False)
class Clamp(Moving):
    """Integers below low become low, those above high become high."""

    low: int
    high: int

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        self.require(self.low <= self.high, f"low={self.low} above high={self.high}")
        return shapes[0]


@dataclass(frozen=True, eq=False)
class Concatenate(Operator):
    """Inputs side by side along an axis (0 is the first after the batch), each rescaled."""

    axis: int
    mantissa: np.ndarray
    shift: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        first = list(shapes[0])
        self.require(0 <= self.axis < len(first), f"axis {self.axis} of shape {first}")
        rest = [size for axis, size in enumerate(first) if axis != self.axis]
        for shape in shapes[1:]:
            others = [size for axis, size in enumerate(shape) if axis != self.axis]
            if len(shape) != len(first) or others != rest:
                raise FormatError(f"layer {self.name!r}: {list(shape)} beside {first}")
        first[self.axis] = sum(shape[self.axis] for shape in shapes)
        return tuple(first)

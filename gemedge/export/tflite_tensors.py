"""A model's tensors in a TensorFlow Lite graph, each in its own order of axes, and brought into another where asked.

A model's tensor has channels first and no batch; in the file it has the batch first and lies channels last where
gemedge.export.layout says so. An order lists the model's axes as they follow in memory.
"""

from dataclasses import dataclass

import numpy as np

from gemedge.errors import UnsupportedError
from gemedge.export.layout import same_in_memory
from gemedge.export.tflite_writer import Graph
from gemedge.fixed import QuantParams
from gemedge.operators import Shape


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor as the model has it, and how it lies in the file.

    value: of a constant, its numbers in the model's shape. places: of a tensor whose numbers are shuffled along its
    one axis, which of them lies at each place.
    """

    name: str
    shape: Shape
    order: Shape
    dtype: str
    params: QuantParams | None = None
    value: np.ndarray | None = None
    places: np.ndarray | None = None

    @property
    def laid(self) -> Shape:
        """Its shape in memory."""
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def axes(self) -> tuple[int, ...]:
        """Which axis of the model's tensor, batch included, each axis in memory is."""
        return (0, *(axis + 1 for axis in self.order))

    def to_memory(self, samples: np.ndarray) -> np.ndarray:
        """[batch, *shape] as the file has it."""
        if self.places is not None:
            return samples[:, self.places]
        return np.ascontiguousarray(samples.transpose(self.axes))

    def from_memory(self, samples: np.ndarray) -> np.ndarray:
        """What to_memory gave, as the model has it."""
        if self.places is not None:
            return samples[:, np.argsort(self.places)]
        return samples.transpose(np.argsort(self.axes))


def identity(axes: int) -> Shape:
    return tuple(range(axes))


def channels_last(axes: int) -> Shape:
    return (*range(1, axes), 0)


class Tensors:
    """The values known so far and where they are in the graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: dict[str, Value] = {}
        self.indices: dict[str, int] = {}
        self._arranged: dict[tuple[str, Shape, Shape], int] = {}

    def add(self, value: Value) -> int:
        """A tensor of the graph for a value; constants get one when they are read."""
        self.values[value.name] = value
        self.indices[value.name] = self.graph.tensor(value.name, value.laid, value.dtype, value.params)
        return self.indices[value.name]

    def add_constant(self, value: Value) -> None:
        self.values[value.name] = value

    def operand(self, name: str, order: Shape | None = None) -> int:
        """The tensor of a value with its axes in this order, its own by default.

        An order with more axes than the value has means a value with axes of 1 before its own.
        """
        value = self.values[name]
        order = value.order if order is None else order
        shape = (*(1,) * (len(order) - len(value.shape)), *value.shape)
        if value.value is not None:
            laid = value.value.reshape(shape).transpose(order)
            return self.graph.constant(name, laid[None], value.params)
        if value.places is not None:
            raise UnsupportedError(f"tensor {name!r} is shuffled")
        key = (name, shape, order)
        if key not in self._arranged:
            self._arranged[key] = self._moved(value, self.indices[name], (value.shape, value.order), (shape, order))
        return self._arranged[key]

    def temporary(self, like: Value, laid: Shape, step: str) -> int:
        """A tensor that no value of the model is: of its type, in this shape in memory."""
        return self.graph.tensor(f"{like.name}/{step}", laid, like.dtype, like.params)

    def write(self, name: str, code: str, inputs: list[int], order: Shape | None = None, **options: object) -> None:
        """The value by this operator, which gives it in this order of axes."""
        value = self.values[name]
        order = value.order if order is None else order
        if order == value.order or same_in_memory(value.shape, order, value.shape, value.order):
            self.graph.operator(code, inputs, self.indices[name], **options)
            return
        laid = tuple(value.shape[axis] for axis in order)
        made = self.graph.operator(code, inputs, self.temporary(value, laid, "laid"), **options)
        self._transpose(made, order, value.order, self.indices[name])

    def reshape(self, given: int, made: int) -> int:
        """The numbers of a tensor, in memory as they are, in the shape of another."""
        sizes = self.graph.constant("shape", np.array([-1, *self.graph.shape(made)], np.int32))
        return self.graph.operator("RESHAPE", [given, sizes], made, newShape=np.array([-1, *self.graph.shape(made)]))

    def move(self, source: str, name: str) -> None:
        """The value `name` from the numbers of another in the model's own order."""
        given, made = self.values[source], self.values[name]
        if same_in_memory(given.shape, given.order, made.shape, made.order):
            self.reshape(self.operand(source), self.indices[name])
            return
        flat = self.operand(source, identity(len(given.shape)))
        if made.order == identity(len(made.shape)):
            self.reshape(flat, self.indices[name])
            return
        shaped = self.reshape(flat, self.temporary(made, made.shape, "shaped"))
        self._transpose(shaped, identity(len(made.shape)), made.order, self.indices[name])

    def _moved(self, value: Value, index: int, given: tuple[Shape, Shape], wanted: tuple[Shape, Shape]) -> int:
        """The tensor of a shape and order in another shape and order."""
        (shape, order), (new_shape, new_order) = given, wanted
        if given == wanted:
            return index
        laid = tuple(new_shape[axis] for axis in new_order)
        if same_in_memory(shape, order, new_shape, new_order):
            return self.reshape(index, self.temporary(value, laid, "shaped"))
        if shape == new_shape:
            return self._transpose(index, order, new_order, self.temporary(value, laid, "laid"))
        plain = identity(len(shape))
        flat = self._moved(value, index, given, (shape, plain))
        shaped = self.reshape(flat, self.temporary(value, new_shape, "shaped"))
        return self._moved(value, shaped, (new_shape, identity(len(new_shape))), wanted)

    def _transpose(self, given: int, order: Shape, new_order: Shape, made: int) -> int:
        places = [0, *(1 + order.index(axis) for axis in new_order)]
        return self.graph.operator("TRANSPOSE", [given, self.graph.constant("axes", np.array(places, np.int32))], made)

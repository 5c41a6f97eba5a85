"""A float ONNX graph as operators on samples: where the batch lies, and what shapes are computed from.

The batch must stay the first axis, by itself: a node that moves it or mixes it with another is refused by name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from gemedge.capture import schema
from gemedge.capture.reading import FOLDED, Constants, attribute, fold, layer_name, name_of
from gemedge.errors import FormatError, UnsupportedError
from gemedge.export.float_operators import FloatModel
from gemedge.operators import Operator, Tensor

_ANY_BATCH = 7919  # a prime that no shape is likely to hold: where it turns up, that is the batch
Handler = Callable[["Reader", ir.Node], None]


class Reader(Constants):
    """The layers, tensors and constants found so far. handlers: what reads a node, by its type."""

    def __init__(self, model: ir.Model, handlers: Mapping[str, Handler]) -> None:
        super().__init__()
        self.graph, self._handlers = model.graph, handlers
        self.opset = model.opset_imports.get("", 18)
        first = next((value.shape[0] for value in model.graph.inputs if value.shape), None)
        self.batch = first if isinstance(first, int) else _ANY_BATCH
        self.tensors: dict[str, Tensor] = {}
        self.layers: list[Operator] = []
        self.constants: dict[str, np.ndarray] = {}
        self.names: dict[str, str] = {}  # of tensors by the ONNX name
        self.indices: set[str] = set()

    def read(self) -> FloatModel:
        """All of it. UnsupportedError names every node of a type without a handler, or the node at fault."""
        for value in self.graph.inputs:
            self._input(value)
        missing = [node for node in self.graph if not self._is_known(node)]
        if missing:
            shown = ", ".join(f"{layer_name(node)!r} ({node.op_type})" for node in missing[:12])
            more = f" and {len(missing) - 12} more" if len(missing) > 12 else ""
            raise UnsupportedError(f"no TensorFlow Lite operator for {shown}{more}")
        for node in self.graph:
            try:
                if not self._folded(node):
                    self._handler(node)(self, node)
            except (UnsupportedError, FormatError) as error:
                raise UnsupportedError(
                    f"node {layer_name(node)!r} ({node.op_type}) in TensorFlow Lite: {error}"
                ) from error
        outputs = {name_of(value): self._output(value) for value in self.graph.outputs}
        inputs = tuple(self.names[name_of(value)] for value in self.graph.inputs)
        return FloatModel(inputs, outputs, self.tensors, tuple(self.layers), self.constants, frozenset(self.indices))

    def _input(self, value: ir.Value) -> None:
        name, shape = name_of(value), tuple(value.shape or ())
        if not shape or not all(isinstance(size, int) for size in shape[1:]):
            shown = ", ".join(str(getattr(size, "value", size)) for size in shape)
            raise UnsupportedError(f"input {name!r} of shape [{shown}] varies in more than its first axis")
        if value.dtype is not None and value.dtype.is_integer():
            self.indices.add(name)
        elif value.dtype != ir.DataType.FLOAT:
            raise UnsupportedError(f"input {name!r} of type {value.dtype}; TensorFlow Lite models here are float32")
        self.tensors[name] = Tensor(name, tuple(int(size) for size in shape[1:]), None)  # type: ignore[arg-type]
        self.names[name] = name

    def _output(self, value: ir.Value) -> str:
        if name_of(value) not in self.names:
            raise UnsupportedError(f"output {value.name!r} is a constant")
        return self.names[name_of(value)]

    def _is_known(self, node: ir.Node) -> bool:
        ours = schema.is_activation(node)
        return ours or (node.domain in ("", "ai.onnx") and node.op_type in (*self._handlers, *FOLDED, "Shape"))

    def _handler(self, node: ir.Node) -> Handler:
        handler = self._handlers.get(node.op_type)
        if handler is None:
            raise UnsupportedError("it reads what is known only when the model runs")
        return handler

    # Constants, which shapes are computed from

    def _folded(self, node: ir.Node) -> bool:
        if node.op_type == "Shape" and node.inputs[0] is not None:
            sizes = np.array(self.full_shape(node.inputs[0]), np.int64)
            start, end = attribute(node, "start", 0), attribute(node, "end", None)
            self.known[name_of(node.outputs[0])] = sizes[start:end]
            return True
        constants = [self.constant(value) for value in node.inputs]
        whole = all(c is not None or v is None for c, v in zip(constants, node.inputs, strict=True))
        if not whole or node.op_type not in FOLDED or node.domain not in ("", "ai.onnx"):
            return False
        made = fold(node, constants, self.opset)
        for value, array in zip(node.outputs, made, strict=True):
            self.known[name_of(value)] = array
        return True

    # Tensors

    def full_shape(self, value: ir.Value) -> list[int]:
        array = self.constant(value)
        return [self.batch, *self.tensor(value).shape] if array is None else list(array.shape)

    def tensor(self, value: ir.Value | None) -> Tensor:
        """What a node reads, which must not be a constant."""
        if value is None:
            raise UnsupportedError("an input is missing")
        name = name_of(value)
        array = self.constant(value)
        if name in self.names:
            return self.tensors[self.names[name]]
        if array is None:
            raise UnsupportedError(f"input {name!r} is neither a tensor nor a constant")
        raise UnsupportedError(f"constant {name!r} takes the place of a tensor")

    def operand(self, value: ir.Value | None, axes: int) -> Tensor:
        """A tensor, or a constant of at most so many axes with the batch, which it must not vary along."""
        array = self.constant(value)
        if array is None or value is None:
            return self.tensor(value)
        if array.ndim > axes or (array.ndim == axes and axes and array.shape[0] != 1):
            raise UnsupportedError(f"constant {value.name!r} differs from sample to sample")
        sample = array[0] if array.ndim == axes and axes else array
        name = f"{value.name} of {sample.ndim}"
        self.constants[name] = sample.astype(np.float32)
        self.tensors[name] = Tensor(name, sample.shape, None)
        return self.tensors[name]

    def add(
        self,
        node: ir.Node,
        kind: Callable[..., Operator],
        given: Sequence[Tensor],
        *fields: Any,
        step: str = "",
        output: ir.Value | None = None,
    ) -> Tensor:
        """A layer, the node's own or a step before it; the tensor that it makes."""
        value, name = output or node.outputs[0], layer_name(node)
        made = f"{value.name} {step}" if step else name_of(value)
        layer = kind(f"{name}/{step}" if step else name, tuple(tensor.name for tensor in given), made, *fields)
        self.tensors[made] = Tensor(made, layer.output_shape([tensor.shape for tensor in given]), None)
        self.layers.append(layer)
        if not step:
            self.names[name_of(value)] = made
        return self.tensors[made]

    def axis(self, value: ir.Value | None, axis: int) -> int:
        """An ONNX axis as one of the sample."""
        count = len(self.tensor(value).shape) + 1
        if not -count <= axis < count or axis % count == 0:
            raise UnsupportedError(f"axis {axis} of {count} would cross the batch")
        return axis % count - 1

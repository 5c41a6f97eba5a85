"""A float ONNX graph as operators on samples: where the batch lies, and what shapes are computed from.

The batch must stay the first axis, by itself: a node that moves it or mixes it with another is refused by name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from gemedge.errors import FormatError, UnsupportedError, reason
from gemedge.export.float_operators import FloatModel
from gemedge.operators import Operator, Shape, Tensor

_ANY_BATCH = 7919  # a prime that no shape is likely to hold: where it turns up, that is the batch
_MOST_FOLDED = 1 << 16  # numbers in what shapes and masks are computed from
_FOLDED = frozenset(
    {"Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Identity", "Mul", "Range"}
    | {"Reshape", "Slice", "Squeeze", "Sub", "Transpose", "Trilu", "Unsqueeze", "Where"}
)
Handler = Callable[["Reader", ir.Node], None]


class Reader:
    """The layers, tensors and constants found so far. handlers: what reads a node, by its type."""

    def __init__(self, model: ir.Model, handlers: Mapping[str, Handler]) -> None:
        self.graph, self._handlers = model.graph, handlers
        self.opset = model.opset_imports.get("", 18)
        first = next((value.shape[0] for value in model.graph.inputs if value.shape), None)
        self.batch = first if isinstance(first, int) else _ANY_BATCH
        self.tensors: dict[str, Tensor] = {}
        self.layers: list[Operator] = []
        self.constants: dict[str, np.ndarray] = {}
        self.known: dict[str, np.ndarray] = {}
        self.names: dict[str, str] = {}  # of tensors by the ONNX name
        self.indices: set[str] = set()

    def read(self) -> FloatModel:
        """All of it. UnsupportedError names every node of a type without a handler, or the node at fault."""
        for value in self.graph.inputs:
            self._input(value)
        missing = [node for node in self.graph if node.op_type not in (*self._handlers, *_FOLDED, "Shape")]
        if missing:
            shown = ", ".join(f"{name_of(node)!r} ({node.op_type})" for node in missing[:12])
            more = f" and {len(missing) - 12} more" if len(missing) > 12 else ""
            raise UnsupportedError(f"no TensorFlow Lite operator for {shown}{more}")
        for node in self.graph:
            try:
                if not self._folded(node):
                    self._handler(node)(self, node)
            except (UnsupportedError, FormatError) as error:
                raise UnsupportedError(
                    f"node {name_of(node)!r} ({node.op_type}) in TensorFlow Lite: {error}"
                ) from error
        outputs = {value.name or "": self._output(value) for value in self.graph.outputs}
        inputs = tuple(self.names[value.name or ""] for value in self.graph.inputs)
        return FloatModel(inputs, outputs, self.tensors, tuple(self.layers), self.constants, frozenset(self.indices))

    def _input(self, value: ir.Value) -> None:
        name, shape = value.name or "", tuple(value.shape or ())
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
        if (value.name or "") not in self.names:
            raise UnsupportedError(f"output {value.name!r} is a constant")
        return self.names[value.name or ""]

    def _handler(self, node: ir.Node) -> Handler:
        handler = self._handlers.get(node.op_type)
        if handler is None:
            raise UnsupportedError("it reads what is known only when the model runs")
        return handler

    # Constants, which shapes are computed from

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        if value is None:
            return None
        if value.const_value is not None:
            return value.const_value.numpy()
        return self.known.get(value.name or "")

    def required(self, node: ir.Node, index: int) -> np.ndarray:
        array = self.constant(node.inputs[index]) if index < len(node.inputs) else None
        if array is None:
            raise UnsupportedError(f"its input {index} must be a constant")
        return array

    def optional(self, node: ir.Node, index: int) -> np.ndarray | None:
        missing = index >= len(node.inputs) or node.inputs[index] is None
        return None if missing else self.required(node, index)

    def _folded(self, node: ir.Node) -> bool:
        if node.op_type == "Shape" and node.inputs[0] is not None:
            sizes = np.array(self.full_shape(node.inputs[0]), np.int64)
            start, end = attribute(node, "start", 0), attribute(node, "end", None)
            self.known[node.outputs[0].name or ""] = sizes[start:end]
            return True
        constants = [self.constant(value) for value in node.inputs]
        whole = all(c is not None or v is None for c, v in zip(constants, node.inputs, strict=True))
        if not whole or node.op_type not in _FOLDED or node.domain not in ("", "ai.onnx"):
            return False
        made = _evaluated(node, constants, self.opset)
        for value, array in zip(node.outputs, made, strict=True):
            self.known[value.name or ""] = array
        return True

    # Tensors

    def full_shape(self, value: ir.Value) -> list[int]:
        array = self.constant(value)
        return [self.batch, *self.tensor(value).shape] if array is None else list(array.shape)

    def tensor(self, value: ir.Value | None) -> Tensor:
        """What a node reads; a constant without the axis that meets the batch."""
        if value is None:
            raise UnsupportedError("an input is missing")
        name = value.name or ""
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

    def add(self, node: ir.Node, kind: Callable[..., Operator], given: Sequence[Tensor], *fields: Any, step: str = "",
            output: ir.Value | None = None) -> Tensor:  # fmt: skip
        """A layer, the node's own or a step before it; the tensor that it makes."""
        value = output or node.outputs[0]
        made = f"{value.name} {step}" if step else value.name or ""
        layer = kind(f"{name_of(node)}/{step}" if step else name_of(node), tuple(t.name for t in given), made, *fields)
        self.tensors[made] = Tensor(made, layer.output_shape([tensor.shape for tensor in given]), None)
        self.layers.append(layer)
        if not step:
            self.names[value.name or ""] = made
        return self.tensors[made]

    def axis(self, value: ir.Value | None, axis: int) -> int:
        """An ONNX axis as one of the sample."""
        count = len(self.tensor(value).shape) + 1
        if not -count <= axis < count or axis % count == 0:
            raise UnsupportedError(f"axis {axis} of {count} would cross the batch")
        return axis % count - 1


def name_of(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or ""


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def ints(node: ir.Node, name: str, default: Shape) -> Shape:
    return tuple(int(number) for number in attribute(node, name, default))


def _evaluated(node: ir.Node, constants: list[np.ndarray | None], opset: int) -> list[np.ndarray]:
    from onnx.reference import ReferenceEvaluator

    known = [constant for constant in constants if constant is not None]
    if sum(constant.size for constant in known) > _MOST_FOLDED or any(
        node.op_type in ("ConstantOfShape", "Expand", "Range") and np.abs(c).max(initial=0) > _MOST_FOLDED
        for c in known
    ):
        raise UnsupportedError("it computes a large constant; fold constants before exporting")
    names = [f"input{i}" if constant is not None else "" for i, constant in enumerate(constants)]
    outputs = [f"output{i}" for i in range(len(node.outputs))]
    written = ir.to_proto(node)
    written.input[:], written.output[:] = names, outputs
    infos = [onnx.helper.make_empty_tensor_value_info(name) for name in (*names, *outputs) if name]
    graph = onnx.helper.make_graph([written], "constant", infos[: -len(outputs)], infos[-len(outputs) :])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    feed = {name: constant for name, constant in zip(names, constants, strict=True) if constant is not None}
    try:
        return [np.asarray(found) for found in ReferenceEvaluator(proto).run(None, feed)]
    except Exception as error:
        raise UnsupportedError(f"it cannot be computed: {reason(error)}") from error

"""Reading ONNX nodes: names, attributes, and the constants that standard operators make of constants."""

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from gemedge.errors import UnsupportedError

_MOST_FOLDED = 1 << 26  # numbers in one folded constant
# Arithmetic on shapes and masks; nothing here runs long, and what grows says its size in its inputs.
FOLDED = frozenset(
    {"Abs", "Add", "And", "Cast", "CastLike", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Flatten", "Floor"}
    | {"Gather", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg"}
    | {"Not", "Or", "Range", "ReduceProd", "Reshape", "Slice", "Split", "Squeeze", "Sub", "Tile", "Transpose", "Trilu"}
    | {"Unsqueeze", "Where"}
)


def name_of(value: ir.Value) -> str:
    return value.name or ""


def layer_name(node: ir.Node) -> str:
    """What a node is called: its name, or that of its first output where it has none."""
    return node.name or name_of(node.outputs[0])


def sample_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape after the batch; UnsupportedError where it is not known."""
    if value.shape is None or len(value.shape) == 0:
        raise UnsupportedError(f"tensor {name_of(value)!r} has no known shape with a batch")
    sizes = tuple(value.shape)[1:]
    if not all(isinstance(size, int) for size in sizes):
        shown = ", ".join(str(size) for size in value.shape)
        raise UnsupportedError(f"tensor {name_of(value)!r} of shape [{shown}] varies in more than its first axis")
    return tuple(int(size) for size in sizes)  # type: ignore[arg-type]


def input_of(node: ir.Node, index: int = 0) -> ir.Value:
    """An input that the node must have."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise UnsupportedError("an input is missing")
    return value


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(number) for number in attribute(node, name, default))


def pads_of(node: ir.Node, axes: int) -> tuple[int, ...]:
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError("auto_pad must be NOTSET; write the pads")
    return ints(node, "pads", (0,) * (2 * axes))


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value which is no output of the graph, reading it once."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


class Constants:
    """The constants of a graph: its initializers, and what was folded so far (known, by the value's name)."""

    def __init__(self) -> None:
        self.known: dict[str, np.ndarray] = {}

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        if value is None:
            return None
        if value.const_value is not None:
            return value.const_value.numpy()
        return self.known.get(name_of(value))

    def required(self, node: ir.Node, index: int) -> np.ndarray:
        array = self.constant(node.inputs[index]) if index < len(node.inputs) else None
        if array is None:
            raise UnsupportedError(f"its input {index} must be a constant")
        return array

    def optional(self, node: ir.Node, index: int) -> np.ndarray | None:
        """The constant input, None where there is none; a tensor in its place is refused."""
        missing = index >= len(node.inputs) or node.inputs[index] is None
        return None if missing else self.required(node, index)


def fold(node: ir.Node, constants: list[np.ndarray | None], opset: int) -> list[np.ndarray]:
    """What a node makes of constants, by onnx's reference evaluator; UnsupportedError where it would be huge."""
    _refuse_huge(node, constants)
    names = [f"input{index}" if constant is not None else "" for index, constant in enumerate(constants)]
    outputs = [f"output{index}" for index in range(len(node.outputs))]
    written = ir.to_proto(node)
    written.input[:], written.output[:] = names, outputs
    infos = [onnx.helper.make_empty_tensor_value_info(name) for name in (*names, *outputs) if name]
    graph = onnx.helper.make_graph([written], "constant", infos[: -len(outputs)], infos[-len(outputs) :])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    from onnx.reference import ReferenceEvaluator

    feed = {name: constant for name, constant in zip(names, constants, strict=True) if constant is not None}
    return [np.asarray(found) for found in ReferenceEvaluator(model).run(None, feed)]


def _refuse_huge(node: ir.Node, constants: list[np.ndarray | None]) -> None:
    """Before the evaluator allocates: operators whose output is larger than their inputs."""
    known = [np.asarray(constant) for constant in constants if constant is not None]
    sizes = [constant.size for constant in known]
    match node.op_type:
        case "Expand" | "ConstantOfShape":
            made = math.prod(max(1, int(size)) for size in known[-1].reshape(-1)) * sizes[0]
        case "Tile":
            made = sizes[0] * math.prod(int(count) for count in known[1].reshape(-1))
        case "Range":
            start, limit, step = (float(number.reshape(-1)[0]) for number in known)
            made = math.ceil(abs((limit - start) / step)) if step else _MOST_FOLDED + 1
        case "Gather":
            made = math.prod(sizes)
        case _:  # by broadcasting at most
            axes = max((constant.ndim for constant in known), default=0)
            shapes = [(1,) * (axes - constant.ndim) + constant.shape for constant in known]
            made = math.prod(max(sizes) for sizes in zip(*shapes, strict=True))
    if made > _MOST_FOLDED:
        raise UnsupportedError(f"it makes a constant of {made} numbers; {_MOST_FOLDED} at most")

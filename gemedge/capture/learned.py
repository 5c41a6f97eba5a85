"""A learned epsilon costs nothing: f(x) = epsilon g(x / epsilon) has its two scales folded away.

torch leaves Div, activation at epsilon 1, Mul. Where the layer before and all layers behind have weights of their own,
those take the scales, and the activation stays at epsilon 1; elsewhere epsilon becomes the activation's attribute.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_all_uses_with

from gemedge.capture import schema

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_HOMOGENEOUS = (
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "ReduceMean",
    "Reshape",
    "Flatten",
    "Transpose",
    "Identity",
)


def fold(model: ir.Model) -> list[str]:
    """Fold every learned epsilon of the model, in place; a line for each says where it went."""
    return [line for node in list(model.graph) if schema.is_activation(node) and (line := _fold(model.graph, node))]


def _fold(graph: ir.Graph, node: ir.Node) -> str:
    around = _scales(node)
    if around is None:
        return ""
    before, behind, epsilon = around
    x, made, wanted = before.inputs[0], node.outputs[0], behind.outputs[0]
    above = _makers(x) if _only_reader(x) is before else None
    below = _takers(wanted)
    node.replace_input_with(0, x)
    if wanted.is_graph_output():
        made.name, wanted.name = wanted.name, None
    made.shape = wanted.shape
    replace_all_uses_with(wanted, made, replace_graph_outputs=True)
    scale = behind.inputs[1]
    graph.remove([before, behind], safe=True)
    if scale is not None and scale.name and not scale.uses():
        graph.initializers.pop(scale.name, None)
    shown = f"epsilon {epsilon:.6g} of {node.name!r}, learned,"
    if above is None or below is None:
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", float(epsilon))
        return f"{shown} kept in the activation, where it costs nothing"
    for value in above:
        _scale(value, 1 / float(epsilon))
    for value in below:
        _scale(value, float(epsilon))
    return f"{shown} folded into the weights around it"


def _scales(node: ir.Node) -> tuple[ir.Node, ir.Node, np.float32] | None:
    """The Div by a positive number before the activation, the Mul by the same behind it, and that number."""
    given = node.inputs[0]
    before = given.producer() if given is not None else None
    behind = _only_reader(node.outputs[0])
    if before is None or behind is None or _only_reader(given) is not node:
        return None
    if (before.op_type, before.domain, behind.op_type, behind.domain) != ("Div", "", "Mul", ""):
        return None
    first, second = (_scalar(found.inputs[1]) for found in (before, behind))
    if first is None or first != second or not 0 < first < np.inf or behind.inputs[0] is not node.outputs[0]:
        return None
    return before, behind, np.float32(schema.activation_of(node).epsilon * first)


def _scalar(value: ir.Value | None) -> np.float32 | None:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return np.float32(value.const_value.numpy().reshape(()))


def _only_reader(value: ir.Value | None) -> ir.Node | None:
    if value is None or value.is_graph_output():
        return None
    readers = [reader for reader, _ in value.uses()]
    return readers[0] if len(readers) == 1 else None


def _makers(value: ir.Value | None) -> list[ir.Value] | None:
    """The constants in whose product by a number the value is multiplied by it; None where there are none such."""
    node = value.producer() if value is not None else None
    if node is None or node.domain:
        return None
    if node.op_type == "BatchNormalization":
        return _own(node, node.inputs[1:3])
    if node.op_type in _WEIGHTED:
        return _own(node, node.inputs[1:])
    if node.op_type == "Add":  # a MatMul's bias
        constants = [x for x in node.inputs if x is not None and x.const_value is not None]
        sums = [x for x in node.inputs if x not in constants]
        below = _makers(sums[0]) if len(sums) == 1 and _only_reader(sums[0]) is node else None
        own = _own(node, constants)
        return None if below is None or own is None else own + below
    return None


def _takers(value: ir.Value) -> list[ir.Value] | None:
    """The weights of all layers that read the value, if need be through nodes that keep a positive factor."""
    if value.is_graph_output() or not value.uses():
        return None
    found: list[ir.Value] = []
    for reader, index in value.uses():
        if reader.domain or index:
            return None
        more = _takers(reader.outputs[0]) if reader.op_type in _HOMOGENEOUS else None
        if reader.op_type in _WEIGHTED:
            more = _own(reader, reader.inputs[1:2])
        if more is None or any(output.uses() for output in reader.outputs[1:]):
            return None
        found += more
    return found


def _own(node: ir.Node, values: Sequence[ir.Value | None]) -> list[ir.Value] | None:
    """Constants that no other node reads, of a node that multiplies by nothing else."""
    own = [value for value in values if value is not None]
    plain = all(value.const_value is not None and _only_reader(value) is node for value in own)
    scaled = [name for name in ("alpha", "beta") if (a := node.attributes.get(name)) is not None and a.as_float() != 1]
    return own if own and plain and not scaled else None


def _scale(value: ir.Value, factor: float) -> None:
    tensor = value.const_value
    assert tensor is not None, value  # noqa: S101  _layer saw it
    scaled = (tensor.numpy().astype(np.float64) * float(factor)).astype(tensor.numpy().dtype)
    value.const_value = ir.tensor(scaled, name=value.name)

"""BatchNormalization in inference: folded into the weights before it, else with weights of its own.

It is scale * x + offset for each channel. Alone it becomes a depthwise convolution of size 1, which has one scale
for each channel in integers, so that the 8-bit weight is exact and the result is rounded once; two axes are given
a third for it, and tensors of more axes than a convolution takes get a Mul and an Add.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules.common import (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)

from gemedge.errors import UnsupportedError

_RULES = (fuse_batchnorm_into_conv_rule, fuse_batchnorm_into_conv_transpose_rule, fuse_batchnorm_into_gemm_rule)
_MOST_CONVOLVED = 4  # axes


def fold(model: ir.Model) -> list[str]:
    """Leave no BatchNormalization whose parameters are constants, in place; a line for each.

    A folded layer keeps its name. Raises UnsupportedError naming one that normalizes by the batch.
    """
    found = _batch_norms(model)
    for node in found:
        if (mode := node.attributes.get("training_mode")) is not None and mode.as_int():
            raise UnsupportedError(
                f"node {node.name!r} (BatchNormalization): training_mode=1 normalizes by the batch;"
                " export the model in eval mode"
            )
    names = {node.outputs[0].name: (node.name, _layer_before(node)) for node in found}
    if found:
        RewritePass(_RULES)(model)
    notes = []
    left = {node.outputs[0].name for node in _batch_norms(model)}
    for value in [value for node in model.graph for value in node.outputs]:
        if value.name in names and value.name not in left:
            own, layer = names.pop(value.name)
            value.producer().name = layer  # type: ignore[union-attr]
            notes.append(f"node {own!r}: BatchNormalization folded into {layer!r}")
    for node in _batch_norms(model):
        if made := _alone(model.graph, node):
            notes.append(f"node {node.name!r}: BatchNormalization became {made}")
    return notes


def _batch_norms(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "BatchNormalization" and not node.domain]


def _layer_before(node: ir.Node) -> str | None:
    layer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return None if layer is None else layer.name


def _alone(graph: ir.Graph, node: ir.Node) -> str:
    """Replace a BatchNormalization by nodes of standard operators; what they are, or "" where it cannot be."""
    x = node.inputs[0]
    tensors = [value.const_value if value is not None else None for value in node.inputs[1:]]
    parameters = [tensor.numpy().astype(np.float64) for tensor in tensors if tensor is not None]
    used = [value for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    if x is None or x.shape is None or x.dtype is None or len(x.shape) < 2 or len(parameters) != 4 or used:
        return ""
    gamma, beta, mean, variance = parameters
    epsilon = attribute.as_float() if (attribute := node.attributes.get("epsilon")) else 1e-5
    scale = gamma / np.sqrt(variance + epsilon)
    offset = beta - mean * scale
    maker = _Maker(graph, node, x.dtype)
    if len(x.shape) > _MOST_CONVOLVED:
        column = (len(scale), *[1] * (len(x.shape) - 2))
        scaled = maker.add("Mul", [x, maker.constant("scale", scale.reshape(column))], x.shape, "scaled")
        maker.end("Add", [scaled, maker.constant("offset", offset.reshape(column))])
        return "a Mul and an Add"
    axes = [maker.integers("axes", [2])] if len(x.shape) == 2 else []
    given = maker.add("Unsqueeze", [x, *axes], _column(x.shape), "column") if axes else x
    weight = maker.constant("weight", scale.reshape(-1, 1, *[1] * max(1, len(x.shape) - 2)))
    inputs = [given, weight, maker.constant("bias", offset)]
    groups = [ir.AttrInt64("group", len(scale))]
    if not axes:
        maker.end("Conv", inputs, groups)
    else:
        made = maker.add("Conv", inputs, _column(x.shape), "scaled", groups)
        maker.end("Squeeze", [made, *axes])
    return "a convolution of one weight a channel"


def _column(shape: ir.Shape) -> ir.Shape:
    return ir.Shape([*shape, 1])


class _Maker:
    """Makes the nodes that take the place of one."""

    def __init__(self, graph: ir.Graph, node: ir.Node, dtype: ir.DataType) -> None:
        self.graph, self.node, self.dtype = graph, node, dtype
        self.made: list[ir.Node] = []

    def constant(self, part: str, array: np.ndarray) -> ir.Value:
        return self._initializer(part, ir.tensor(array.astype(self.dtype.numpy())))

    def integers(self, part: str, numbers: list[int]) -> ir.Value:
        return self._initializer(part, ir.tensor(np.array(numbers, np.int64)))

    def _initializer(self, part: str, tensor: ir.TensorProtocol) -> ir.Value:
        name = f"{self.node.outputs[0].name}/{part}"
        value = ir.Value(
            name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def add(
        self,
        op_type: str,
        inputs: list[ir.Value],
        shape: ir.Shape | None,
        part: str,
        attributes: Sequence[ir.Attr] = (),
    ) -> ir.Value:
        name = f"{self.node.name}/{part}" if part else self.node.name
        node = ir.Node("", op_type, inputs, attributes, name=name)
        output = node.outputs[0]
        output.name, output.shape = f"{self.node.outputs[0].name}/{part}", shape
        output.type = ir.TensorType(self.dtype)
        self.made.append(node)
        return output

    def end(self, op_type: str, inputs: list[ir.Value], attributes: Sequence[ir.Attr] = ()) -> None:
        old = self.node.outputs[0]
        new = self.add(op_type, inputs, old.shape or self.node.inputs[0].shape, "", attributes)  # type: ignore[union-attr]
        new.name = old.name
        replace_nodes_and_values(self.graph, self.node, [self.node], self.made, [old], [new])

"""What will cost accuracy, or be refused, said before the work of quantizing: one line for each finding."""

from collections.abc import Collection

import onnx_ir as ir

from gemedge.capture import forms, schema
from gemedge.quant import functions
from gemedge.quant.formats import Formats
from gemedge.quant.prepare import Prepared
from gemedge.quant.ranges import Ranges

_OUTLIER = 2**10  # times the typical magnitude
_INTEGER = {"Add", "Sub", "Mul", "Where"}  # of two tensors have an integer form


def of_graph(prepared: Prepared) -> list[str]:
    """What the operators say: activations found among primitives, or nearly, and tensors combined without a form."""
    lines = list(prepared.findings)
    for node in prepared.model.graph:
        tensors = {value for value in node.inputs if value is not None and value.const_value is None}
        is_known = not node.domain and node.op_type in functions.ELEMENTWISE - _INTEGER
        if is_known and len(tensors) > 1 and all(_is_real(value) for value in tensors):
            shown = " and ".join(sorted(repr(value.name) for value in tensors))
            lines.append(f"node {node.name!r} ({node.op_type}): its operands {shown} both vary; it has no integer form")
    return lines


def of_ranges(model: ir.Model, ranges: Ranges, formats: Formats, kept: Collection[str] | None = None) -> list[str]:
    """What the ranges say of a model in the formats of a scheme: tensors that vanish in them, activations that do.

    kept: the tensors that are there in integers; others, such as masks that a Softmax takes in, are not judged.
    """
    known = {value.name for node in model.graph for value in node.outputs} | {v.name for v in model.graph.inputs}
    judged = [name for name in ranges if name in known and (kept is None or name in kept)]
    lines = [line for name in judged if (line := _of_range(name, ranges, formats))]
    return [*lines, *_of_epsilons(model, ranges, formats)]


def _is_real(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point() or value.dtype == ir.DataType.BOOL


def _of_range(name: str, ranges: Ranges, formats: Formats) -> str:
    found, typical = ranges[name], ranges.typical.get(name, 0.0)
    if found.width == 0:
        return f"tensor {name!r} is always {found.min:.4g} on this data: its range has no width"
    largest, lsb = max(-found.min, found.max), formats.params(found.min, found.max).scale
    if typical > 0 and (typical < lsb / 2 or largest > _OUTLIER * typical):
        return (
            f"tensor {name!r} reaches {largest:.4g}, but half of its numbers other than 0 are below {typical:.2g};"
            f" one LSB of {formats.scheme} is {lsb:.2g}: a method that leaves outliers out may serve it better"
        )
    return ""


def _of_epsilons(model: ir.Model, ranges: Ranges, formats: Formats) -> list[str]:
    lines = []
    for node in forms.activation_nodes(model):
        given = (node.inputs[0].name if node.inputs[0] is not None else "") or ""
        if given not in ranges:
            continue
        activation, found = schema.activation_of(node), ranges[given]
        lsb = formats.params(found.min, found.max).scale
        if activation.epsilon < lsb:
            lost = "its tail below 0 is lost" if activation.family == "segem" else "it is ReLU there"
            lines.append(
                f"node {node.name!r}: epsilon {activation.epsilon:.4g} of {activation} is below one LSB of its input,"
                f" {lsb:.4g} in {formats.scheme}: {lost}"
            )
    return lines

"""The float model made ready for integers: what is constant computed, what is one function made one node.

The ecosystem's own passes do what they do right: onnxscript folds constants and batch normalization, onnx_ir inlines
the functions of strangers and removes what nothing reads. GEM and SEGEM nodes are never inlined. Weights are neither
copied nor transposed on the way.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from gemedge.capture import schema
from gemedge.errors import reason
from gemedge.quant import chains, functions, normalize, recognize

OPSET = 20  # has Gelu and HardSwish as single operators, which tables take whole
_MOST_FOLDED = 1 << 16  # elements


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model for calibrate and quantize, what was done to it, and what its author may want to know (lint)."""

    model: ir.Model
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


def prepare(model: ir.Model) -> Prepared:
    """A clone that computes the same with fewer operators; weights are shared with the model given.

    Its inputs and outputs keep their names, types and order, and so do tensors that are still there. Raises
    UnsupportedError where a BatchNormalization normalizes by the batch.
    """
    made = model.clone()
    outputs = [value.name for value in made.graph.outputs]
    _name_nodes(made)
    notes = _clean(made)
    _keep_names(made.graph, outputs)
    notes += normalize.fold(made)
    _narrow(made.graph)
    findings = recognize.fuse(made)
    notes += chains.fuse(made)
    for tidy in (common.RemoveUnusedNodesPass(), common.RemoveUnusedFunctionsPass(), common.RemoveUnusedOpsetsPass()):
        tidy(made)
    return Prepared(made, tuple(notes), tuple(findings))


def _clean(model: ir.Model) -> list[str]:
    for key in [key for key in model.functions if key[0] == schema.DOMAIN]:
        del model.functions[key]  # calibrate writes its own
    notes: list[str] = []
    if model.functions:
        notes.append(f"inlined {', '.join(sorted(name for _, name, _ in model.functions)[:12])}")
        common.InlinePass()(model)
    before = Counter(node.op_type for node in model.graph)
    schema.register()
    steps: list[Callable[[ir.Model], object]] = [
        lambda given: fold_constants(
            given, onnx_shape_inference=True, input_size_limit=_MOST_FOLDED, output_size_limit=_MOST_FOLDED
        ),
        common.IdentityEliminationPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveUnusedNodesPass(),
    ]
    for step in steps:
        try:
            step(model)
        except Exception as error:  # another's pass on a stranger's graph; each step leaves a sound one
            notes.append(f"constants were not folded: {reason(error)}")
    gone = before - Counter(node.op_type for node in model.graph)
    if gone:
        shown = ", ".join(f"{count} {op_type}" for op_type, count in sorted(gone.items()))
        notes.append(f"computed or removed: {shown}")
    return notes


def _name_nodes(model: ir.Model) -> None:
    """Every node has a name of its own: it will name a layer. One without is called as what it makes."""
    used: set[str] = set()
    for node in model.graph:
        made = node.outputs[0].name or ""
        name = node.name or made
        node.name = name if name not in used else f"{name} of {made}"
        used.add(node.name)


def _keep_names(graph: ir.Graph, names: list[str | None]) -> None:
    """Give outputs their own tensors back: folding makes one of two that are equal, with one name."""
    for index, (value, name) in enumerate(zip(list(graph.outputs), names, strict=True)):
        if value.name != name:
            node = ir.Node("", "Identity", [value], name=name)
            node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = name, value.shape, value.type
            graph.append(node)
            graph.outputs[index] = node.outputs[0]


def _narrow(graph: ir.Graph) -> None:
    """Let element-wise nodes read a number itself where they read it expanded to the shape of another input."""
    for node in graph:
        if node.op_type not in functions.ELEMENTWISE or node.domain:
            continue
        for index, value in enumerate(node.inputs):
            number = _expanded(value)
            if number is not None and any(_is_like(value, other) for other in node.inputs):
                node.replace_input_with(index, number)


def _expanded(value: ir.Value | None) -> ir.Value | None:
    node = value.producer() if value is not None else None
    number = node.inputs[0] if node is not None and node.op_type == "Expand" and not node.domain else None
    is_number = number is not None and number.const_value is not None and number.const_value.size == 1
    return number if is_number and not len(number.const_value.shape) else None  # type: ignore[union-attr]


def _is_like(value: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether another tensor, known only when the model runs, has the same shape."""
    if value is None or other is None or other.const_value is not None or _expanded(other) is not None:
        return False
    if value.shape is None or other.shape is None or len(value.shape) != len(other.shape):
        return False
    names = [[getattr(size, "value", size) for size in tensor.shape or ()] for tensor in (value, other)]
    return names[0] == names[1] and None not in names[0]

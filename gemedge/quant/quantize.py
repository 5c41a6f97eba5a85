"""A float ONNX model and the ranges of its tensors, turned into a model of integers."""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from gemedge.errors import UnsupportedError
from gemedge.fixed import Rounding
from gemedge.model import QuantizedModel, Scheme
from gemedge.quant.formats import Formats
from gemedge.quant.lower import elementwise, places, weighted, windows
from gemedge.quant.lower.lowering import Handler, Lowering, Range
from gemedge.quant.lower.reading import FOLDED, layer_name, name_of, sample_shape

_HANDLERS: dict[str, Handler] = {
    **weighted.HANDLERS,
    **elementwise.HANDLERS,
    **windows.HANDLERS,
    **places.HANDLERS,
}


def quantize(
    model: ir.Model,
    ranges: Mapping[str, Range],
    *,
    scheme: Scheme,
    rounding: Rounding,
    scheme_of: Callable[[str], Scheme | None] = lambda _: None,
) -> QuantizedModel:
    """The model in integers.

    ranges: for each float tensor by its name; operators that only move numbers keep the parameters of their
    input. scheme_of: the scheme of a layer by its name where it is another: of its weights and of what it makes.
    Raises UnsupportedError naming every node that has no integer form, before any work, and QuantizationError
    naming a tensor without a range or a layer whose accumulator does not fit.
    """
    check_supported(model)
    lowering = Lowering(model, ranges, lambda name: Formats(scheme_of(name) or scheme), rounding)
    lowering.lower(_HANDLERS)
    for value in model.graph.outputs:
        if lowering.batch_axis(value) != 0:
            raise UnsupportedError(f"output {name_of(value)!r} has its batch on axis {lowering.batch_axis(value)}")
    return QuantizedModel(
        scheme,
        rounding,
        tuple(lowering.source(value).name for value in model.graph.inputs),
        {name_of(value): lowering.source(value).name for value in model.graph.outputs},
        lowering.tensors,
        tuple(lowering.layers),
    )


def check_supported(model: ir.Model) -> None:
    """Raises UnsupportedError naming every node that has no integer form, or an input whose size is not known."""
    for value in model.graph.inputs:
        sample_shape(value)
    missing, constant = [], set(model.graph.initializers)
    for node in model.graph:
        known = [value is None or name_of(value) in constant for value in node.inputs]
        if node.op_type in ("Shape", "Size") or (node.op_type in FOLDED and all(known)):
            constant.update(name_of(value) for value in node.outputs)
        elif node.op_type not in _HANDLERS or (node.op_type == "Div" and not known[1]):
            missing.append(node)
    if missing:
        shown = ", ".join(f"{layer_name(node)!r} ({node.op_type})" for node in missing[:12])
        more = f" and {len(missing) - 12} more" if len(missing) > 12 else ""
        raise UnsupportedError(f"no integer form for {shown}{more}")

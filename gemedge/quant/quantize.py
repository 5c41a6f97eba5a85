"""A float ONNX model and the ranges of its tensors, turned into a model of integers."""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from gemedge.errors import UnsupportedError
from gemedge.fixed import Rounding
from gemedge.model import QuantizedModel, Scheme
from gemedge.quant.formats import Formats
from gemedge.quant.lower import elementwise, places, weighted, windows
from gemedge.quant.lower.lowering import Handler, Lowering, Range, Real
from gemedge.quant.lower.reading import FOLDED, name_of

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
    return lowered(model, ranges, scheme=scheme, rounding=rounding, scheme_of=scheme_of)[0]


def lowered(
    model: ir.Model,
    ranges: Mapping[str, Range],
    *,
    scheme: Scheme,
    rounding: Rounding,
    scheme_of: Callable[[str], Scheme | None] = lambda _: None,
) -> tuple[QuantizedModel, dict[str, Real]]:
    """`quantize`, and what the layers' constants stood for before, by the layer's name."""
    _refuse_unsupported(model)
    lowering = Lowering(model, ranges, lambda name: Formats(scheme_of(name) or scheme), rounding)
    lowering.lower(_HANDLERS)
    for value in model.graph.outputs:
        if lowering.batch_axis(value) != 0:
            raise UnsupportedError(f"output {name_of(value)!r} has its batch on axis {lowering.batch_axis(value)}")
    quantized = QuantizedModel(
        scheme,
        rounding,
        tuple(lowering.source(value).name for value in model.graph.inputs),
        {name_of(value): lowering.source(value).name for value in model.graph.outputs},
        lowering.tensors,
        tuple(lowering.layers),
    )
    return quantized, lowering.reals


def _refuse_unsupported(model: ir.Model) -> None:
    known = _HANDLERS.keys() | FOLDED | {"Shape", "Size"}
    missing = [node for node in model.graph if node.op_type not in known]
    if missing:
        shown = ", ".join(f"{node.name!r} ({node.op_type})" for node in missing[:12])
        more = f" and {len(missing) - 12} more" if len(missing) > 12 else ""
        raise UnsupportedError(f"no integer form for {shown}{more}")

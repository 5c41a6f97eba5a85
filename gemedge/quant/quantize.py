"""A float ONNX model and the ranges of its tensors, turned into a model of integers."""

from collections.abc import Callable, Mapping
from itertools import zip_longest

import numpy as np
import onnx_ir as ir

from gemedge.capture.reading import FOLDED, layer_name, name_of, sample_shape
from gemedge.errors import ModelError, QuantizationError, UnsupportedError
from gemedge.fixed import Rounding
from gemedge.model import Op, QuantizedModel, Scheme
from gemedge.moving import Constant, Embed
from gemedge.operators import Activate, Convolution, Dense, Interpolate, Lookup
from gemedge.quant.formats import Formats
from gemedge.quant.lower import elementwise, places, weighted, windows
from gemedge.quant.lower.lowering import Handler, Lowering, Range, Real

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
    return _lowered(Lowering(model, ranges, lambda name: Formats(scheme_of(name) or scheme), rounding), scheme)[0]


def reals_of(model: ir.Model, quantized: QuantizedModel) -> dict[str, Real]:
    """What a quantized model's constants stood for in the float model that it was made of, by the layer's name.

    Raises ModelError where it was made of another.
    """
    check_supported(model)
    schemes = {layer.name: _scheme_of(layer, quantized) for layer in quantized.layers}
    for node in model.graph:  # what became no layer, as a Relu taken in, has the scheme of what it reads
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if producer is not None and layer_name(producer) in schemes:
            schemes.setdefault(layer_name(node), schemes[layer_name(producer)])
    params = {tensor.name: tensor.params for tensor in quantized.tensors.values() if tensor.params is not None}

    def lowered() -> tuple[QuantizedModel, dict[str, Real]]:
        formats = {name: Formats(scheme) for name, scheme in schemes.items()}
        default = Formats(quantized.scheme)
        lowering = Lowering(model, {}, lambda name: formats.get(name, default), quantized.rounding, params)
        return _lowered(lowering, quantized.scheme)

    try:
        again, reals = lowered()
        if others := [b.name for a, b in zip(again.layers, quantized.layers, strict=False) if not _same_numbers(a, b)]:
            schemes.update({name: _OF_SAME_WIDTH[schemes[name]] for name in others})
            again, reals = lowered()
    except QuantizationError as error:
        raise ModelError("the quantized model is of another network: its layers do not fit this one's") from error
    for ours, theirs in zip_longest(again.layers, quantized.layers):
        if isinstance(ours, Activate) and isinstance(theirs, Lookup | Interpolate) and ours.name == theirs.name:
            reals[ours.name] = Real(function=ours.activation)  # a table in place of the kernel
        elif ours is None or theirs is None or (type(ours), ours.name) != (type(theirs), theirs.name):
            names = [layer.name if layer is not None else "none" for layer in (ours, theirs)]
            raise ModelError(f"the quantized model is of another network: layer {names[1]!r} in place of {names[0]!r}")
        elif not _same_numbers(ours, theirs):
            raise ModelError(f"the quantized model is of another network: weights of layer {theirs.name!r} differ")
    return reals


def _same_numbers(ours: Op, theirs: Op) -> bool:
    """Whether stored numbers agree to one code, which another machine's arithmetic may move."""
    match ours, theirs:
        case (Convolution(weight=a), Convolution(weight=b)) | (Dense(weight=a), Dense(weight=b)):
            pass
        case (Constant(value=a), Constant(value=b)) | (Embed(table=a), Embed(table=b)):
            pass
        case _:
            return True
    return a.shape == b.shape and int(np.abs(a.astype(np.int64) - b.astype(np.int64)).max(initial=0)) <= 1


# Widths do not tell an affine scheme from that of the same widths whose scales are powers of two; weights do.
_OF_SAME_WIDTH: dict[Scheme, Scheme] = {"int8": "q7", "q7": "int8", "int16x8": "q15", "q15": "int16x8"}


def _scheme_of(layer: Op, quantized: QuantizedModel) -> Scheme:
    """A scheme that a layer's widths allow."""
    params = quantized.tensors[layer.output].params
    if isinstance(layer, Convolution | Dense) and layer.weight.dtype == np.int16:
        return "q15"
    if params is None or (params.bits == 8) == (quantized.scheme in ("int8", "q7")):
        return quantized.scheme
    return "int8" if params.bits == 8 else "int16x8"


def _lowered(lowering: Lowering, scheme: Scheme) -> tuple[QuantizedModel, dict[str, Real]]:
    lowering.lower(_HANDLERS)
    model, rounding = lowering.model, lowering.rounding
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


def check_sizes(model: ir.Model) -> None:
    """Raises UnsupportedError naming an input whose size is not known, or a tensor that holds no numbers."""
    for value in model.graph.inputs:
        sample_shape(value)
    for value in (*model.graph.inputs, *(made for node in model.graph for made in node.outputs)):
        if value.shape is not None and 0 in value.shape:
            shape = ", ".join(str(size) for size in value.shape)
            raise UnsupportedError(f"tensor {name_of(value)!r} of shape [{shape}] holds no numbers")


def check_supported(model: ir.Model) -> None:
    """Raises UnsupportedError naming every node that has no integer form, or a tensor of a size that has none."""
    check_sizes(model)
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

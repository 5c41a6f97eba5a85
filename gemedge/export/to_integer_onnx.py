"""A network in integers as an ONNX file of integer operators: simulate's integers, at every layer, in any runtime.

Floats stand at the border alone, where simulate has them, too. All arithmetic between is exact: products of bytes
summed in 32 bits, rescaling modulo 2**64 (gemedge.export.integer_sums), and tables.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from gemedge.capture import forms, schema
from gemedge.errors import UnsupportedError, UsageError, reason
from gemedge.export import integer_elementwise as elementwise
from gemedge.export import integer_moving as moves
from gemedge.export import integer_products as products
from gemedge.export import integer_windows as windows
from gemedge.export.onnx_writer import Writer, element_of, offset_of, zero_of
from gemedge.model import Op, QuantizedModel
from gemedge.moving import Clamp, Concatenate, Constant, Embed, Pad, Reshape, Spread, Take, Transpose
from gemedge.operators import (
    Activate,
    AveragePool,
    Choose,
    Combine,
    Convolution,
    Dense,
    GemmlowpSum,
    Interpolate,
    LayerNormalization,
    Lookup,
    MatrixMultiply,
    MaxPool,
    Multiply,
    Operator,
    RawAveragePool,
    Softmax,
    Tensor,
)

OPSETS = range(17, 22)
OPSET = 18
TENSORS = "gemedge.tensors"  # what metadata_props calls the list of tensors
_WIDEST = 16


def to_integer_onnx(model: QuantizedModel, *, opset: int = OPSET, raw: bool = False) -> bytes:
    """The file's bytes, the same for the same model. UnsupportedError names a layer that it cannot hold exactly.

    opset: from 17 to 21. raw: inputs and outputs are integers, int8 or int16, instead of float32; indices are int64
    in both cases. metadata_props say what was written: see `record`.
    """
    check_writable(model, opset)
    to = Writer(model, opset)
    for name in model.inputs:
        to.prefix = f"{name}.raw"
        to.values[name] = entered(to, model.tensors[name], raw=raw)
    for layer in model.layers:
        to.prefix = layer.name
        to.values[layer.output] = write(to, layer)
    for name, tensor in model.outputs.items():
        to.prefix = f"{tensor}.real"
        leave(to, name, model.tensors[tensor], raw=raw)
    return finished(to, form="integer", raw=raw)


def check_writable(model: QuantizedModel, opset: int) -> None:
    """Raise UsageError for an opset that is not written, UnsupportedError for names or widths that ONNX cannot hold."""
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} of a quantized model must be from {OPSETS[0]} to {OPSETS[-1]}")
    for tensor in model.tensors.values():
        if tensor.params is not None and tensor.params.bits > _WIDEST:
            raise UnsupportedError(f"tensor {tensor.name!r} has {tensor.params.bits} bits; ONNX takes 8 and 16")
    names = (*model.inputs, *model.outputs, *(layer.name for layer in model.layers), *model.tensors)
    for name in names:
        if name != name.encode(errors="replace").decode():
            raise UnsupportedError(f"name {name!r} is not UTF-8, in which an ONNX file holds names")
    both = set(model.inputs) & set(model.outputs)
    if both or "" in (*model.inputs, *model.outputs):
        found = next(iter(both), "")
        raise UnsupportedError(f"name {found!r} of an input or output is empty or twice there; ONNX needs each once")


def write(to: Writer, layer: Op) -> str:
    """The name of the value that a layer makes; UnsupportedError names the layer."""
    given = [to.model.tensors[name] for name in layer.inputs]
    try:
        return _WRITE[type(layer)](to, layer, given, to.model.tensors[layer.output])
    except UnsupportedError as error:
        raise UnsupportedError(f"layer {layer.name!r} ({type(layer).__name__}) in ONNX: {error}") from error


def entered(to: Writer, tensor: Tensor, *, raw: bool) -> str:
    """An input's value: of a float32 simulate's integers, divided in float64, ties to even; or of raw integers."""
    kind = to.held(tensor)
    if tensor.params is None:
        return tensor.name
    params = tensor.params
    if raw:
        whole = to.add_constant(to.cast(tensor.name, np.int32), offset_of(tensor), np.int32)
        return whole if kind is np.int32 else to.cast(whole, kind)
    quotient = to.add("Div", to.cast(tensor.name, np.float64), to.constant(params.scale, np.float64))
    nearest = to.add_constant(to.add("Round", quotient), zero_of(tensor), np.float64)
    limits = (to.constant(end + offset_of(tensor), np.float64) for end in (params.raw_min, params.raw_max))
    return to.cast(to.add("Clip", nearest, *limits), kind)


def leave(to: Writer, name: str, tensor: Tensor, *, raw: bool) -> None:
    """An output: scale * (integer - zero point), whose exact value is rounded once, to float32, or the integer."""
    value = to.values[tensor.name]
    if tensor.params is None:
        to.add("Identity", value, output=name)
        return
    wide = to.cast(value, np.int32)
    if raw:
        lowered = to.add_constant(wide, -offset_of(tensor), np.int32)
        to.add("Cast", lowered, output=name, to=element_of(f"i{tensor.params.bits // 8}"))
        return
    real = to.cast(to.add_constant(wide, -zero_of(tensor), np.int32), np.float32)
    to.add("Mul", real, to.constant(tensor.params.scale, np.float32), output=name)


def finished(to: Writer, *, form: str, raw: bool) -> bytes:
    """The checked file of all that was written."""
    model = to.model
    inputs = [_port(name, model.tensors[name], raw=raw) for name in model.inputs]
    outputs = [_port(name, model.tensors[tensor], raw=raw) for name, tensor in model.outputs.items()]
    graph = onnx.helper.make_graph(to.nodes, "gemedge", inputs, outputs, list(to.constants.values()))
    opsets = [onnx.helper.make_opsetid("", to.opset)]
    version = onnx.helper.find_min_ir_version_for(opsets)
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="gemedge")
    onnx.helper.set_model_props(proto, record(to, form))
    if ours := {node.op_type for node in proto.graph.node if node.domain == schema.DOMAIN}:
        proto.opset_import.append(onnx.helper.make_opsetid(schema.DOMAIN, schema.VERSION))
        proto.functions.extend(forms.bodies(ours, to.opset))
    schema.register()
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedError(f"the ONNX model does not pass onnx's own check: {reason(error)}") from error
    return bytes(proto.SerializeToString(deterministic=True))


def record(to: Writer, form: str) -> dict[str, str]:
    """What metadata_props hold: version, form, scheme, rounding, tensors and activations, the latter two as JSON.

    gemedge.tensors: for each tensor its name and type in the graph, what a number there stands for, scale * (number -
    zero), and how far it lies above simulate's integer, offset.
    gemedge.activations: for each activation layer the function and the SHA-256 of the kernel that was certified.
    """
    from gemedge import __version__

    model = to.model
    tensors: dict[str, dict[str, Any]] = {}
    for name, value in to.values.items():
        tensor = model.tensors[name]
        tensors[name] = {"value": value, "type": np.dtype(to.held(tensor)).name}
        if tensor.params is not None:
            tensors[name] |= {"scale": tensor.params.scale, "zero": zero_of(tensor), "offset": offset_of(tensor)}
    activations = [
        {"layer": layer.name, "activation": str(layer.activation), "digest": layer.digest}
        for layer in model.layers
        if isinstance(layer, Activate)
    ]
    return {
        "gemedge.version": __version__,
        "gemedge.form": form,
        "gemedge.scheme": model.scheme,
        "gemedge.rounding": model.rounding.value,
        TENSORS: json.dumps(tensors),
        "gemedge.activations": json.dumps(activations),
    }


def _port(name: str, tensor: Tensor, *, raw: bool) -> onnx.ValueInfoProto:
    kind: Any = np.int64
    if tensor.params is not None:
        kind = f"i{tensor.params.bits // 8}" if raw else np.float32
    return onnx.helper.make_tensor_value_info(name, element_of(kind), ["batch", *tensor.shape])


_WRITE: dict[type[Operator], Callable[..., str]] = {
    Constant: moves.constant,
    Convolution: products.convolution,
    Dense: products.dense,
    MatrixMultiply: products.matrix_multiply,
    Activate: elementwise.activate,
    Lookup: elementwise.lookup,
    Interpolate: elementwise.interpolate,
    Combine: elementwise.combine,
    GemmlowpSum: elementwise.gemmlowp_sum,
    Multiply: elementwise.multiply,
    Choose: elementwise.choose,
    Concatenate: elementwise.concatenate,
    MaxPool: windows.max_pool,
    AveragePool: windows.average_pool,
    RawAveragePool: windows.raw_average_pool,
    Softmax: windows.softmax,
    LayerNormalization: windows.layer_normalization,
    Embed: moves.embed,
    Reshape: moves.reshape,
    Transpose: moves.transpose,
    Take: moves.take,
    Pad: moves.pad,
    Spread: moves.spread,
    Clamp: moves.clamp,
}

"""The float model as ONNX files."""

import json

import onnx
import onnx_ir as ir

from gemedge.capture import forms, packing, schema
from gemedge.capture.forms import Form
from gemedge.errors import UnsupportedError, UsageError, reason


def to_onnx(model: ir.Model, name: str, *, gem: Form, external_data: bool = False) -> dict[str, bytes]:
    """The files of the model: `name`, and `name`.data where the weights lie outside.

    They lie outside on request, and always where a single file would pass the 2 GB that protobuf holds. The
    activations are recorded in metadata_props under gemedge.activations, a JSON list of node and function.
    The same model gives the same bytes; `model` stays as it is.
    """
    written = model.clone()
    activations = [
        {"node": node.name or "", "activation": str(schema.activation_of(node))}
        for node in forms.activation_nodes(written)
    ]
    written.metadata_props["gemedge.activations"] = json.dumps(activations)
    written.metadata_props["gemedge.form"] = gem
    forms.to_form(written, gem)
    if external_data or packing.weight_bytes(written) > packing.SINGLE_FILE_LIMIT:
        if not name.isascii() and name != name.encode(errors="replace").decode():
            raise UsageError(f"{name!r} is not UTF-8, in which an ONNX file names the file of its weights")
        graph, pieces = packing.pack(written, f"{name}.data")
        return {f"{name}.data": b"".join(pieces), name: _checked(graph)}
    return {name: _checked(packing.single_file(written))}


def _checked(graph: bytes) -> bytes:
    """The bytes, if onnx's full check accepts them."""
    schema.register()
    try:
        onnx.checker.check_model(_without_outside_weights(graph), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedError(f"the ONNX model does not pass onnx's own check: {reason(error)}") from error
    return graph


def _without_outside_weights(graph: bytes) -> onnx.ModelProto:
    """The model with weights that lie outside as inputs: the check would look for a file that is not written yet."""
    proto = onnx.ModelProto.FromString(graph)
    outside = [t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in outside:
        proto.graph.initializer.remove(tensor)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return proto

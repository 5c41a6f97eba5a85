"""The float ONNX model as bytes: a small protobuf with the graph, and the weights' raw data beside it.

The two halves cross process borders and become the two files of a model with external data. Joining them
gives the usual single file.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

_ALIGNMENT = 64
_SMALL = 1024  # bytes; smaller tensors (shapes, axes, scalars) stay in the graph
SINGLE_FILE_LIMIT = 2**31 - 2**20  # protobuf messages end at 2 GB


def unpack(graph: bytes | memoryview, data: memoryview) -> ir.Model:
    """The model whose large initializers are views of `data`; nothing is copied."""
    proto = onnx.ModelProto.FromString(bytes(graph))
    external = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in proto.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    model = ir.from_proto(proto)
    for name, place in external.items():
        value = model.graph.initializers[name]
        start, length = int(place["offset"]), int(place["length"])
        value.const_value = _view(value, data[start : start + length])
    return model


def pack(model: ir.Model, location: str = "data") -> tuple[bytes, list[memoryview]]:
    """The graph with its large initializers marked as external, and their data as pieces to be written in order."""
    kept: list[tuple[ir.Value, ir.TensorProtocol]] = []
    pieces: list[memoryview] = []
    offset = 0
    for value, tensor in _large(model):
        raw = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data  # the weight itself, no copy
        padding = -offset % _ALIGNMENT
        pieces += [memoryview(bytes(padding)), raw]
        offset += padding + raw.nbytes
        kept.append((value, tensor))
        value.const_value = ir.ExternalTensor(
            location,
            offset - raw.nbytes,
            raw.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=value.name or "",
        )
    try:
        return ir.to_proto(model).SerializeToString(deterministic=True), pieces
    finally:
        for value, tensor in kept:
            value.const_value = tensor


def runtime_values(graph: bytes, data: memoryview) -> dict[str, Any]:
    """onnxruntime's views of the weights that lie outside the graph, by name; nothing is copied.

    They must live as long as the session that takes them.
    """
    import onnxruntime

    views = {}
    for tensor in onnx.ModelProto.FromString(graph).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            start, length = int(place["offset"]), int(place["length"])
            array = np.frombuffer(data[start : start + length], ir.DataType(tensor.data_type).numpy())
            views[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                array.reshape(tuple(tensor.dims)), tensor.data_type
            )
    return views


def single_file(model: ir.Model) -> bytes:
    """The model with its weights inside, the same bytes each time."""
    return ir.to_proto(model).SerializeToString(deterministic=True)


def weight_bytes(model: ir.Model) -> int:
    return sum(tensor.nbytes for _, tensor in _large(model))


def _large(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8:
            continue  # texts and packed numbers have no plain bytes to view
        if tensor.nbytes >= _SMALL:
            yield value, tensor


def _view(value: ir.Value, raw: memoryview) -> ir.Tensor:
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"initializer {value.name!r} has no data")
    dtype = tensor.dtype
    array = np.frombuffer(raw, dtype.numpy()).reshape(tensor.shape.numpy())
    return ir.Tensor(array, dtype=dtype, shape=ir.Shape(array.shape), name=value.name)

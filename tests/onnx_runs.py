"""An exported quantized model in onnxruntime: every tensor's integers, read as the file's metadata say."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime

from gemedge.export.run import onnxruntime_options

BASIC, ALL = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


def metadata(content: bytes) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.ModelProto.FromString(content).metadata_props}


def session(
    content: bytes, *, optimized: bool = True, threads: int = 1, fused: bool = False
) -> onnxruntime.InferenceSession:
    """fused: with gemedge's kernels for activations."""
    options = onnxruntime_options() if fused else onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = ALL if optimized else BASIC
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def tensors_in_onnxruntime(content: bytes, inputs: Mapping[str, np.ndarray], **how: Any) -> dict[str, np.ndarray]:
    """simulate's names of tensors, and integers as simulate has them; beside them the file's outputs by name."""
    proto = onnx.ModelProto.FromString(content)
    told = json.loads(metadata(content)["gemedge.tensors"])
    ports = [value.name for value in proto.graph.output]
    own = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    shown = {entry["value"]: entry["type"] for entry in told.values() if entry["value"] not in own}
    for value, kind in shown.items():
        element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        proto.graph.output.append(onnx.helper.make_tensor_value_info(value, element, None))
    names = [*ports, *shown]
    feeds = {name: array if array.dtype.kind == "i" else array.astype(np.float32) for name, array in inputs.items()}
    running = session(proto.SerializeToString(), **how)
    arrays = dict(zip(names, running.run(names, feeds), strict=True))
    found = {
        name: arrays[entry["value"]].astype(np.int64) - entry.get("offset", 0)
        for name, entry in told.items()
        if entry["value"] in arrays
    }
    return found | {f"output {name}": arrays[name] for name in ports}

"""An .onnx file from any framework as the float ONNX model."""

import mmap
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir
from google.protobuf.message import DecodeError

from gemedge.capture import DEFAULT_OPSET, Captured, forms, reference, schema
from gemedge.capture.inputs import Arrays, InputShape, random_input
from gemedge.errors import DataError, ModelError, UnsupportedError

FIRST_OPSET, LAST_OPSET = 17, 23
_RUNTIME_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}


def read(path: Path, data: memoryview, opset: int | None) -> ir.Model:
    """The checked model at the opset asked for; None keeps the file's own where it is 17 to 23, else takes 18.

    Weights beside the file are read from its own folder only. Raises ModelError or UnsupportedError.
    """
    try:
        proto = onnx.ModelProto.FromString(bytes(data))
        _load_external(proto, path.parent)
        schema.register()
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"it is no sound ONNX model: {str(error).strip().splitlines()[0][:200]}") from error
    own = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), DEFAULT_OPSET)
    wanted = opset or (own if FIRST_OPSET <= own <= LAST_OPSET else DEFAULT_OPSET)
    if any(node.domain == schema.DOMAIN for function in proto.functions for node in function.node):
        proto = _without_functions(proto)
    if own != wanted:
        try:
            proto = onnx.version_converter.convert_version(_without_functions(proto), wanted)
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UnsupportedError(f"opset {own} cannot be changed to {wanted}: {reason}") from error
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for node in forms.activation_nodes(model):
        schema.activation_of(node)
    return model


def _without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions inlined, which onnx's converter would drop; those of our nodes go."""
    for function in [function for function in proto.functions if function.domain == schema.DOMAIN]:
        proto.functions.remove(function)
    return onnx.inliner.inline_local_functions(proto)


def captured(model: ir.Model, shapes: Sequence[InputShape], example: Arrays) -> Captured:
    """The model with what it gives itself, run by onnxruntime without optimisation, on probes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    runnable = ir.to_proto(forms.to_form(model.clone(), "function")).SerializeToString()
    try:
        session = onnxruntime.InferenceSession(runnable, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UnsupportedError(f"onnxruntime cannot load it: {str(error).splitlines()[0][:200]}") from error
    inputs = {entry.name: entry for entry in session.get_inputs()}
    arrays = _example(inputs, shapes, example)
    return reference.captured(model, arrays, lambda feed: session.run(None, feed))


def _example(inputs: dict, shapes: Sequence[InputShape], example: Arrays) -> Arrays:
    """The example by the model's input names, or one of the right shapes."""
    if example:
        named = dict(zip(inputs, example.values(), strict=False)) if not set(example) <= set(inputs) else dict(example)
        if set(named) != set(inputs) or len(example) != len(inputs):
            raise DataError(
                f"the example has {', '.join(map(repr, example))}; the model takes {', '.join(map(repr, inputs))}"
            )
        return {name: array.astype(_dtype(inputs[name]), copy=False) for name, array in named.items()}
    given = {shape.name or list(inputs)[index]: shape for index, shape in enumerate(shapes[: len(inputs)])}
    arrays = {}
    for seed, (name, entry) in enumerate(inputs.items()):
        sizes = given[name].sizes() if name in given else [size if isinstance(size, int) else 2 for size in entry.shape]
        arrays[name] = random_input(sizes, _dtype(entry), seed)
    return arrays


def _dtype(entry: "onnxruntime.NodeArg") -> str:  # type: ignore[name-defined]  # noqa: F821
    if entry.type not in _RUNTIME_TYPES:
        raise UnsupportedError(f"input {entry.name!r} is a {entry.type}; it must be one of {', '.join(_RUNTIME_TYPES)}")
    return _RUNTIME_TYPES[entry.type]


def _load_external(proto: onnx.ModelProto, folder: Path) -> None:
    """Read external weights into the model: bare file names in the model's own folder, within the file's bounds."""
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        location = place.get("location", "")
        file = folder / location
        if not location or Path(location).name != location or file.is_symlink() or not file.is_file():
            raise ValueError(f"weight {tensor.name!r} lies in {location!r}, which is no file beside the model")
        start, size = int(place.get("offset", 0)), file.stat().st_size
        length = int(place.get("length", size - start))
        if not 0 <= start <= start + length <= size:
            raise ValueError(f"weight {tensor.name!r} lies outside {location!r}")
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as view:
            tensor.raw_data = view[start : start + length]
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT

"""An .onnx file from any framework as the float ONNX model."""

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message

from gemedge.capture import DEFAULT_OPSET, Captured, forms, reference, schema
from gemedge.capture.inputs import MOST_ELEMENTS, Arrays, InputShape, by_input, random_input
from gemedge.errors import DataError, ModelError, UnsupportedError, innermost, reason

FIRST_OPSET, LAST_OPSET = 17, 23
_Part = TypeVar("_Part", bound=Message)
_RUNTIME_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint64)": "uint64",
    "tensor(uint32)": "uint32",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def read(
    path: Path, data: memoryview, opset: int | None, *, on_size: Callable[[int], None] = lambda _: None
) -> tuple[ir.Model, onnx.ModelProto]:
    """The checked model at the opset asked for, and as the file has it.

    opset: None keeps the file's own where it is 17 to 23, else takes 18. Weights beside the file are read from
    its own folder only; on_size is told the bytes of the model with them. Raises ModelError or UnsupportedError.
    """
    try:
        original = onnx.ModelProto.FromString(bytes(data))
        _load_external(original, path.parent, lambda outside: on_size(len(data) + outside))
        _name_domain(original)
        schema.register()
        onnx.checker.check_model(original)
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as error:
        raise ModelError(f"it is no sound ONNX model: {reason(error)}") from error
    if not original.graph.output:
        raise ModelError("it is no sound ONNX model: its graph has no output")
    if next(_parts(original, onnx.SparseTensorProto), None) is not None:
        raise UnsupportedError("it holds a sparse tensor; gemedge reads dense ones")
    proto = original
    own = next(entry.version for entry in proto.opset_import if entry.domain == "")
    wanted = opset or (own if FIRST_OPSET <= own <= LAST_OPSET else DEFAULT_OPSET)
    if not 1 <= own <= onnx.defs.onnx_opset_version():
        raise UnsupportedError(f"its opset is {own}; 1 to {onnx.defs.onnx_opset_version()} are known")
    if any(node.domain == schema.DOMAIN for function in proto.functions for node in function.node):
        proto = _without_functions(proto)
    if own != wanted:
        try:
            proto = onnx.version_converter.convert_version(_without_functions(proto), wanted)
        except Exception as error:
            raise UnsupportedError(f"opset {own} cannot be changed to {wanted}: {reason(error)}") from error
    try:
        model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    except Exception as error:
        raise ModelError(f"it is no sound ONNX model: {reason(innermost(error))}") from error
    for node in forms.activation_nodes(model):
        schema.activation_of(node)
    return model, original


def _without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions inlined, which onnx's converter would drop; those of our nodes go."""
    ours = [f for f in proto.functions if f.domain == schema.DOMAIN and f.name in schema.OP_TYPES]
    for function in ours:
        proto.functions.remove(function)
    return onnx.inliner.inline_local_functions(proto)


def captured(
    model: ir.Model,
    original: onnx.ModelProto,
    shapes: Sequence[InputShape],
    example: Arrays,
    *,
    on_elements: Callable[[int], None],
) -> Captured:
    """The model with what the original gives, run by onnxruntime without optimisation, on probes.

    on_elements is told the size of the example before anything runs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(_runnable(model, original), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UnsupportedError(f"onnxruntime cannot load it: {reason(error)}") from error
    inputs = {entry.name: entry for entry in session.get_inputs()}
    for entry in session.get_outputs():
        _dtype("output", entry)
    arrays = _example(inputs, shapes, example)
    on_elements(sum(array.size for array in arrays.values()))
    return reference.captured(model, arrays, lambda feed: session.run(None, feed))


def _runnable(model: ir.Model, original: onnx.ModelProto) -> bytes:
    """The original with the function bodies it brings; where it has nodes of ours without one, ours."""
    brought = {function.name for function in original.functions if function.domain == schema.DOMAIN}
    if {node.op_type for node in forms.activation_nodes(model)} <= brought:
        return bytes(original.SerializeToString())
    return bytes(ir.to_proto(forms.to_form(model.clone(), "function")).SerializeToString())


def _example(inputs: dict, shapes: Sequence[InputShape], example: Arrays) -> Arrays:
    """The example by the model's input names, or one of the right shapes."""
    if example:
        named = dict(zip(inputs, example.values(), strict=False)) if not set(example) <= set(inputs) else dict(example)
        if set(named) != set(inputs) or len(example) != len(inputs):
            raise DataError(
                f"the example has {', '.join(map(repr, example))}; the model takes {', '.join(map(repr, inputs))}"
            )
        return {name: array.astype(_dtype("input", inputs[name]), copy=False) for name, array in named.items()}
    given = by_input(shapes, list(inputs))
    arrays = {}
    for seed, (name, entry) in enumerate(inputs.items()):
        sizes = given[name].sizes() if name in given else [size if isinstance(size, int) else 2 for size in entry.shape]
        if math.prod(sizes) > MOST_ELEMENTS:
            raise ModelError(f"input {name!r} has {math.prod(sizes)} elements; {MOST_ELEMENTS} are allowed")
        arrays[name] = random_input(sizes, _dtype("input", entry), seed)
    return arrays


def _dtype(what: str, entry: Any) -> str:
    if entry.type not in _RUNTIME_TYPES:
        allowed = ", ".join(_RUNTIME_TYPES)
        raise UnsupportedError(f"{what} {entry.name!r} is a {entry.type}; it must be one of {allowed}")
    return _RUNTIME_TYPES[entry.type]


def _name_domain(proto: onnx.ModelProto) -> None:
    """Call the standard domain by its short name, and require it where the file forgot to."""
    for opset in _parts(proto, onnx.OperatorSetIdProto):
        opset.domain = "" if opset.domain == "ai.onnx" else opset.domain
    for node in _parts(proto, onnx.NodeProto):
        node.domain = "" if node.domain == "ai.onnx" else node.domain
    if all(entry.domain for entry in proto.opset_import):
        proto.opset_import.add(domain="", version=DEFAULT_OPSET)


def _parts(message: Message, kind: type[_Part]) -> Iterator[_Part]:
    """Every message of a kind anywhere in a model: in its graph, attributes, subgraphs, functions."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Sequence) else [value]:
                if isinstance(part, kind):
                    yield part
                yield from _parts(part, kind)


def _load_external(proto: onnx.ModelProto, folder: Path, on_size: Callable[[int], None]) -> None:
    """Read external weights into the model: bare file names in the model's own folder, within the file's bounds."""
    outside = [
        tensor for tensor in _parts(proto, onnx.TensorProto) if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    names = {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}
    files = [folder / name for name in names if Path(name).name == name]
    on_size(sum(file.stat().st_size for file in files if file.is_file()))
    for tensor in outside:
        place = {entry.key: entry.value for entry in tensor.external_data}
        location = place.get("location", "")
        file = folder / location
        if not location or Path(location).name != location or file.is_symlink() or not file.is_file():
            raise ValueError(f"weight {tensor.name!r} lies in {location!r}, which is no file beside the model")
        if not all(place.get(key, "0").isdecimal() for key in ("offset", "length")):
            raise ValueError(f"weight {tensor.name!r} lies at an offset or of a length that is no number")
        start, size = int(place.get("offset", 0)), file.stat().st_size
        length = int(place.get("length", size - start))
        if not 0 <= start <= start + length <= size:
            raise ValueError(f"weight {tensor.name!r} lies outside {location!r}")
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as view:
            tensor.raw_data = view[start : start + length]
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT

"""A TensorFlow Lite file as it grows: tensors, constants, operators, and the flatbuffer of them.

A tensor that is no constant has the batch as its first axis: 1 in its shape and, where the batch may vary, -1 in its
signature. The same calls give the same bytes. The schema is that of ai-edge-litert, or of tflite-micro.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gemedge.errors import UnsupportedError
from gemedge.fixed import QuantParams
from gemedge.operators import Shape

MOST_AXES = 5
MOST_BYTES = (1 << 31) - (1 << 20)  # flatbuffers count bytes in 31 bits; a megabyte is left for the graph
INSTALL = "pip install 'gemedge[litert]'"
SAME, VALID = 0, 1
_SCHEMA_VERSION = 3
_FILE_IDENTIFIER = b"TFL3"
_SCHEMAS = ("ai_edge_litert.schema_py_generated", "tflite_micro.tensorflow.lite.micro.python.schema_py_generated")
_VERSIONS = {  # of operators on float32, int8 and int16 numbers; of others 1
    "ADD": (1, 2, 3),
    "AVERAGE_POOL_2D": (1, 2, 3),
    "BATCH_MATMUL": (1, 2, 3),
    "CONCATENATION": (1, 2, 3),
    "CONV_2D": (1, 3, 4),
    "DEPTHWISE_CONV_2D": (2, 3, 5),
    "DEQUANTIZE": (1, 2, 3),
    "FULLY_CONNECTED": (5, 5, 7),
    "GATHER": (1, 2, 4),
    "MAXIMUM": (1, 2, 4),
    "MAX_POOL_2D": (1, 2, 3),
    "MEAN": (1, 2, 3),
    "MINIMUM": (1, 2, 4),
    "MUL": (1, 2, 4),
    "PAD": (1, 2, 3),
    "PADV2": (1, 2, 3),
    "SOFTMAX": (1, 2, 3),
    "STRIDED_SLICE": (1, 2, 1),
    "SUB": (1, 2, 5),
    "TRANSPOSE": (1, 2, 5),
}
_VERSIONS_OF_FIVE_AXES = {"PAD": 4, "PADV2": 4, "STRIDED_SLICE": 4, "TRANSPOSE": 4}
_OPTIONS = {
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "PADV2": "PadV2Options",
    "SELECT_V2": "SelectV2Options",
}
_WITHOUT_OPTIONS = ("CEIL", "ELU", "FLOOR", "LOG", "LOGISTIC", "RELU", "RSQRT", "SIN", "SQRT", "TANH")


@dataclass(frozen=True, slots=True)
class Scales:
    """What integers stand for: one scale for each place along an axis, and zero point 0."""

    scales: np.ndarray
    axis: int


@dataclass(frozen=True, slots=True)
class Border:
    """A tensor that callers hand over or are given, by the name that they know."""

    name: str
    tensor: int


def schema() -> ModuleType:
    """The classes of TensorFlow Lite's schema; UnsupportedError says what to install."""
    for name in _SCHEMAS:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UnsupportedError(f"a TensorFlow Lite file needs the schema of ai-edge-litert: {INSTALL}")


class Graph:
    """One subgraph. A tensor is known by its index; shapes given and told are without the batch."""

    def __init__(self, *, dynamic: bool) -> None:
        self.dynamic = dynamic
        self._schema = schema()
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._buffers = [self._buffer(b"")]
        self._codes: dict[tuple[int, bytes, int], int] = {}
        self._known: dict[Any, int] = {}
        self._dtypes: list[str] = []
        self._bytes = 0

    def tensor(self, name: str, shape: Shape, dtype: str, params: QuantParams | None = None) -> int:
        """A tensor of samples of this shape."""
        if len(shape) + 1 > MOST_AXES:
            raise UnsupportedError(f"tensor {name!r} has {len(shape) + 1} axes; TensorFlow Lite takes {MOST_AXES}")
        return self._tensor(name, (1, *shape), dtype, params, 0, varies=self.dynamic)

    def constant(self, name: str, array: np.ndarray, params: QuantParams | Scales | None = None) -> int:
        """A tensor of these numbers in this shape, batch or not; one for all that are the same."""
        content = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        key = (array.shape, array.dtype.name, content.tobytes(), _key(params))
        if key not in self._known:
            self._bytes += content.nbytes
            if self._bytes > MOST_BYTES:
                raise UnsupportedError(f"constant {name!r} takes the file beyond 2 GB, the most that the format holds")
            self._buffers.append(self._buffer(key[2]))
            buffer = len(self._buffers) - 1
            self._known[key] = self._tensor(name, array.shape, array.dtype.name, params, buffer, varies=False)
        return self._known[key]

    def shape(self, tensor: int) -> Shape:
        return tuple(int(size) for size in self._tensors[tensor].shape[1:])

    def operator(self, code: str, inputs: Sequence[int], output: int, **options: Any) -> int:
        """A built-in operator, with options by the schema's names; the output's index."""
        made = self._operator(self._code(code, inputs, output), inputs, output)
        if code not in _WITHOUT_OPTIONS:
            kind = _OPTIONS.get(code) or "".join(part.capitalize() for part in code.split("_")) + "Options"
            made.builtinOptionsType = getattr(self._schema.BuiltinOptions, kind)
            made.builtinOptions = getattr(self._schema, f"{kind}T")()
            for name, value in options.items():
                setattr(made.builtinOptions, name, value)
        return output

    def custom(self, name: str, inputs: Sequence[int], output: int, options: bytes) -> int:
        """An operator that the runtime is to be told of; the output's index."""
        code = self._coded(self._schema.BuiltinOperator.CUSTOM, name.encode(), 1)
        made = self._operator(code, inputs, output)
        made.customOptions = np.frombuffer(options, np.uint8)
        return output

    def type_of(self, dtype: str) -> int:
        """The schema's number of a type, for a Cast."""
        return int(getattr(self._schema.TensorType, dtype.upper()))

    def finish(self, inputs: Sequence[Border], outputs: Sequence[Border], metadata: Mapping[str, Any]) -> bytes:
        """The file, with metadata as JSON under the name gemedge, and the borders' names as its signature."""
        import flatbuffers

        graph, model = self._schema.SubGraphT(), self._schema.ModelT()
        graph.name, graph.tensors, graph.operators = "main", self._tensors, self._operators
        graph.inputs, graph.outputs = _indices(inputs), _indices(outputs)
        self._buffers.append(self._buffer(json.dumps(metadata, sort_keys=True).encode()))
        note = self._schema.MetadataT()
        note.name, note.buffer = "gemedge", len(self._buffers) - 1
        model.version, model.description = _SCHEMA_VERSION, "made by gemedge"
        model.subgraphs, model.buffers, model.metadata = [graph], self._buffers, [note]
        model.operatorCodes = [self._operator_code(*key) for key in self._codes]
        model.signatureDefs = [self._signature(inputs, outputs)]
        builder = flatbuffers.Builder(max(1024, self._bytes))
        builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _tensor(
        self,
        name: str,
        shape: Shape,
        dtype: str,
        params: QuantParams | Scales | None,
        buffer: int,
        *,
        varies: bool,
    ) -> int:
        made = self._schema.TensorT()
        made.name, made.shape, made.buffer, made.hasRank = _text(name), np.array(shape, np.int32), buffer, True
        made.type = self.type_of(dtype)
        if varies:
            made.shapeSignature = np.array((-1, *shape[1:]), np.int32)
        if params is not None:
            made.quantization = self._quantization(params)
        self._tensors.append(made)
        self._dtypes.append(dtype)
        return len(self._tensors) - 1

    def _quantization(self, params: QuantParams | Scales) -> Any:
        made = self._schema.QuantizationParametersT()
        if isinstance(params, Scales):
            made.scale, made.quantizedDimension = params.scales.astype(np.float32), params.axis
            made.zeroPoint = np.zeros(len(params.scales), np.int64)
        else:
            made.scale, made.zeroPoint = np.array([params.scale], np.float32), np.array([params.zero_point], np.int64)
        return made

    def _buffer(self, content: bytes) -> Any:
        made = self._schema.BufferT()
        made.data = np.frombuffer(content, np.uint8) if content else None
        return made

    def _operator(self, code: int, inputs: Sequence[int], output: int) -> Any:
        made = self._schema.OperatorT()
        made.opcodeIndex = code
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        self._operators.append(made)
        return made

    def _code(self, code: str, inputs: Sequence[int], output: int) -> int:
        """The index of an operator's code, in the first version that takes its numbers."""
        dtype = self._dtypes[output if code == "QUANTIZE" else inputs[0]]
        version = dict(zip(("float32", "int8", "int16"), _VERSIONS.get(code, ()), strict=False)).get(dtype, 1)
        if len(self._tensors[inputs[0]].shape) > 4:
            version = max(version, _VERSIONS_OF_FIVE_AXES.get(code, 1))
        return self._coded(getattr(self._schema.BuiltinOperator, code), b"", version)

    def _coded(self, builtin: int, custom: bytes, version: int) -> int:
        return self._codes.setdefault((builtin, custom, version), len(self._codes))

    def _operator_code(self, builtin: int, custom: bytes, version: int) -> Any:
        made = self._schema.OperatorCodeT()
        made.builtinCode, made.version = builtin, version
        made.deprecatedBuiltinCode = min(builtin, 127)  # where older readers look; 127 sends them to the other field
        made.customCode = custom or None
        return made

    def _signature(self, inputs: Sequence[Border], outputs: Sequence[Border]) -> Any:
        made = self._schema.SignatureDefT()
        made.signatureKey, made.subgraphIndex = "serving_default", 0
        made.inputs, made.outputs = ([self._named(border) for border in side] for side in (inputs, outputs))
        return made

    def _named(self, border: Border) -> Any:
        made = self._schema.TensorMapT()
        made.name, made.tensorIndex = _text(border.name), border.tensor
        return made


def _text(name: str) -> str:
    if name != name.encode(errors="replace").decode():
        raise UnsupportedError(f"name {name!r} is not UTF-8, in which a TensorFlow Lite file holds names")
    return name


def _indices(borders: Sequence[Border]) -> np.ndarray:
    return np.array([border.tensor for border in borders], np.int32)


def _key(params: QuantParams | Scales | None) -> Any:
    return (params.scales.tobytes(), params.axis) if isinstance(params, Scales) else params

"""Nodes and constants of an ONNX graph, as they are written one after another.

How the integers of a quantized model lie in it: an 8-bit tensor as uint8, 128 above its integers (the only type of
which onnxruntime multiplies matrices exactly and fast on every CPU); a 16-bit tensor as int32, as few operators take
int16, or as int16 between QuantizeLinear and DequantizeLinear; indices as int64.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from gemedge.errors import UnsupportedError
from gemedge.model import QuantizedModel
from gemedge.operators import Tensor

LARGEST = 2**31 - 2**20  # bytes of constants; protobuf messages end at 2 GB
OFFSET = 128  # of an 8-bit tensor
_ELEMENTS = {
    np.dtype(kind): element
    for kind, element in (
        (np.uint8, onnx.TensorProto.UINT8),
        (np.int8, onnx.TensorProto.INT8),
        (np.int16, onnx.TensorProto.INT16),
        (np.int32, onnx.TensorProto.INT32),
        (np.uint32, onnx.TensorProto.UINT32),
        (np.int64, onnx.TensorProto.INT64),
        (np.uint64, onnx.TensorProto.UINT64),
        (np.float32, onnx.TensorProto.FLOAT),
        (np.float64, onnx.TensorProto.DOUBLE),
        (np.bool_, onnx.TensorProto.BOOL),
    )
}


def element_of(kind: Any) -> int:
    """ONNX's number for a NumPy type."""
    return _ELEMENTS[np.dtype(kind)]


def offset_of(tensor: Tensor) -> int:
    """How far above its integers a tensor lies in the graph."""
    return OFFSET if tensor.params is not None and tensor.params.bits == 8 else 0


def zero_of(tensor: Tensor) -> int:
    """What stands for real zero in the graph."""
    return tensor.quantized.zero_point + offset_of(tensor)


@dataclass(eq=False)
class Writer:
    """A graph in the making.

    values: the name in the graph of each of the model's tensors written so far. prefix: what names of values begin
    with, the layer that is being written. bytes_of: the two bytes of a 16-bit value, where they were asked for.
    wide: the type of 16-bit tensors.
    """

    model: QuantizedModel
    opset: int
    wide: type = np.int32
    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    bytes_of: dict[str, tuple[str, str]] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _known: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)
    _size: int = 0

    def __post_init__(self) -> None:
        self._taken |= {*self.model.inputs, *self.model.outputs}

    @property
    def source(self) -> str:
        """The first input's value."""
        return self.values[self.model.inputs[0]]

    def held(self, tensor: Tensor) -> type:
        """The NumPy type in which a tensor's integers lie in the graph."""
        if tensor.params is None:
            return np.int64
        return np.uint8 if tensor.params.bits == 8 else self.wide

    def unique(self, name: str) -> str:
        """The name, with a number behind it where it is taken."""
        found, count = name, 1
        while found in self._taken:
            count += 1
            found = f"{name}_{count}"
        self._taken.add(found)
        return found

    def add(self, op_type: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any) -> str:
        """The name of a node's only output."""
        made = output or self.unique(f"{self.prefix}/{op_type}")
        self.nodes.append(onnx.helper.make_node(op_type, inputs, [made], name=made, domain=domain, **attributes))
        return made

    def constant(self, array: Any, kind: Any) -> str:
        """The name of an initializer, one for all constants that are equal. Integers are taken modulo their type."""
        made = wrapped(array, kind)
        key = (made.dtype.str, made.shape, made.tobytes())
        if key not in self._known:
            self._size += made.nbytes
            if self._size > LARGEST:
                raise UnsupportedError(f"its constants take more than {LARGEST:,} bytes, which one ONNX file holds")
            name = self.unique(f"constant_{len(self.constants)}")
            self.constants[name] = onnx.numpy_helper.from_array(made, name)
            self._known[key] = name
        return self._known[key]

    def cast(self, value: str, kind: Any) -> str:
        return self.add("Cast", value, to=element_of(kind))

    def add_constant(self, value: str, array: Any, kind: Any) -> str:
        """The sum, or the value alone where the constant is zero."""
        return self.add("Add", value, self.constant(array, kind)) if np.any(array) else value

    def reshaped(self, value: str, shape: Sequence[int]) -> str:
        """A value [batch, ...] as [batch, *shape]."""
        return self.add("Reshape", value, self.constant([-1, *shape], np.int64))

    def broadcast(self, tensor: Tensor, axes: int) -> str:
        """A tensor's value with as many axes behind the batch, so that broadcasting leaves the batch alone."""
        missing = axes - len(tensor.shape)
        value = self.values[tensor.name]
        return self.reshaped(value, (*(1,) * missing, *tensor.shape)) if missing > 0 else value

    def reduced(self, op_type: str, value: str, axes: Sequence[int], *, since: int) -> str:
        """A Reduce operator that keeps its axes; since: the opset from which the axes are an input."""
        if self.opset >= since:
            return self.add(op_type, value, self.constant(axes, np.int64), keepdims=1)
        return self.add(op_type, value, axes=list(axes), keepdims=1)


def narrow(tensor: Tensor) -> type:
    """The type in which a table of a tensor's integers takes least."""
    if tensor.params is None:
        return np.int64
    return np.uint8 if tensor.params.bits == 8 else np.int16


def widened(to: Writer, value: str, tensor: Tensor) -> str:
    """What came from a table, in the type that the tensor has in the graph."""
    return value if to.held(tensor) is narrow(tensor) else to.cast(value, to.held(tensor))


def wrapped(array: Any, kind: Any) -> np.ndarray:
    """Python's integers, or an array, as a type; integers modulo 2**bits."""
    given = np.asarray(array)
    dtype = np.dtype(kind)
    if given.dtype.kind == "O":
        bits = 8 * dtype.itemsize
        flat = [int(number) % (1 << bits) for number in given.reshape(-1)]
        given = np.array(flat, f"u{dtype.itemsize}").reshape(given.shape)
    return np.ascontiguousarray(given.astype(dtype)).reshape(given.shape)

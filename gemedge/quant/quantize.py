"""A float ONNX model and the ranges of its tensors, turned into a model of integers."""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from gemedge.activation import Activation, Branch
from gemedge.capture import schema
from gemedge.errors import GemedgeError, QuantizationError, UnsupportedError
from gemedge.fixed import QuantParams, Rounding, dequantize
from gemedge.fixed import quantize as to_integers
from gemedge.kernel import FixedActivation
from gemedge.model import (
    Activate,
    AveragePool,
    Combine,
    Concatenate,
    Constant,
    Convolution,
    Dense,
    Interpolate,
    Lookup,
    MaxPool,
    Multiply,
    Op,
    Pad,
    QuantizedModel,
    Reshape,
    Scheme,
    Shape,
    Tensor,
    Transpose,
    real_multiplier,
)
from gemedge.quant import functions
from gemedge.quant.formats import Formats


class Range(Protocol):
    """The smallest and the largest value that matters of a tensor."""

    @property
    def min(self) -> float: ...
    @property
    def max(self) -> float: ...


def quantize(model: ir.Model, ranges: Mapping[str, Range], *, scheme: Scheme, rounding: Rounding) -> QuantizedModel:
    """The model in integers.

    ranges: for each float tensor by its name; operators that only move numbers keep the parameters of their
    input. Raises UnsupportedError naming every node that has no integer form, before any work, and
    QuantizationError naming a tensor without a range or a layer whose accumulator does not fit.
    """
    return _Quantizer(model, ranges, Formats(scheme, rounding)).build()


class _Quantizer:
    def __init__(self, model: ir.Model, ranges: Mapping[str, Range], formats: Formats) -> None:
        self.graph = model.graph
        self.functions = model.functions
        self.ranges = ranges
        self.formats = formats
        self.tensors: dict[str, Tensor] = {}
        self.layers: list[Op] = []
        self.absorbed: set[ir.Node | None] = set()

    def build(self) -> QuantizedModel:
        self._refuse_unsupported()
        inputs = [_name(value) for value in self.graph.inputs]
        for value in self.graph.inputs:
            self._tensor(value, self._params(_name(value)))
        for node in self.graph:
            if node in self.absorbed:
                continue
            try:
                _HANDLERS[node.op_type](self, node)
            except GemedgeError as error:
                raise type(error)(f"node {node.name!r} ({node.op_type}): {error}") from error
        return QuantizedModel(
            self.formats.scheme,
            self.formats.rounding,
            tuple(inputs),
            {_name(value): _name(value) for value in self.graph.outputs},
            self.tensors,
            tuple(self.layers),
        )

    def _refuse_unsupported(self) -> None:
        missing = [node for node in self.graph if node.op_type not in _HANDLERS]
        if missing:
            shown = ", ".join(f"{node.name!r} ({node.op_type})" for node in missing[:12])
            more = f" and {len(missing) - 12} more" if len(missing) > 12 else ""
            raise UnsupportedError(f"no integer form for {shown}{more}")

    # Tensors

    def _params(self, name: str) -> QuantParams:
        if name not in self.ranges:
            raise QuantizationError(f"tensor {name!r} has no range; calibrate with data that reaches it")
        return self.formats.params(self.ranges[name].min, self.ranges[name].max)

    def _tensor(self, value: ir.Value, params: QuantParams) -> Tensor:
        tensor = Tensor(_name(value), _sample_shape(value), params)
        self.tensors[tensor.name] = tensor
        return tensor

    def sources(self, node: ir.Node) -> list[Tensor]:
        """What an element-wise node reads; a constant takes as many axes as the node's output has."""
        axes = len(_sample_shape(node.outputs[0]))
        return [self.source(value, axes) for value in node.inputs]

    def source(self, value: ir.Value | None, axes: int = 0) -> Tensor:
        """The tensor that a node reads; a constant becomes a layer of its own the first time."""
        if value is None:
            raise UnsupportedError("an input is missing")
        if _name(value) in self.tensors:
            return self.tensors[_name(value)]
        array = _constant(value)
        if array is None:
            raise UnsupportedError(f"input {_name(value)!r} is neither a tensor nor a constant")
        params = self.formats.params(float(array.min(initial=0)), float(array.max(initial=0)))
        sample = array.reshape(array.shape[1:]) if array.ndim > axes and array.shape[:1] == (1,) else array
        sample = sample.reshape((1,) * (axes - sample.ndim) + sample.shape)
        codes = to_integers(sample, params).astype(f"i{params.bits // 8}")
        tensor = Tensor(_name(value), codes.shape, params)
        self.tensors[tensor.name] = tensor
        self.layers.append(Constant(f"constant {tensor.name}", (), tensor.name, codes))
        return tensor

    def made(self, node: ir.Node, params: QuantParams | None = None) -> Tensor:
        value = node.outputs[0]
        return self._tensor(value, params or self._params(_name(value)))

    def add(self, layer: Op) -> None:
        self.layers.append(layer)

    # Operators with weights

    def weighted(
        self,
        node: ir.Node,
        weight: np.ndarray,
        bias: np.ndarray | None,
        make: Callable[..., Op],
        output: ir.Value | None = None,
    ) -> None:
        """A Convolution or Dense layer: weights and bias in integers, one rescaling for each output channel."""
        value = output or node.outputs[0]
        given, made = self.source(node.inputs[0]), self._tensor(value, self._params(_name(value)))
        codes, scales = self.formats.weights(weight)
        in_scale, out_scale = given.quantized.scale, made.quantized.scale
        offset = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
        bias_codes = np.rint(offset / (in_scale * scales))
        if np.abs(bias_codes).max(initial=0) >= 2.0**46:
            raise QuantizationError(f"a bias of {np.abs(offset).max():.4g} does not fit its accumulator")
        bias_codes = bias_codes.astype(np.int64)
        empty = np.zeros(len(weight), np.int64)
        draft = make(node.name, (given.name,), made.name, codes, bias_codes, empty, empty)
        bound = draft.accumulator_bound([given])
        reals = [real_multiplier(in_scale, float(scale), out_scale) for scale in scales]
        self.add(make(node.name, (given.name,), made.name, codes, bias_codes, *self.formats.scalings(reals, bound)))


def _conv(q: _Quantizer, node: ir.Node) -> None:
    weight, bias = _required(node, 1), _constant(node.inputs[2]) if len(node.inputs) > 2 else None
    axes = weight.ndim - 2
    strides, dilations = _ints(node, "strides", (1,) * axes), _ints(node, "dilations", (1,) * axes)
    pads, groups = _pads(node, axes), int(_attribute(node, "group", 1))

    def make(name: str, inputs: tuple, output: str, codes: Any, offset: Any, mantissa: Any, shift: Any) -> Op:
        return Convolution(name, inputs, output, codes, offset, strides, pads, dilations, groups, mantissa, shift)

    q.weighted(node, weight, bias, make)


def _gemm(q: _Quantizer, node: ir.Node) -> None:
    weight, bias = _required(node, 1), _constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if _attribute(node, "transA", 0) or _attribute(node, "alpha", 1.0) != 1 or _attribute(node, "beta", 1.0) != 1:
        raise UnsupportedError("alpha, beta and transA must have their defaults")
    weight = weight if _attribute(node, "transB", 0) else weight.T
    q.weighted(node, weight, None if bias is None else np.broadcast_to(bias.reshape(-1), (len(weight),)), Dense)


def _matmul(q: _Quantizer, node: ir.Node) -> None:
    weight = _required(node, 1)
    if weight.ndim != 2:
        raise UnsupportedError(f"weights of shape {list(weight.shape)} must have two axes")
    bias, output = _added_bias(node, weight.shape[1])
    if output is not node.outputs[0]:
        q.absorbed.add(output.producer())
    q.weighted(node, weight.T, bias, Dense, output)


def _added_bias(node: ir.Node, outputs: int) -> tuple[np.ndarray | None, ir.Value]:
    """The constant that the only reader of a product adds to it, and where the sum appears."""
    product = node.outputs[0]
    readers = list(product.uses())
    if len(readers) != 1 or readers[0].node.op_type != "Add" or product.is_graph_output():
        return None, product
    adder = readers[0].node
    bias = _constant(next((value for value in adder.inputs if value is not product), None))
    if bias is None or bias.shape not in ((outputs,), (1, outputs)):
        return None, product
    return bias.reshape(-1), adder.outputs[0]


# Operators on one tensor


def _activation(q: _Quantizer, node: ir.Node) -> None:
    _activate(q, node, schema.activation_of(node))


def _relu(q: _Quantizer, node: ir.Node) -> None:
    _activate(q, node, Activation.rational(negative=Branch(), positive=Branch(slope=Fraction(1))))


def _leaky_relu(q: _Quantizer, node: ir.Node) -> None:
    slope = Fraction(float(np.float32(_attribute(node, "alpha", 0.01))))
    _activate(q, node, Activation.rational(negative=Branch(slope=-slope), positive=Branch(slope=Fraction(1))))


def _activate(q: _Quantizer, node: ir.Node, activation: Activation) -> None:
    given, made = q.source(node.inputs[0]), q.made(node)
    kernel = FixedActivation(activation, given.quantized, made.quantized)
    q.add(Activate(node.name or "", (given.name,), made.name, activation, kernel.digest))


def _function(q: _Quantizer, node: ir.Node) -> None:
    given, made = q.source(node.inputs[0]), q.made(node)
    function = functions.of(node, [_constant(value) for value in node.inputs[1:]], q.functions)
    codes = np.arange(-128, 128) if q.formats.bits == 8 else np.minimum(np.arange(-32768, 32769, 128), 32767)
    params = made.quantized
    exact = function(dequantize(codes, given.quantized)) / params.scale + params.zero_point
    table = np.clip(np.floor(exact + 0.5), params.raw_min, params.raw_max).astype(f"i{params.bits // 8}")
    kind = Lookup if q.formats.bits == 8 else Interpolate
    q.add(kind(node.name or "", (given.name,), made.name, node.op_type, table))


def _max_pool(q: _Quantizer, node: ir.Node) -> None:
    given = q.source(node.inputs[0])
    made = q.made(node, given.quantized)
    kernel = _ints(node, "kernel_shape", ())
    if _attribute(node, "ceil_mode", 0) or any(d != 1 for d in _ints(node, "dilations", (1,))):
        raise UnsupportedError("ceil_mode and dilations must have their defaults")
    strides = _ints(node, "strides", (1,) * len(kernel))
    q.add(MaxPool(node.name or "", (given.name,), made.name, kernel, strides, _pads(node, len(kernel))))


def _average_pool(q: _Quantizer, node: ir.Node) -> None:
    kernel = _ints(node, "kernel_shape", ())
    if _attribute(node, "ceil_mode", 0) or any(d != 1 for d in _ints(node, "dilations", (1,))):
        raise UnsupportedError("ceil_mode and dilations must have their defaults")
    strides = _ints(node, "strides", (1,) * len(kernel))
    _average(q, node, kernel, strides, _pads(node, len(kernel)), bool(_attribute(node, "count_include_pad", 0)))


def _global_average_pool(q: _Quantizer, node: ir.Node) -> None:
    kernel = q.source(node.inputs[0]).shape[1:]
    _average(q, node, kernel, (1,) * len(kernel), (0,) * (2 * len(kernel)), False)


def _reduce_mean(q: _Quantizer, node: ir.Node) -> None:
    given = q.source(node.inputs[0])
    axes = _constant(node.inputs[1]) if len(node.inputs) > 1 else None
    wanted = sorted(int(a) % (len(given.shape) + 1) for a in (axes if axes is not None else _ints(node, "axes", ())))
    if wanted != list(range(2, len(given.shape) + 1)) or len(given.shape) not in (2, 3):
        raise UnsupportedError(f"axes {wanted} must be all axes after the channels")
    kernel = given.shape[1:]
    keeps = bool(_attribute(node, "keepdims", 1))
    _average(q, node, kernel, (1,) * len(kernel), (0,) * (2 * len(kernel)), False, flat=not keeps)


def _average(
    q: _Quantizer, node: ir.Node, kernel: Shape, strides: Shape, pads: Shape, count_padding: bool, flat: bool = False
) -> None:
    given, made = q.source(node.inputs[0]), q.made(node)
    real = real_multiplier(given.quantized.scale, 1.0, made.quantized.scale)
    reach = max(
        given.quantized.raw_max - given.quantized.zero_point, given.quantized.zero_point - given.quantized.raw_min
    )
    bound = math.prod(kernel) * reach
    counts = [real / count for count in range(1, math.prod(kernel) + 1)]
    mantissa, shift = _any_scaling(q, counts, bound)
    output = made.name
    if flat:
        output = f"{made.name} pooled"
        q.tensors[output] = Tensor(output, (given.shape[0], *[1] * len(kernel)), made.params)
    q.add(AveragePool(node.name or "", (given.name,), output, kernel, strides, pads, count_padding, mantissa, shift))
    if flat:
        q.add(Reshape(f"{node.name}/flat", (output,), made.name, made.shape))


def _any_scaling(q: _Quantizer, reals: list[Fraction], bound: int) -> tuple[np.ndarray, np.ndarray]:
    """A mean divides by a count: its factor is no power of two, whatever the scheme."""
    plain = Formats("int8", q.formats.rounding)
    return plain.scalings(reals, bound)


def _reshape(q: _Quantizer, node: ir.Node) -> None:
    given = q.source(node.inputs[0])
    made = q.made(node, given.quantized)
    q.add(Reshape(node.name or "", (given.name,), made.name, made.shape))


def _transpose(q: _Quantizer, node: ir.Node) -> None:
    given = q.source(node.inputs[0])
    order = _ints(node, "perm", tuple(reversed(range(len(given.shape) + 1))))
    if order[0] != 0:
        raise UnsupportedError(f"perm {list(order)} moves the batch")
    made = q.made(node, given.quantized)
    q.add(Transpose(node.name or "", (given.name,), made.name, tuple(axis - 1 for axis in order[1:])))


def _pad(q: _Quantizer, node: ir.Node) -> None:
    given = q.source(node.inputs[0])
    pads = tuple(int(p) for p in _required(node, 1))
    axes = len(pads) // 2
    value = _constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if (
        _attribute(node, "mode", "constant") != "constant"
        or pads[0]
        or pads[axes]
        or min(pads) < 0
        or len(node.inputs) > 3
    ):
        raise UnsupportedError(f"mode constant and pads of 0 or more after the batch are supported, not {list(pads)}")
    made = q.made(node, given.quantized)
    code = int(to_integers(np.float64(0 if value is None else value.item()), given.quantized))
    q.add(Pad(node.name or "", (given.name,), made.name, pads[1:axes] + pads[axes + 1 :], code))


def _same(q: _Quantizer, node: ir.Node) -> None:
    _reshape(q, node)


# Operators on several tensors


def _add(q: _Quantizer, node: ir.Node) -> None:
    _combine(q, node, (1, 1))


def _sub(q: _Quantizer, node: ir.Node) -> None:
    _combine(q, node, (1, -1))


def _combine(q: _Quantizer, node: ir.Node, signs: tuple[int, int]) -> None:
    given, made = q.sources(node), q.made(node)
    reals = [real_multiplier(tensor.quantized.scale, 1.0, made.quantized.scale) for tensor in given]
    room = 30 if q.formats.bits == 8 else 60  # the accumulator's bits: 32-bit arithmetic for 8-bit tensors
    width = max(math.ceil(real * 2 * (1 << q.formats.bits)) for real in reals).bit_length()
    shift = max(0, min(room - width, 62, 30 + max(0, -math.floor(math.log2(max(reals))))))
    mantissa = [
        sign * math.floor(real * (1 << shift) + Fraction(1, 2)) for sign, real in zip(signs, reals, strict=True)
    ]
    names = tuple(tensor.name for tensor in given)
    q.add(Combine(node.name or "", names, made.name, np.array(mantissa, np.int64), np.array(shift, np.int64)))


def _multiply(q: _Quantizer, node: ir.Node) -> None:
    given, made = q.sources(node), q.made(node)
    real = real_multiplier(given[0].quantized.scale, given[1].quantized.scale, made.quantized.scale)
    names = tuple(tensor.name for tensor in given)
    draft = Multiply(node.name or "", names, made.name, np.array(0), np.array(0))
    mantissa, shift = q.formats.scaling(real, draft.accumulator_bound(given))
    q.add(Multiply(node.name or "", names, made.name, np.array(mantissa), np.array(shift)))


def _concat(q: _Quantizer, node: ir.Node) -> None:
    given, made = [q.source(value) for value in node.inputs], q.made(node)
    reals = [real_multiplier(tensor.quantized.scale, 1.0, made.quantized.scale) for tensor in given]
    mantissa, shift = q.formats.scalings(reals, 1 << q.formats.bits)
    axis = int(_attribute(node, "axis", 0)) % (len(given[0].shape) + 1)
    if axis == 0:
        raise UnsupportedError("axis 0 is the batch")
    names = tuple(tensor.name for tensor in given)
    q.add(Concatenate(node.name or "", names, made.name, axis - 1, mantissa, shift))


_HANDLERS: dict[str, Callable[[_Quantizer, ir.Node], None]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "GEM": _activation,
    "SEGEM": _activation,
    "Relu": _relu,
    "LeakyRelu": _leaky_relu,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "ReduceMean": _reduce_mean,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Identity": _same,
    "Dropout": _same,
    "Transpose": _transpose,
    "Pad": _pad,
    "Add": _add,
    "Sub": _sub,
    "Mul": _multiply,
    "Concat": _concat,
    **dict.fromkeys((*functions.NAMES, functions.CHAIN), _function),
}


# Reading ONNX


def _name(value: ir.Value) -> str:
    return value.name or ""


def _sample_shape(value: ir.Value) -> Shape:
    """The shape after the batch."""
    if value.shape is None or len(value.shape) == 0:
        raise UnsupportedError(f"tensor {_name(value)!r} has no known shape with a batch")
    sizes = tuple(value.shape)[1:]
    if not all(isinstance(size, int) for size in sizes):
        shown = ", ".join(str(size) for size in value.shape)
        raise UnsupportedError(f"tensor {_name(value)!r} of shape [{shown}] varies in more than its first axis")
    return tuple(int(size) for size in sizes)  # type: ignore[arg-type]


def _constant(value: ir.Value | None) -> np.ndarray | None:
    tensor = value.const_value if value is not None else None
    return None if tensor is None else tensor.numpy()


def _required(node: ir.Node, index: int) -> np.ndarray:
    array = _constant(node.inputs[index]) if index < len(node.inputs) else None
    if array is None:
        raise UnsupportedError(f"its input {index} must be a constant")
    return array


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def _ints(node: ir.Node, name: str, default: Shape) -> Shape:
    return tuple(int(number) for number in _attribute(node, name, default))


def _pads(node: ir.Node, axes: int) -> Shape:
    if _attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError("auto_pad must be NOTSET; write the pads")
    return _ints(node, "pads", (0,) * (2 * axes))

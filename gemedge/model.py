"""A network in integers: what `simulate` gives meaning to and every exporter writes.

A tensor has a shape without its first axis, the batch, and parameters that say what its integers stand for.
An operator reads tensors made before it and makes one. Its constants are integers; where it rounds, it rescales
an accumulator: saturate(zero_point + floor(accumulator * mantissa * 2**-shift + 1/2)). Layout is that of ONNX:
channels first. Everything checks itself when it is made.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal

import numpy as np

from gemedge.activation import Activation
from gemedge.errors import FormatError, QuantizationError
from gemedge.fixed import QuantParams, Rounding
from gemedge.kernel import FixedActivation

Scheme = Literal["int8", "int16x8", "q7", "q15"]
SCHEMES: tuple[Scheme, ...] = ("int8", "int16x8", "q7", "q15")
Shape = tuple[int, ...]
_ACCUMULATOR_LIMITS = {"int8": 1 << 31, "q7": 1 << 31, "int16x8": 1 << 47, "q15": 1 << 47}
_MOST_ELEMENTS = 1 << 31


@dataclass(frozen=True, slots=True)
class Tensor:
    """Integers between operators. params is None for indices, which stand for themselves."""

    name: str
    shape: Shape
    params: QuantParams | None

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.shape) or math.prod(self.shape) > _MOST_ELEMENTS:
            raise FormatError(f"tensor {self.name!r}: shape {list(self.shape)} must be positive, 2^31 elements at most")

    @property
    def quantized(self) -> QuantParams:
        if self.params is None:
            raise FormatError(f"tensor {self.name!r} holds indices, not quantized numbers")
        return self.params


@dataclass(frozen=True, eq=False)
class Operator:
    """What all operators have: the layer's name, the tensors read and the tensor made."""

    name: str
    inputs: tuple[str, ...]
    output: str

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape made from inputs of these shapes; FormatError where they do not fit."""
        return shapes[0]

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        """No partial sum of this operator exceeds this in magnitude, whatever the input."""
        return max(_reach(tensor.quantized) for tensor in tensors)


@dataclass(frozen=True, eq=False)
class Convolution(Operator):
    """Weights [O, I / groups, *kernel] slide over an input [I, *size]; a bias and a rescaling for each of O.

    pads: before each axis, then after each; padding stands for real zero.
    """

    weight: np.ndarray
    bias: np.ndarray
    strides: Shape
    pads: Shape
    dilations: Shape
    groups: int
    mantissa: np.ndarray
    shift: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        channels, *size = shapes[0]
        axes = len(size)
        outputs, per_group, *kernel = self.weight.shape
        _require(self, axes in (1, 2) and len(kernel) == axes, f"kernel {kernel} does not fit input {list(shapes[0])}")
        _require(self, self.groups > 0 and channels == per_group * self.groups, f"{channels} channels do not fit")
        _require(self, outputs % self.groups == 0, f"groups={self.groups} does not divide {outputs} output channels")
        _require(
            self, len(self.strides) == len(self.dilations) == axes == len(self.pads) // 2, "strides, pads or dilations"
        )
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True)]
        padded = [s + self.pads[i] + self.pads[i + axes] for i, s in enumerate(size)]
        spots = [(p - r) // s + 1 for p, r, s in zip(padded, reach, self.strides, strict=True)]
        _require(self, min(spots) > 0, f"kernel {kernel} is larger than its padded input {padded}")
        return (outputs, *spots)

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        return _weighted_bound(self.weight, self.bias, tensors[0].quantized)


@dataclass(frozen=True, eq=False)
class Dense(Operator):
    """Weights [O, I] times the last axis of the input, a bias and a rescaling for each of O."""

    weight: np.ndarray
    bias: np.ndarray
    mantissa: np.ndarray
    shift: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        _require(
            self, shapes[0][-1] == self.weight.shape[1], f"{shapes[0][-1]} inputs, weights for {self.weight.shape[1]}"
        )
        return (*shapes[0][:-1], self.weight.shape[0])

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        return _weighted_bound(self.weight, self.bias, tensors[0].quantized)


@dataclass(frozen=True, eq=False)
class Activate(Operator):
    """A rational activation by its correctly rounded kernel; `digest` pins the kernel's constants."""

    activation: Activation
    digest: str


@dataclass(frozen=True, eq=False)
class Lookup(Operator):
    """Any function of one 8-bit number, as a table of 256 outputs from the lowest input on; `function` names it."""

    function: str
    table: np.ndarray


@dataclass(frozen=True, eq=False)
class Interpolate(Operator):
    """Any function of one 16-bit number: 513 entries, linear between them; `function` names it.

    Entry k stands for input -32768 + 128 k; between two entries a + ((b - a) * f + 64 >> 7).
    """

    function: str
    table: np.ndarray


@dataclass(frozen=True, eq=False)
class Combine(Operator):
    """The sum of inputs, each less its zero point and times its mantissa, rescaled by one shift."""

    mantissa: np.ndarray
    shift: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return _broadcast(self, shapes)

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        return sum(abs(int(m)) * _reach(t.quantized) for m, t in zip(self.mantissa, tensors, strict=True))


@dataclass(frozen=True, eq=False)
class Multiply(Operator):
    """The product of two inputs, each less its zero point, rescaled."""

    mantissa: np.ndarray
    shift: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return _broadcast(self, shapes)

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        return math.prod(_reach(tensor.quantized) for tensor in tensors)


@dataclass(frozen=True, eq=False)
class Concatenate(Operator):
    """Inputs side by side along an axis (0 is the first after the batch), each rescaled."""

    axis: int
    mantissa: np.ndarray
    shift: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        first = list(shapes[0])
        _require(self, 0 <= self.axis < len(first), f"axis {self.axis} of shape {first}")
        for shape in shapes[1:]:
            others = [size for axis, size in enumerate(shape) if axis != self.axis]
            _require(
                self, others == [s for a, s in enumerate(first) if a != self.axis], f"{list(shape)} beside {first}"
            )
        first[self.axis] = sum(shape[self.axis] for shape in shapes)
        return tuple(first)


@dataclass(frozen=True, eq=False)
class MaxPool(Operator):
    """The largest integer of each window; padding is never the largest."""

    kernel: Shape
    strides: Shape
    pads: Shape

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return _pooled(self, shapes[0], self.kernel, self.strides, self.pads)


@dataclass(frozen=True, eq=False)
class AveragePool(Operator):
    """The sum of each window, rescaled by the mantissa for its number of elements (from 1 on).

    Padding counts as real zeros where count_padding says so.
    """

    kernel: Shape
    strides: Shape
    pads: Shape
    count_padding: bool
    mantissa: np.ndarray
    shift: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return _pooled(self, shapes[0], self.kernel, self.strides, self.pads)

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        return math.prod(self.kernel) * _reach(tensors[0].quantized)


@dataclass(frozen=True, eq=False)
class Reshape(Operator):
    """The same integers in another shape."""

    shape: Shape

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        _require(self, math.prod(self.shape) == math.prod(shapes[0]), f"{list(shapes[0])} into {list(self.shape)}")
        return self.shape


@dataclass(frozen=True, eq=False)
class Transpose(Operator):
    """Axes in another order; 0 is the first after the batch."""

    order: Shape

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        _require(self, sorted(self.order) == list(range(len(shapes[0]))), f"order {list(self.order)}")
        return tuple(shapes[0][axis] for axis in self.order)


@dataclass(frozen=True, eq=False)
class Pad(Operator):
    """One integer around the input; pads: before each axis after the batch, then after each."""

    pads: Shape
    value: int

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        axes = len(shapes[0])
        _require(self, len(self.pads) == 2 * axes and min(self.pads) >= 0, f"pads {list(self.pads)}")
        return tuple(size + self.pads[a] + self.pads[a + axes] for a, size in enumerate(shapes[0]))


@dataclass(frozen=True, eq=False)
class Constant(Operator):
    """The same integers for every sample."""

    value: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:  # noqa: ARG002
        return tuple(self.value.shape)

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:  # noqa: ARG002
        return 0


Op = (
    Constant
    | Convolution
    | Dense
    | Activate
    | Lookup
    | Interpolate
    | Combine
    | Multiply
    | Concatenate
    | MaxPool
    | AveragePool
    | Reshape
    | Transpose
    | Pad
)


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A network in integers. FormatError names the operator where it does not hold together.

    outputs maps the names of the float model's outputs to tensors; layers are the operators in order.
    """

    scheme: Scheme
    rounding: Rounding
    inputs: tuple[str, ...]
    outputs: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    layers: tuple[Op, ...]
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise FormatError(f"scheme {self.scheme!r} is not one of {', '.join(SCHEMES)}")
        if any(name != tensor.name for name, tensor in self.tensors.items()):
            raise FormatError("a tensor is filed under another name than its own")
        made = set(self.inputs)
        for layer in self.layers:
            missing = [name for name in layer.inputs if name not in made]
            _require(layer, not missing, f"tensor {', '.join(map(repr, missing))} is not made before it")
            _require(layer, layer.output in self.tensors and layer.output not in made, f"output {layer.output!r}")
            self._check(layer)
            made.add(layer.output)
        unmade = [
            name for name in (*self.inputs, *self.outputs.values()) if name not in made or name not in self.tensors
        ]
        if unmade or not self.outputs:
            raise FormatError(f"inputs and outputs must be tensors of the model; {unmade} are not")
        if len({layer.name for layer in self.layers}) != len(self.layers):
            raise FormatError("two layers have the same name")

    def _check(self, layer: Op) -> None:
        tensors = [self.tensors[name] for name in layer.inputs]
        made = self.tensors[layer.output]
        shape = layer.output_shape([tensor.shape for tensor in tensors])
        _require(layer, shape == made.shape, f"it makes {list(shape)}, its output is {list(made.shape)}")
        limit = 1 << 31 if self.rounding is Rounding.DOUBLE else _ACCUMULATOR_LIMITS[self.scheme]
        if (bound := layer.accumulator_bound(tensors)) >= limit:
            raise QuantizationError(
                f"layer {layer.name!r}: its accumulator can reach {bound};"
                f" {self.scheme} with rounding {self.rounding.value} holds up to {limit - 1}"
            )

        if isinstance(layer, Convolution | Dense | Combine | Multiply | Concatenate | AveragePool):
            _check_rescaling(layer, bound)
        if isinstance(layer, Lookup | Interpolate):
            wanted = (256, 8) if isinstance(layer, Lookup) else (513, 16)
            found = (layer.table.size, tensors[0].quantized.bits)
            _require(
                layer, found == wanted, f"a table of {found[0]} for {found[1]}-bit input; {wanted[0]} for {wanted[1]}"
            )

    def layer(self, name: str) -> Op:
        """The layer of this name, or the one that makes the tensor of this name."""
        for layer in self.layers:
            if name in (layer.name, layer.output):
                return layer
        raise FormatError(
            f"no layer {name!r}; there are {', '.join(repr(layer.name) for layer in self.layers[:8])} ..."
        )

    @cached_property
    def kernels(self) -> Mapping[str, FixedActivation]:
        """The kernel of each activation layer, checked against its digest."""
        found = {}
        for layer in self.layers:
            if isinstance(layer, Activate):
                given, made = self.tensors[layer.inputs[0]].quantized, self.tensors[layer.output].quantized
                kernel = FixedActivation(layer.activation, given, made)
                _require(layer, kernel.digest == layer.digest, "its kernel is not the one that was certified")
                found[layer.name] = kernel
        return found


def _check_rescaling(layer: Convolution | Dense | Combine | Multiply | Concatenate | AveragePool, bound: int) -> None:
    """That an accumulator up to bound, rescaled, stays below 2^62: simulate computes without looking."""
    largest = int(np.abs(layer.mantissa).max(initial=0))
    reach = bound if isinstance(layer, Combine) else bound * largest
    fits = largest < 1 << 31 and reach < 1 << 62
    _require(layer, fits, f"an accumulator up to {bound} times mantissa {largest} leaves 62 bits")
    _require(layer, 0 <= int(layer.shift.min()) <= int(layer.shift.max()) <= 62, "a shift outside 0 to 62")
    match layer:
        case Convolution() | Dense():
            wanted = len(layer.weight)
        case AveragePool():
            wanted = math.prod(layer.kernel)
        case Multiply():
            wanted = 1
        case _:
            wanted = len(layer.inputs)
    _require(layer, layer.mantissa.size == wanted, f"{layer.mantissa.size} mantissas; it needs {wanted}")
    shifts = 1 if isinstance(layer, Combine) else wanted
    _require(layer, layer.shift.size == shifts, f"{layer.shift.size} shifts; it needs {shifts}")
    if isinstance(layer, Convolution | Dense):
        _require(layer, layer.bias.shape == (wanted,), f"bias of shape {list(layer.bias.shape)}")
        small = layer.weight.dtype in (np.int8, np.int16)
        _require(layer, small, f"weights of type {layer.weight.dtype}; they must be int8 or int16")


def real_multiplier(in_scale: float, weight_scale: float, out_scale: float) -> Fraction:
    """in_scale * weight_scale / out_scale, exactly."""
    return Fraction(in_scale) * Fraction(weight_scale) / Fraction(out_scale)


def _reach(params: QuantParams) -> int:
    """The largest |q - zero_point|."""
    return max(params.raw_max - params.zero_point, params.zero_point - params.raw_min)


def _weighted_bound(weight: np.ndarray, bias: np.ndarray, params: QuantParams) -> int:
    sums = np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(1)
    return int((sums * _reach(params) + np.abs(bias.astype(np.int64))).max())


def _broadcast(op: Operator, shapes: Sequence[Shape]) -> Shape:
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        raise FormatError(f"layer {op.name!r}: shapes {', '.join(map(str, shapes))} do not combine") from None


def _pooled(op: Operator, shape: Shape, kernel: Shape, strides: Shape, pads: Shape) -> Shape:
    axes = len(shape) - 1
    _require(op, axes in (1, 2) and len(kernel) == len(strides) == axes == len(pads) // 2, f"window {list(kernel)}")
    spots = [
        (s + pads[i] + pads[i + axes] - k) // t + 1
        for i, (s, k, t) in enumerate(zip(shape[1:], kernel, strides, strict=True))
    ]
    _require(op, min(spots) > 0, f"window {list(kernel)} is larger than its input {list(shape)}")
    return (shape[0], *spots)


def _require(op: Operator, holds: bool, what: str) -> None:
    if not holds:
        raise FormatError(f"layer {op.name!r}: {what}")

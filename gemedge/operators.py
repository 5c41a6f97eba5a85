"""The integer operators that compute: what each one's constants are, which shape it makes, how far it can reach.

A tensor has a shape without the batch, and parameters that say what its integers stand for. An operator reads
tensors made before it and makes one. Its constants are integers; where it rounds, it rescales an accumulator:
saturate(zero_point + floor(accumulator * mantissa * 2**-shift + 1/2)). Layout is that of ONNX, channels first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from gemedge.activation import Activation
from gemedge.errors import FormatError
from gemedge.fixed import QuantParams

Shape = tuple[int, ...]
Bounded = Literal["none", "low", "high", "both"]
NORM_BITS = 20  # fraction bits of a normalised number in LayerNormalization
_MOST_ELEMENTS = 1 << 31
_MOST_NORMALISED = 1 << 14  # numbers under one mean: d * inverse stays below 2**62


@dataclass(frozen=True, slots=True)
class Tensor:
    """Integers between operators. params is None for indices, which stand for themselves.

    bounded: at which ends of its format numbers are meant to end, as a Relu's do at zero: there nothing is lost.
    """

    name: str
    shape: Shape
    params: QuantParams | None
    bounded: Bounded = "none"

    def __post_init__(self) -> None:
        if self.bounded not in get_args(Bounded):
            raise FormatError(f"tensor {self.name!r}: bounded {self.bounded!r} is not one of {get_args(Bounded)}")
        if any(size < 1 for size in self.shape) or math.prod(self.shape) > _MOST_ELEMENTS:
            raise FormatError(f"tensor {self.name!r}: shape {list(self.shape)} must be positive, 2^31 elements at most")

    @property
    def quantized(self) -> QuantParams:
        if self.params is None:
            raise FormatError(f"tensor {self.name!r} holds indices, not quantized numbers")
        return self.params

    @property
    def reach(self) -> int:
        """The largest |q - zero_point|."""
        params = self.quantized
        return max(params.raw_max - params.zero_point, params.zero_point - params.raw_min)


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
        """No partial sum of this operator exceeds this in magnitude, whatever the input; 0 where it sums nothing."""
        return max(tensor.reach for tensor in tensors)

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            raise FormatError(f"layer {self.name!r}: {what}")


# Sums of products


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
        self.require(axes in (1, 2) and len(kernel) == axes, f"kernel {kernel} does not fit input {list(shapes[0])}")
        self.require(self.groups > 0 and channels == per_group * self.groups, f"{channels} channels do not fit")
        self.require(outputs % self.groups == 0, f"groups={self.groups} does not divide {outputs} output channels")
        counts = (len(self.strides), len(self.dilations), len(self.pads) / 2)
        whole = counts == (axes, axes, axes) and min(self.strides + self.dilations) > 0 and min(self.pads) >= 0
        self.require(whole, "strides, pads or dilations")
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True)]
        padded = [s + self.pads[i] + self.pads[i + axes] for i, s in enumerate(size)]
        spots = [(p - r) // s + 1 for p, r, s in zip(padded, reach, self.strides, strict=True)]
        self.require(min(spots) > 0, f"kernel {kernel} is larger than its padded input {padded}")
        return (outputs, *spots)

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        return _weighted_bound(self.weight, self.bias, tensors[0])


@dataclass(frozen=True, eq=False)
class Dense(Operator):
    """Weights [O, I] times the last axis of the input, a bias and a rescaling for each of O."""

    weight: np.ndarray
    bias: np.ndarray
    mantissa: np.ndarray
    shift: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        found = shapes[0][-1] if shapes[0] else 0
        wanted = self.weight.shape[-1] if self.weight.ndim == 2 else None
        self.require(found == wanted, f"{found} inputs, weights for {wanted}")
        return (*shapes[0][:-1], self.weight.shape[0])

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        return _weighted_bound(self.weight, self.bias, tensors[0])


@dataclass(frozen=True, eq=False)
class MatrixMultiply(Operator):
    """The product of two inputs [..., M, K] and [..., K, N], each less its zero point, rescaled."""

    mantissa: np.ndarray
    shift: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        left, right = shapes
        self.require(min(len(left), len(right)) >= 2 and left[-1] == right[-2], f"{list(left)} times {list(right)}")
        return (*_broadcast(self, (left[:-2], right[:-2])), left[-2], right[-1])

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        return math.prod(tensor.reach for tensor in tensors) * tensors[0].shape[-1]


# One number at a time


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
        return sum(abs(int(m)) * t.reach for m, t in zip(self.mantissa, tensors, strict=True))


@dataclass(frozen=True, eq=False)
class GemmlowpSum(Operator):
    """Two inputs less their zero points, times 2**left, requantized each; their sum, requantized once more.

    mantissa, shift: for the two inputs and for the sum; a negative mantissa subtracts. TensorFlow Lite's law of
    Add and Sub, with left = 20 at 8 bits and 15 at 16.
    """

    left: int
    mantissa: np.ndarray
    shift: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return _broadcast(self, shapes)

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        sizes = (self.mantissa.size, self.shift.size)
        self.require(sizes == (3, 3), f"{sizes[0]} mantissas and {sizes[1]} shifts; it needs 3")
        self.require(0 <= self.left < 31, f"left={self.left} must be from 0 to 30")
        wide = [tensor.reach << self.left for tensor in tensors]
        shifts = [int(shift) for shift in self.shift]
        fits = min(shifts) >= 0 and all(w << max(31 - s, 0) < 1 << 31 for w, s in zip(wide, shifts, strict=False))
        self.require(fits, f"left={self.left} and shifts {shifts} take an input beyond 32 bits")
        return sum((w * abs(int(m)) >> s) + 1 for w, m, s in zip(wide, self.mantissa, shifts, strict=False))


@dataclass(frozen=True, eq=False)
class Multiply(Operator):
    """The product of two inputs, each less its zero point, rescaled."""

    mantissa: np.ndarray
    shift: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return _broadcast(self, shapes)

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        return math.prod(tensor.reach for tensor in tensors)


@dataclass(frozen=True, eq=False)
class Choose(Operator):
    """The first input where the condition is 1, the second where it is 0, each rescaled."""

    condition: np.ndarray
    mantissa: np.ndarray
    shift: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return _broadcast(self, (*shapes, self.condition.shape))


# Over a window or an axis


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
    """The sum of each window, rescaled by the mantissa for its number of elements, from 1 on.

    Padding counts as real zeros where count_padding says so; where all windows have as many elements, there is but
    one mantissa.
    """

    kernel: Shape
    strides: Shape
    pads: Shape
    count_padding: bool
    mantissa: np.ndarray
    shift: np.ndarray

    @property
    def counts(self) -> int:
        """How many numbers of elements a window may have."""
        return math.prod(self.kernel) if any(self.pads) and not self.count_padding else 1

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return _pooled(self, shapes[0], self.kernel, self.strides, self.pads)

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        return math.prod(self.kernel) * tensors[0].reach


@dataclass(frozen=True, eq=False)
class RawAveragePool(Operator):
    """The mean of each window's integers as they are, ties away from zero; padding does not count.

    TensorFlow Lite's law: input and output have the same parameters.
    """

    kernel: Shape
    strides: Shape
    pads: Shape

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return _pooled(self, shapes[0], self.kernel, self.strides, self.pads)

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        return math.prod(self.kernel) << (tensors[0].quantized.bits - 1)


@dataclass(frozen=True, eq=False)
class Softmax(Operator):
    """Shares of each row of the last axis: floor(e * one / sum(e) + 1/2), less `one` saturated, plus zero point.

    With d the distance below the row's largest integer, e = coarse[d >> 8] * fine[d & 255] * 2**-shift, rounded.
    mask: 1 where a number takes part, broadcast against the input; empty where all do. The others get 0.
    """

    fine: np.ndarray
    coarse: np.ndarray
    shift: int
    one: int
    mask: np.ndarray

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        self.require(0 <= self.shift <= 62, f"shift {self.shift} must be from 0 to 62")
        if self.mask.size:
            self.require(_broadcast(self, (shapes[0], self.mask.shape)) == shapes[0], "its mask is larger than it")
            self.require(bool(self.mask.any(-1).all()), "a row of its mask lets nothing pass")
        return shapes[0]

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        bits = tensors[0].quantized.bits
        self.require(bits <= (8 if self.coarse.size == 1 else 16), f"tables too small for {bits} bits")
        largest = int(self.fine.max(initial=0)) * int(self.coarse.max(initial=0)) >> self.shift
        return tensors[0].shape[-1] * (largest + 1)


@dataclass(frozen=True, eq=False)
class LayerNormalization(Operator):
    """(q - mean) / sqrt(variance + epsilon) along the last axis of N numbers, times a mantissa, plus a bias.

    With S and T the sums of q and of q**2, and d = N q - S, the number is d / sqrt(N T - S**2 + epsilon): the root
    and its reciprocal to 30 bits, the quotient to 20 fraction bits, then rescaled by one shift. Exact steps are in
    docs/numerics.md.
    """

    epsilon: int
    mantissa: np.ndarray
    bias: np.ndarray
    shift: int

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        size = shapes[0][-1] if shapes[0] else 0
        self.require(size <= _MOST_NORMALISED, f"{size} numbers under one mean; {_MOST_NORMALISED} at most")
        self.require(self.mantissa.shape == self.bias.shape == (size,), f"{self.mantissa.shape} mantissas for {size}")
        largest = max(abs(int(self.mantissa.min())), abs(int(self.mantissa.max())))
        self.require(largest < 1 << 31 and 0 <= self.shift <= 62, f"mantissa {largest} or shift {self.shift}")
        largest = max(abs(int(self.bias.min())), abs(int(self.bias.max())))
        self.require(largest < 1 << 60, "a bias beyond 2^60")
        self.require(0 < self.epsilon < 1 << 60, f"epsilon of {self.epsilon} must be from 1 to 2^60")
        return shapes[0]

    def accumulator_bound(self, tensors: Sequence[Tensor]) -> int:
        """Of a sum of numbers; the sum of squares is wider, and is bounded by output_shape."""
        bits = tensors[0].quantized.bits
        self.require(bits <= 16, f"an input of {bits} bits; 8 or 16")
        return tensors[0].shape[-1] * tensors[0].reach


def _weighted_bound(weight: np.ndarray, bias: np.ndarray, tensor: Tensor) -> int:
    magnitudes = np.abs(weight, dtype=np.int64 if weight.dtype.itemsize > 2 else np.int32)  # a copy costs memory
    sums = magnitudes.reshape(len(weight), -1).sum(1, dtype=np.int64)
    return int((sums * tensor.reach + np.abs(bias.astype(np.int64))).max())


def _broadcast(op: Operator, shapes: Sequence[Shape]) -> Shape:
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        raise FormatError(f"layer {op.name!r}: shapes {', '.join(map(str, shapes))} do not combine") from None


def _pooled(op: Operator, shape: Shape, kernel: Shape, strides: Shape, pads: Shape) -> Shape:
    axes = len(shape) - 1
    fits = axes in (1, 2) and len(kernel) == len(strides) == axes == len(pads) // 2
    op.require(fits and min(kernel) > 0 and min(strides) > 0 and min(pads) >= 0, f"window {list(kernel)}")
    spots = [
        (s + pads[i] + pads[i + axes] - k) // t + 1
        for i, (s, k, t) in enumerate(zip(shape[1:], kernel, strides, strict=True))
    ]
    op.require(min(spots) > 0, f"window {list(kernel)} is larger than its input {list(shape)}")
    return (shape[0], *spots)

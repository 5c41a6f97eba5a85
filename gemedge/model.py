"""A network in integers: what `simulate` gives meaning to and every exporter writes.

Operators in order, each reading tensors made before it (gemedge/operators.py, gemedge/moving.py), with the proof
that nothing overflows: everything checks itself when it is made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from gemedge.errors import FormatError, QuantizationError
from gemedge.fixed import Rounding
from gemedge.kernel import FixedActivation
from gemedge.moving import Clamp, Concatenate, Constant, Embed, Pad, Reshape, Spread, Take, Transpose
from gemedge.operators import (
    Activate,
    AveragePool,
    Choose,
    Combine,
    Convolution,
    Dense,
    GemmlowpSum,
    Interpolate,
    LayerNormalization,
    Lookup,
    MatrixMultiply,
    MaxPool,
    Multiply,
    RawAveragePool,
    Softmax,
    Tensor,
)

Scheme = Literal["int8", "int16x8", "q7", "q15"]
SCHEMES: tuple[Scheme, ...] = ("int8", "int16x8", "q7", "q15")
Op = (
    Constant
    | Convolution
    | Dense
    | MatrixMultiply
    | Activate
    | Lookup
    | Interpolate
    | Combine
    | GemmlowpSum
    | Multiply
    | Choose
    | Concatenate
    | MaxPool
    | AveragePool
    | RawAveragePool
    | Softmax
    | LayerNormalization
    | Embed
    | Reshape
    | Transpose
    | Take
    | Pad
    | Spread
    | Clamp
)
Rescaling = Convolution | Dense | MatrixMultiply | Combine | GemmlowpSum | Multiply | Choose | Concatenate | AveragePool
_KEEPS_CODES = Reshape | Transpose | Take | Pad | Spread | Clamp | MaxPool | RawAveragePool


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
            layer.require(not missing, f"tensor {', '.join(map(repr, missing))} is not made before it")
            layer.require(layer.output in self.tensors and layer.output not in made, f"output {layer.output!r}")
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
        layer.require(len(tensors) == _inputs_of(layer, tensors), f"{len(tensors)} inputs")
        shape = layer.output_shape([tensor.shape for tensor in tensors])
        layer.require(shape == made.shape, f"it makes {list(shape)}, its output is {list(made.shape)}")
        doubled = not isinstance(layer, GemmlowpSum) or self.rounding is Rounding.DOUBLE
        layer.require(doubled, "it belongs to rounding double")
        bound = layer.accumulator_bound(tensors)
        bits = accumulator_bits(layer, tensors)
        if bound >= 1 << (bits - 1):
            raise QuantizationError(
                f"layer {layer.name!r}: its accumulator can reach {bound};"
                f" {self.scheme} with rounding {self.rounding.value} holds up to {(1 << (bits - 1)) - 1}"
            )
        _check_arrays(layer, made)
        if isinstance(layer, _KEEPS_CODES) and made.params is not None:
            given = tensors[0].quantized
            same = (given.bits, given.zero_point) == (made.quantized.bits, made.quantized.zero_point)
            layer.require(same, "it keeps its integers, so input and output must have the same bits and zero point")
        if isinstance(layer, Lookup | Interpolate):
            wanted = (256, 8) if isinstance(layer, Lookup) else (513, 16)
            found = (layer.table.size, tensors[0].quantized.bits)
            layer.require(
                found == wanted, f"a table of {found[0]} for {found[1]}-bit input; {wanted[0]} for {wanted[1]}"
            )
        if isinstance(layer, Rescaling):
            _check_rescaling(layer, bound, gemmlowp=uses_gemmlowp(layer, tensors, self.rounding))

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
                layer.require(kernel.digest == layer.digest, "its kernel is not the one that was certified")
                found[layer.name] = kernel
        return found


def accumulator_bits(layer: Op, tensors: Sequence[Tensor]) -> int:
    """The signed bits that hold this layer's sums: 32 where everything multiplied has 8 bits, otherwise 48."""
    if isinstance(layer, Multiply | GemmlowpSum | Choose | Concatenate):
        return 32  # two 16-bit numbers at most
    if isinstance(layer, Combine):
        return 32 if all(tensor.quantized.bits == 8 for tensor in tensors) else 62
    wide = any(tensor.params is not None and tensor.params.bits > 8 for tensor in tensors)
    if isinstance(layer, Convolution | Dense):
        wide |= layer.weight.dtype != np.int8
    return 48 if wide else 32


def uses_gemmlowp(layer: Op, tensors: Sequence[Tensor], rounding: Rounding) -> bool:
    """Whether this layer rescales by gemmlowp's two roundings (docs/numerics.md, the table of laws)."""
    if isinstance(layer, GemmlowpSum):
        return True
    if rounding is Rounding.SINGLE or isinstance(layer, Combine | AveragePool):
        return False
    if isinstance(layer, Convolution | Dense | MatrixMultiply):
        return accumulator_bits(layer, tensors) == 32  # wider sums take a mantissa of 16 bits and round once
    return True


def _inputs_of(layer: Op, tensors: Sequence[Tensor]) -> int:
    match layer:
        case Constant():
            return 0
        case Combine() | Concatenate():
            return max(1, len(tensors))
        case MatrixMultiply() | GemmlowpSum() | Multiply() | Choose():
            return 2
    return 1


def _check_arrays(layer: Op, made: Tensor) -> None:
    """That arrays of the output's integers have its type, weights are small and conditions are 0 or 1."""
    match layer:
        case Constant(value=array) | Embed(table=array) | Lookup(table=array) | Interpolate(table=array):
            wanted = f"int{made.quantized.bits}"
            layer.require(array.dtype == wanted, f"integers of type {array.dtype}; its output has {wanted}")
        case Convolution() | Dense():
            small = layer.weight.dtype in (np.int8, np.int16)
            layer.require(small, f"weights of type {layer.weight.dtype}; they must be int8 or int16")
        case Choose(condition=array) | Softmax(mask=array):
            layer.require(array.dtype == np.int8 and bool(np.isin(array, (0, 1)).all()), "a condition must be 0 or 1")
        case Pad(value=value) | Spread(value=value):
            _check_codes(layer, made, value)
        case Clamp(low=low, high=high):
            _check_codes(layer, made, low, high)
    if isinstance(layer, Softmax):
        sizes = (layer.fine.size, layer.coarse.size)
        layer.require(sizes in ((256, 1), (256, 256)), f"tables of {sizes[0]} and {sizes[1]} numbers")
        most = int(layer.fine.max()) * int(layer.coarse.max())
        least = min(int(layer.fine.min()), int(layer.coarse.min()))
        fits = least >= 0 and most < 1 << 62 and 0 < layer.one <= 1 << 15
        fits = fits and most >> layer.shift < 1 << 31
        layer.require(fits and int(layer.fine[0]) * int(layer.coarse[0]) >> layer.shift > 0, "its tables or its shift")


def _check_codes(layer: Op, made: Tensor, *codes: int) -> None:
    params = made.quantized
    outside = [code for code in codes if not params.raw_min <= code <= params.raw_max]
    layer.require(not outside, f"{outside} outside the integers from {params.raw_min} to {params.raw_max}")


def _check_rescaling(layer: Rescaling, bound: int, *, gemmlowp: bool) -> None:
    """That an accumulator up to bound, rescaled, stays below 2^62: simulate computes without looking."""
    low, high = int(layer.mantissa.min(initial=0)), int(layer.mantissa.max(initial=0))
    largest = max(-low, high)
    if not isinstance(layer, Combine):
        magnitudes = layer.mantissa[2:] if isinstance(layer, GemmlowpSum) else layer.mantissa
        layer.require(int(magnitudes.min(initial=0)) >= 0, f"mantissa {int(magnitudes.min(initial=0))} below 0")
    reach = bound if isinstance(layer, Combine) else bound * largest
    fits = largest < 1 << 31 and reach < 1 << 62
    layer.require(fits, f"an accumulator up to {bound} times mantissa {largest} leaves 62 bits")
    layer.require(layer.shift.size > 0, "it has no shift")
    least, most = int(layer.shift.min()), int(layer.shift.max())
    layer.require(0 <= least <= most <= 62, f"shifts {least} to {most} must be from 0 to 62")
    if gemmlowp:
        layer.require(bound << max(31 - least, 0) < 1 << 31, f"shift {least} takes {bound} beyond 32 bits")
    match layer:
        case Convolution() | Dense():
            wanted = len(layer.weight)
            layer.require(layer.bias.shape == (wanted,), f"bias of shape {list(layer.bias.shape)}")
        case AveragePool():
            wanted = layer.counts
        case Multiply() | MatrixMultiply():
            wanted = 1
        case GemmlowpSum():
            wanted = 3
        case _:
            wanted = len(layer.inputs)
    layer.require(layer.mantissa.size == wanted, f"{layer.mantissa.size} mantissas; it needs {wanted}")
    shifts = 1 if isinstance(layer, Combine) else wanted
    layer.require(layer.shift.size == shifts, f"{layer.shift.size} shifts; it needs {shifts}")

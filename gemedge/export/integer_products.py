"""Sums of products in ONNX's integer operators: ConvInteger and MatMulInteger on unsigned bytes.

Weights lie 128 above their integers, as 8-bit tensors do. Numbers of 16 bits are taken apart: 256 times a high byte,
signed, and a low byte, unsigned; every pair of bytes has its own product, summed in 32 bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemedge.errors import UnsupportedError
from gemedge.export.integer_sums import Sum, Term, stored
from gemedge.export.onnx_writer import OFFSET, Writer, zero_of
from gemedge.model import Op, uses_gemmlowp
from gemedge.operators import Convolution, Dense, MatrixMultiply, Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """A value of type uint8, less `zero`, times `factor`; reach: the largest magnitude less zero."""

    value: str
    zero: int
    factor: int
    reach: int


def convolution(to: Writer, layer: Convolution, given: list[Tensor], made: Tensor) -> str:
    axes = len(layer.strides)
    attributes: dict[str, Any] = {
        "strides": layer.strides,
        "pads": layer.pads,
        "dilations": layer.dilations,
        "group": layer.groups,
        "kernel_shape": layer.weight.shape[2:],
    }
    return _weighted(
        to,
        layer,
        given[0],
        made,
        (-1,) + (1,) * axes,
        lambda *of: to.add("ConvInteger", *of, **attributes),
    )


def dense(to: Writer, layer: Dense, given: list[Tensor], made: Tensor) -> str:
    return _weighted(to, layer, given[0], made, (-1,), lambda *of: to.add("MatMulInteger", *of))


def matrix_multiply(to: Writer, layer: MatrixMultiply, given: list[Tensor], made: Tensor) -> str:
    axes, count = len(made.shape), given[0].shape[-1]
    left, right = (_parts(to, tensor, to.broadcast(tensor, axes)) for tensor in given)
    terms = []
    for a in left:
        for b in right:
            _check_32_bits(a.reach * b.reach * count)
            terms.append(Term(_product(to, a, b, lambda *of: to.add("MatMulInteger", *of)), a.factor * b.factor))
    return _rescaled(to, layer, given, made, Sum(terms, 0, layer.accumulator_bound(given)), (1,))


def _weighted(
    to: Writer,
    layer: Convolution | Dense,
    given: Tensor,
    made: Tensor,
    shape: tuple[int, ...],
    product: Callable[..., str],
) -> str:
    """shape: that of a number for each output, as it broadcasts against the sums."""
    terms = []
    for part in _parts(to, given, to.values[given.name]):
        for content, zero, factor in _bytes_of_weights(layer.weight):
            sums = np.abs(content - zero).reshape(len(content), -1).sum(1)
            _check_32_bits(int(sums.max()) * part.reach)
            laid = content.T if isinstance(layer, Dense) else content
            of = Part(to.constant(laid, np.uint8), zero, factor, OFFSET)
            terms.append(Term(_product(to, part, of, product), part.factor * factor))
    numbers = Sum(terms, layer.bias.astype(object).reshape(shape), layer.accumulator_bound([given]))
    return _rescaled(to, layer, [given], made, numbers, shape)


def _product(to: Writer, left: Part, right: Part, product: Callable[..., str]) -> str:
    zeros = (to.constant(part.zero, np.uint8) for part in (left, right))
    return product(left.value, right.value, *zeros)


def _rescaled(to: Writer, layer: Op, given: list[Tensor], made: Tensor, numbers: Sum, shape: tuple[int, ...]) -> str:
    mantissa, shift = (np.reshape(of, shape) for of in (layer.mantissa, layer.shift))  # type: ignore[union-attr]
    gemmlowp = uses_gemmlowp(layer, given, to.model.rounding)
    return stored(to, numbers, mantissa, shift, made, gemmlowp=gemmlowp)


def _check_32_bits(bound: int) -> None:
    if bound >= 1 << 31:
        raise UnsupportedError(f"a sum of products of bytes can reach {bound}; ONNX's integer products hold 32 bits")


def _bytes_of_weights(weight: np.ndarray) -> list[tuple[np.ndarray, int, int]]:
    """Unsigned bytes, what stands for zero in them, and their factor."""
    whole = weight.astype(np.int64)
    if weight.dtype == np.int8:
        return [(whole + OFFSET, OFFSET, 1)]
    return [((whole >> 8) + OFFSET, OFFSET, 256), (whole & 255, 0, 1)]


def _parts(to: Writer, tensor: Tensor, value: str) -> list[Part]:
    if tensor.quantized.bits == 8:
        return [Part(value, zero_of(tensor), 1, tensor.reach)]
    if value not in to.bytes_of:
        raised = to.cast(to.add("Add", value, to.constant(1 << 15, np.int32)), np.uint32)
        high = to.add("BitShift", raised, to.constant(8, np.uint32), direction="RIGHT")
        to.bytes_of[value] = (to.cast(high, np.uint8), to.cast(value, np.uint8))
    high, low = to.bytes_of[value]
    return [Part(high, OFFSET, 256, OFFSET), Part(low, 0, 1, 255)]

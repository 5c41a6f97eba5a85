"""Layers with weights: convolutions, and products with a constant matrix or of two tensors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from gemedge.capture.reading import attribute, input_of, ints, only_reader, pads_of
from gemedge.errors import QuantizationError, UnsupportedError
from gemedge.model import Op
from gemedge.moving import Spread
from gemedge.operators import Convolution, Dense, MatrixMultiply, Tensor
from gemedge.quant.lower.lowering import Handler, Lowering, Real, Target


def conv(q: Lowering, node: ir.Node) -> None:
    weight, bias = q.required(node, 1), q.optional(node, 2)
    axes = weight.ndim - 2
    strides, dilations = ints(node, "strides", (1,) * axes), ints(node, "dilations", (1,) * axes)
    _slide(q, node, q.channels_first(node), weight, bias, (strides, pads_of(node, axes), dilations))


def conv_transpose(q: Lowering, node: ir.Node) -> None:
    """A convolution over the input with zeros between its numbers, the kernel turned round."""
    weight, bias = q.required(node, 1), q.optional(node, 2)
    axes, groups = weight.ndim - 2, int(attribute(node, "group", 1))
    strides, dilations = ints(node, "strides", (1,) * axes), ints(node, "dilations", (1,) * axes)
    pads, extra = pads_of(node, axes), ints(node, "output_padding", (0,) * axes)
    if "output_shape" in node.attributes:
        raise UnsupportedError("output_shape is not supported; write the pads")
    reach = [(k - 1) * d for k, d in zip(weight.shape[2:], dilations, strict=True)]
    before = [r - p for r, p in zip(reach, pads[:axes], strict=True)]
    after = [r - p + e for r, p, e in zip(reach, pads[axes:], extra, strict=True)]
    if min(before + after) < 0:
        raise UnsupportedError(f"pads {list(pads)} larger than the kernel's reach {reach}")
    parts = [np.moveaxis(part, 1, 0) for part in np.split(weight, groups)]
    turned = np.flip(np.concatenate(parts), tuple(range(2, 2 + axes)))
    given = q.channels_first(node)
    if any(stride > 1 for stride in strides):
        given = q.add(node, Spread, [given], strides, given.quantized.zero_point, step="spread")
    _slide(q, node, given, turned, bias, ((1,) * axes, (*before, *after), dilations))


def _slide(
    q: Lowering,
    node: ir.Node,
    given: Tensor,
    weight: np.ndarray,
    bias: np.ndarray | None,
    places: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
) -> None:
    strides, pads, dilations = places
    groups = int(attribute(node, "group", 1))

    def make(name: str, inputs: tuple, output: str, codes: Any, offset: Any, mantissa: Any, shift: Any) -> Op:
        return Convolution(name, inputs, output, codes, offset, strides, pads, dilations, groups, mantissa, shift)

    _weighted(q, node, given, weight, bias, make, q.target(node))


def gemm(q: Lowering, node: ir.Node) -> None:
    weight, bias = q.required(node, 1), q.optional(node, 2)
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
        raise UnsupportedError("alpha, beta and transA must have their defaults")
    weight = weight if attribute(node, "transB", 0) else weight.T
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(-1), (len(weight),))
    _weighted(q, node, _rows(q, input_of(node)), weight, bias, Dense, q.target(node))


def matmul(q: Lowering, node: ir.Node) -> None:
    weight = q.constant(node.inputs[1])
    if weight is None or weight.ndim != 2:
        _product(q, node)
        return
    bias, output = _added_bias(q, node, weight.shape[1])
    adder = output.producer()
    if adder is not None and adder is not node:
        q.absorbed.add(adder)
    _weighted(q, node, _rows(q, input_of(node)), weight.T, bias, Dense, q.target(node, output))


def _rows(q: Lowering, value: ir.Value, last: int = 1) -> Tensor:
    """The tensor, refused where one of its last axes, along which products are taken, is the batch."""
    given = q.source(value)
    if q.batch_axis(value) >= len(q.shape(value)) - last:
        raise UnsupportedError("it would cross the batch")
    return given


def _product(q: Lowering, node: ir.Node) -> None:
    for value in (input_of(node), input_of(node, 1)):
        if q.constant(value) is None:
            _rows(q, value, last=2)
    given, target = q.sources(node), q.target(node)
    real = q.real([tensor.quantized.scale for tensor in given], target.params.scale)
    q.rescaled(node, MatrixMultiply, given, reals=[real], target=target)


def _added_bias(q: Lowering, node: ir.Node, outputs: int) -> tuple[np.ndarray | None, ir.Value]:
    """The constant that the only reader of a product adds to it, and where the sum appears."""
    product = node.outputs[0]
    adder = only_reader(product)
    if adder is None or adder.op_type != "Add":
        return None, product
    bias = q.constant(next((value for value in adder.inputs if value is not product), None))
    if bias is None or bias.shape not in ((outputs,), (1, outputs)):
        return None, product
    return bias.reshape(-1), adder.outputs[0]


def _weighted(
    q: Lowering,
    node: ir.Node,
    given: Tensor,
    weight: np.ndarray,
    bias: np.ndarray | None,
    make: Callable[..., Op],
    target: Target,
) -> None:
    """Weights and bias in integers, one rescaling for each output channel."""
    offset = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
    if not np.isfinite(weight).all() or not np.isfinite(offset).all():
        raise QuantizationError("its weights or its bias hold NaN or infinity")
    codes, scales = q.formats(node).weights(weight)
    in_scale, out_scale = given.quantized.scale, target.params.scale
    bias_codes = np.rint(offset / (in_scale * scales))
    if np.abs(bias_codes).max(initial=0) >= 2.0**46:
        raise QuantizationError(f"a bias of {np.abs(offset).max():.4g} does not fit its accumulator")
    bias_codes = bias_codes.astype(np.int64)
    reals = [q.real([in_scale, float(scale)], out_scale) for scale in scales]
    real = Real(weight.astype(np.float64), offset.astype(np.float64), scales)
    q.rescaled(node, make, [given], codes, bias_codes, reals=reals, target=target, real=real)


HANDLERS: dict[str, Handler] = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul}

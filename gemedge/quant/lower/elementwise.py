"""Activations, functions by table, and arithmetic of tensors."""

import math
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from gemedge.activation import Activation, Branch
from gemedge.capture import schema
from gemedge.capture.reading import attribute, input_of, only_reader
from gemedge.errors import QuantizationError, UnsupportedError
from gemedge.fixed import QuantParams, Rounding, dequantize
from gemedge.kernel import FixedActivation
from gemedge.moving import Reshape
from gemedge.operators import Activate, Choose, Combine, GemmlowpSum, Interpolate, Lookup, Multiply, Tensor
from gemedge.quant import functions
from gemedge.quant.lower.lowering import Handler, Lowering, Real, Target

MASKED = -1e4  # a number that a Softmax takes for minus infinity


def activation(q: Lowering, node: ir.Node) -> None:
    _activate(q, node, schema.activation_of(node))


def relu(q: Lowering, node: ir.Node) -> None:
    _activate(q, node, Activation.rational(negative=Branch(), positive=Branch(slope=Fraction(1))))


def leaky_relu(q: Lowering, node: ir.Node) -> None:
    slope = Fraction(float(np.float32(attribute(node, "alpha", 0.01))))
    _activate(q, node, Activation.rational(negative=Branch(slope=-slope), positive=Branch(slope=Fraction(1))))


def _activate(q: Lowering, node: ir.Node, function: Activation) -> None:
    given, params = q.source(input_of(node)), q.params(node.outputs[0])
    kernel = FixedActivation(function, given.quantized, params)
    q.add(node, Activate, [given], function, kernel.digest, target=Target(node.outputs[0], params))


def function(q: Lowering, node: ir.Node) -> None:
    given, params = q.source(input_of(node)), q.params(node.outputs[0])
    exact = functions.of(node, [q.constant(value) for value in node.inputs[1:]], q.functions)
    small = given.quantized.bits == 8
    codes = np.arange(-128, 128) if small else np.minimum(np.arange(-32768, 32769, 128), 32767)
    real = exact(dequantize(codes, given.quantized)) / params.scale + params.zero_point
    table = np.clip(np.floor(real + 0.5), params.raw_min, params.raw_max).astype(f"i{params.bits // 8}")
    kind = Lookup if small else Interpolate
    q.add(node, kind, [given], node.op_type, table, target=Target(node.outputs[0], params), real=Real(function=exact))


# Arithmetic


def add(q: Lowering, node: ir.Node) -> None:
    if not _masked(q, node):
        _combine(q, node, q.sources(node), (1, 1))


def sub(q: Lowering, node: ir.Node) -> None:
    _combine(q, node, q.sources(node), (1, -1))


def _combine(q: Lowering, node: ir.Node, given: list[Tensor], signs: tuple[int, ...]) -> None:
    target = q.target(node)
    if q.rounding is Rounding.DOUBLE and len(given) == 2:
        _gemmlowp_sum(q, node, given, signs, target)
        return
    reals = [
        sign * q.real([tensor.quantized.scale], target.params.scale) for tensor, sign in zip(given, signs, strict=True)
    ]
    _sum(q, node, given, reals, target)


def _sum(q: Lowering, node: ir.Node, given: list[Tensor], reals: list[Fraction], target: Target) -> None:
    """The sum of tensors, each times a real number, with as many bits for the numbers as the accumulator leaves."""
    largest = max(abs(real) for real in reals)
    bits = max(tensor.quantized.bits for tensor in given)
    room = 30 if bits == 8 else 60  # the accumulator's bits: 32-bit arithmetic for 8-bit tensors
    if largest > 1 << 30:
        raise QuantizationError(f"one input's scale is {float(largest):.3g} times the output's: give them ranges alike")
    width = math.ceil(largest * 2 * (1 << bits)).bit_length()
    shift = max(0, min(room - width, 62, 30 - math.ceil(math.log2(largest))))  # mantissas up to 2**30
    mantissa = [math.floor(real * (1 << shift) + Fraction(1, 2)) for real in reals]
    q.add(node, Combine, given, np.array(mantissa, np.int64), np.array(shift, np.int64), target=target)


def _gemmlowp_sum(q: Lowering, node: ir.Node, given: list[Tensor], signs: tuple[int, ...], target: Target) -> None:
    """The parameters that TensorFlow Lite's Add computes."""
    left = 20 if max(tensor.quantized.bits for tensor in given) == 8 else 15
    scales = [tensor.quantized.scale for tensor in given]
    twice = 2 * max(scales)
    reals = [q.real([scale], twice) for scale in scales] + [q.real([twice], (1 << left) * target.params.scale)]
    empty = np.zeros(3, np.int64)
    draft = GemmlowpSum(node.name or "", tuple(t.name for t in given), "", left, empty, empty + 31)
    mantissa, shift = q.scalings(draft, given, reals)
    q.add(node, GemmlowpSum, given, left, mantissa * (*signs, 1), shift, target=target)


def divide(q: Lowering, node: ir.Node) -> None:
    divisor = q.required(node, 1).astype(np.float64)
    if divisor.size != 1 or not _scaled(q, node, input_of(node), 1 / divisor.item(), 0):
        raise UnsupportedError("only a division by one positive number is supported")


def multiply(q: Lowering, node: ir.Node) -> None:
    left, right = input_of(node), input_of(node, 1)
    for value, other in ((left, right), (right, left)):
        factor = q.constant(other)
        if factor is not None and factor.size == 1 and _scaled(q, node, value, float(factor.item()), factor.ndim):
            return
    given, target = q.sources(node), q.target(node)
    real = q.real([tensor.quantized.scale for tensor in given], target.params.scale)
    q.rescaled(node, Multiply, given, reals=[real], target=target)


def _scaled(q: Lowering, node: ir.Node, value: ir.Value, factor: float, axes: int) -> bool:
    """A product with one positive number: the same integers, standing for other numbers.

    Where that is no scale of the scheme they are rescaled; False where more axes change the shape.
    """
    given = q.source(value, node)
    scale = np.float32(given.quantized.scale * factor)
    if len(q.shape(value)) < axes or not (0 < factor < math.inf and 0 < scale < math.inf):
        return False
    if q.formats(node).power_of_two and np.frexp(scale)[0] != 0.5:
        target = q.target(node)
        _sum(q, node, [given], [q.real([given.quantized.scale, factor], target.params.scale)], target)
        return True
    params = QuantParams(float(scale), given.quantized.zero_point, given.quantized.bits)
    q.add(node, Reshape, [given], given.shape, target=Target(node.outputs[0], params))
    return True


def where(q: Lowering, node: ir.Node) -> None:
    condition = q.required(node, 0).astype(bool)
    if _masked(q, node):
        return
    q.check_beside(node.inputs[1:])
    target = q.target(node)
    sample = q.sample(condition, node).astype(np.int8)
    given = [q.source(value, node) for value in node.inputs[1:]]
    reals = [q.real([tensor.quantized.scale], target.params.scale) for tensor in given]
    q.rescaled(node, Choose, given, sample, reals=reals, target=target)


def _masked(q: Lowering, node: ir.Node) -> bool:
    """A sum or choice that puts numbers out of a Softmax's sight: the Softmax takes the mask, exactly."""
    reader = only_reader(node.outputs[0])
    if reader is None or reader.op_type != "Softmax":
        return False
    if node.op_type == "Where":
        others, tensors = [q.required(node, 0).astype(bool)], list(node.inputs[1:])
    else:
        others, tensors = [], list(node.inputs)
    constants = [q.constant(value) for value in tensors]
    place = next((i for i, c in enumerate(constants) if c is not None), None)
    if place is None or len(tensors) != 2:
        return False
    constant, given = constants[place], tensors[1 - place]
    assert constant is not None  # noqa: S101 - found above
    if others:
        hidden = others[0] if place == 0 else ~others[0]
        if not (constant <= MASKED).all():
            return False
    else:
        hidden = constant <= MASKED
        if not hidden.any() or (constant[~hidden] != 0).any():
            return False
    tensor = q.source(given, node)
    q.masks[node.outputs[0].name or ""] = q.sample(~hidden, node).astype(np.int8)
    q.alias(node, tensor)
    return True


HANDLERS: dict[str, Handler] = {
    "GEM": activation,
    "SEGEM": activation,
    "Relu": relu,
    "LeakyRelu": leaky_relu,
    "Add": add,
    "Sub": sub,
    "Mul": multiply,
    "Div": divide,
    "Where": where,
    **dict.fromkeys((*functions.NAMES, functions.CHAIN), function),
}

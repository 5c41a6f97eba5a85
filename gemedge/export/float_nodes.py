"""What each ONNX node is on samples of real numbers."""

import math

import numpy as np
import onnx_ir as ir

from gemedge.capture import schema
from gemedge.capture.reading import attribute, ints, layer_name, name_of, pads_of
from gemedge.errors import UnsupportedError
from gemedge.export.float_operators import Arithmetic, FloatModel, Function, Mean, Normalize, Shares
from gemedge.export.float_reading import Handler, Reader
from gemedge.moving import Concatenate, Embed, Pad, Reshape, Spread, Take, Transpose
from gemedge.operators import Activate, Convolution, Dense, MatrixMultiply, MaxPool, RawAveragePool, Shape, Tensor

_NONE = np.zeros(0, np.int64)  # mantissas and shifts, which real numbers have none of
_FUNCTIONS = {
    "Abs": "ABS",
    "Ceil": "CEIL",
    "Cos": "COS",
    "Exp": "EXP",
    "Floor": "FLOOR",
    "HardSwish": "HARD_SWISH",
    "Log": "LOG",
    "Neg": "NEG",
    "Relu": "RELU",
    "Sigmoid": "LOGISTIC",
    "Sin": "SIN",
    "Sqrt": "SQRT",
    "Tanh": "TANH",
}
_ARITHMETIC = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Max": "MAXIMUM", "Min": "MINIMUM", "Pow": "POW"}


def read(model: ir.Model) -> FloatModel:
    """The operators of a captured model, with GEM and SEGEM nodes as they are; UnsupportedError names what has none."""
    return Reader(model, _HANDLERS).read()


# Weights


def _conv(q: Reader, node: ir.Node) -> None:
    weight, bias = q.required(node, 1), q.optional(node, 2)
    axes = weight.ndim - 2
    strides, dilations = ints(node, "strides", (1,) * axes), ints(node, "dilations", (1,) * axes)
    pads, groups = pads_of(node, axes), int(attribute(node, "group", 1))
    offset = np.zeros(len(weight)) if bias is None else bias
    q.add(node, Convolution, [q.tensor(node.inputs[0])], weight, offset, strides, pads, dilations, groups, _NONE, _NONE)


def _conv_transpose(q: Reader, node: ir.Node) -> None:
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
    given = q.tensor(node.inputs[0])
    if any(stride > 1 for stride in strides):
        given = q.add(node, Spread, [given], strides, 0, step="spread")
    offset = np.zeros(len(turned)) if bias is None else bias
    places = ((1,) * axes, (*before, *after), dilations)
    q.add(node, Convolution, [given], turned, offset, *places, groups, _NONE, _NONE)


def _gemm(q: Reader, node: ir.Node) -> None:
    weight, bias = q.required(node, 1), q.optional(node, 2)
    if attribute(node, "transA", 0):
        raise UnsupportedError("transA must be 0")
    weight = (weight if attribute(node, "transB", 0) else weight.T) * np.float32(attribute(node, "alpha", 1.0))
    offset = np.zeros(1) if bias is None else bias.astype(np.float64) * attribute(node, "beta", 1.0)
    if offset.size not in (1, len(weight)):
        raise UnsupportedError(f"a bias of shape {list(offset.shape)}")
    same = np.broadcast_to(offset.reshape(-1), (len(weight),))
    q.add(node, Dense, [q.tensor(node.inputs[0])], weight, same, _NONE, _NONE)


def _matmul(q: Reader, node: ir.Node) -> None:
    weight = q.constant(node.inputs[1])
    if weight is not None and weight.ndim == 2 and q.tensor(node.inputs[0]).shape:
        q.add(node, Dense, [q.tensor(node.inputs[0])], weight.T, np.zeros(weight.shape[1]), _NONE, _NONE)
        return
    axes = max(len(q.full_shape(value)) for value in node.inputs if value is not None)
    given = [q.operand(value, axes) for value in node.inputs]
    if min(len(tensor.shape) for tensor in given) < 2:
        raise UnsupportedError("it would cross the batch")
    q.add(node, MatrixMultiply, given, _NONE, _NONE)


# Number by number


def _activation(q: Reader, node: ir.Node) -> None:
    q.add(node, Activate, [q.tensor(node.inputs[0])], schema.activation_of(node), "")


def _function(q: Reader, node: ir.Node) -> None:
    q.add(node, Function, [q.tensor(node.inputs[0])], _FUNCTIONS[node.op_type], {})


def _leaky_relu(q: Reader, node: ir.Node) -> None:
    q.add(node, Function, [q.tensor(node.inputs[0])], "LEAKY_RELU", {"alpha": attribute(node, "alpha", 0.01)})


def _elu(q: Reader, node: ir.Node) -> None:
    if attribute(node, "alpha", 1.0) != 1.0:
        raise UnsupportedError("alpha must be 1")
    q.add(node, Function, [q.tensor(node.inputs[0])], "ELU", {})


def _gelu(q: Reader, node: ir.Node) -> None:
    approximate = attribute(node, "approximate", "none") == "tanh"
    q.add(node, Function, [q.tensor(node.inputs[0])], "GELU", {"approximate": approximate})


def _arithmetic(q: Reader, node: ir.Node) -> None:
    if len(node.inputs) != 2:
        raise UnsupportedError(f"{len(node.inputs)} inputs; it must have 2")
    shapes = [q.full_shape(value) for value in node.inputs if value is not None]
    axes = max(map(len, shapes))
    tensors = [value for value in node.inputs if q.constant(value) is None]
    if any(len(q.full_shape(value)) != axes for value in tensors if value is not None):
        raise UnsupportedError("its inputs have the batch on different axes")
    q.add(node, Arithmetic, [q.operand(value, axes) for value in node.inputs], _ARITHMETIC[node.op_type])


def _clip(q: Reader, node: ir.Node) -> None:
    given = q.tensor(node.inputs[0])
    bounds = [("MAXIMUM", q.optional(node, 1)), ("MINIMUM", q.optional(node, 2))]
    kept = [(code, bound) for code, bound in bounds if bound is not None]
    for index, (code, bound) in enumerate(kept):
        name = f"{layer_name(node)} {code.lower()}"
        q.constants[name] = bound.reshape(()).astype(np.float32)
        q.tensors[name] = Tensor(name, (), None)
        given = q.add(node, Arithmetic, [given, q.tensors[name]], code, step="" if index + 1 == len(kept) else "above")
    if not kept:
        q.names[name_of(node.outputs[0])] = given.name


def _batch_normalization(q: Reader, node: ir.Node) -> None:
    scale, shift, mean, variance = (q.required(node, index).astype(np.float64) for index in range(1, 5))
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    given = q.tensor(node.inputs[0])
    parts = {"factor": factor, "offset": shift - mean * factor}
    tensors = []
    for part, array in parts.items():
        name = f"{layer_name(node)} {part}"
        q.constants[name] = array.reshape(-1, *(1,) * (len(given.shape) - 1)).astype(np.float32)
        q.tensors[name] = Tensor(name, q.constants[name].shape, None)
        tensors.append(q.tensors[name])
    scaled = q.add(node, Arithmetic, [given, tensors[0]], "MUL", step="scaled")
    q.add(node, Arithmetic, [scaled, tensors[1]], "ADD")


def _same(q: Reader, node: ir.Node) -> None:
    q.names[name_of(node.outputs[0])] = q.tensor(node.inputs[0]).name


def _cast(q: Reader, node: ir.Node) -> None:
    given = q.tensor(node.inputs[0])
    if ir.DataType(attribute(node, "to", 1)).is_integer() != (given.name in q.indices):
        raise UnsupportedError("it would change what its numbers are")
    _same(q, node)


# Over a window or an axis


def _window(node: ir.Node) -> tuple[Shape, Shape, Shape]:
    kernel = ints(node, "kernel_shape", ())
    dilated = any(d != 1 for d in ints(node, "dilations", (1,)))
    if attribute(node, "ceil_mode", 0) or dilated or len(node.outputs) > 1:
        raise UnsupportedError("ceil_mode and dilations must have their defaults, and indices are not given")
    return kernel, ints(node, "strides", (1,) * len(kernel)), pads_of(node, len(kernel))


def _max_pool(q: Reader, node: ir.Node) -> None:
    q.add(node, MaxPool, [q.tensor(node.inputs[0])], *_window(node))


def _average_pool(q: Reader, node: ir.Node) -> None:
    kernel, strides, pads = _window(node)
    given, axes = q.tensor(node.inputs[0]), len(kernel)
    if attribute(node, "count_include_pad", 0) and any(pads):
        given = q.add(node, Pad, [given], (0, *pads[:axes], 0, *pads[axes:]), 0, step="pad")
        pads = (0,) * len(pads)
    q.add(node, RawAveragePool, [given], kernel, strides, pads)


def _global_average_pool(q: Reader, node: ir.Node) -> None:
    given = q.tensor(node.inputs[0])
    q.add(node, Mean, [given], tuple(range(1, len(given.shape))), True)


def _reduce_mean(q: Reader, node: ir.Node) -> None:
    named = q.optional(node, 1)
    axes = ints(node, "axes", ()) if named is None else tuple(int(axis) for axis in named.reshape(-1))
    if not axes:
        raise UnsupportedError("a mean over all axes would cross the batch")
    found = tuple(sorted(q.axis(node.inputs[0], axis) for axis in axes))
    q.add(node, Mean, [q.tensor(node.inputs[0])], found, bool(attribute(node, "keepdims", 1)))


def _softmax(q: Reader, node: ir.Node) -> None:
    q.add(node, Shares, [q.tensor(node.inputs[0])], q.axis(node.inputs[0], int(attribute(node, "axis", -1))))


def _layer_normalization(q: Reader, node: ir.Node) -> None:
    given = q.tensor(node.inputs[0])
    first = q.axis(node.inputs[0], int(attribute(node, "axis", -1)))
    weight, bias = q.required(node, 1), q.optional(node, 2)
    sizes = given.shape[first:]
    offset = np.zeros(sizes) if bias is None else bias
    arrays = (np.broadcast_to(weight, sizes), np.broadcast_to(offset, sizes))
    q.add(node, Normalize, [given], *arrays, float(attribute(node, "epsilon", 1e-5)))


# Moved


def _reshape(q: Reader, node: ir.Node) -> None:
    before = q.full_shape(node.inputs[0])  # type: ignore[arg-type]
    match node.op_type:
        case "Flatten":
            axis = int(attribute(node, "axis", 1)) % (len(before) + 1)
            after = [math.prod(before[:axis]), math.prod(before[axis:])]
        case "Squeeze":
            named = q.optional(node, 1)
            wanted = [a for a, size in enumerate(before) if size == 1] if named is None else named.reshape(-1)
            dropped = {int(axis) % len(before) for axis in wanted}
            after = [size for axis, size in enumerate(before) if axis not in dropped]
        case "Unsqueeze":
            axes = q.required(node, 1).reshape(-1)
            after = list(before)
            for axis in sorted(int(axis) % (len(before) + len(axes)) for axis in axes):
                after.insert(axis, 1)
        case _:
            after = _resolved(q.required(node, 1), before, attribute(node, "allowzero", 0))
    if not after or after[0] != q.batch or math.prod(after) != math.prod(before):
        raise UnsupportedError("the batch would not stay the first axis, by itself")
    q.add(node, Reshape, [q.tensor(node.inputs[0])], tuple(after[1:]))


def _resolved(sizes: np.ndarray, before: list[int], allow_zero: int) -> list[int]:
    """ONNX's Reshape: 0 keeps a size, -1 takes what is left."""
    wanted = [int(size) for size in sizes.reshape(-1)]
    after = [before[i] if size == 0 and not allow_zero and i < len(before) else size for i, size in enumerate(wanted)]
    if after.count(-1) == 1:
        rest = math.prod(size for size in after if size != -1)
        after[after.index(-1)] = math.prod(before) // rest if rest else 0
    return after


def _transpose(q: Reader, node: ir.Node) -> None:
    given = q.tensor(node.inputs[0])
    order = ints(node, "perm", tuple(reversed(range(len(given.shape) + 1))))
    if order[0] != 0:
        raise UnsupportedError("it moves the batch")
    q.add(node, Transpose, [given], tuple(axis - 1 for axis in order[1:]))


def _concat(q: Reader, node: ir.Node) -> None:
    axes = max(len(q.full_shape(value)) for value in node.inputs if value is not None)
    axis = int(attribute(node, "axis", 0)) % axes - 1
    if axis < 0 or any(q.constant(value) is not None for value in node.inputs):
        raise UnsupportedError("it joins samples, or a constant to each")
    q.add(node, Concatenate, [q.tensor(value) for value in node.inputs], axis, _NONE, _NONE)


def _slice(q: Reader, node: ir.Node) -> None:
    given = q.tensor(node.inputs[0])
    starts, ends = (q.required(node, index).reshape(-1) for index in (1, 2))
    named, stepped = q.optional(node, 3), q.optional(node, 4)
    axes = range(len(starts)) if named is None else [int(axis) for axis in named.reshape(-1)]
    steps = np.ones(len(starts), int) if stepped is None else stepped.reshape(-1)
    count, parts = len(given.shape) + 1, []
    for axis, *bounds in zip(axes, starts, ends, steps, strict=True):
        if axis % count == 0 and int(bounds[0]) == 0 and int(bounds[1]) >= q.batch and int(bounds[2]) == 1:
            continue  # all samples
        inner = q.axis(node.inputs[0], axis)
        parts.append((inner, np.arange(given.shape[inner])[slice(*(int(bound) for bound in bounds))]))
    _take(q, node, given, parts)


def _take(q: Reader, node: ir.Node, given: Tensor, parts: list[tuple[int, np.ndarray]]) -> None:
    for index, (axis, places) in enumerate(parts):
        step = "" if index + 1 == len(parts) else f"axis {axis}"
        given = q.add(node, Take, [given], axis, places.astype(np.int64), step=step)
    if not parts:
        q.names[name_of(node.outputs[0])] = given.name


def _split(q: Reader, node: ir.Node) -> None:
    given = q.tensor(node.inputs[0])
    axis = q.axis(node.inputs[0], int(attribute(node, "axis", 0)))
    size, count, named = given.shape[axis], len(node.outputs), q.optional(node, 1)
    even = -(-size // count)
    sizes = [even] * (count - 1) + [size - even * (count - 1)] if named is None else [int(s) for s in named]
    starts = np.cumsum([0, *sizes])
    for output, start, part in zip(node.outputs, starts, sizes, strict=False):
        q.add(node, Take, [given], axis, np.arange(start, start + part), output=output)


def _gather(q: Reader, node: ir.Node) -> None:
    table, places = q.constant(node.inputs[0]), q.constant(node.inputs[1])
    if table is not None:
        if attribute(node, "axis", 0) != 0 or table.ndim < 1:
            raise UnsupportedError("a table is read by its first axis")
        q.add(node, Embed, [q.tensor(node.inputs[1])], table.astype(np.float32))
        return
    if places is None:
        raise UnsupportedError("indices computed from data need a constant table")
    given = q.tensor(node.inputs[0])
    axis = q.axis(node.inputs[0], int(attribute(node, "axis", 0)))
    flat = places.reshape(-1) % given.shape[axis]
    if places.ndim == 1:
        q.add(node, Take, [given], axis, flat)
        return
    part = q.add(node, Take, [given], axis, flat, step="places")
    q.add(node, Reshape, [part], (*given.shape[:axis], *places.shape, *given.shape[axis + 1 :]))


def _pad(q: Reader, node: ir.Node) -> None:
    given = q.tensor(node.inputs[0])
    axes, named, fill = len(given.shape) + 1, q.optional(node, 3), q.optional(node, 2)
    over = range(axes) if named is None else [int(axis) % axes for axis in named.reshape(-1)]
    around = np.zeros((2, axes), int)
    around[:, list(over)] = q.required(node, 1).reshape(2, -1)
    if attribute(node, "mode", "constant") != "constant" or around[:, 0].any() or around.min() < 0:
        raise UnsupportedError("mode constant and pads of 0 or more after the batch are supported")
    value = 0.0 if fill is None or not fill.size else float(fill.reshape(-1)[0])
    q.add(node, Pad, [given], tuple(int(pad) for pad in around[:, 1:].reshape(-1)), value)


_HANDLERS: dict[str, Handler] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(schema.OP_TYPES, _activation),
    **dict.fromkeys(_FUNCTIONS, _function),
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "Gelu": _gelu,
    "Clip": _clip,
    "BatchNormalization": _batch_normalization,
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "ReduceMean": _reduce_mean,
    "Softmax": _softmax,
    "LayerNormalization": _layer_normalization,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Pad": _pad,
}

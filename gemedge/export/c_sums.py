"""The C of convolutions, dense layers and products of matrices.

An input's zero point is folded into the bias. Weights of 8 bits are written twice, and the compiler takes one of the
two: as they are, or packed in words for CPUs that multiply pairs of 16-bit numbers (gemedge_packed.h). So are the
biases and shifts of layers that CMSIS-NN can run instead (gemedge_cmsis_nn.h), whose kind is called bytes.
"""

import numpy as np

from gemedge.arena import Plan
from gemedge.costs import scratch_bytes
from gemedge.export.c_constants import listed
from gemedge.export.c_writer import Writer, bytes_per, table_of
from gemedge.export.layout import broadcast_steps, loops, steps
from gemedge.fixed import Rounding
from gemedge.model import Op, QuantizedModel, uses_gemmlowp
from gemedge.operators import Activate, Convolution, Dense, Lookup, MatrixMultiply, Shape

_CMSIS_NN = "GEMEDGE_USE_CMSIS_NN"
_FAR = 33  # the least shift that a product of 32 by 32 bits is rescaled by in its upper half
_LARGEST_GROWTH = 1.25  # of packed weights over those as they are


def scratch(model: QuantizedModel, orders: dict[str, Shape], layer: Op) -> int:
    """Bytes that the layer needs while it runs."""
    if isinstance(layer, Dense):
        given = model.tensors[layer.inputs[0]]
        beside = steps(given.shape, orders[given.name])[-1] == 1
        return 0 if beside else given.shape[-1] * bytes_per(given)
    return scratch_bytes(layer, model)


def fused(model: QuantizedModel, plan: Plan) -> dict[str, Activate | Lookup]:
    """The tables of 8 bits that a convolution or dense layer applies to what it makes, by its name.

    They read what nobody else does, and put theirs in its place: what is given out keeps its own.
    """
    readers: dict[str, list[Op]] = {}
    for layer in model.layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    over = {placement.tensor: placement.over for placement in plan.placements}
    found = {}
    for layer in model.layers:
        if isinstance(layer, Convolution | Dense):
            match readers.get(layer.output, []):
                case [Activate() | Lookup() as reader] if over.get(reader.output) == layer.output:
                    bits = {model.tensors[name].quantized.bits for name in (layer.output, reader.output)}
                    if bits == {8}:
                        found[layer.name] = reader
    return found


def convolution(to: Writer, layer: Convolution) -> str:
    (given,), made = to.tensors(layer)
    outputs, group_in = layer.weight.shape[:2]
    weight = np.moveaxis(layer.weight, 1, -1)
    window = f"{given.quantized.zero_point}, {to.window(layer, layer.weight.shape[2:], layer.dilations)}"
    places = f"{to.scratch(layer)}, {to.address(made.name)}"
    if layer.groups == given.shape[0] == outputs:
        kind, weights = _kind(to, layer), _plain(to, np.moveaxis(weight, 0, -1))
        kind = "bytes" if kind == "i8w8s32" and made.quantized.bits == 8 else kind
        by = _rescaling(to, layer, kind)
        return f"gemedge_depthwise_{kind}({_source(to, layer)}, {window}, {weights}, {by}, {places});"
    kind, weights = _weights(to, layer, weight.reshape(layer.groups, outputs // layer.groups, -1))
    groups, by = f"{layer.groups}, {group_in}, {outputs // layer.groups}", _rescaling(to, layer, kind)
    return f"gemedge_convolution_{kind}({_source(to, layer)}, {window}, {groups}, {weights}, {by}, {places});"


def dense(to: Writer, layer: Dense) -> str:
    (given,), made = to.tensors(layer)
    outputs, inputs = layer.weight.shape
    kind, weights = _weights(to, layer, layer.weight[None])
    zero = f"{given.quantized.zero_point}, " if kind == "bytes" else ""
    rows, (in_step, out_step) = to.rows(layer)
    return (
        f"gemedge_dense_{kind}({_source(to, layer)}, {zero}{inputs}, {in_step}u, {weights},"
        f" {_rescaling(to, layer, kind)}, {to.scratch(layer)}, {to.address(made.name)}, {outputs}, {out_step}u,"
        f" {rows});"
    )


def cmsis_nn_check(model: QuantizedModel) -> str:
    """What refuses to compile where CMSIS-NN rounds otherwise than the model."""
    single = model.rounding is Rounding.SINGLE
    test, words = ("ifndef", "with") if single else ("ifdef", "without")
    return f"""#ifdef GEMEDGE_USE_CMSIS_NN
#{test} CMSIS_NN_USE_SINGLE_ROUNDING
#error "this model rounds {"once" if single else "twice"}: build it and CMSIS-NN {words} CMSIS_NN_USE_SINGLE_ROUNDING"
#endif
#endif"""


def matrix_multiply(to: Writer, layer: MatrixMultiply) -> str:
    given, made = to.tensors(layer)
    axes = len(made.shape)
    left, right = (broadcast_steps(t.shape, to.orders[t.name], axes) for t in given)
    own = to.steps(made)
    order = [axis for axis in to.orders[made.name] if axis < axes - 2]
    found = to.loops("matrices", loops((*made.shape[:-2], 1, 1), [left, right, own], tuple(order), rows=True))
    size = to.constants.array("size", "uint32_t", (made.shape[-2], given[0].shape[-1], made.shape[-1]))
    step = to.constants.array("step", "uint32_t", (*left[-2:], *right[-2:], *own[-2:]))
    rescaling = f"{int(layer.mantissa.reshape(-1)[0])}, {int(layer.shift.reshape(-1)[0])}u"
    return (
        f"{to.operands(layer, (0, 0), (0, 0))}gemedge_matrix_multiply(of, {size}, {step}, {rescaling},"
        f" {to.law(layer)}, {to.address(made.name)}, {to.format(made)}, {found});"
    )


def _source(to: Writer, layer: Convolution | Dense) -> str:
    (given,), _ = to.tensors(layer)
    ctype = "int8_t" if given.quantized.bits == 8 else "gemedge_int16"
    return f"(const {ctype} *)({to.address(given.name)})"


def _kind(to: Writer, layer: Convolution | Dense) -> str:
    """The bits of input, weight and sum in the name of a kernel."""
    (given,), _ = to.tensors(layer)
    return f"i{given.quantized.bits}w{8 * layer.weight.dtype.itemsize}s{32 if _short(to, layer) else 64}"


def _short(to: Writer, layer: Convolution | Dense) -> bool:
    """Whether 32 bits were proven to hold its sums."""
    return layer.accumulator_bound(to.tensors(layer)[0]) < 1 << 31


def _plain(to: Writer, weight: np.ndarray) -> str:
    return to.constants.array("weight", f"int{8 * weight.dtype.itemsize}_t", weight)


def _weights(to: Writer, layer: Convolution | Dense, weight: np.ndarray) -> tuple[str, str]:
    """The kind of the kernel and the name of its weights, given as [group, output, input]."""
    groups, outputs, inputs = weight.shape
    size = groups * _up(outputs) * _up(inputs)
    (given,), made = to.tensors(layer)
    narrow = given.quantized.bits == 8 and weight.dtype == np.int8 and int(weight.min()) >= -127
    if not narrow or size > _LARGEST_GROWTH * weight.size:
        return _kind(to, layer), _plain(to, weight)
    words, plain = listed("uint32_t", packed(weight)), listed("int8_t", weight)
    kind = "bytes" if groups == 1 and made.quantized.bits == 8 else "packed"
    return kind, to.constants.either("weight", "GEMEDGE_PACKED", words, plain)


def packed(weight: np.ndarray) -> np.ndarray:
    """Words of 8-bit weights [group, output, input] in the order of gemedge_packed.h."""
    groups, outputs, inputs = weight.shape
    whole = np.zeros((groups, _up(outputs), _up(inputs)), np.int16)
    whole[:, :outputs, :inputs] = weight
    # group, four outputs, pair, one of it, four inputs, half of them, one of it
    parts = whole.reshape(groups, -1, 2, 2, _up(inputs) // 4, 2, 2)
    pairs = (parts[:, :, :, 0] + 256 * parts[:, :, :, 1]).view(np.uint16).astype(np.uint32)  # no weight is -128
    words = pairs[..., 0, :] + (pairs[..., 1, :] << 16)  # group, four outputs, pair, four inputs, one of a half
    return words.transpose(0, 1, 3, 4, 2).reshape(-1)


def _up(count: int) -> int:
    return -(-count // 4) * 4


def _rescaling(to: Writer, layer: Convolution | Dense, kind: str) -> str:
    """The address of a struct gemedge_rescaling, or of CMSIS-NN's where kind is bytes and the compiler is told so."""
    (given,), made = to.tensors(layer)
    outputs, zero = len(layer.bias), made.quantized.zero_point
    mantissa, shift = (np.broadcast_to(a.astype(np.int64), (outputs,)) for a in (layer.mantissa, layer.shift))
    short = _short(to, layer)
    if short and not uses_gemmlowp(layer, [given], to.model.rounding):
        mantissa, shift = farther(mantissa, shift)
    factors = to.constants.array("mantissa", "int32_t", mantissa)
    biases = _bias(layer, given.quantized.zero_point, short)
    table = f"GEMEDGE_FUSED({_table(to, to.fused[layer.name])})" if layer.name in to.fused else "0"
    far = int(short and int(shift.min()) >= _FAR)
    rest = f"{table}, {zero}, {made.quantized.bits // 8}, {to.law(layer)}, {far}"
    if kind != "bytes":
        bias = to.constants.array("bias", "int32_t" if short else "int64_t", biases)
        held = to.constants.array("shift", "uint8_t", shift)
        return f"&{to.constants.structure('by', 'rescaling', f'{{{bias}, {factors}, {held}, {rest}}}')}"
    bias = to.constants.either("bias", _CMSIS_NN, listed("int32_t", layer.bias), listed("int32_t", biases))
    left = listed("int32_t", 31 - shift.astype(np.int64))
    held = to.constants.either("shift", _CMSIS_NN, left, listed("uint8_t", shift))
    uniform = int(np.ptp(mantissa) == np.ptp(shift) == 0)
    theirs = f"struct gemedge_cmsis_nn @ = {{{bias}, {factors}, {held}, {zero}, {uniform}}}"
    ours = f"struct gemedge_rescaling @ = {{{bias}, {factors}, {held}, {rest}}}"
    return f"&{to.constants.either('by', _CMSIS_NN, theirs, ours)}"


def _table(to: Writer, layer: Activate | Lookup) -> str:
    table = layer.table if isinstance(layer, Lookup) else to.model.kernels[layer.name].constants.table
    return table_of(to, layer, table)


def _bias(layer: Convolution | Dense, zero: int, short: bool) -> np.ndarray:
    """The bias less what the input's zero point adds; as 32 bits wrapped round, since the sum with it is in range."""
    weights = layer.weight.astype(np.int64).reshape(len(layer.bias), -1).sum(1)
    bias = layer.bias.astype(np.int64) - zero * weights
    return bias.astype(np.int32) if short else bias


def farther(mantissa: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same factors by larger mantissas where that brings shifts to 33."""
    more = np.maximum(_FAR - shift, 0)
    fits = mantissa << more < 1 << 31
    return np.where(fits, mantissa << more, mantissa), np.where(fits, shift + more, shift)

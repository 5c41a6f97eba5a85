"""Convolutions and dense layers in C give NumPy's integers, on this machine and on emulated microcontrollers."""

import ctypes
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import bakenn
import numpy as np
import pytest
from c_builds import STRICT, Built, compiled
from test_arena import Graph
from thinned import thinned

import gemedge.export as to_c_package
from gemedge.arena import plan
from gemedge.errors import ToolError
from gemedge.export.build import build
from gemedge.export.c_sums import fused
from gemedge.export.machine import Machine
from gemedge.export.to_c import arena_size, to_c
from gemedge.fixed import QuantParams, Rounding
from gemedge.model import QuantizedModel
from gemedge.operators import Convolution, Dense, Lookup


@dataclass(frozen=True)
class Shape:
    """A convolution by its channels, groups, and for each axis size, kernel, stride, dilation and padding."""

    channels: tuple[int, int]
    groups: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[int, ...]


SHAPES = {
    "3x3": Shape((16, 16), 1, (6, 5), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "one spot": Shape((5, 7), 1, (1, 1), (1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
    "odd channels, strides and padding": Shape((3, 9), 1, (9, 7), (3, 2), (2, 3), (1, 1), (0, 2, 1, 0)),
    "dilated": Shape((6, 5), 1, (8, 9), (2, 3), (1, 2), (3, 2), (2, 1, 0, 3)),
    "groups": Shape((8, 12), 2, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "groups of two channels": Shape((6, 6), 3, (4, 5), (2, 2), (1, 1), (1, 1), (1, 0, 0, 1)),
    "depthwise": Shape((9, 9), 9, (6, 7), (3, 3), (2, 1), (1, 2), (1, 2, 0, 1)),
    "depthwise of many": Shape((38, 38), 38, (4, 3), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "depthwise of one": Shape((1, 1), 1, (5, 4), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "signal": Shape((4, 10), 1, (17,), (5,), (2,), (2,), (3, 4)),
    "many channels": Shape((70, 34), 1, (3, 4), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "padding beyond the kernel": Shape((2, 4), 1, (2, 2), (2, 2), (1, 1), (1, 1), (3, 3, 4, 2)),
}
WIDTHS = [(8, np.int8, 8), (8, np.int8, 16), (16, np.int8, 16), (16, np.int16, 16), (8, np.int16, 8), (16, np.int8, 8)]


def rescaling(rng, outputs: int, depth: int, bits: int, width: int, *, near: bool) -> tuple[np.ndarray, np.ndarray]:
    """Factors that bring typical sums into the output's range, and where near is asked for one above one half."""
    typical = 2.0 ** -(rng.uniform(-1, 1, outputs) + bits + 8 * width / 2 + np.log2(depth) / 2 - 7)
    typical[0] = 0.7 if near else typical[0]
    exponent = np.ceil(np.log2(typical)).astype(int)
    narrow = bits == 8 and width == 1
    digits = 31 if narrow else 15
    mantissa = np.minimum(np.round(typical / 2.0**exponent * 2**digits), 2**digits - 1).astype(np.int64)
    return mantissa, digits - exponent.astype(np.int64)


def output(rng, bits: int) -> QuantParams:
    return QuantParams(1.0, int(rng.integers(-9, 9)) if bits == 8 else 0, bits)


def drawn(rng, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
    """Integers of all sizes, with both ends and whole rows of them."""
    found = rng.integers(low, high + 1, shape)
    found[rng.random(shape) < 0.2] = low
    found[rng.random(shape) < 0.2] = high
    return found


def weights_of(rng, shape: tuple[int, ...], dtype: type, bits: int, *, lowest: bool = False) -> np.ndarray:
    most = np.iinfo(dtype).max
    found = drawn(rng, -most, most, shape)
    found[0] = most if found[0].size < 9 else found[0]
    if lowest:
        found.reshape(-1)[::3] = -most - 1
    return found.astype(dtype)


def convolution(
    seed: int, shape: Shape, bits: int, dtype: type, out_bits: int, *, rounding=Rounding.SINGLE, near=False, **how
) -> QuantizedModel:
    rng = np.random.default_rng(seed)
    graph = Graph()
    zero = int(rng.integers(-128, 128)) if bits == 8 else 0
    given = graph.given((shape.channels[0], *shape.size), QuantParams(1.0, zero, bits))
    weight = weights_of(rng, (shape.channels[1], shape.channels[0] // shape.groups, *shape.kernel), dtype, bits, **how)
    mantissa, shift = rescaling(rng, len(weight), prod(weight.shape[1:]), bits, weight.itemsize, near=near)
    if rounding is Rounding.DOUBLE:
        shift = np.maximum(shift, 31)
    bias = rng.integers(-5000, 5000, len(weight))
    fields = (weight, bias, shape.stride, shape.pads, shape.dilation, shape.groups, mantissa, shift)
    made = graph.add(
        Convolution,
        [given],
        *fields,
        params=QuantParams(1.0, int(rng.integers(-9, 9)) if out_bits == 8 else 0, out_bits),
    )
    return replace(graph.model(made), rounding=rounding)


def dense(
    seed: int,
    inputs: int,
    outputs: int,
    rows: int,
    bits: int,
    dtype: type,
    out_bits: int,
    *,
    rounding=Rounding.SINGLE,
    **how,
) -> QuantizedModel:
    rng = np.random.default_rng(seed)
    graph = Graph()
    zero = int(rng.integers(-128, 128)) if bits == 8 else 0
    given = graph.given((rows, inputs) if rows else (inputs,), QuantParams(1.0, zero, bits))
    weight = weights_of(rng, (outputs, inputs), dtype, bits, **how)
    mantissa, shift = rescaling(rng, outputs, inputs, bits, weight.itemsize, near=False)
    if rounding is Rounding.DOUBLE:
        shift = np.maximum(shift, 31)
    fields = (weight, rng.integers(-5000, 5000, outputs), mantissa, shift)
    made = graph.add(
        Dense, [given], *fields, params=QuantParams(1.0, int(rng.integers(-9, 9)) if out_bits == 8 else 0, out_bits)
    )
    return replace(graph.model(made), rounding=rounding)


def with_table(model: QuantizedModel, seed: int) -> QuantizedModel:
    """The model's only layer, and a table of 8 bits behind it."""
    rng = np.random.default_rng(seed)
    (layer,) = model.layers
    table = Lookup("table", (layer.output,), "looked up", "any", rng.integers(-128, 128, 256).astype(np.int8))
    tensors = dict(model.tensors)
    tensors["looked up"] = replace(tensors[layer.output], name="looked up")
    return replace(model, tensors=tensors, layers=(layer, table), outputs={"out": "looked up"})


# The judge: whole arrays, no windows


def rounded(sums: np.ndarray, layer, made, rounding: Rounding) -> np.ndarray:
    mantissa, shift = (
        array.astype(object).reshape(-1, *[1] * (sums.ndim - 1)) for array in (layer.mantissa, layer.shift)
    )
    product = sums.astype(object) * mantissa
    if rounding is Rounding.SINGLE:
        value = (2 * product + 2**shift) // 2 ** (shift + 1)
    else:
        high = (product + 2**30) // 2**31
        half = 2 ** (shift - 31) // 2
        value = np.where(high < 0, -((half - high) // 2 ** (shift - 31)), (high + half) // 2 ** (shift - 31))
    half = 1 << (made.bits - 1)
    return np.clip(value + made.zero_point, -half, half - 1).astype(np.int64)


def wanted(model: QuantizedModel, given: np.ndarray) -> np.ndarray:
    layer = model.layers[0]
    taken, made = (model.tensors[name].quantized for name in (layer.inputs[0], layer.output))
    centred = given.astype(np.int64) - taken.zero_point
    if isinstance(layer, Dense):
        sums = np.moveaxis(centred @ layer.weight.astype(np.int64).T + layer.bias, -1, 0)
    else:
        sums = convolved(centred, layer)
    found = rounded(
        sums, layer, made, model.rounding if layer.weight.dtype == np.int8 and taken.bits == 8 else Rounding.SINGLE
    )
    found = np.moveaxis(found, 0, -1) if isinstance(layer, Dense) else found
    return model.layers[1].table[found + 128] if len(model.layers) > 1 else found


def convolved(centred: np.ndarray, layer: Convolution) -> np.ndarray:
    """Each tap of the kernel moves the whole padded input."""
    axes = len(layer.strides)
    pads = [(0, 0), *zip(layer.pads[:axes], layer.pads[axes:], strict=True)]
    padded = np.pad(centred, pads)
    shape = layer.output_shape([centred.shape])
    sums = np.zeros(shape, np.int64) + layer.bias.reshape(-1, *[1] * axes)
    per_group, outputs = layer.weight.shape[1], len(layer.weight) // layer.groups
    for tap in np.ndindex(*layer.weight.shape[2:]):
        window = tuple(
            slice(t * d, t * d + (size - 1) * s + 1, s)
            for t, d, s, size in zip(tap, layer.dilations, layer.strides, shape[1:], strict=True)
        )
        moved = padded[:, *window]
        for group in range(layer.groups):
            weight = layer.weight[group * outputs : (group + 1) * outputs, :, *tap].astype(np.int64)
            part = moved[group * per_group : (group + 1) * per_group]
            sums[group * outputs : (group + 1) * outputs] += np.tensordot(weight, part, 1)
    return sums


def inputs_of(model: QuantizedModel, seed: int) -> np.ndarray:
    tensor = model.tensors[model.inputs[0]]
    half = 1 << (tensor.quantized.bits - 1)
    return drawn(np.random.default_rng(seed), -half, half - 1, tensor.shape)


# On this machine


def check_here(model: QuantizedModel, folder, flags: tuple[str, ...] = ("-O1",)) -> None:
    built = Built(model, folder, flags)
    for seed in range(2):
        given = inputs_of(model, seed)
        (found,) = built.run({model.inputs[0]: given}).outputs.values()
        np.testing.assert_array_equal(found, wanted(model, given))


UNDEFINED = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")


@pytest.mark.parametrize(("bits", "dtype", "out_bits"), WIDTHS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_convolution_gives_numpys_integers(name, bits, dtype, out_bits, tmp_path):
    near = name in ("3x3", "depthwise")
    check_here(convolution(1, SHAPES[name], bits, dtype, out_bits, near=near), tmp_path, UNDEFINED)


@pytest.mark.parametrize(("bits", "dtype", "out_bits"), WIDTHS)
@pytest.mark.parametrize(("inputs", "outputs", "rows"), [(128, 16, 0), (1, 1, 0), (7, 5, 3), (1030, 18, 0)])
def test_a_dense_layer_gives_numpys_integers(inputs, outputs, rows, bits, dtype, out_bits, tmp_path):
    check_here(dense(2, inputs, outputs, rows, bits, dtype, out_bits), tmp_path, UNDEFINED)


# On emulated microcontrollers


def run_there(
    model: QuantizedModel, target: str, given: np.ndarray, defines: tuple[str, ...] = ()
) -> tuple[np.ndarray, int]:
    """What the C gives there, and how many instructions that took."""
    return called(model, build(to_c(model, "net"), target, roots=["net_run"], defines=defines), target, given)


def called(model: QuantizedModel, program: bytes, target: str, given: np.ndarray) -> tuple[np.ndarray, int]:
    machine = Machine(program, target)
    (name,) = model.outputs.values()
    shape, dtype = model.tensors[name].shape, f"<i{model.tensors[name].quantized.bits // 8}"
    laid = np.moveaxis(given, 0, -1) if given.ndim > 2 or isinstance(model.layers[0], Convolution) else given
    content = laid.astype(f"<i{model.tensors[model.inputs[0]].quantized.bits // 8}").tobytes()
    source, target_place = machine.allocate(len(content)), machine.allocate(2 * prod(shape))
    size = arena_size(model)
    machine.write(source, content)
    call = machine.call("net_run", machine.allocate(size), size, source, target_place)
    assert call.returned == 0
    found = np.frombuffer(machine.read(target_place, prod(shape) * np.dtype(dtype).itemsize), dtype)
    if isinstance(model.layers[0], Convolution):
        return np.moveaxis(found.reshape(*shape[1:], shape[0]), -1, 0), call.instructions
    return found.reshape(shape), call.instructions


def check_there(model: QuantizedModel, target: str) -> None:
    given = inputs_of(model, 3)
    np.testing.assert_array_equal(run_there(model, target, given)[0], wanted(model, given))


ROUNDINGS = list(Rounding)


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m0plus"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_convolution_of_8_bits_gives_numpys_integers_there(name, rounding, target):
    near = name in ("3x3", "depthwise")
    check_there(convolution(4, SHAPES[name], 8, np.int8, 8, rounding=rounding, near=near), target)


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m0plus"])
@pytest.mark.parametrize(("inputs", "outputs", "rows"), [(128, 16, 0), (7, 5, 3), (1031, 18, 0)])
def test_a_dense_layer_of_8_bits_gives_numpys_integers_there(inputs, outputs, rows, target):
    check_there(dense(5, inputs, outputs, rows, 8, np.int8, 8), target)


def test_a_weight_of_minus_128_is_not_packed_and_right(tmp_path):
    model = convolution(6, SHAPES["3x3"], 8, np.int8, 8, lowest=True)
    assert b"#ifdef GEMEDGE_PACKED" not in to_c(model, "net")["model.c"]
    check_here(model, tmp_path, UNDEFINED)
    check_there(model, "cortex-m4")


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_the_largest_sums_of_a_packed_pair_are_right(kind, tmp_path):
    made = (
        dense(5, 1031, 4, 0, 8, np.int8, 8)
        if kind == "dense"
        else convolution(5, SHAPES["many channels"], 8, np.int8, 8)
    )
    (layer,) = made.layers
    layer = replace(layer, weight=np.full_like(layer.weight, 127), shift=layer.shift + 4)
    model = replace(made, layers=(layer,))
    given = np.full(model.tensors[model.inputs[0]].shape, -128)
    np.testing.assert_array_equal(run_there(model, "cortex-m4", given)[0], wanted(model, given))
    (found,) = Built(model, tmp_path, ("-O1", *avx2())).run({model.inputs[0]: given}).outputs.values()
    np.testing.assert_array_equal(found, wanted(model, given))


def avx2() -> tuple[str, ...]:
    """Flags for this CPU's wider registers, where it has them."""
    flags = Path("/proc/cpuinfo")
    return ("-mavx2",) if flags.exists() and " avx2 " in flags.read_text() else ()


@pytest.mark.parametrize("flags", [("-O3", *avx2()), ("-O3", "-march=native")])
@pytest.mark.parametrize("name", ["3x3", "odd channels, strides and padding", "groups", "many channels"])
def test_wider_registers_give_the_same_integers(name, flags, tmp_path):
    check_here(convolution(7, SHAPES[name], 8, np.int8, 8), tmp_path, flags)
    check_here(dense(7, 519, 21, 2, 8, np.int8, 8), tmp_path / "dense", flags)


# An activation's table, applied as outputs are stored


FUSED = {
    "convolution": lambda rounding: convolution(8, SHAPES["3x3"], 8, np.int8, 8, rounding=rounding),
    "near": lambda rounding: convolution(8, SHAPES["dilated"], 8, np.int8, 8, rounding=rounding, near=True),
    "depthwise": lambda rounding: convolution(8, SHAPES["depthwise"], 8, np.int8, 8, rounding=rounding),
    "dense": lambda rounding: dense(8, 33, 9, 0, 8, np.int8, 8, rounding=rounding),
    "16-bit input": lambda rounding: convolution(8, SHAPES["3x3"], 16, np.int8, 8, rounding=rounding),
}


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", FUSED)
def test_a_table_behind_a_sum_is_looked_up_as_it_is_stored(name, rounding, tmp_path):
    model = with_table(FUSED[name](rounding), 9)
    check_there(model, "cortex-m4")
    check_here(model, tmp_path)  # observed, so one after the other
    assert model.layers[0].name in fused(model, plan(model))


def test_a_sum_that_somebody_else_reads_is_not_fused():
    model = with_table(FUSED["convolution"](Rounding.SINGLE), 9)
    seen = replace(model, outputs=model.outputs | {"too": model.layers[0].output})
    assert fused(model, plan(model))
    assert not fused(seen, plan(seen))


def test_a_fused_table_takes_at_most_two_instructions_for_each_output():
    bare = convolution(8, SHAPES["3x3"], 8, np.int8, 8)
    model = with_table(bare, 9)
    given = inputs_of(model, 1)
    more = run_there(model, "cortex-m4", given)[1] - run_there(bare, "cortex-m4", given)[1]
    assert more <= 2 * prod(bare.tensors[bare.layers[0].output].shape)


# What the data is does not show in how long it takes


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", ["3x3", "depthwise"])
def test_the_count_of_instructions_does_not_depend_on_the_data(name, rounding):
    model = convolution(10, SHAPES[name], 8, np.int8, 8, rounding=rounding)
    counts = {run_there(model, "cortex-m4", inputs_of(model, seed), ("GEMEDGE_CONSTANT_TIME",))[1] for seed in range(3)}
    assert len(counts) == 1


# CMSIS-NN instead

CMSIS_NN = Path(bakenn.__file__).parent / "backend" / "cmsis_nn" / "vendor"
CMSIS_NN_SOURCES = {
    "arm_convolve_s8",
    "arm_depthwise_conv_s8",
    "arm_fully_connected_s8",
    "arm_nn_mat_mult_kernel_s8_s16",
    "arm_nn_mat_mul_core_1x_s8",
    "arm_nn_mat_mul_core_4x_s8",
    "arm_nn_mat_mult_nt_t_s8",
    "arm_nn_vec_mat_mult_t_s8",
    "arm_q7_to_q15_with_offset",
}
ROUNDS = {Rounding.SINGLE: ("CMSIS_NN_USE_SINGLE_ROUNDING",), Rounding.DOUBLE: ()}


CMSIS_NN_SHAPES = ("3x3", "odd channels, strides and padding", "dilated", "groups", "depthwise")


def with_cmsis_nn(model: QuantizedModel) -> dict[str, bytes]:
    """The model's C beside CMSIS-NN's sources, all in one folder."""
    theirs = [*CMSIS_NN.glob("cmsis_nn/Include/*.h"), *CMSIS_NN.glob("cmsis_core/Include/*.h")]
    theirs += [path for path in CMSIS_NN.glob("cmsis_nn/Source/*/*.c") if path.stem in CMSIS_NN_SOURCES]
    own = {"math.h": b""}  # which they include and do not use
    return to_c(model, "net") | own | {path.name: path.read_bytes() for path in theirs}


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(
    "name", thinned(["3x3", "odd channels, strides and padding", "dilated", "groups", "depthwise", "dense"], 5)
)
def test_cmsis_nn_gives_the_same_integers(name, rounding):
    if name == "dense":
        model = dense(11, 37, 10, 0, 8, np.int8, 8, rounding=rounding)
    else:
        model = convolution(11, SHAPES[name], 8, np.int8, 8, rounding=rounding)
    model = with_table(model, 12)
    given = inputs_of(model, 1)
    defines = ("GEMEDGE_USE_CMSIS_NN", *ROUNDS[rounding])
    program = build(with_cmsis_nn(model), "cortex-m4", roots=["net_run"], defines=defines)
    np.testing.assert_array_equal(called(model, program, "cortex-m4", given)[0], wanted(model, given))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_cmsis_nn_that_rounds_otherwise_does_not_compile(rounding):
    model = convolution(11, SHAPES["3x3"], 8, np.int8, 8, rounding=rounding)
    (other,) = set(Rounding) - {rounding}
    with pytest.raises(ToolError, match="build it and CMSIS-NN with"):
        build(with_cmsis_nn(model), "cortex-m4", defines=("GEMEDGE_USE_CMSIS_NN", *ROUNDS[other]))


@pytest.mark.parametrize(("bits", "dtype", "out_bits"), [(16, np.int8, 16), (16, np.int16, 16), (8, np.int16, 8)])
@pytest.mark.parametrize("name", ["3x3", "odd channels, strides and padding", "depthwise"])
def test_a_convolution_of_16_bits_gives_numpys_integers_there(name, bits, dtype, out_bits):
    check_there(convolution(13, SHAPES[name], bits, dtype, out_bits, near=name == "dilated"), "cortex-m4")


HALVES = """#include "gemedge_rescale.h"
void high(const int32_t *a, const int32_t *b, int32_t *out, uint32_t n);
void high(const int32_t *a, const int32_t *b, int32_t *out, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) out[i] = gemedge_high_of_halves(a[i], b[i]);
}
"""


def test_products_of_halves_give_the_upper_word(tmp_path):
    (tmp_path / "high.c").write_text(HALVES)
    runtime = str(Path(to_c_package.__file__).parent / "c_runtime")
    compiled([*STRICT, *UNDEFINED, "-shared", "-fPIC", "-I", runtime, "high.c", "-o", "high.so"], tmp_path)
    edges = [0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x7FFF8000, 0x40000000]
    some = [int(x) for x in np.random.default_rng(0).integers(0, 1 << 31, 200)]
    pairs = [(sign * x, y) for x in edges + some for y in edges + some for sign in (1, -1)]
    a, b = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    out = np.empty_like(a)
    places = [ctypes.c_void_p(array.ctypes.data) for array in (a, b, out)]
    ctypes.CDLL(str(tmp_path / "high.so")).high(*places, ctypes.c_uint32(len(a)))
    np.testing.assert_array_equal(out, a.astype(np.int64) * b >> 32)

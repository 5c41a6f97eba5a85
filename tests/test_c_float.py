"""Floats at the border of exported C: the simulator's integers for every float, under any options of the compiler."""

import ctypes
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from c_builds import STRICT, compiled
from test_arena import Graph
from test_c_runtime import HEADER, pointers

from gemedge.export.to_c import to_c
from gemedge.fixed import QuantParams
from gemedge.fixed import quantize as nearest

SOURCE = """#include "gemedge_float.h"
void quantize(const float *x, void *to, float scale, int32_t zero, uint8_t bytes, uint32_t count);
void dequantize(const void *q, float *to, float scale, int32_t zero, uint8_t bytes, uint32_t count);
void quantize(const float *x, void *to, float scale, int32_t zero, uint8_t bytes, uint32_t count) {
    gemedge_quantize(x, to, scale, zero, bytes, count);
}
void dequantize(const void *q, float *to, float scale, int32_t zero, uint8_t bytes, uint32_t count) {
    gemedge_dequantize(q, to, scale, zero, bytes, count);
}
"""


@pytest.fixture(scope="module", params=["-O0", "-O3 -ffast-math"])
def library(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("float")
    (folder / "float.c").write_text(SOURCE)
    checked = ["-fsanitize=undefined", "-fno-sanitize-recover=all"] if request.param == "-O0" else []
    compiled(
        [*STRICT, *request.param.split(), *checked, "-fPIC", "-I", HEADER, "-c", "float.c", "-o", "float.o"], folder
    )
    compiled(
        [*checked, "-shared", "float.o", "-o", "float.so"], folder
    )  # -ffast-math would switch this process's floats
    return ctypes.CDLL(str(folder / "float.so"))


FORMATS = [
    QuantParams(scale, zero, bits)
    for bits, zeros in ((8, (0, -128, 127, 3)), (16, (0,)))
    for zero in zeros
    for scale in (
        1.0,
        2.0**-12,
        float(np.float32(0.1)),
        float(np.float32(1e-30)),
        float(np.float32(3e30)),
        2.0**-140,
        2.0**127,
    )
]


def quantized(library: ctypes.CDLL, floats: np.ndarray, params: QuantParams) -> np.ndarray:
    out = np.empty(floats.size, f"i{params.bits // 8}")
    numbers = (ctypes.c_int32(params.zero_point), ctypes.c_uint8(out.itemsize), ctypes.c_uint32(out.size))
    library.quantize(*pointers(floats, out), ctypes.c_float(params.scale), *numbers)
    return out


def floats_around(params: QuantParams) -> np.ndarray:
    """Every integer and half of the format with the floats beside them, floats of every size, and the odd ones."""
    limit = 1 << (params.bits + 1)
    halves = (np.arange(-limit, limit + 1) / 2).astype(np.float64) * params.scale
    with np.errstate(over="ignore", under="ignore"):
        at = halves.astype(np.float32)
    beside = [np.nextafter(at, np.float32(way)) for way in (-np.inf, np.inf)]
    bits = np.random.default_rng(7).integers(0, 1 << 32, 200_000, np.uint64).astype(np.uint32)
    odd = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)
    found = np.concatenate([at, *beside, bits.view(np.float32), odd])
    return found[~np.isnan(found)]


@pytest.mark.parametrize("params", FORMATS, ids=str)
def test_floats_become_the_simulators_integers(library, params):
    floats = floats_around(params)
    np.testing.assert_array_equal(quantized(library, floats, params), nearest(floats, params))


def test_they_are_the_exact_quotients_with_ties_to_even(library):
    params = QuantParams(float(np.float32(0.3)), 3, 8)
    floats = np.concatenate([floats_around(params)[::97], np.float32(1.5) * np.float32(0.2) * np.arange(-99, 99)])
    floats = floats[np.isfinite(floats)].astype(np.float32)
    wanted = []
    for x in floats:
        quotient = Fraction(float(x)) / Fraction(params.scale)
        low = floor(quotient)
        rest = quotient - low
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1)
        wanted.append(min(max(low + up + params.zero_point, -128), 127))
    assert quantized(library, floats, params).tolist() == wanted


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0xFFFFFFFF])
def test_nan_stands_for_0(library, bits):
    floats = np.array([bits], np.uint32).view(np.float32)
    assert quantized(library, floats, QuantParams(0.5, -7, 8)).tolist() == [-7]


@pytest.mark.parametrize("params", [p for p in FORMATS if 1e-30 <= p.scale <= 1e30], ids=str)
def test_integers_become_the_simulators_floats(library, params):
    codes = np.arange(params.raw_min, params.raw_max + 1).astype(f"i{params.bits // 8}")
    out = np.empty(codes.size, np.float32)
    numbers = (ctypes.c_int32(params.zero_point), ctypes.c_uint8(codes.itemsize), ctypes.c_uint32(codes.size))
    library.dequantize(*pointers(codes, out), ctypes.c_float(params.scale), *numbers)
    wanted = ((codes.astype(np.int64) - params.zero_point) * params.scale).astype(np.float32)
    np.testing.assert_array_equal(out, wanted)


def test_floats_stand_in_headers_of_their_own_alone():
    graph = Graph()
    files = to_c(graph.model(graph.given((3,)), graph.given((2,), None)), "net")
    with_floats = {file for file, text in files.items() if b"float " in text and file.endswith((".h", ".c"))}
    assert with_floats == {"gemedge_float.h", "model_float.h"}
    helpers = files["model_float.h"].decode()
    assert "net_quantize_input_0(" in helpers
    assert "_1(" not in helpers  # indices

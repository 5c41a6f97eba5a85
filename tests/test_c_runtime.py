"""The hand-written C header: its arithmetic against exact arithmetic, its kernels on every code."""

import ctypes
from dataclasses import replace
from fractions import Fraction
from math import floor, isqrt

import numpy as np
import pytest
from c_builds import STRICT, compiled
from test_kernel import ALL_16, REAL_SCALES, ROWS, TIES, make

import gemedge
from gemedge import Activation, Branch, FixedActivation, QFormat, QuantParams, rational
from gemedge.export.c_constants import Constants
from gemedge.fixed import Rounding, requantize

HEADER = gemedge.__path__[0] + "/export/c_runtime"
FLAGS = [*STRICT, "-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover=all", "-I", HEADER]
ARITHMETIC = """#include "gemedge.h"
void once(const int64_t *a, const int32_t *m, const uint8_t *s, int64_t *out, uint32_t n);
void twice(const int64_t *a, const int32_t *m, const uint8_t *s, int64_t *out, uint32_t n);
void quotient(const uint64_t *a, const uint64_t *b, uint8_t bits, uint64_t *out, uint32_t n);
void root(const uint64_t *a, uint64_t *out, uint32_t n);
void bits(const uint64_t *a, uint64_t *out, uint32_t n);
void store(const int64_t *a, int16_t *out, uint8_t bytes, int16_t zero, uint32_t n);
const uint16_t *reciprocals(void);
void once(const int64_t *a, const int32_t *m, const uint8_t *s, int64_t *out, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) out[i] = gemedge_rescale(a[i], m[i], s[i], GEMEDGE_SINGLE);
}
void twice(const int64_t *a, const int32_t *m, const uint8_t *s, int64_t *out, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) out[i] = gemedge_rescale(a[i], m[i], s[i], GEMEDGE_DOUBLE);
}
void quotient(const uint64_t *a, const uint64_t *b, uint8_t bits, uint64_t *out, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) out[i] = gemedge_quotient(a[i], b[i], bits);
}
void root(const uint64_t *a, uint64_t *out, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) out[i] = gemedge_root(a[i]);
}
void bits(const uint64_t *a, uint64_t *out, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) out[i] = (uint64_t)gemedge_bit_length(a[i]);
}
void store(const int64_t *a, int16_t *out, uint8_t bytes, int16_t zero, uint32_t n) {
    struct gemedge_format format = {bytes, zero};
    for (uint32_t i = 0; i < n; i++) {
        int16_t two[1];
        gemedge_store(two, 0, format, a[i]);
        out[i] = (int16_t)gemedge_get(two, 0, bytes);
    }
}
const uint16_t *reciprocals(void) {
    return gemedge_reciprocals;
}
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime")
    (folder / "arithmetic.c").write_text(ARITHMETIC)
    compiled([*FLAGS, "-O1", "arithmetic.c", "-o", "arithmetic.so"], folder)
    return ctypes.CDLL(str(folder / "arithmetic.so"))


def pointers(*arrays: np.ndarray) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(array.ctypes.data) for array in arrays]


def accumulators(limit: int, count: int) -> list[int]:
    """Numbers of every size below limit, either sign, with both ends and those around 0."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(0, limit.bit_length(), count)
    found = [int(rng.integers(0, 1 << int(size), endpoint=True)) * int(rng.choice([-1, 1])) for size in sizes]
    return [*(v for v in found if abs(v) < limit), limit - 1, 1 - limit, 0, 1, -1]


def test_a_single_rounding_is_the_floor_of_v_plus_a_half(runtime):
    rows = []
    for shift in range(63):
        for mantissa in (0, 1, 3, 1 << 30, (1 << 31) - 1):
            limit = (1 << 62) // max(mantissa, 1)
            half = (1 << shift >> 1) // max(mantissa, 1)
            tries = [*accumulators(limit, 20), half, -half, 3 * half, -3 * half, half - 1, -half - 1]
            rows += [(a, mantissa, shift) for a in tries if abs(a) < limit]
    a, m, s = (np.array(column, dtype) for column, dtype in zip(zip(*rows), ("i8", "i4", "u1")))  # noqa: B905
    out = np.empty(len(rows), np.int64)
    runtime.once(*pointers(a, m, s, out), ctypes.c_uint32(len(rows)))
    assert out.tolist() == [floor(Fraction(x * y, 1 << z) + Fraction(1, 2)) for x, y, z in rows]


def test_two_roundings_are_gemmlowps(runtime):
    rows = []
    for shift in range(1, 63):
        for mantissa in (0, 1, 1 << 30, (1 << 30) + 12345, (1 << 31) - 1):
            limit = 1 << min(31, shift)
            ties = [k * (1 << max(shift - 31, 0)) for k in (1, -1, 3, -3, 5, -5)]
            rows += [(a, mantissa, shift) for a in [*accumulators(limit, 20), *ties] if abs(a) < limit]
    a, m, s = (np.array(column, dtype) for column, dtype in zip(zip(*rows), ("i8", "i4", "u1")))  # noqa: B905
    out = np.empty(len(rows), np.int64)
    runtime.twice(*pointers(a, m, s, out), ctypes.c_uint32(len(rows)))
    np.testing.assert_array_equal(out, requantize(a, m.astype(np.int64), 31 - s.astype(np.int64), Rounding.DOUBLE))
    assert len(set(out.tolist())) > 500


@pytest.mark.parametrize("bits", [16, 17, 32])
def test_quotients_by_subtraction_are_whole_parts(runtime, bits):
    rng = np.random.default_rng(bits)
    divisors = [int(d) for d in rng.integers(1, 1 << (64 - bits), 300, np.uint64)] + [1, 3, (1 << (64 - bits)) - 1]
    rows = [(d * int(q) + r, d) for d in divisors for q in rng.integers(0, 1 << bits, 3) for r in (0, d // 2, d - 1)]
    rows += [(d * ((1 << bits) - 1) + d - 1, d) for d in divisors]
    a, b = (np.array(column, np.uint64) for column in zip(*rows, strict=True))
    out = np.empty_like(a)
    runtime.quotient(*pointers(a, b), ctypes.c_uint8(bits), *pointers(out), ctypes.c_uint32(len(rows)))
    assert out.tolist() == [x // y for x, y in rows]


def test_roots_and_bit_lengths_are_whole_parts(runtime):
    roots = [0, 1, 2, (1 << 30) - 1, 1 << 30, (1 << 31) - 1, *np.random.default_rng(2).integers(0, 1 << 31, 200)]
    numbers = [int(r) ** 2 + k for r in roots for k in (-1, 0, 1)] + [(1 << 62) - 1]
    a = np.array([n for n in numbers if n >= 0], np.uint64)
    out = np.empty_like(a)
    runtime.root(*pointers(a, out), ctypes.c_uint32(a.size))
    assert out.tolist() == [isqrt(int(n)) for n in a]
    edges = np.array([0, *((1 << k) + d for k in range(64) for d in (-1, 0))], np.uint64)
    out = np.empty_like(edges)
    runtime.bits(*pointers(edges, out), ctypes.c_uint32(edges.size))
    assert out.tolist() == [int(n).bit_length() for n in edges]


@pytest.mark.parametrize(("bytes_", "zero"), [(1, 0), (1, -128), (1, 127), (2, 0)])
def test_what_is_stored_saturates(runtime, bytes_, zero):
    edge = 1 << (8 * bytes_ - 1)
    values = [s * (edge * k + d) for s in (1, -1) for k in (0, 1, 2) for d in range(-3, 4)] + [2**62 - 1, 1 - 2**62]
    a, out = np.array(values, np.int64), np.empty(len(values), np.int16)
    runtime.store(*pointers(a, out), ctypes.c_uint8(bytes_), ctypes.c_int16(zero), ctypes.c_uint32(a.size))
    assert out.tolist() == [min(max(v + zero, -edge), edge - 1) for v in values]


def test_the_table_of_reciprocals_is_the_simulators(runtime):
    runtime.reciprocals.restype = ctypes.POINTER(ctypes.c_uint16)
    assert tuple(runtime.reciprocals()[:64]) == rational.RECIPROCALS


KERNELS = [
    *((family, n, epsilon, QFormat(i, 15 - i).params, QFormat(o, 15 - o).params)
      for family, n, epsilon, i, o in ROWS[::9]),
    *((family, n, epsilon, QuantParams(i, 0, 16), QuantParams(o, 0, 16)) for family, n, epsilon, i, o in REAL_SCALES),
    *((family, n, epsilon, QFormat(3, 12).params, QFormat(3, 12).params)
      for family in ("gem", "segem") for n in (1, 2) for epsilon in (0.01, 0.1, 1.0, 10.0)),
    ("gem", 1, 1.0, QFormat(3, 12).params, QFormat(15, 0).params),  # a tie at x = epsilon: no remainder at all
    ("gem", 2, 0.25, QFormat(3, 12).params, QFormat(13, 2).params),
    *((family, 1, 0.5, QFormat(3, 12).params, QuantParams(0.06, zero, 8))
      for family in ("gem", "segem") for zero in (-128, 0, 3)),
]  # fmt: skip


BRANCHES = [
    (Branch(), TIES, QFormat(15, 0), QFormat(15, 0)),
    (
        Branch(slope=Fraction(1, 3)),
        Branch(numerator=(0, 1), denominator=(1, Fraction(-19, 10), 1)),
        QFormat(3, 12),
        QFormat(4, 11),
    ),
    (Branch(offset=Fraction(-1, 2)), Branch(offset=Fraction(1, 4)), QFormat(3, 12), QFormat(3, 12)),
]
COUNT = len(KERNELS) + len(BRANCHES) + 1


def in_two_pieces() -> FixedActivation:
    """GEM cut at x = 1, where the second half is moved up by an LSB so that a wrong choice shows."""
    whole = FixedActivation(make("gem", 1, 1.0), QFormat(3, 12), QFormat(3, 12))
    negative, positive = whole.constants.sides
    (piece,) = positive.pieces
    pieces = (replace(piece, stop=4096), replace(piece, start=4096, offset=piece.offset + (1 << piece.affine_bits)))
    cut = replace(whole.constants, sides=(negative, replace(positive, pieces=pieces)))
    return FixedActivation(whole.activation, whole.in_params, whole.out_params, cut)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """All of them in one library, and the FixedActivation of each."""
    folder = tmp_path_factory.mktemp("kernels")
    fixed = [FixedActivation(make(*row[:3]), *row[3:]) for row in KERNELS]
    fixed += [FixedActivation(Activation.rational(negative=n, positive=p), i, o) for n, p, i, o in BRANCHES]
    fixed.append(in_two_pieces())
    constants, names = Constants(), []
    for index, kernel in enumerate(fixed):
        constants.prefix = f"L{index}"
        names.append(constants.kernel(kernel.constants))
    body = f"""#include "gemedge.h"
{constants.text}
void run(int which, const int16_t *in, void *out, uint8_t bytes, uint32_t count);
void run(int which, const int16_t *in, void *out, uint8_t bytes, uint32_t count) {{
    static const struct gemedge_kernel *const all[] = {{{", ".join(names)}}};
    gemedge_activate(in, all[which], out, bytes, count);
}}
"""
    (folder / "kernels.c").write_text(body)
    compiled([*FLAGS, "-O2", "kernels.c", "-o", "kernels.so"], folder)
    return ctypes.CDLL(str(folder / "kernels.so")), fixed


@pytest.mark.parametrize("index", range(COUNT))
def test_every_code_of_a_kernel_is_the_simulators(kernels, index):
    library, fixed = kernels
    wanted = fixed[index](ALL_16)
    out = np.zeros(ALL_16.size, wanted.dtype)
    where = pointers(ALL_16, out)
    library.run(index, *where, ctypes.c_uint8(out.itemsize), ctypes.c_uint32(out.size))
    np.testing.assert_array_equal(out, wanted)


def test_the_kernels_are_of_every_form(kernels):
    _, fixed = kernels
    pieces = [piece for kernel in fixed for side in kernel.constants.sides for piece in side.pieces]
    assert {piece.affine_bits for piece in pieces} == {16, 43}
    for part in ("plus", "minus", "above", "below"):
        assert {getattr(piece, part) is None for piece in pieces} == {True, False}, part
    assert {len(side.pieces) for kernel in fixed for side in kernel.constants.sides} == {0, 1, 2}
    assert any(kernel.constants.exceptions for kernel in fixed)

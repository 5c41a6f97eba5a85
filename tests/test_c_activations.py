"""Activations in C: models judged by exact rationals, the C by all codes, on the host and on emulated CPUs."""

import ctypes
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from c_builds import STRICT, compiled
from test_c_runtime import in_two_pieces
from test_kernel import ALL_16, expected, make

import gemedge
from gemedge import FixedActivation, QFormat, QuantParams, UnsupportedError, compact, rational, tabulated
from gemedge.export import c_activations
from gemedge.export.activation_header import activation_header
from gemedge.export.build import build
from gemedge.export.c_constants import Constants
from gemedge.export.machine import Machine

RUNTIME = Path(gemedge.__path__[0], "export/c_runtime")
HEADERS = {path.name: path.read_bytes() for path in RUNTIME.glob("*.h")}
SANITIZED = [
    *STRICT,
    "-O2",
    "-shared",
    "-fPIC",
    "-fsanitize=undefined",
    "-fno-sanitize-recover=all",
    "-I",
    str(RUNTIME),
]
Q3_12 = QFormat(3, 12).params


def scaled(source: float, target: float) -> tuple[QuantParams, QuantParams]:
    """Formats of these ranges, as int16x8 and q15 make them of what a network's tensors reach."""
    return QuantParams(source / 32768, 0, 16), QuantParams(target / 32768, 0, 16)


# family, n, epsilon, input, output: what networks are quantized to, and the borders of the forms
COMPACT = [
    *((family, n, epsilon, Q3_12, Q3_12) for family in ("gem", "segem") for n in (1, 2, 3) for epsilon in (1.0, 0.1)),
    *((family, n, 0.01, Q3_12, Q3_12) for family in ("gem", "segem") for n in (1, 2)),
    ("gem", 1, 10.0, Q3_12, Q3_12),  # epsilon beyond the input
    ("gem", 1, 1.0, *scaled(8.71, 8.1)),
    ("gem", 1, 1.0, *scaled(6.75, 4.1)),  # saturates
    ("gem", 2, 1.0, *scaled(13.36, 15.4)),
    ("gem", 2, 0.5, *scaled(3.46, 3.2)),
    ("gem", 3, 1.0, *scaled(6.35, 6.7)),
    ("segem", 1, 1.25, Q3_12, Q3_12),
    ("segem", 1, 1.0, *scaled(9.33, 10.5)),
    ("segem", 1, 0.1, *scaled(7.54, 6.55)),
    ("segem", 2, 0.1, *scaled(7.54, 6.55)),
    ("segem", 3, 2.0, *scaled(13.19, 14.6)),
]
TABULATED = [("gem", 1, 1.0, Q3_12, Q3_12), ("gem", 1, 1.25, Q3_12, Q3_12)]
GENERIC = [
    ("gem", 4, 1.0, Q3_12, Q3_12),
    ("gem", 2, 10.0, Q3_12, Q3_12),
    ("gem", 1, 1.0, Q3_12, QuantParams(0.03, -128, 8)),
]
ROWS = list(dict.fromkeys([*COMPACT, *TABULATED, *GENERIC]))


@cache
def kernel(family, n, epsilon, source, target):
    return FixedActivation(make(family, n, epsilon), source, target)


def written(of: FixedActivation, choice: str = "auto", name: str = "run") -> str:
    """A source file with a public function that runs the kernel."""
    constants = Constants()
    constants.prefix = name
    function = c_activations.function(constants, of, choice)
    arguments = "(const void *in, void *out, uint32_t count)"
    return f"""#include "gemedge.h"
{constants.text}
void {name}{arguments};
void {name}{arguments} {{
    {function}(in, out, count);
}}
"""


def outputs_on_host(source: str, folder: Path, dtype: np.dtype, *defines: str) -> np.ndarray:
    (folder / "run.c").write_text(source)
    compiled([*SANITIZED, *(f"-D{define}" for define in defines), "run.c", "-o", "run.so"], folder)
    out = np.empty(ALL_16.size, dtype)
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in (ALL_16, out))
    ctypes.CDLL(str(folder / "run.so")).run(*pointers, ctypes.c_uint32(ALL_16.size))
    return out


# The models


@pytest.mark.parametrize("row", COMPACT, ids=str)
def test_a_compact_kernel_is_correctly_rounded_at_every_code(row):
    found = compact.find(kernel(*row))
    assert found is not None
    assert found(ALL_16).tolist() == expected(*row)


@pytest.mark.parametrize("row", TABULATED, ids=str)
def test_a_tabulated_kernel_is_correctly_rounded_at_every_code(row):
    found = tabulated.find(kernel(*row))
    assert found is not None
    assert found(ALL_16).tolist() == expected(*row)


@pytest.mark.parametrize("row", GENERIC, ids=str)
def test_what_no_other_form_gives_exactly_keeps_the_certified_kernel(row):
    assert compact.find(kernel(*row)) is None
    assert tabulated.find(kernel(*row)) is None


def test_a_form_is_found_by_the_kernels_outputs_and_not_by_its_name():
    moved = in_two_pieces()  # GEM whose codes from 4,096 on are one higher
    assert compact.find(moved) is None
    assert tabulated.find(moved) is None


def test_the_rows_use_every_way_through_a_compact_kernel():
    found = [compact.find(kernel(*row)) for row in COMPACT]
    ways = {
        (k.is_segem, "shift" if not k.numerator else "up" if k.up else "down" if k.down else "left") for k in found if k
    }
    assert ways >= {(False, "shift"), (False, "up"), (False, "down"), (True, "shift"), (True, "left"), (True, "down")}
    assert {(k.is_segem, k.order, k.is_wide) for k in found if k} >= {
        (segem, order, False) for segem in (False, True) for order in (1, 2, 3)
    }
    assert {k.is_wide for k in found if k} == {k.saturates for k in found if k} == {True, False}
    assert {bool(k.slope) for k in found if k} == {k.linear % 65536 == 0 for k in found if k} == {True, False}


def test_the_lines_reach_the_reciprocal_to_thirteen_bits():
    for segment, line in enumerate(compact.LINES):
        slope = (line & 0xFFFF) - 65536
        for position in (0, 1, 1000, 2047, 2048, 3333, 4095):
            m = (1 << 31) + (segment << 26) + (position << 14) + 8191
            assert abs(1 - m * (line + slope * position) / 2**63) < 2**-12.8


# The C


def test_the_headers_lines_are_the_models(tmp_path):
    (tmp_path / "lines.c").write_text("""#include "gemedge.h"
const uint32_t *run(void);
const uint32_t *run(void) { return gemedge_lines; }
""")
    compiled([*SANITIZED, "lines.c", "-o", "lines.so"], tmp_path)
    run = ctypes.CDLL(str(tmp_path / "lines.so")).run
    run.restype = ctypes.POINTER(ctypes.c_uint32)
    assert tuple(run()[: compact.SEGMENTS]) == compact.LINES


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_code_in_c_is_the_simulators(row, tmp_path):
    wanted = kernel(*row)(ALL_16)
    got = outputs_on_host(written(kernel(*row)), tmp_path, wanted.dtype)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("row", COMPACT, ids=str)
def test_every_code_in_constant_time_is_the_simulators(row, tmp_path):
    got = outputs_on_host(written(kernel(*row)), tmp_path, np.dtype(np.int16), "GEMEDGE_CONSTANT_TIME")
    np.testing.assert_array_equal(got, kernel(*row)(ALL_16))


@pytest.mark.parametrize("row", [row for row in COMPACT if compact.find(kernel(*row)).is_wide is False][:4], ids=str)
def test_the_first_bit_is_found_without_conditions_where_the_cpu_has_none(row, tmp_path):
    if compact.find(kernel(*row)).saturates:
        pytest.fail("the rows begin with formats that do not saturate")
    defines = ("GEMEDGE_CONSTANT_TIME", "GEMEDGE_SHORT_PRODUCTS=1")
    got = outputs_on_host(written(kernel(*row), "reciprocal"), tmp_path, np.dtype(np.int16), *defines)
    np.testing.assert_array_equal(got, kernel(*row)(ALL_16))


@pytest.mark.parametrize("defines", [(), ("GEMEDGE_CONSTANT_TIME",)])
@pytest.mark.parametrize("row", TABULATED, ids=str)
def test_every_code_of_a_table_of_the_fraction_is_the_simulators(row, defines, tmp_path):
    source = written(kernel(*row), "table")
    assert "gemedge_activate_compact" not in source
    np.testing.assert_array_equal(outputs_on_host(source, tmp_path, np.dtype(np.int16), *defines), kernel(*row)(ALL_16))


def test_choices_take_their_form_or_the_next_exact_one():
    gem, segem, other = (kernel(*row) for row in (TABULATED[0], COMPACT[6], GENERIC[0]))
    assert "SHORT_PRODUCTS" in written(gem)
    assert "tabulated" not in written(gem, "reciprocal")
    assert written(segem, "table") == written(segem, "auto") == written(segem, "reciprocal")
    assert "gemedge_activate(in" in written(other, "table")
    assert c_activations.described(gem, "table") == "table of the fraction and remainder"
    assert c_activations.described(other, "auto") == "reciprocal of 44 bits and remainder"


def test_a_kernel_without_a_constant_time_form_is_refused_by_the_compiler(tmp_path):
    (tmp_path / "run.c").write_text(written(kernel(*GENERIC[0])))
    done = subprocess.run(
        ["cc", *SANITIZED, "-DGEMEDGE_CONSTANT_TIME", "run.c", "-o", "run.so"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode
    assert "no form of this activation takes the same instructions for every input" in done.stderr


def test_what_has_conditions_is_refused_in_constant_time_where_the_cpu_has_no_conditional_instructions():
    saturating, wide = (next(row for row in COMPACT if getattr(compact.find(kernel(*row)), name))
                        for name in ("saturates", "is_wide"))  # fmt: skip
    for row in (saturating, wide):
        assert "defined(GEMEDGE_CONSTANT_TIME) && GEMEDGE_SHORT_PRODUCTS" in written(kernel(*row))
    assert "GEMEDGE_CONSTANT_TIME" not in written(kernel(*COMPACT[0]))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 4095])
def test_a_table_of_bytes_looks_up_any_count_in_place(count, tmp_path):
    (tmp_path / "run.c").write_text("""#include "gemedge.h"
void run(void *data, const void *table, uint32_t count);
void run(void *data, const void *table, uint32_t count) { gemedge_lookup(data, table, data, 1, count); }
""")
    compiled([*SANITIZED, "run.c", "-o", "run.so"], tmp_path)
    rng = np.random.default_rng(count)
    table, data = rng.integers(-128, 128, 256).astype(np.int8), rng.integers(-128, 128, count + 1).astype(np.int8)
    wanted = [*table[data[:count].astype(int) + 128], data[count]]
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in (data, table))
    ctypes.CDLL(str(tmp_path / "run.so")).run(*pointers, ctypes.c_uint32(count))
    assert data.tolist() == wanted


# On emulated CPUs


@cache
def emulated(source: str, target: str, defines: tuple[str, ...] = ()) -> tuple[Machine, int, int]:
    """A machine with the program, all codes in its memory, and room for the outputs."""
    program = build(HEADERS | {"run.c": source.encode()}, target, roots=["run"], defines=defines)
    machine = Machine(program, target)
    given, made = machine.allocate(ALL_16.nbytes), machine.allocate(ALL_16.nbytes)
    machine.write(given, ALL_16.tobytes())
    return machine, given, made


EMULATED = [
    ("gem", 1, 1.0, Q3_12, Q3_12),
    ("gem", 2, 1.0, Q3_12, Q3_12),
    ("segem", 1, 1.0, Q3_12, Q3_12),
    ("segem", 1, 0.1, *scaled(7.54, 6.55)),
]


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m0plus", "rv32imc"])
@pytest.mark.parametrize("row", EMULATED, ids=str)
def test_every_code_on_an_emulated_cpu_is_the_simulators(row, target):
    machine, given, made = emulated(written(kernel(*row)), target)
    machine.call("run", given, made, ALL_16.size)
    got = np.frombuffer(machine.read(made, ALL_16.nbytes), np.int16)
    np.testing.assert_array_equal(got, kernel(*row)(ALL_16))


@pytest.mark.parametrize(
    ("row", "target"),
    [(row, "cortex-m4") for row in EMULATED]
    + [(row, cpu) for cpu in ("cortex-m0plus", "rv32imc") for row in EMULATED[:3]],
    ids=str,
)
def test_in_constant_time_every_code_takes_the_same_instructions(row, target):
    machine, given, made = emulated(written(kernel(*row)), target, ("GEMEDGE_CONSTANT_TIME",))
    part = 32
    counts = {machine.call("run", given + 2 * at, made, part).instructions for at in range(0, ALL_16.size, part)}
    assert len(counts) == 1
    machine.call("run", given, made, ALL_16.size)
    np.testing.assert_array_equal(np.frombuffer(machine.read(made, ALL_16.nbytes), np.int16), kernel(*row)(ALL_16))


@pytest.mark.parametrize(
    ("row", "target", "instructions", "flash"),
    [
        (EMULATED[0], "cortex-m4", 20, 360),
        (EMULATED[1], "cortex-m4", 30, 360),
        (EMULATED[2], "cortex-m4", 20, 360),
        (EMULATED[0], "cortex-m0plus", 35, 680),
        (EMULATED[0], "rv32imc", 25, 360),
        (EMULATED[1], "rv32imc", 30, 360),
        (EMULATED[2], "rv32imc", 26, 360),
    ],
    ids=str,
)
def test_an_activation_stays_within_its_instructions_and_flash(row, target, instructions, flash):
    machine, _, made = emulated(written(kernel(*row)), target)
    sample = np.rint(np.random.default_rng(0).normal(size=4096) * 4096).clip(-32768, 32767).astype(np.int16)
    place = machine.allocate(sample.nbytes)
    machine.write(place, sample.tobytes())
    assert machine.call("run", place, made, sample.size).instructions <= instructions * sample.size
    assert machine.sections[".text"] + machine.sections[".rodata"] <= flash


# One activation as a header


@pytest.mark.parametrize("compiler", [["cc", "-std=c99"], ["c++", "-x", "c++", "-std=c++11"]])
@pytest.mark.parametrize(
    "row", [COMPACT[0], COMPACT[7], GENERIC[0], ("segem", 2, 0.5, QFormat(3, 4).params, Q3_12)], ids=str
)
def test_a_header_alone_gives_every_code(row, compiler, tmp_path):
    of = kernel(*row)
    (tmp_path / "act.h").write_bytes(activation_header(of, of.certify(), "My act!"))
    source, target = (params.bits for params in (of.in_params, of.out_params))
    prefix = 'extern "C" ' if "c++" in compiler else ""
    (tmp_path / "act.c").write_text(f"""#include "act.h"
#include "act.h"
{prefix}void run(const int{source}_t *in, int{target}_t *out, uint32_t count);
void run(const int{source}_t *in, int{target}_t *out, uint32_t count) {{ my_act(in, out, count); }}
""")
    flags = [flag for flag in SANITIZED if not flag.startswith(("-std", "-I", str(RUNTIME)))]
    done = subprocess.run([*compiler, *flags, "act.c", "-o", "act.so"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    raw = np.arange(of.in_params.raw_min, of.in_params.raw_max + 1).astype(f"i{source // 8}")
    out = np.empty(raw.size, f"i{target // 8}")
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in (raw, out))
    ctypes.CDLL(str(tmp_path / "act.so")).run(*pointers, ctypes.c_uint32(raw.size))
    np.testing.assert_array_equal(out, of(raw))


def test_headers_and_the_runtime_live_in_one_file(tmp_path):
    gem, segem = kernel(*COMPACT[0]), kernel(*COMPACT[6])
    for name, of in (("gem", gem), ("segem", segem)):
        (tmp_path / f"{name}.h").write_bytes(activation_header(of, of.certify(), name))
    (tmp_path / "both.c").write_text('#include "gemedge.h"\n#include "segem.h"\n#include "gem.h"\n')
    compiled([*SANITIZED, "both.c", "-o", "both.so"], tmp_path)


def test_a_header_says_what_it_is_and_is_the_same_each_time():
    of = kernel(*COMPACT[0])
    text = activation_header(of, of.certify(), "gem").decode()
    assert text.startswith("/* gem(n=1) in integers")
    assert "Certificate: 65,536 inputs checked, 0 misrounded" in text
    assert [line for line in text.splitlines() if line.startswith("#include")] == ["#include <stdint.h>"]
    assert "gemedge_" not in text
    assert activation_header(of, of.certify(), "gem").decode() == text


def test_a_header_of_32_bits_is_refused():
    of = FixedActivation(make("gem", 1, 1.0), QFormat(3, 12), QFormat(3, 28))
    with pytest.raises(UnsupportedError, match=r"gem\(n=1\) from Q3.12 to Q3.28 in C: it takes 8 and 16 bits"):
        activation_header(of, of.certify(), "gem")


def test_the_reciprocals_of_both_kernels_are_other_tables():
    assert len(rational.RECIPROCALS) == 2 * compact.SEGMENTS

"""The C by Arm's Helium on an emulated Cortex-M55: activations at all codes, sums, and how many instructions."""

import re
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from boards import BOARDS, counted, printed, program
from c_builds import written as written_model
from test_c_activations import COMPACT, EMULATED, RUNTIME, kernel, written
from test_c_sums import SHAPES, WIDTHS, convolution, dense, inputs_of, wanted
from test_kernel import ALL_16

from gemedge import compact
from gemedge.export.c_selftest import Vectors

sys.path.append(str(Path(__file__).parents[1]))
from benchmarks import instructions

pytestmark = pytest.mark.exhaustive
M55 = BOARDS["cortex-m55"]
# All codes in runs of every length from 1 on, so that each number of lanes that are left occurs; then their checksum.
_ALL_CODES = """
#define CODES 65536L
static int16_t made[CODES];
int main(void) {
    uint32_t crc = 0xFFFFFFFFu;
    long at, length, i;
    for (i = 0; i < CODES; i++) {
        made[i] = (int16_t)(i - 32768);
    }
    for (at = 0, length = 1; at < CODES; at += length, length++) {
        length = length < CODES - at ? length : CODES - at;
        run(made + at, made + at, (uint32_t)length);
    }
    for (i = 0; i < 2 * CODES; i++) {
        int bit;
        crc ^= ((const uint8_t *)made)[i];
        for (bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1u)));
        }
    }
    for (i = 28; i >= 0; i -= 4) {
        gemedge_put_char("0123456789abcdef"[~crc >> i & 15u]);
    }
    return 0;
}
"""


def on_m55(source, folder, *flags):
    (folder / "run.c").write_text(f"{source}void gemedge_put_char(char character);\n{_ALL_CODES}")
    built = program(M55, folder, ["run.c"], ["-I", str(RUNTIME), *flags])
    return built, int(printed(M55, built), 16)


@pytest.mark.parametrize("row", COMPACT, ids=str)
def test_every_code_by_helium_is_the_simulators(row, tmp_path):
    _, checksum = on_m55(written(kernel(*row)), tmp_path, "-O2")
    assert checksum == zlib.crc32(kernel(*row)(ALL_16).tobytes())


@pytest.mark.parametrize("level", ["-O0", "-O3", "-Os"])
@pytest.mark.parametrize("row", EMULATED, ids=str)
def test_helium_gives_the_same_codes_however_it_is_compiled(row, level, tmp_path):
    _, checksum = on_m55(written(kernel(*row)), tmp_path, level)
    assert checksum == zlib.crc32(kernel(*row)(ALL_16).tobytes())


def test_the_rows_have_vectors_of_every_kind():
    found = {(k.is_segem, k.order) for k in map(compact.find, (kernel(*row) for row in COMPACT)) if not k.is_wide}
    assert found >= {(False, 1), (False, 2), (True, 1)}
    text = (RUNTIME / "gemedge_helium.h").read_text()
    assert re.search(r"order == 1u \|\| \(by->order == 2u && !by->is_segem && !by->is_wide\)", text)


def check_sums(model, folder):
    """Two samples on a Cortex-M55 give NumPy's integers."""
    given = np.stack([inputs_of(model, seed) for seed in range(2)])
    (name,), (out,) = model.inputs, model.outputs
    made = np.stack([wanted(model, sample) for sample in given])
    written_model(model, folder, vectors=Vectors({name: given}, {out: made}))
    assert b"gemedge end 0 0\r\n" in printed(M55, program(M55, folder, ["selftest.c"], ["-O2"]))


@pytest.mark.parametrize(("bits", "dtype", "out_bits"), WIDTHS)
@pytest.mark.parametrize("name", SHAPES)
def test_convolutions_by_helium_give_numpys_integers(name, bits, dtype, out_bits, tmp_path):
    check_sums(convolution(1, SHAPES[name], bits, dtype, out_bits), tmp_path)


@pytest.mark.parametrize(("bits", "dtype", "out_bits"), WIDTHS)
@pytest.mark.parametrize(("inputs", "outputs", "rows"), [(128, 16, 0), (1, 1, 0), (7, 5, 3), (1030, 18, 0)])
def test_dense_layers_by_helium_give_numpys_integers(inputs, outputs, rows, bits, dtype, out_bits, tmp_path):
    check_sums(dense(2, inputs, outputs, rows, bits, dtype, out_bits), tmp_path)


@pytest.fixture(scope="module")
def subject():
    """GEM of order 1 on numbers drawn from N(0, 1), as the benchmark counts it."""
    return instructions.subjects()[0]


def counts(board, folder, subject):
    return counted(BOARDS[board], folder, subject.source, subject.sample, ["-O2", "-I", str(RUNTIME)])


def test_an_activation_by_helium_takes_at_most_eight_instructions(subject, tmp_path):
    assert counts("cortex-m55", tmp_path, subject) <= 8


def test_instructions_that_qemu_counts_are_those_that_are_counted_by_block(subject, tmp_path):
    exact = instructions.measured(subject, "cortex-m4", "gcc").instructions
    assert counts("cortex-m4", tmp_path, subject) == pytest.approx(exact, rel=0.01)

"""The exported C on an 8-bit AVR, emulated by simavr: ints of 16 bits, constants in another memory than tensors."""

import shutil
import subprocess
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from c_builds import written
from float_runs import float_tensors, ranges_of
from test_arena import BYTE
from test_arena import Graph as ArenaGraph
from test_to_c import ALL_GRAPHS, captured_of

from benchmarks import avr
from benchmarks.instructions import subjects
from gemedge.errors import DataError
from gemedge.export.selftest_log import Log, digests, first_difference, places, read_log
from gemedge.export.to_c import Vectors
from gemedge.fixed import QuantParams, Rounding
from gemedge.fixed import quantize as nearest
from gemedge.model import QuantizedModel
from gemedge.moving import Clamp, Constant
from gemedge.operators import Combine, Dense
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import border, entered, run, simulate

pytestmark = pytest.mark.exhaustive

DEVICE = "atmega1284p"  # 128 KB of flash, 16 KB of RAM
BOARD = """#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>
#include <avr_mcu_section.h>
AVR_MCU(16000000, "atmega1284p");
AVR_MCU_SIMAVR_CONSOLE(&GPIOR0);
void gemedge_put_char(char character) { GPIOR0 = (uint8_t)character; }
int net_selftest(void);
int main(void) {
    net_selftest();
    cli();
    sleep_enable();
    sleep_cpu(); /* simavr ends */
    return 0;
}
"""
AVR = [
    f"-mmcu={DEVICE}",
    "-DARDUINO",
    "-Wall",
    "-Wextra",
    "-Waddr-space-convert",
    "-Werror",
    "-ffunction-sections",  # as Arduino builds: at -O0 what nothing calls would not fit beside the rest
    "-fdata-sections",
    "-Wl,--gc-sections,--undefined=_mmcu,--section-start=.mmcu=0x910000",
]
AVR += ["-I/usr/include/simavr/avr"]


def built(folder: Path, sources: list[str], flags: list[str]) -> subprocess.CompletedProcess:
    if not shutil.which("avr-gcc") or not shutil.which("simavr"):
        pytest.skip("avr-gcc and simavr are not installed")
    command = ["avr-gcc", *AVR, *flags, *sources, "-o", "net.elf"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def printed(folder: Path, sources: list[str], flags: list[str]) -> bytes:
    """What a program on the board prints."""
    (folder / "board.c").write_text(BOARD)
    done = built(folder, [*sources, "board.c"], flags)
    assert done.returncode == 0, done.stderr
    return subprocess.run(
        ["simavr", "net.elf"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
    ).stdout


def logged(model: QuantizedModel, given: dict[str, np.ndarray], folder: Path, flags: list[str]) -> Log:
    integers = entered(model, border(model, given), Counter())
    written(model, folder, vectors=Vectors(integers, simulate(model, given, raw=True)))
    return read_log(printed(folder, ["selftest.c"], flags))


def assert_simulates(log: Log, model: QuantizedModel, given: dict[str, np.ndarray]) -> None:
    everything = run(model, entered(model, border(model, given), Counter()), keep=model.tensors)
    assert log.status == 0
    assert len(log.digests) == log.samples * len(places(model))
    for sample in range(log.samples):
        wanted = digests(model, {name: array[sample] for name, array in everything.items()})
        assert first_difference(log, sample, wanted) is None


@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3", "-Os"])
@pytest.mark.parametrize(
    ("scheme", "rounding"), [("int8", Rounding.DOUBLE), ("int16x8", Rounding.SINGLE), ("q15", Rounding.SINGLE)]
)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_every_layer_on_avr_has_the_simulators_integers(name, scheme, rounding, level, tmp_path):
    graph, ranges, given = captured_of(name)
    model = quantize(graph, ranges, scheme=scheme, rounding=rounding)
    assert_simulates(logged(model, given, tmp_path, [level]), model, given)


@pytest.mark.parametrize("name", ALL_GRAPHS)
@pytest.mark.parametrize(("scheme", "rounding"), [("int8", Rounding.DOUBLE), ("int16x8", Rounding.SINGLE)])
def test_every_operator_on_avr_reads_its_constants_from_flash(name, scheme, rounding, tmp_path):
    graph = ALL_GRAPHS[name]
    ranges = ranges_of(float_tensors(graph.model(), graph.inputs))
    model = quantize(graph.model(), ranges, scheme=scheme, rounding=rounding)
    assert_simulates(logged(model, graph.inputs, tmp_path, ["-Os"]), model, graph.inputs)
    sizes = subprocess.run(["avr-size", "net.elf"], cwd=tmp_path, capture_output=True, text=True).stdout
    data = int(sizes.splitlines()[1].split()[1])
    assert data < 100 + 40 * len(model.layers)  # what is printed, and the names of layers, but no constant


def test_a_constant_that_a_layer_reads_alone_is_copied_to_ram(tmp_path):
    graph = ArenaGraph()
    x = graph.given((4,))
    constant = graph.add(Constant, [], np.array([-3, 90, 5, -100], np.int8), params=BYTE)
    sums = graph.add(
        Combine, [x, graph.add(Clamp, [constant], -50, 50)], np.ones(2, np.int64), np.array(0), params=BYTE
    )
    model = graph.model(sums)
    given = {model.inputs[0]: np.array([[1, 2, 3, 4]], np.float32)}
    assert_simulates(logged(model, given, tmp_path, ["-Os"]), model, given)


def test_floats_become_the_simulators_integers_on_avr(tmp_path):
    params = QuantParams(np.float32(0.0123), 3, 8)
    graph = ArenaGraph()
    model = graph.model(graph.given((64,), params))
    rng = np.random.default_rng(5)
    halves = (np.arange(-16, 16) + np.float32(0.5)) * np.float32(params.scale)
    floats = np.concatenate([rng.normal(size=28) * 2, halves, [np.inf, -np.inf, -0.0, 1e-44]]).astype(np.float32)
    blank = {name: np.zeros((1, 64), np.int8) for name in (*model.inputs, *model.outputs)}
    written(model, tmp_path, vectors=Vectors(blank, blank))
    numbers = ", ".join(f"0x{bits:08x}" for bits in floats.view(np.uint32))
    (tmp_path / "floats.c").write_text(f"""#include "model_float.h"
#include "gemedge_selftest.h"
static const uint32_t bits[64] = {{{numbers}}};
int net_selftest(void);
int net_selftest(void) {{
    static float floats[64], back[64];
    static int8_t integers[64];
    memcpy(floats, bits, sizeof bits);
    net_quantize_input(floats, integers);
    net_dequantize_output(integers, back);
    gemedge_put_begin(0, 0, 1);
    gemedge_put_digest(0, "in", 0, integers, sizeof integers);
    gemedge_put_digest(0, "out", 0, back, sizeof back);
    gemedge_put_end(gemedge_equals(integers, 0, 0) ? 0 : 1, 0);
    return 0;
}}
""")
    log = read_log(printed(tmp_path, ["floats.c"], ["-Os"]))
    integers = nearest(floats, params)
    back = ((integers - params.zero_point) * params.scale).astype(np.float32)
    assert log.digests[0, ("in", 0)] == zlib.crc32(integers.astype(np.int8).tobytes())
    assert log.digests[0, ("out", 0)] == zlib.crc32(back.tobytes())


def test_constants_that_avr_does_not_reach_are_refused_by_the_compiler(tmp_path):
    graph = ArenaGraph()
    x = graph.given((200,))
    layers = [x]
    for i in range(3):
        weight = np.full((120, 200), 1 + i, np.int8)
        numbers = (np.zeros(120, np.int64), np.full(120, 1 << 30), np.full(120, 40))
        layers.append(graph.add(Dense, [x], weight, *numbers))
    model = graph.model(*layers[1:])
    written(model, tmp_path)
    done = built(tmp_path, ["-c", "model.c"], ["-Os"])
    assert "constants_are_within_65000_bytes" in done.stderr


def test_strict_c_has_its_constants_in_ram(tmp_path):
    graph, ranges, given = captured_of("mlp")
    model = quantize(graph, ranges, scheme="int8", rounding=Rounding.DOUBLE)
    assert_simulates(logged(model, given, tmp_path, ["-Os", "-std=c99"]), model, given)


def test_a_gem_of_16_bits_takes_fewer_cycles_on_avr_than_a_table_with_interpolation():
    if not all(map(shutil.which, avr.TOOLS)):
        pytest.skip("avr-gcc and simavr are not installed")
    ours, _, table, _ = (subject for subject in subjects()[:4])
    cycles = avr.measured(ours)[0]
    assert cycles == avr.measured(ours)[0]  # they are exact
    assert cycles < avr.measured(table)[0]
    assert cycles <= 240


def test_a_digest_that_is_wrong_is_seen(tmp_path):
    graph, ranges, given = captured_of("mlp")
    model = quantize(graph, ranges, scheme="int8", rounding=Rounding.SINGLE)
    log = logged(model, given, tmp_path, ["-Os"])
    log.digests[1, ("layer", 2)] ^= 1
    with pytest.raises(AssertionError):
        assert_simulates(log, model, given)
    del log.digests[1, ("layer", 2)]
    with pytest.raises((AssertionError, DataError)):
        assert_simulates(log, model, given)

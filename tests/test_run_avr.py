"""gemedge run --target avr: exported C in simavr, every layer compared with simulate, and its cycles, exactly."""

import json
import re
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from test_arena import Graph
from test_to_c import captured_of

from gemedge import model_file
from gemedge.cli import _status, emulate
from gemedge.errors import GemedgeError, PromiseError
from gemedge.export import avr_build, folder
from gemedge.export.avr import Avr
from gemedge.export.difference import first_difference
from gemedge.export.emulated import TooLargeError
from gemedge.fixed import Rounding
from gemedge.operators import Dense
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import border, entered, run
from gemedge.targets import target_named

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("avr-gcc", "simavr"))), reason="avr-gcc and simavr are not installed"
)

BEGIN = "    uint8_t *const memory = (uint8_t *)arena;"
LOOP = """    uint16_t times = {times};
    __asm__ volatile("1: sbiw %0, 1\\n\\tbrne 1b" : "+w"(times)); /* 4 cycles each, and 1 less at last */
"""


@pytest.fixture(scope="module")
def mlp():
    """A network in 8 bits as a folder, one sample's integers, and every tensor's as simulate has them."""
    return quantized("mlp", "int8")


def quantized(name: str, scheme: str):
    graph, ranges, given = captured_of(name)
    model = quantize(graph, ranges, scheme=scheme, rounding=Rounding.SINGLE)
    integers = {tensor: array[:1] for tensor, array in entered(model, border(model, given), Counter()).items()}
    wanted = run(model, integers, keep=[*(layer.output for layer in model.layers), *model.outputs.values()])
    return folder.of_model(model, "net"), first(integers), first(wanted)


def first(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array[0] for name, array in arrays.items()}


def begun_with(code: str, exported: folder.Folder) -> folder.Folder:
    """The folder with C at the beginning of its run."""
    text = exported.sources["model.c"].decode()
    assert text.count(BEGIN) == 1
    return replace(exported, sources={**exported.sources, "model.c": text.replace(BEGIN, code + BEGIN).encode()})


def spoiled_text(text: str) -> str:
    """model.c with another bias of its last layer's first number."""
    changed, count = re.subn(r"(_dense_bias\[5\] = \{\s*)-?\d+", r"\g<1>3000000", text, count=1)
    assert count
    return changed


def measured(exported: folder.Folder, sample: dict[str, np.ndarray]):
    device = Avr(exported)
    return device.measure(sample, device.run(sample).took)


# The numbers


@pytest.mark.parametrize(("name", "scheme"), [("mlp", "int8"), ("mlp", "int16x8"), ("cnn", "int8")])
@pytest.mark.parametrize("level", ["-O2", "-Os"])
def test_every_layer_on_avr_has_simulates_integers(name, scheme, level):
    exported, sample, wanted = quantized(name, scheme)
    found = Avr(exported, level).run(sample)
    assert first_difference(exported.model, 0, wanted, found.layers, found.outputs) is None
    assert sorted(found.layers) == list(range(len(exported.model.layers)))


def test_a_planted_difference_is_found_with_its_layer_place_and_numbers(mlp):
    exported, sample, wanted = mlp
    changed = spoiled_text(exported.sources["model.c"].decode())
    spoiled = replace(exported, sources={**exported.sources, "model.c": changed.encode()})
    found = Avr(spoiled).run(sample)
    difference = first_difference(exported.model, 0, wanted, found.layers, found.outputs)
    right = wanted[exported.model.layers[4].output]
    assert (difference.layer, difference.index) == ("4", (0,))
    assert difference.wanted == right[0] != difference.found == found.layers[4][0]


# What a run takes


def test_cycles_are_the_same_twice_and_those_of_layers_make_up_the_whole(mlp):
    exported, sample, _ = mlp
    found = measured(exported, sample)
    assert found == measured(exported, sample)
    assert set(found.cycles) == {layer.name for layer in exported.model.layers}
    assert all(span.low == span.high for span in (*found.cycles.values(), found.all_cycles))
    layers = sum(span.low for span in found.cycles.values())
    assert 0.98 * found.all_cycles.low < layers < 1.02 * found.all_cycles.low
    assert found.cycles["0"] == max(found.cycles.values(), key=lambda span: span.low)
    assert (found.instructions, found.all_instructions) == ({}, None)


def test_a_loop_of_known_length_takes_exactly_its_cycles_more(mlp):
    exported, sample, _ = mlp
    short, long = (measured(begun_with(LOOP.format(times=times), exported), sample) for times in (1000, 21000))
    assert long.all_cycles.low - short.all_cycles.low == 4 * 20_000
    assert long.cycles["0"].low - short.cycles["0"].low == 4 * 20_000
    assert [long.cycles[name] for name in "12345"] == [short.cycles[name] for name in "12345"]


def test_the_cpus_own_timer_counts_the_same_cycles(mlp):
    exported, sample, _ = mlp
    text = exported.sources["model.c"].decode().replace("int net_run(", "static int inner(", 1)
    timed = f"""#include <avr/io.h>
{text}
#ifndef GEMEDGE_OBSERVE
int net_run(void *arena, size_t size, const int8_t *in, int8_t *out) {{
    int status;
    uint16_t count;
    TCCR1B = 1;
    TCNT1 = 0;
    status = inner(arena, size, in, out);
    count = TCNT1;
    out[0] = (int8_t)(count & 0xffu);
    out[1] = (int8_t)(count >> 8);
    return status;
}}
#endif
"""
    device = Avr(replace(exported, sources={**exported.sources, "model.c": timed.encode()}))
    ran = device._ran(device._plain, sample, "net_run")
    (digits,) = [digits for key, digits in ran.lines if key == "D"]
    count = int.from_bytes(bytes.fromhex(digits)[:2], "little")
    whole = device.measure(sample, {}).all_cycles.low
    assert 0 < (whole - count) % (1 << 16) < 100  # what is before and after the two readings


def test_flash_is_told_by_section_and_the_stack_by_its_depth(mlp):
    exported, sample, _ = mlp
    found = measured(exported, sample)
    weights = sum(layer.weight.size for layer in exported.model.layers if hasattr(layer, "weight"))
    assert weights < found.sections[".progmem"] < weights + 1500
    assert found.flash == sum(found.sections.values())
    assert found.code == found.sections[".text"] > 2000
    assert (found.arena, 100 < found.stack < 500) == (exported.arena, True)
    deeper = begun_with("    volatile uint8_t deep[700];\n    deep[0] = deep[699] = 1;\n", exported)
    assert 690 <= measured(deeper, sample).stack - found.stack <= 720


# What cannot run


def dense(*widths: int, networks: int = 1) -> folder.Folder:
    """Networks of dense layers side by side on one input, each with weights of its own."""
    graph = Graph()
    given = graph.given((widths[0],))
    made = []
    for value in range(1, networks + 1):
        tensor = given
        for before, after in pairwise(widths):
            numbers = (np.zeros(after, np.int64), np.full(after, 1 << 30), np.full(after, 40))
            tensor = graph.add(Dense, [tensor], np.full((after, before), value, np.int8), *numbers)
        made.append(tensor)
    return folder.of_model(graph.model(*made), "net")


@pytest.mark.parametrize(
    ("widths", "networks", "words"),
    [
        ((9000, 3, 9000), 1, r"RAM: 9,004 bytes \(counted\), 10,620 too many; most at 'layer t0' 9,003"),
        ((20, 200), 40, r"flash: 192,200 bytes \(counted\), 61,128 too many; most at 'layer t0' 4,805"),
        ((200, 250), 1, "L0_dense_weight has 50,000 bytes, 17,233 more than an array there can have"),
        ((200, 120), 3, r"constants: 73,455 bytes \(counted\), 8,455 more than the 65,000 that its pointers reach"),
    ],
)
def test_what_does_not_fit_is_told_by_how_much(widths, networks, words):
    with pytest.raises(TooLargeError, match=f"it does not fit the atmega1284p.*: {words}"):
        Avr(dense(*widths, networks=networks))


def test_code_that_does_not_fit_is_told_by_how_much(mlp):
    exported, _, _ = mlp
    grown = begun_with('    __asm__ volatile(".space 140000");\n', exported)
    with pytest.raises(TooLargeError, match=r"flash: 14\d,\d{3} bytes, built; 1\d,\d{3} too many"):
        Avr(grown)


def test_a_stack_that_meets_the_variables_does_not_fit(mlp):
    exported, sample, _ = mlp
    deep = "    volatile uint8_t deep[8200];\n    deep[0] = deep[8199] = 1;\n"
    crowded = replace(begun_with(deep, exported), arena=8000)
    with pytest.raises(TooLargeError, match=r"its stack takes more than the 8,[23]\d{2} bytes of RAM that are left"):
        Avr(crowded, seconds=5).run(sample)


def test_a_run_that_does_not_return_or_gives_an_error_code_is_told(mlp):
    exported, sample, _ = mlp
    with pytest.raises(PromiseError, match=r"a run on avr did not end in 0\.5 seconds"):
        Avr(begun_with('    for (;;) __asm__ volatile("");\n', exported), seconds=0.5).run(sample)
    asleep = '    __asm__ volatile("cli\\n\\tldi r16, 1\\n\\tout 0x33, r16\\n\\tsleep" ::: "r16");\n'
    with pytest.raises(PromiseError, match="net_run_observed on avr did not return"):
        Avr(begun_with(asleep, exported)).run(sample)
    with pytest.raises(PromiseError, match="net_run_observed on avr gives 1: the arena is too small"):
        Avr(begun_with("    size = 0;\n", exported)).run(sample)


def test_c_that_drives_the_clocks_pin_is_told(mlp):
    exported, sample, _ = mlp
    driven = begun_with('    __asm__ volatile("sbi 2, 0\\n\\tcbi 2, 0");\n', exported)
    with pytest.raises(PromiseError, match="on avr the clock ran in 11 stretches, not in 10"):
        Avr(driven).run(sample)
    with pytest.raises(PromiseError, match="on avr the clock ran in 3 stretches, not in 2"):
        Avr(driven).measure(sample, {})


def test_a_folder_does_not_say_where_simavr_writes(mlp, tmp_path):
    exported, sample, _ = mlp
    planted = tmp_path / "planted"
    configured = f"""#include "{avr_build.SIMAVR_HEADERS}/avr_mcu_section.h"
static const struct {{ uint8_t tag, size; char text[{len(str(planted)) + 1}]; }} planted
    __attribute__((section(".mmcu"), used)) = {{AVR_MMCU_TAG_VCD_FILENAME, sizeof "{planted}", "{planted}"}};
"""
    kept = begun_with("    (void)*(volatile const uint8_t *)&planted;\n", exported)
    text = configured.encode() + kept.sources["model.c"]
    with suppress(GemedgeError):  # an object that refers to what was taken out is no object
        Avr(replace(exported, sources={**exported.sources, "model.c": text})).run(sample)
    assert not planted.exists()


# As a user runs it


@pytest.fixture
def files(tmp_path):
    graph, ranges, given = captured_of("mlp")
    model = quantize(graph, ranges, scheme="int8", rounding=Rounding.SINGLE)
    (tmp_path / "net.gemq").write_bytes(model_file.save(model))
    np.savez(tmp_path / "data.npz", **given)
    assert gemedge("export", tmp_path / "net.gemq", "--format", "c", "-o", tmp_path / "out", "-q") == 0
    return tmp_path


def gemedge(*arguments: object) -> int:
    return _status([str(argument) for argument in arguments])


def test_a_run_on_avr_tells_exact_cycles_and_claims_no_instructions(files, capsys):
    arguments = ["run", files / "out", "--target", "avr", "--data", files / "data.npz"]
    assert gemedge(*arguments) == 0
    shown = capsys.readouterr().out
    assert gemedge(*arguments, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["same"] is True
    cost = told["cost"]
    assert cost["cycles"]["low"] == cost["cycles"]["high"]
    assert f"cycles        {cost['cycles']['low']:,}, of the first sample, exact, emulated by simavr" in shown
    assert "instructions  not counted here" in shown
    assert cost["totals"]["instructions"]["how"] == "estimated"
    assert {cost["totals"][name]["how"] for name in ("flash", "stack", "arena")} == {"emulated"}


def test_a_run_on_avr_finds_changed_c_and_what_a_chip_has_not(files, capsys):
    arguments = ["run", files / "out", "--target", "avr", "--data", files / "data.npz", "--limit", 1]
    assert gemedge(*arguments, "--flash", "4k") == 1
    assert "does not fit: flash: " in capsys.readouterr().err
    text = (files / "out" / "model.c").read_text()
    (files / "out" / "model.c").write_text(spoiled_text(text))
    assert gemedge(*arguments) == 1
    told = capsys.readouterr().err
    assert re.search(r"on avr: Dense '4' at \[0\] of sample 0 is -?\d+, not -?\d+; 1 of its 5 numbers differ", told)
    assert "model.c is not what gemedge writes for this model" in told


def test_a_report_has_the_cycles_of_an_avr_in_place_of_estimates(mlp):
    given = captured_of("mlp")[2]
    found, known = emulate.measured(mlp[0].model, target_named("avr"), given)
    assert known == "one sample, emulated"
    assert found == measured(*mlp[:2])


def test_verify_has_avr_among_its_engines(files, capsys):
    assert gemedge("verify", files / "net.gemq", "--target", "avr", "--json") == 0
    (found,) = [e for e in json.loads(capsys.readouterr().out)["engines"] if e["engine"] == "C on avr"]
    assert (found["max_lsb"], found["layers"], found["failed"]) == (0, 6, False)
    assert found["version"].startswith("avr-gcc")


def test_verify_says_why_a_network_is_not_on_avr_and_breaks_no_promise(tmp_path, capsys):
    (tmp_path / "net.gemq").write_bytes(model_file.save(dense(200, 250).model))
    assert gemedge("verify", tmp_path / "net.gemq", "--target", "avr") == 0
    assert "C on avr" in (shown := capsys.readouterr().out)
    assert "it does not fit the atmega1284p: L0_dense_weight has 50,000 bytes" in " ".join(shown.split())

"""gemedge run: exported C on emulated targets, every layer compared with simulate, as a user runs it."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from float_runs import float_tensors, ranges_of
from networks import NETWORKS
from thinned import thinned

import gemedge.nn as gnn
from gemedge import model_file
from gemedge.capture import capture_module
from gemedge.cli import _status, known_code
from gemedge.errors import ModelError, PromiseError
from gemedge.export import emulated, folder, host
from gemedge.export.build import CPUS
from gemedge.export.difference import first_difference
from gemedge.export.run import compilers
from gemedge.fixed import Rounding
from gemedge.quant import simulate as simulating
from gemedge.quant.quantize import quantize

CASES = [("int8", Rounding.SINGLE), ("int8", Rounding.DOUBLE), ("int16x8", Rounding.SINGLE), ("q15", Rounding.SINGLE)]
LEVELS = ("-O0", "-O3", "-Os")
QUICK = ("cortex-m4", "cortex-m0plus", "rv32imc")


def gemedge(*arguments: object) -> int:
    return _status([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def graphs():
    """Float graphs, their ranges and three samples, by the network's name."""
    known = {}

    def graph(name: str):
        if name not in known:
            torch.manual_seed(0)
            network = NETWORKS[name]
            inputs = network.inputs(batch=3)
            found = capture_module(network.model(lambda: gnn.GEM(1)), {k: v[:1] for k, v in inputs.items()}, opset=20)
            given = {k: v.numpy() for k, v in inputs.items()}
            known[name] = found.model, ranges_of(float_tensors(found.model, given)), given
        return known[name]

    return graph


def quantized(graphs, name: str, scheme: str = "int8", rounding: Rounding = Rounding.SINGLE):
    """A model, its inputs' integers, and every tensor's as simulate has them."""
    graph, ranges, given = graphs(name)
    model = quantize(graph, ranges, scheme=scheme, rounding=rounding)
    integers = simulating.entered(model, simulating.border(model, given), Counter())
    keep = [layer.output for layer in model.layers] + list(model.outputs.values())
    return model, integers, simulating.run(model, integers, keep=keep)


def one(arrays, number=0):
    return {name: array[number] for name, array in arrays.items()}


def emulate(model, integers, wanted, target, level="-O2", samples=1):
    """Runs samples, each compared at every layer; the runs, and the first sample's blocks by layer."""
    found = emulated.Emulated(folder.of_model(model, "net"), target, level)
    for number in range(samples):
        sample = found.run(one(integers, number))
        assert first_difference(model, number, one(wanted, number), sample.layers, sample.outputs) is None
        assert len(sample.layers) > 2
    return found, sample.took


@pytest.mark.parametrize("target", QUICK)
@pytest.mark.parametrize(("scheme", "rounding"), CASES)
def test_every_layer_is_simulates_on_an_emulated_target(graphs, target, scheme, rounding):
    emulate(*quantized(graphs, "cnn", scheme, rounding), target)


@pytest.mark.exhaustive
@pytest.mark.parametrize("turn", thinned(range(len(LEVELS)), len(LEVELS)))
@pytest.mark.parametrize("target", CPUS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_every_network_is_simulates_on_every_target(graphs, name, target, turn):
    """A turn has one level for each format, another at each network and target, and meets every pair of the four."""
    first = turn + list(NETWORKS).index(name) + list(CPUS).index(target)
    for place, (scheme, rounding) in enumerate(CASES, first):
        emulate(*quantized(graphs, name, scheme, rounding), target, LEVELS[place % len(LEVELS)])


def test_what_a_run_takes_is_the_sum_of_what_its_layers_take(graphs):
    model, integers, wanted = quantized(graphs, "cnn")
    runs, took = emulate(model, integers, wanted, "cortex-m4")
    found = runs.measure(one(integers), took)
    assert set(found.instructions) == set(found.cycles) == {layer.name for layer in model.layers}
    layers = sum(found.instructions.values())
    # copies and the showing, and what runs in one with the layer before where nobody looks
    assert 0.95 * layers < found.all_instructions < layers + 20_000
    assert found.instructions["0.0"] == max(found.instructions.values())
    assert 0.5 * found.all_instructions < found.all_cycles.low < found.all_cycles.high < 3 * found.all_instructions
    assert found.flash == found.sections[".text"] + found.sections[".rodata"]
    weights = sum(layer.weight.size for layer in model.layers if hasattr(layer, "weight"))
    assert found.sections[".rodata"] > weights
    assert 64 <= found.stack < 1000
    assert found.arena == folder.of_model(model, "net").arena


def test_a_second_run_takes_the_same_and_gives_the_same(graphs):
    model, integers, _ = quantized(graphs, "mlp")
    runs = []
    for _ in range(2):
        found = emulated.Emulated(folder.of_model(model, "net"), "cortex-m0plus")
        first, again = found.run(one(integers)), found.run(one(integers))
        assert all((again.layers[i] == array).all() for i, array in first.layers.items())
        assert found.measure(one(integers), first.took) == found.measure(one(integers), again.took)
        runs.append(found.measure(one(integers), first.took))
    assert runs[0] == runs[1]


def test_the_host_gives_every_layer_in_batches_and_threads(graphs):
    for name, scheme in (("cnn", "int16x8"), ("two inputs", "int8")):
        model, integers, wanted = quantized(graphs, name, scheme)
        exported = folder.of_model(model, "net")
        library = host.library(exported)
        shown = range(len(model.layers))
        for workers in (1, 2):
            outputs, layers = host.Host(model, exported.arena, library).run(integers, layers=shown, workers=workers)
            for index, array in layers.items():
                np.testing.assert_array_equal(array, wanted[model.layers[index].output])
            for output, array in outputs.items():
                np.testing.assert_array_equal(array, wanted[model.outputs[output]])
        outputs, layers = host.run_confined(exported, library, integers)
        assert all((array == wanted[model.layers[index].output]).all() for index, array in layers.items())
        assert outputs.keys() == model.outputs.keys()


def test_each_compiler_of_this_machine_builds_for_the_host(graphs, monkeypatch):
    exported = folder.of_model(quantized(graphs, "mlp")[0], "net")
    for compiler in compilers():
        monkeypatch.setattr(host, "compilers", lambda compiler=compiler: [compiler])
        monkeypatch.setattr(host, "_FLAGS", (*host._FLAGS, "-Wall", "-Wextra", "-Werror"))
        assert host.library(exported).startswith(b"\x7fELF"), compiler.identity


# As a user runs it


@pytest.fixture
def exported(graphs, tmp_path, monkeypatch):
    """A folder of exported C, and its data; the cache folder is the test's own."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(usual / "zig"))  # or its library would be built anew in each test
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    graph, ranges, given = graphs("cnn")
    model = quantize(graph, ranges, scheme="int8", rounding=Rounding.SINGLE)
    (tmp_path / "net.gemq").write_bytes(model_file.save(model))
    np.savez(tmp_path / "data.npz", **given)
    assert gemedge("export", tmp_path / "net.gemq", "--format", "c", "-o", tmp_path / "out", "-q") == 0
    return tmp_path / "out"


def run(path: Path, target: str = "cortex-m4", *more: object) -> int:
    return gemedge("run", path, "--target", target, "--data", path.with_name("data.npz"), *more)


def replaced(path: Path, before: str, after: str, file: str = "model.c") -> None:
    text = (path / file).read_text()
    assert text.count(before) >= 1
    (path / file).write_text(text.replace(before, after, 1))


def test_a_run_tells_what_each_layer_takes(exported, capsys):
    assert run(exported) == 0
    told = capsys.readouterr().out
    for words in (
        "Convolution",
        "instructions",
        "of the first sample",
        ".rodata",
        "stack",
        "3 samples, on an emulated",
    ):
        assert words in told
    assert run(exported, "rv32imc", "--limit", 1, "--level", "-Os", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["same"], told["samples"], told["target"]) == (True, 1, "rv32imc")
    assert told["cost"]["totals"]["instructions"]["how"] == "emulated"
    assert told["cost"]["cycles"] is None
    assert all(layer["instructions"]["how"] == "emulated" for layer in told["cost"]["layers"])


def test_a_folder_brings_its_model_and_the_same_bytes_each_time(exported):
    again = exported.with_name("again")
    assert gemedge("export", exported.with_name("net.gemq"), "--format", "c", "-o", again, "-q") == 0
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in exported.iterdir()}
    assert (exported / "model.gemq").read_bytes() == exported.with_name("net.gemq").read_bytes()


@pytest.mark.parametrize("target", ["cortex-m4", "host"])
def test_a_changed_kernel_is_found_at_its_first_layer(exported, capsys, target):
    replaced(exported, "GEMEDGE_SINGLE", "GEMEDGE_DOUBLE")
    trust = ["--trust"] if target == "host" else []
    assert run(exported, target, *trust) == 1
    told = capsys.readouterr().err
    assert f"{exported} on {target}: Convolution '0.0' at [" in told
    assert "of sample " in told
    assert "probably rounding: " in told
    assert "model.c is not what gemedge writes for this model" in told
    assert run(exported, target, "--json", *trust) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["same"], found["difference"]["layer"]) == (False, "0.0")
    assert abs(found["difference"]["wanted"] - found["difference"]["found"]) == 1


def test_a_changed_later_layer_is_not_blamed_on_an_earlier_one(exported, capsys):
    text = (exported / "model.c").read_text()
    changed = re.sub(r"(#else\n.*_dense_bias\[10\] = \{\s*)-?\d+", r"\g<1>3000000", text, count=1)
    assert changed != text
    (exported / "model.c").write_text(changed)
    assert run(exported) == 1
    told = capsys.readouterr().err
    assert "Dense '2' at [0] of sample 0 is " in told
    assert "; 1 of its 10 numbers differ; probably " in told


def test_the_host_runs_unasked_only_what_this_user_exported(exported, capsys):
    assert run(exported, "host") == 0
    assert "3 samples, on this machine" in capsys.readouterr().out
    replaced(exported, "/* Generated by gemedge. */", "/* Generated by somebody. */")
    assert run(exported, "host") == 2
    assert "this user has not exported this code (digest " in capsys.readouterr().err
    assert run(exported, "host", "--trust") == 0


def test_a_folder_exported_by_another_user_is_not_known(exported, monkeypatch, tmp_path):
    assert known_code.is_known(folder.read(exported).digest)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert not known_code.is_known(folder.read(exported).digest)


def test_a_cache_that_others_can_write_vouches_for_nothing(exported):
    cache = exported.parent / "cache" / "gemedge"
    assert known_code.is_known(folder.read(exported).digest)
    cache.chmod(0o777)
    assert not known_code.is_known(folder.read(exported).digest)


def test_code_that_crashes_or_does_not_end_is_an_error_on_the_host_too(exported, capsys, monkeypatch):
    text = (exported / "model.c").read_text()
    run_begins = "    uint8_t *const memory = (uint8_t *)arena;"
    (exported / "model.c").write_text(text.replace(run_begins, "    *(volatile int *)0 = 1;\n" + run_begins))
    assert run(exported, "host", "--trust") in (1, 3)
    assert "running the folder's code it ended" in capsys.readouterr().err
    assert run(exported, "cortex-m4") == 1
    assert "net_run_observed+0x" in capsys.readouterr().err
    (exported / "model.c").write_text(
        text.replace(run_begins, "    for (volatile int i = 0;;) (void)i;\n" + run_begins)
    )
    monkeypatch.setattr(emulated, "_SECONDS", 0.3)
    assert run(exported, "cortex-m4") == 1
    assert "did not end in 0.3 seconds" in capsys.readouterr().err


def test_an_error_code_of_the_run_is_told(exported, capsys):
    replaced(exported, "NET_ARENA_SIZE ", "NET_ARENA_SIZE 1", "model.h")
    (exported / "model.h").write_text((exported / "model.h").read_text())
    text = (exported / "model.c").read_text()
    (exported / "model.c").write_text(text.replace("(size < NET_ARENA_SIZE)", "(size < 2 * NET_ARENA_SIZE)"))
    assert run(exported) == 1
    assert "on cortex-m4 gives 1: the arena is too small" in capsys.readouterr().err


def test_what_does_not_fit_the_chip_is_told_with_its_layers(exported, capsys):
    assert run(exported, "cortex-m4", "--flash", "4k", "--ram", "64k") == 1
    told = capsys.readouterr().err
    assert "does not fit: flash: " in told
    assert "bytes (emulated), " in told
    assert "too many; most at '2' " in told


def test_every_tool_that_avr_misses_is_told_with_its_package(exported, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda tool: None)
    monkeypatch.setattr("gemedge.export.avr_build.SIMAVR_HEADERS", tmp_path)
    assert run(exported, "avr") == 4
    told = (
        "an emulated avr needs avr-gcc, avr-objcopy, simavr, avr_mcu_section.h, avr/io.h:"
        " apt-get install gcc-avr binutils-avr simavr libsimavr-dev avr-libc"
    )
    assert capsys.readouterr().err == f"gemedge: {exported}: {told}\n"


def test_what_does_not_fit_the_emulated_memory_is_refused_before_a_build(graphs, monkeypatch):
    model, _, _ = quantized(graphs, "cnn")
    monkeypatch.setattr(emulated, "FLASH_SIZE", 4096)
    with pytest.raises(
        PromiseError, match=r"it does not fit what is emulated of a cortex-m4: flash: .* too many; most at"
    ):
        emulated.Emulated(folder.of_model(model, "net"), "cortex-m4")


@pytest.mark.parametrize(
    ("spoil", "status", "words"),
    [
        (lambda path: (path / "model.c").unlink(), 3, "it holds no model.c; gemedge export --format c writes"),
        (lambda path: (path / "model.gemq").unlink(), 3, "it holds no model.gemq; gemedge export"),
        (lambda path: (path / "model.gemq").write_bytes(b"x" * 100), 3, "model.gemq: "),
        (
            lambda path: replaced(path, "NET_LAYERS 8", "NET_LAYERS 9", "model.h"),
            3,
            "model.c has 9 layers, model.gemq 8",
        ),
        (lambda path: replaced(path, "#define NET_LAYERS 8", "", "model.h"), 3, "model.h does not say how large"),
        (lambda path: replaced(path, "net_run", "not_run"), 4, "linking: the compiler failed with status 1"),
        (lambda path: replaced(path, "#include", "#incluck"), 4, "model.c: the compiler failed with status 1: "),
        (
            lambda path: linked(path, "gemedge_sums.h"),
            3,
            "gemedge_sums.h: it is a symbolic link, which is not followed",
        ),
        (lambda path: piped(path, "gemedge_sums.h"), 3, "gemedge_sums.h: it is not a regular file"),
        (lambda path: enlarged(path / "model.c"), 3, "model.c: it has 536,870,913 bytes; 536,870,912 at most"),
        (lambda path: [(path / f"h{i}.h").touch() for i in range(60)], 3, "headers; 64 at most"),
    ],
)
def test_a_folder_that_is_not_ours_is_refused_with_its_reason(exported, capsys, spoil, status, words):
    spoil(exported)
    assert run(exported) == status
    told = capsys.readouterr().err
    assert words in told
    assert told.startswith(f"gemedge: {exported}")


def linked(path: Path, name: str) -> None:
    (path / name).rename(path.parent / name)
    (path / name).symlink_to(path.parent / name)


def piped(path: Path, name: str) -> None:
    (path / name).unlink()
    os.mkfifo(path / name)


def enlarged(path: Path) -> None:
    os.truncate(path, (1 << 29) + 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cortex-m4", "--trust"], "--trust is for --target host"),
        (["host", "--flash", "4k"], "--level, --flash and --ram are for emulated targets"),
        (["cortex-m55"], "'cortex-m55' is not one of 'cortex-m0plus', "),
        (["cortex-m4", "--flash", "none"], "size 'none' must be a positive whole number"),
    ],
)
def test_options_that_contradict_each_other_are_usage(exported, capsys, arguments, words):
    assert run(exported, *arguments) == 2
    assert words in capsys.readouterr().err


def test_what_is_no_folder_and_data_that_do_not_fit_are_told(exported, capsys):
    with pytest.raises(ModelError, match="it is no folder of exported C"):
        folder.read(exported / "model.c")
    np.savez(exported.with_name("data.npz"), x=np.zeros((2, 5), np.float32))
    assert run(exported) == 5
    assert "data.npz" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cnn", "gpt"])
def test_simulate_by_the_exported_c_gives_the_same_file(graphs, tmp_path, name, capsys):
    graph, ranges, given = graphs(name)
    model = quantize(graph, ranges, scheme="int16x8", rounding=Rounding.SINGLE)
    (tmp_path / "net.gemq").write_bytes(model_file.save(model))
    np.savez(tmp_path / "data.npz", **given)
    layer = model.layers[1].name
    made = {}
    for engine in ("numpy", "c"):
        output = tmp_path / f"{engine}.npz"
        arguments = ["--data", tmp_path / "data.npz", "--engine", engine, "-o", output, "--layer", layer]
        assert gemedge("simulate", tmp_path / "net.gemq", *arguments) == 0
        made[engine] = output.read_bytes()
    assert made["numpy"] == made["c"]
    assert "not counted by --engine c" in capsys.readouterr().out


def test_a_digest_is_of_names_and_contents(graphs):
    model, _, _ = quantized(graphs, "mlp")
    first, second = (folder.of_model(model, name) for name in ("first", "second"))
    assert first.digest == folder.of_model(model, "first").digest != second.digest
    assert first.changed() == []
    renamed = {("b.h" if name == "gemedge.h" else name): content for name, content in first.sources.items()}
    assert folder.Folder(model, renamed, "first", first.arena).digest != first.digest

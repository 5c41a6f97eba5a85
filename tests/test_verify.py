"""gemedge verify: every engine beside simulate, and what it says when one of them is wrong."""

import json

import numpy as np
import pytest
import torch
from float_runs import float_tensors, ranges_of
from torch import nn

import gemedge.nn as gnn
from gemedge import confined, model_file
from gemedge.capture import capture_module
from gemedge.cli import _status
from gemedge.cli.engines import has_our_law
from gemedge.errors import ModelError, ToolError
from gemedge.export import host, onnx_check, tflite_run
from gemedge.fixed import Rounding
from gemedge.quant import simulate
from gemedge.quant.quantize import quantize

EXACT = {"NumPy", "C on this machine", "C on cortex-m4", "ONNX, integer operators"}
ALL = EXACT | {"ONNX, qdq", "LiteRT", "TensorFlow Lite Micro"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small CNN as single.gemq and double.gemq, with data.npz."""
    made = tmp_path_factory.mktemp("verify")
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), gnn.GEM(1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5), gnn.SEGEM(1))
    x = torch.randn(6, 1, 8, 8)
    graph = capture_module(net.eval(), x[:1], opset=20).model
    name = graph.graph.inputs[0].name
    ranges = ranges_of(float_tensors(graph, {name: x.numpy()}))
    for rounding in Rounding:
        content = model_file.save(quantize(graph, ranges, scheme="int8", rounding=rounding))
        (made / f"{rounding.value}.gemq").write_bytes(content)
    np.savez(made / "data.npz", **{name: x.numpy()})
    return made


def verify(folder, *arguments: object, model: str = "single") -> int:
    given = [folder / f"{model}.gemq", "--data", folder / "data.npz", "--target", "cortex-m4", *arguments]
    return _status(["verify", *map(str, given)])


@pytest.mark.parametrize("model", ["single", "double"])
def test_every_engine_runs_and_those_that_promise_it_have_simulates_integers(folder, model, capsys):
    assert verify(folder, "--json", model=model) == 0
    told = json.loads(capsys.readouterr().out)
    found = {engine["engine"]: engine for engine in told["engines"]}
    assert set(found) == ALL
    assert all(engine["layers"] == 6 for engine in found.values())
    micro = {"TensorFlow Lite Micro"} if model == "double" else set()
    assert {name for name, engine in found.items() if engine["exact"]} == EXACT | micro
    assert all(found[name]["max_lsb"] == 0 for name in EXACT | micro)
    assert found["LiteRT"]["max_lsb"] <= 1
    assert [told["samples"], told["kept"]] == [4, True]


def test_the_table_says_how_many_engines_agree(folder, capsys):
    assert verify(folder, "--limit", "1") == 0
    shown = capsys.readouterr().out
    assert "same  integers at every layer in 4 engines\n" in shown
    assert sum("equal" in line for line in shown.splitlines() if line.startswith("| C on")) == 2


@pytest.mark.parametrize(
    ("scheme", "wide", "exact"), [("int8", "", True), ("int8", "Concat", False), ("int16x8", "", False)]
)
def test_micro_promises_simulates_integers_where_all_numbers_have_8_bits(scheme, wide, exact):
    """Activations of 16 bits are float operators there."""

    class Joined(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return gnn.GEM(1)(torch.cat([x, 2 * x], 1))

    x = torch.randn(6, 4)
    graph = capture_module(Joined(), x[:1]).model
    ranges = ranges_of(float_tensors(graph, {"x": x.numpy()}))
    names = {node.name for node in graph.graph if node.op_type == wide}
    model = quantize(
        graph,
        ranges,
        scheme=scheme,
        rounding=Rounding.DOUBLE,
        scheme_of=lambda name: "int16x8" if name in names else None,
    )
    micro = tflite_run.Runtime(tflite_run.MICRO, "tflite_micro", "1")
    assert has_our_law(model, micro) is exact


def test_without_data_the_engines_run_seeded_numbers(folder, capsys):
    given = ["verify", str(folder / "single.gemq"), "--target", "cortex-m4", "--limit", "3", "--json"]
    assert _status(given) == 0
    told = json.loads(capsys.readouterr().out)
    assert {engine["engine"] for engine in told["engines"] if engine["exact"] and not engine["max_lsb"]} == EXACT
    assert [told["samples"], told["kept"]] == [3, True]


def off_by_one(run):
    """The engine's method with one number of its first layer changed."""

    def changed(self, *arguments, **options):
        outputs, layers = run(self, *arguments, **options)
        layers[min(layers)].flat[0] += 1
        return outputs, layers

    return changed


def test_a_hidden_change_in_the_c_is_shown_and_ends_with_status_1(folder, monkeypatch, capsys):
    monkeypatch.setattr(host.Host, "run", off_by_one(host.Host.run))
    assert verify(folder) == 1
    shown = capsys.readouterr()
    assert "C on this machine differs from simulate: 1 LSB at most, 0.17% of '0'" in shown.err
    assert "same  integers at every layer in 3 engines\n" in shown.out


def test_a_hidden_change_in_onnxruntime_is_shown_and_ends_with_status_1(folder, monkeypatch, capsys):
    whole = onnx_check.Engine.integers

    def changed(self, inputs):
        found = whole(self, inputs)
        return found | {"0": found["0"] - 3}

    monkeypatch.setattr(onnx_check.Engine, "integers", changed)
    assert verify(folder) == 1
    assert "ONNX, integer operators differs from simulate: 3 LSB at most, 100.00% of '0'" in capsys.readouterr().err


def test_another_rounding_in_tensorflow_lite_micro_is_shown(folder, monkeypatch, capsys):
    whole = tflite_run.run

    def changed(runtime, *arguments, **options):
        arrays = whole(runtime, *arguments, **options)
        return [array + (array < 100) for array in arrays] if runtime.name == tflite_run.MICRO else arrays

    monkeypatch.setattr(tflite_run, "run", changed)
    assert verify(folder, model="double") == 1
    assert "TensorFlow Lite Micro differs from simulate: " in capsys.readouterr().err


def test_an_engine_whose_tool_is_missing_says_so_and_fails_nothing(folder, monkeypatch, capsys):
    def missing(_):
        raise ToolError("no C compiler: none of $CC, cc, gcc, clang, and no Python package ziglang")

    monkeypatch.setattr(host, "library", missing)
    assert verify(folder) == 0
    assert "C on this machine  no C compiler: none of" in capsys.readouterr().out


def test_runtimes_that_are_not_installed_are_told_with_what_installs_them(folder, monkeypatch, capsys):
    monkeypatch.setattr(tflite_run.importlib.util, "find_spec", lambda name: None)
    assert verify(folder, model="double") == 0
    shown = capsys.readouterr().out
    assert "LiteRT                 it is not installed: pip install 'gemedge[litert]'" in shown
    assert "TensorFlow Lite Micro  it is not installed: pip install tflite-micro" in shown


def test_samples_that_change_each_others_integers_are_shown_and_end_with_status_1(folder, monkeypatch, capsys):
    whole = simulate.run

    def changed(model, integers, **options):
        found = whole(model, integers, **options)
        return {name: array ^ (len(array) == 1) for name, array in found.items()}

    monkeypatch.setattr(simulate, "run", changed)
    assert verify(folder) == 1
    assert "NumPy differs from simulate: 1 LSB at most, 100.00% of " in capsys.readouterr().err


@pytest.mark.parametrize(("model", "status"), [("double", 1), ("single", 0)])
def test_a_runtime_that_crashes_is_told_beside_the_others(folder, monkeypatch, capsys, model, status):
    """Where it promised simulate's integers that is a promise not kept."""
    whole = confined.call

    def crash(job, asked, blobs):
        if asked["runtime"] == tflite_run.MICRO:
            raise ModelError("running it ended the reading process with SIGSEGV")
        return whole(job, asked, blobs)

    monkeypatch.setattr(confined, "call", crash)
    assert verify(folder, model=model) == status
    shown = capsys.readouterr()
    crashed = f"{tflite_run.runtimes()[1]}: running it ended the reading process with SIGSEGV"
    assert crashed in (shown.err if status else shown.out)
    assert sum(line.startswith("| ") for line in shown.out.splitlines()) == 1 + len(ALL) - 1


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--limit", "3", "--log", "x"], 2, "--limit and --target are not for --log"),
        (["--target", "z80"], 2, "'z80' is not one of"),
    ],
)
def test_bad_arguments_are_one_line(folder, arguments, status, text, capsys):
    assert verify(folder, *arguments) == status
    assert text in capsys.readouterr().err

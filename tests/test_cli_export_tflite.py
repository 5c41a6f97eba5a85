"""gemedge export --format tflite, as a user runs it."""

import json
import os
import re

import numpy as np
import pytest
import torch
from float_runs import float_tensors, ranges_of
from torch import nn

import gemedge.nn as gnn
from gemedge import model_file
from gemedge.capture import capture_module
from gemedge.cli import _status, export_onnx
from gemedge.export import tflite_custom, tflite_run
from gemedge.export.tflite_run import LITERT, MICRO, OLD, Runtime
from gemedge.fixed import Rounding
from gemedge.quant.quantize import quantize

X = torch.randn(20, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def network(*tail: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), gnn.GEM(1), nn.Flatten(), nn.Linear(64, 3), *tail).eval()


def gemedge(*arguments: object) -> int:
    return _status([str(argument) for argument in arguments])


def saved(folder, model: nn.Module, scheme="int8", rounding=Rounding.DOUBLE):
    found = capture_module(model, X[:1])
    ranges = ranges_of(float_tensors(found.model, {"input": X.numpy()}))
    made = quantize(found.model, ranges, scheme=scheme, rounding=rounding)
    (folder / "net.gemq").write_bytes(model_file.save(made))
    return folder / "net.gemq"


@pytest.fixture
def quantized(tmp_path):
    return saved(tmp_path, network())


@pytest.fixture
def floats(tmp_path):
    gnn.save(network(), tmp_path / "net.pt", X[:1])
    return tmp_path / "net.pt"


def test_a_quantized_model_becomes_a_file_compared_in_every_runtime(quantized, capsys):
    assert gemedge("export", quantized, "--format", "tflite") == 0
    told = capsys.readouterr().out
    assert quantized.with_suffix(".tflite").read_bytes()[4:8] == b"TFL3"
    assert "input: int8 [?, 6, 6, 2], NHWC" in told
    (micro,) = (line for line in told.splitlines() if line.startswith(MICRO))
    assert micro.endswith("simulate's integers at all 4 layers")
    assert f"{LITERT} " in told


def test_json_lists_each_layers_difference(quantized, capsys):
    assert gemedge("export", quantized, "--format", "tflite", "--json", "-o", quantized.with_name("a.tflite")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == {str(path := quantized.with_name("a.tflite")): path.stat().st_size}
    (litert, micro) = (told["compared"][str(runtime)] for runtime in tflite_run.runtimes())
    assert {layer["max_lsb"] for layer in litert} <= {0, 1}
    assert [(layer["max_lsb"], layer["share"]) for layer in micro] == [(0, 0.0)] * 4
    assert told["inputs"] == [{"name": "input", "type": "int8", "shape": [1, 6, 6, 2], "axes": [0, 2, 3, 1]}]


def perturb(monkeypatch, name: str, by: int) -> None:
    """Let one runtime round one number of each output otherwise."""
    true = tflite_run.run

    def run(runtime, *arguments, **named):
        outputs = true(runtime, *arguments, **named)
        if runtime.name == name:
            for array in outputs:
                array.flat[0] = array.flat[0] - by if array.flat[0] > 0 else array.flat[0] + by
        return outputs

    monkeypatch.setattr(tflite_run, "run", run)


@pytest.mark.parametrize(("name", "by", "status"), [(MICRO, 1, 1), (LITERT, 2, 1), (LITERT, 0, 0)])
def test_a_runtime_that_rounds_otherwise_than_promised_fails_the_export(
    quantized, monkeypatch, capsys, name, by, status
):
    perturb(monkeypatch, name, by)
    assert gemedge("export", quantized, "--format", "tflite") == status
    told = capsys.readouterr().err
    if status:
        assert f"LSB in {name}" in told
        assert "net.gemq: layer '" in told
        assert told.count("\n") == 1
    assert quantized.with_suffix(".tflite").exists() == (status == 0)


def test_the_file_itself_is_run_and_not_only_its_copy_that_shows_the_layers(quantized, monkeypatch, capsys):
    true = tflite_run.run

    def run(runtime, *arguments, **named):
        outputs = true(runtime, *arguments, **named)
        return [array // 2 for array in outputs] if len(outputs) == 1 else outputs

    monkeypatch.setattr(tflite_run, "run", run)
    assert gemedge("export", quantized, "--format", "tflite") == 1
    assert f"LSB in {tflite_run.runtimes()[0]} where no layer is shown beside it" in capsys.readouterr().err
    assert not quantized.with_suffix(".tflite").exists()


def test_no_check_runs_nothing(quantized, monkeypatch, capsys):
    perturb(monkeypatch, MICRO, 5)
    assert gemedge("export", quantized, "--format", "tflite", "--no-check") == 0
    assert "not compared (--no-check)" in capsys.readouterr().out


def test_without_a_runtime_the_error_says_what_to_install(quantized, monkeypatch, capsys):
    monkeypatch.setattr(tflite_run, "runtimes", list)
    assert gemedge("export", quantized, "--format", "tflite") == 4
    assert "no TensorFlow Lite runtime is installed to check the file with: pip install 'gemedge[litert]'" in (
        capsys.readouterr().err
    )
    assert gemedge("export", quantized, "--format", "tflite", "--no-check", "-q") == 0


def test_a_runtime_that_is_not_there_is_told_beside_the_one_that_compares(quantized, monkeypatch, capsys):
    (litert,) = (runtime for runtime in tflite_run.runtimes() if runtime.name == LITERT)
    monkeypatch.setattr(tflite_run, "runtimes", lambda: [litert])
    assert gemedge("export", quantized, "--format", "tflite") == 0
    told = capsys.readouterr().out
    assert str(litert) in told
    assert re.search(rf"{MICRO} +not compared, as it is not installed: pip install tflite-micro", told)


@pytest.mark.parametrize(
    ("installed", "numpy", "chosen"),
    [
        ({"ai_edge_litert", "tflite_runtime", "tflite_micro"}, "2.1", [LITERT, MICRO]),
        ({"tflite_runtime"}, "1.26", [OLD]),
        ({"tflite_runtime"}, "2.0", []),
        ({"tflite_micro", "tflite_runtime"}, "1.26", [OLD, MICRO]),
        (set(), "2.0", []),
    ],
)
def test_the_newer_runtime_is_taken_first_and_the_older_where_it_works(monkeypatch, installed, numpy, chosen):
    monkeypatch.setattr(tflite_run.importlib.util, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(tflite_run.importlib.metadata, "version", lambda name: "9")
    monkeypatch.setattr(np, "__version__", numpy)
    assert [runtime.name for runtime in tflite_run.runtimes()] == chosen


def test_the_older_runtime_runs_through_the_same_interface(quantized, monkeypatch):
    """Its package has LiteRT's Interpreter under another name."""
    import sys

    from ai_edge_litert import interpreter

    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", interpreter)
    assert gemedge("export", quantized, "--format", "tflite", "--no-check", "-q") == 0
    content = quantized.with_suffix(".tflite").read_bytes()
    given = np.zeros((2, 6, 6, 2), np.int8)
    (old,) = tflite_run.run_here(OLD, content, [given], dynamic=True)
    (new,) = tflite_run.run_here(LITERT, content, [given], dynamic=True)
    np.testing.assert_array_equal(old, new)


def test_a_runtime_that_refuses_the_file_is_told_and_the_others_are_compared(tmp_path, capsys):
    path = saved(tmp_path, network(), "int16x8")
    assert gemedge("export", path, "--format", "tflite", "--gem", "table") == 0
    told = capsys.readouterr().out
    assert "TensorFlow Lite Micro lacks an operator for one of the file's types" in told
    assert "simulate's integers at all 4 layers" in told


def test_the_operator_of_ours_comes_with_its_sources(quantized, capsys):
    assert gemedge("export", quantized, "--format", "tflite", "--gem", "custom") == 0
    assert "compared with tables in place of the operator of ours" in capsys.readouterr().out
    assert set(os.listdir(quantized.parent)) == {"net.gemq", "net.tflite", *tflite_custom.FILES}
    other = quantized.with_name("b.tflite")
    assert gemedge("export", quantized, "--format", "tflite", "--gem", "custom", "-o", other) == 6
    assert "gemedge_tflm.h exists; --force replaces it" in capsys.readouterr().err
    assert not other.exists()


def test_a_float_model_becomes_a_file_compared_with_the_original(floats, capsys):
    assert gemedge("export", floats, "--format", "tflite") == 0
    told = capsys.readouterr().out
    assert "input: float32 [?, 6, 6, 2], NHWC" in told
    assert "1 x gem(n=1)" in told
    assert "6 sets of inputs compared" in told
    assert gemedge("export", floats, "--format", "tflite", "--json", "--force") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["gem"], told["dynamic"]) == ("float", True)
    assert {difference["probe"].split(" in ")[1] for difference in told["compared"]} == set(
        map(str, tflite_run.runtimes())
    )


def damaged(path):
    path.write_bytes(path.read_bytes()[:-1])


ON_QUANTIZED = [
    (["--opset", "18"], None, 2, "--opset is not for --format tflite of a quantized model"),
    (["--external-data"], None, 2, "--external-data is not for --format tflite"),
    (
        ["--gem", "function"],
        None,
        2,
        "--gem function is not for --format tflite of a quantized model; that takes table,",
    ),
    ([], damaged, 3, "net.gemq: "),
    ([], lambda path: path.unlink(), 3, "net.gemq"),
    (["-o", "missing/out.tflite"], None, 6, "missing does not exist"),
    (["-o", "net.gemq"], None, 6, "net.gemq"),
    ([], lambda path: path.with_suffix(".tflite").write_text("mine"), 6, "net.tflite exists; --force replaces it"),
    ([], lambda path: saved(path.parent, network(nn.Softmax(1))), 4, "(Softmax) in TensorFlow Lite: its integers"),
    ([], lambda path: saved(path.parent, network(), "q7", Rounding.SINGLE), 4, "scheme q7; TensorFlow Lite takes"),
]


@pytest.mark.parametrize(("arguments", "change", "status", "message"), ON_QUANTIZED)
def test_bad_input_is_one_line_and_nothing_is_left(quantized, arguments, change, status, message, capsys, monkeypatch):
    monkeypatch.chdir(quantized.parent)
    if change:
        change(quantized)
    before = {name: quantized.with_name(name).read_bytes() for name in os.listdir()}
    assert gemedge("export", "net.gemq", "--format", "tflite", *arguments) == status
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert {name: quantized.with_name(name).read_bytes() for name in os.listdir()} == before


ON_FLOATS = [
    (["--gem", "table"], 2, "--gem table is not for --format tflite; that takes float"),
    (["--opset", "18"], 2, "--opset is not for --format tflite"),
    (["--external-data"], 2, "--external-data is not for --format tflite"),
    (["-o", "missing/out.tflite"], 6, "missing does not exist"),
]


@pytest.mark.parametrize(("arguments", "status", "message"), ON_FLOATS)
def test_bad_input_of_a_float_model_is_one_line_and_nothing_is_left(
    floats, arguments, status, message, capsys, monkeypatch
):
    monkeypatch.chdir(floats.parent)
    assert gemedge("export", "net.pt", "--format", "tflite", *arguments) == status
    told = capsys.readouterr().err
    assert message in told
    assert os.listdir() == ["net.pt"]


def test_a_node_without_an_operator_is_named(tmp_path, capsys):
    gnn.save(nn.Sequential(nn.Linear(3, 4), nn.Softplus()), tmp_path / "net.pt", torch.zeros(1, 3))
    assert gemedge("export", tmp_path / "net.pt", "--format", "tflite") == 4
    assert "net.pt: no TensorFlow Lite operator for '1/Softplus' (Softplus)" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["net.pt"]


def test_a_write_that_fails_leaves_nothing(quantized, monkeypatch, capsys):
    import gemedge.files as files

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write_all", full)
    assert gemedge("export", quantized, "--format", "tflite", "--no-check") == 6
    assert "No space left on device" in capsys.readouterr().err
    assert os.listdir(quantized.parent) == [quantized.name]


def test_weights_in_a_safetensors_file_are_no_quantized_model(quantized, tmp_path):
    import safetensors.numpy

    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(safetensors.numpy.save({"w": np.zeros(3, np.float32)}, {"format": "pt"}))
    assert export_onnx.is_quantized(quantized)
    assert not export_onnx.is_quantized(weights)


def test_a_runtime_says_its_version():
    assert str(Runtime(LITERT, "ai_edge_litert", "2.3.0")) == "LiteRT 2.3.0"

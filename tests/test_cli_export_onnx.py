"""gemedge export of a .gemq file as ONNX, as a user runs it."""

import json
import os

import numpy as np
import onnx
import pytest
import torch
from float_runs import float_tensors, ranges_of
from onnx_runs import metadata, session
from torch import nn

import gemedge.nn as gnn
from gemedge import model_file
from gemedge.capture import capture_module
from gemedge.cli import _status
from gemedge.export import onnx_check
from gemedge.fixed import Rounding
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import simulate


def gemedge(*arguments: object) -> int:
    return _status([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def content():
    """A small network's .gemq file."""
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    found = capture_module(nn.Sequential(nn.Linear(3, 4), gnn.GEM(1), nn.Linear(4, 2)), x[:1])
    ranges = ranges_of(float_tensors(found.model, {"input": x.numpy()}))
    return model_file.save(quantize(found.model, ranges, scheme="int8", rounding=Rounding.SINGLE))


@pytest.fixture
def quantized(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.gemq").write_bytes(content)
    (tmp_path / "net.onnx").write_bytes(b"mine")
    np.savez(tmp_path / "x.npz", input=np.linspace(-9, 9, 30, dtype=np.float32).reshape(10, 3))
    return tmp_path / "net.gemq"


def test_the_integer_form_is_the_default_and_is_compared(quantized, capsys):
    assert gemedge("export", "net.gemq") == 0
    shown = capsys.readouterr().out
    assert "integer: simulate's integers at every layer" in shown
    assert "0 of 160 integers differ from simulate's in onnxruntime" in shown  # 10 numbers of 16 samples
    model = model_file.load(quantized.read_bytes())
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    (found,) = session((quantized.parent / "net_integer.onnx").read_bytes()).run(None, {"input": x})
    np.testing.assert_array_equal(found, simulate(model, {"input": x})["output"])


def test_the_qdq_form_says_how_far_it_is(quantized, capsys):
    assert gemedge("export", "net.gemq", "--form", "qdq", "--opset", 19, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    (path,) = told["files"]
    content = (quantized.parent / path).read_bytes()
    assert (path, len(content)) == ("net_qdq.onnx", told["files"][path])
    assert (told["form"], told["checked"], metadata(content)["gemedge.form"]) == ("qdq", True, "qdq")
    assert onnx.ModelProto.FromString(content).opset_import[0].version == 19
    assert [set(entry) for entry in told["compared"]] == [{"layer", "max_lsb", "differing", "numbers"}] * 3
    assert all(entry["differing"] <= entry["numbers"] // 4 for entry in told["compared"])
    assert gemedge("export", "net.gemq", "--form", "qdq", "-o", "again.onnx") == 0
    assert "near simulate's integers, rounded as the runtime does" in capsys.readouterr().out


def test_a_difference_of_the_qdq_form_is_shown_with_its_share(quantized, capsys, monkeypatch):
    spoil(monkeypatch)
    assert gemedge("export", "net.gemq", "--form", "qdq", "--data", "x.npz") == 0
    assert "of 100 integers differ from simulate's in this onnxruntime; the worst: layer '1'" in capsys.readouterr().out


def test_raw_takes_and_gives_integers(quantized):
    assert gemedge("export", "net.gemq", "--raw", "-o", "raw.onnx", "-q") == 0
    proto = onnx.ModelProto.FromString((quantized.parent / "raw.onnx").read_bytes())
    kinds = [value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)]
    assert kinds == [onnx.TensorProto.INT8] * 2


def spoil(monkeypatch) -> None:
    """onnxruntime gives another integer for one number of layer 1."""
    right = onnx_check.Engine.integers

    def integers(self, inputs):
        found = right(self, inputs)
        found["1"].reshape(-1)[0] += 60
        return found

    monkeypatch.setattr(onnx_check.Engine, "integers", integers)


def test_an_integer_file_that_differs_is_not_written(quantized, capsys, monkeypatch):
    spoil(monkeypatch)
    before = sorted(os.listdir())
    assert gemedge("export", "net.gemq", "--data", "x.npz") == 1
    told = capsys.readouterr().err
    assert "the exported model differs from simulate: layer '1': 1 of 40 differ, by up to 60 LSB" in told
    assert sorted(os.listdir()) == before
    assert gemedge("export", "net.gemq", "--no-check") == 0
    assert "not compared (--no-check)" in capsys.readouterr().out


def test_an_output_that_differs_is_not_written(quantized, capsys, monkeypatch):
    right = onnx_check.Engine.outputs
    monkeypatch.setattr(onnx_check.Engine, "outputs", lambda *of: {n: a + 1 for n, a in right(*of).items()})
    assert gemedge("export", "net.gemq") == 1
    assert "the exported model's output 'output' differs from simulate's" in capsys.readouterr().err


def damaged(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("arguments", "change", "status", "message"),
    [
        (["--gem", "custom"], None, 2, "--gem is not for --format onnx of a quantized model"),
        (["--external-data"], None, 2, "--external-data is not for --format onnx of a quantized model"),
        (["--input-shape", "1,3"], None, 2, "--input-shape is not for --format onnx of a quantized model"),
        (["--opset", "23"], None, 2, "net.gemq: opset 23 of a quantized model must be from 17 to 21"),
        (["--form", "int"], None, 2, "'int' is not one of 'integer', 'qdq'"),
        (["--format", "c", "--raw"], None, 2, "--raw is not for --format c"),
        ([], damaged, 3, "net.gemq: "),
        (["--data", "missing.npz"], None, 5, "missing.npz: "),
        (["-o", "net.onnx"], None, 6, "net.onnx exists; --force replaces it"),
        (["-o", "net.gemq", "--force"], None, 6, "net.gemq is the input; name another output with -o"),
        (["-o", "missing/net.onnx"], None, 6, "the folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(quantized, arguments, change, status, message, capsys):
    if change:
        change(quantized)
    before = sorted(os.listdir())
    assert gemedge("export", "net.gemq", *arguments) == status
    told = capsys.readouterr().err
    assert message in told
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("option", [["--raw"], ["--form", "qdq"], ["--data", "x.npz"]], ids=str)
def test_options_of_quantized_models_are_refused_for_others(quantized, option, capsys):
    assert gemedge("export", "net.onnx", *option) == 2
    assert f"{option[0]} is not for --format onnx" in capsys.readouterr().err


def test_a_write_that_fails_leaves_nothing(quantized, monkeypatch, capsys):
    import gemedge.files as files

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write_all", full)
    before = sorted(os.listdir())
    assert gemedge("export", "net.gemq") == 6
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(os.listdir()) == before

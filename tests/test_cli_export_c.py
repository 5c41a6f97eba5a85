"""gemedge export --format c, as a user runs it."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch
from c_builds import STRICT, compiled
from float_runs import float_tensors, ranges_of
from torch import nn

import gemedge.nn as gnn
from gemedge import model_file
from gemedge.capture import capture_module
from gemedge.cli import _status
from gemedge.export import to_c
from gemedge.export.folder import MODEL
from gemedge.fixed import Rounding
from gemedge.model import QuantizedModel
from gemedge.quant.quantize import quantize

OWN = ["CMakeLists.txt", "README.md", "gemedge_float.h", "model.c", "model.h", "model_float.h"]
TESTED = ["gemedge_selftest.h", "selftest.c", "test_vectors.h"]
NAMES = sorted([*OWN, *TESTED, MODEL, *to_c.RUNTIME, "my_net_model.h", "my_net_model_float.h"])


def gemedge(*arguments: object) -> int:
    return _status([str(argument) for argument in arguments])


def small_network() -> QuantizedModel:
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    found = capture_module(nn.Sequential(nn.Linear(3, 4), gnn.GEM(1)), x[:1])
    return quantize(
        found.model,
        ranges_of(float_tensors(found.model, {"input": x.numpy()})),
        scheme="int16x8",
        rounding=Rounding.SINGLE,
    )


@pytest.fixture
def quantized(tmp_path):
    """A small network's .gemq file."""
    (tmp_path / "my-net.gemq").write_bytes(model_file.save(small_network()))
    return tmp_path / "my-net.gemq"


def test_a_quantized_model_becomes_a_folder_that_compiles(quantized, capsys):
    assert gemedge("export", quantized, "--format", "c") == 0
    folder = quantized.with_name("my-net_c")
    assert sorted(os.listdir(folder)) == NAMES
    compiled([*STRICT, "-c", "model.c", "-o", "model.o"], folder)
    assert "my_net_run" in subprocess.run(["nm", folder / "model.o"], capture_output=True, text=True).stdout
    assert "my_net_run" in capsys.readouterr().out


def test_json_says_what_was_written_and_how_large_the_arena_is(quantized, capsys):
    folder = quantized.with_name("out")
    assert gemedge("export", quantized, "--format", "c", "-o", folder, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {str(folder / name): (folder / name).stat().st_size for name in NAMES} == told["files"]
    assert f"#define MY_NET_ARENA_SIZE {told['arena']}\n" in (folder / "model.h").read_text()


@pytest.mark.parametrize(
    ("choice", "form"),
    [("auto", "gemedge_activate_compact"), ("reciprocal", "gemedge_activate_compact"), ("table", "gemedge_activate_")],
)
def test_an_activation_of_16_bits_is_written_in_the_form_asked_for(quantized, choice, form, capsys):
    folder = quantized.with_name(choice)
    assert gemedge("export", quantized, "--format", "c", "--activation", choice, "-o", folder, "--json") == 0
    assert form in (folder / "model.c").read_text()
    told = json.loads(capsys.readouterr().out)
    assert told["activations"] == {"reciprocal of 32 bits": 1}


def test_the_form_of_activations_is_for_c(quantized, capsys):
    assert gemedge("export", quantized, "--activation", "table") == 2
    assert "--activation is not for --format onnx of a quantized model" in capsys.readouterr().err


def test_files_that_exist_are_replaced_by_force_alone(quantized, capsys):
    folder = quantized.with_name("out")
    folder.mkdir()
    (folder / "model.c").write_text("mine")
    assert gemedge("export", quantized, "--format", "c", "-o", folder) == 6
    assert f"{folder / 'model.c'} exists; --force replaces it" in capsys.readouterr().err
    assert os.listdir(folder) == ["model.c"]
    assert gemedge("export", quantized, "--format", "c", "-o", folder, "--force", "-q") == 0
    assert sorted(os.listdir(folder)) == NAMES


def damaged(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("arguments", "change", "status", "message"),
    [
        (["--gem", "custom"], None, 2, "--gem is not for --format c"),
        (["--opset", "18"], None, 2, "--opset is not for --format c"),
        (["--vectors", "0"], None, 2, "0 is not in the range x>=1"),
        (["--project", "make"], None, 2, "'make' is not one of 'cmake', 'arduino', 'zephyr'"),
        (["--data", "missing.npz"], None, 5, "missing.npz"),
        ([], damaged, 3, "my-net.gemq: "),
        ([], lambda path: path.write_bytes(b"x" * 100), 3, "my-net.gemq: "),
        ([], lambda path: path.unlink(), 3, "my-net.gemq"),
        (["-o", "my-net.gemq"], None, 6, "my-net.gemq is no folder; name one with -o"),
        (["-o", "missing/out"], None, 6, "missing does not exist"),
    ],
)
def test_bad_input_is_one_line_and_no_folder_is_left(
    quantized, arguments, change, status, message, capsys, monkeypatch
):
    monkeypatch.chdir(quantized.parent)
    if change:
        change(quantized)
    before = sorted(os.listdir())
    assert gemedge("export", "my-net.gemq", "--format", "c", *arguments) == status
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert sorted(os.listdir()) == before


def test_a_write_that_fails_leaves_no_folder(quantized, monkeypatch, capsys):
    import gemedge.files as files

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write_all", full)
    assert gemedge("export", quantized, "--format", "c", "-o", quantized.with_name("out")) == 6
    assert "No space left on device" in capsys.readouterr().err
    assert os.listdir(quantized.parent) == ["my-net.gemq"]


def test_the_exported_c_gives_the_integers_of_simulate(quantized, tmp_path):
    import ctypes

    from gemedge.quant.simulate import entered, simulate

    folder = tmp_path / "out"
    assert gemedge("export", quantized, "--format", "c", "-o", folder, "-q") == 0
    compiled([*STRICT, "-shared", "-fPIC", "model.c", "-o", "net.so"], folder)
    library = ctypes.CDLL(str(folder / "net.so"))
    model = model_file.load(quantized.read_bytes())
    x = np.linspace(-2, 2, 24, dtype=np.float32).reshape(8, 3)
    from collections import Counter

    given = entered(model, {model.inputs[0]: x}, Counter())[model.inputs[0]]
    wanted = simulate(model, {"input": x}, raw=True)["output"]
    arena = np.zeros(1 << 12, np.uint32)
    for sample, expected in zip(given, wanted, strict=True):
        out = np.zeros(expected.shape, expected.dtype)
        where = [ctypes.c_void_p(a.ctypes.data) for a in (np.ascontiguousarray(sample), out)]
        place = ctypes.c_void_p(arena.ctypes.data)
        assert library.my_net_run(place, ctypes.c_size_t(arena.nbytes), *where) == 0
        np.testing.assert_array_equal(out, expected)

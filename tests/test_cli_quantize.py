"""gemedge quantize and gemedge simulate, as a user runs them."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import gemedge.nn as gnn
from gemedge import model_file
from gemedge.cli import _status
from gemedge.kernel import FixedActivation
from gemedge.quant.simulate import simulate


def gemedge(*arguments: str) -> int:
    return _status([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a CNN trained on digits, its float outputs, and data to calibrate and test it."""
    folder = tmp_path_factory.mktemp("trained")
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images.reshape(-1, 1, 8, 8) / 16).float(), torch.from_numpy(labels)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), gnn.GEM(1), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), gnn.EGEM(2, 0.5),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(6):
        for batch in torch.randperm(1400).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    gnn.save(model, folder / "model.pt", x[:1])
    np.savez(folder / "calib.npz", input=x[:300].numpy())
    np.savez(folder / "test.npz", input=x[1400:].numpy(), labels=y[1400:].numpy())
    with torch.no_grad():
        return folder, x[1400:].numpy(), model(x[1400:]).numpy(), y[1400:].numpy()


@pytest.mark.parametrize(
    ("scheme", "drop"),
    [
        ("int8", 0.011),
        *(pytest.param(*row, marks=pytest.mark.long) for row in (("int16x8", 0.004), ("q7", 0.02), ("q15", 0.004))),
    ],
)
def test_a_trained_network_keeps_its_accuracy_in_integers(trained, scheme, drop, tmp_path, capsys, monkeypatch):
    folder, x, logits, labels = trained
    monkeypatch.chdir(tmp_path)
    made = Path("m.gemq")
    assert gemedge("quantize", folder / "model.pt", "--data", folder / "calib.npz", "--scheme", scheme, "-o", made) == 0
    assert "SQNR, dB" in capsys.readouterr().out
    assert gemedge("simulate", made, "--data", folder / "test.npz", "-o", "out.npz") == 0
    outputs = np.load("out.npz")["output"]
    np.testing.assert_array_equal(outputs, simulate(model_file.load(made.read_bytes()), {"input": x})["output"])
    floats, integers = (logits.argmax(1) == labels).mean(), (outputs.argmax(1) == labels).mean()
    assert floats > 0.9
    assert integers >= floats - drop


def test_errors_are_listed_worst_first_and_as_json(trained, tmp_path, capsys):
    folder = trained[0]
    made = tmp_path / "m.gemq"
    assert gemedge("quantize", folder / "model.pt", "--data", folder / "calib.npz", "-o", made, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    decibels = [error["sqnr_db"] for error in told["errors"]]
    assert decibels == sorted(decibels)
    assert [len(decibels), told["bytes"], told["scheme"]] == [7, made.stat().st_size, "int8"]
    assert all(error["saturated"] < 0.01 for error in told["errors"])


@pytest.mark.long
def test_edited_ranges_are_taken_and_too_narrow_ones_show_as_saturation(trained, tmp_path, capsys):
    folder = trained[0]
    ranges, made = tmp_path / "r.json", tmp_path / "m.gemq"
    model, data = folder / "model.pt", folder / "calib.npz"
    assert gemedge("calibrate", model, "--data", data, "-o", ranges, "--quiet") == 0
    assert gemedge("quantize", model, "--data", data, "--ranges", ranges, "-o", made, "--json") == 0
    whole = json.loads(capsys.readouterr().out)
    text = json.loads(ranges.read_text())
    name = next(e["tensor"] for e in whole["errors"] if e["layer"] == "3")
    text["ranges"][name] = [end / 4 for end in text["ranges"][name]]
    ranges.write_text(json.dumps(text))
    assert gemedge("quantize", model, "--data", data, "--ranges", ranges, "-o", made, "--force", "--json") == 0
    cut = {e["layer"]: e for e in json.loads(capsys.readouterr().out)["errors"]}
    assert cut["3"]["saturated"] > 0.05
    assert cut["3"]["sqnr_db"] < next(e["sqnr_db"] for e in whole["errors"] if e["layer"] == "3") - 10


def test_layers_and_raw_integers_on_request(trained, tmp_path):
    folder, x, *_ = trained
    made, out = tmp_path / "m.gemq", tmp_path / "o.npz"
    assert gemedge("quantize", folder / "model.pt", "--data", folder / "calib.npz", "-o", made, "--quiet") == 0
    arguments = ("--data", folder / "test.npz", "-o", out, "--raw", "--layer", "1", "--limit", "20", "--quiet")
    assert gemedge("simulate", made, *arguments) == 0
    arrays = np.load(out)
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        "output": ((20, 10), "int8"),
        "1": ((20, 8, 8, 8), "int8"),
    }
    wanted = simulate(model_file.load(made.read_bytes()), {"input": x[:20]}, layers=["1"], raw=True)
    assert all(np.array_equal(arrays[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(("name", "reach", "cut"), [("*", 1e4, False), ("0", 0.2, True)])
def test_simulate_says_how_many_numbers_each_layer_saturated(trained, name, reach, cut, tmp_path, capsys):
    folder, x, *_ = trained
    made, config = tmp_path / "m.gemq", tmp_path / "c.toml"
    config.write_text(f"[[layer]]\nname = '{name}'\nrange = [-{reach}, {reach}]\n")
    arguments = ("--data", folder / "calib.npz", "--config", config, "-o", made, "--quiet")
    assert gemedge("quantize", folder / "model.pt", *arguments) == 0
    assert gemedge("simulate", made, "--data", folder / "test.npz", "--limit", "30", "--batch", "7") == 0
    shown = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("saturated"))
    model, counts = model_file.load(made.read_bytes()), Counter()
    layer = simulate(model, {"input": x[:30]}, layers=["0"], raw=True, saturated=counts)["0"]
    if cut:
        at_an_end = int(((layer == -128) | (layer == 127)).sum())
        assert 1000 < counts["0"] <= at_an_end
        assert f" 0 {counts['0']:,} of {layer.size:,} ({counts['0'] / layer.size:.2%})" in shown
    else:
        assert shown.split(maxsplit=1)[1] == "none"


def test_the_same_input_gives_the_same_file(trained, tmp_path):
    folder = trained[0]
    for name in ("a.gemq", "b.gemq"):
        arguments = (
            "--data",
            folder / "calib.npz",
            "-o",
            tmp_path / name,
            "--workers",
            "1" if name == "a.gemq" else "2",
        )
        assert gemedge("quantize", folder / "model.pt", *arguments, "--quiet") == 0
    assert (tmp_path / "a.gemq").read_bytes() == (tmp_path / "b.gemq").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["simulate", "model.pt", "--data", "test.npz"],
            3,
            "model.pt: it is no .gemq file, which gemedge quantize writes",
        ),
        (["simulate", "none.gemq", "--data", "test.npz"], 3, "none.gemq: it cannot be opened: No such file"),
        (["quantize", "model.pt", "--data", "none.npz"], 5, "none.npz: it is not there"),
        (["quantize", "model.pt", "--data", "calib.npz", "-o", "calib.npz", "--force"], 6, "calib.npz is the input"),
        (["quantize", "model.pt", "--data", "wrong.npz"], 5, "wrong.npz"),
        (["quantize", "model.pt", "--data", "nan.npz"], 5, "nan.npz"),
        (["quantize", "model.pt", "--data", "calib.npz", "--ranges", "none.json"], 5, "none.json: No such file"),
        (["quantize", "model.pt", "--data", "calib.npz", "--ranges", "test.npz"], 5, "test.npz: "),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    trained, arguments, status, message, tmp_path, monkeypatch, capsys
):
    folder = trained[0]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    np.savez(tmp_path / "wrong.npz", input=np.zeros((3, 1, 9, 9), np.float32))
    np.savez(tmp_path / "nan.npz", input=np.full((3, 1, 8, 8), np.nan, np.float32))
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert gemedge(*arguments) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if "is ignored" not in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_float_outputs_of_the_file_are_those_the_integers_are_compared_with(trained):
    folder, x, logits, _ = trained
    assert gemedge("export", folder / "model.pt", "-o", folder / "m.onnx", "--quiet", "--force") == 0
    session = onnxruntime.InferenceSession(str(folder / "m.onnx"))
    np.testing.assert_allclose(session.run(None, {"input": x})[0], logits, atol=1e-4)


@pytest.fixture(scope="module")
def made(trained):
    """A .gemq file of int16x8 with two kernels."""
    folder = trained[0]
    path = folder / "inspected.gemq"
    arguments = ("--data", folder / "calib.npz", "--scheme", "int16x8", "-o", path, "--quiet")
    assert gemedge("quantize", folder / "model.pt", *arguments) == 0
    return path


def test_inspect_says_what_a_model_is_and_certifies_its_kernels_again(made, capsys):
    assert gemedge("inspect", made) == 0
    printed = capsys.readouterr().out
    title, *lines = printed.splitlines()
    size = made.stat().st_size
    assert title.startswith("gemedge model: int16x8, rounding single, 7 layers, ")
    assert title.endswith(f" bytes of weights in {size:,}")
    assert lines[0].startswith("input   input: [batch, 1, 8, 8] int16(scale=")
    assert lines[1].startswith("output  output: [batch, 10] int16(scale=")
    assert [line[:19] for line in lines[2:6:2]] == ["kernel  gem(n=1) fr", "kernel  egem(n=2, e"]
    assert all("certified again: all 65,536 inputs: 0 misrounded" in line for line in lines[3:7:2])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "Convolution" in line]
    assert rows == [["0", "Convolution", "[8, 8, 8]", "264"], ["3", "Convolution", "[16, 2, 2]", "1,536"]]


def test_inspect_as_json_agrees_with_the_file(made, capsys):
    assert gemedge("inspect", made, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    model = model_file.load(made.read_bytes())
    assert [told["kind"], told["scheme"], told["bytes"]] == ["gemedge model", "int16x8", made.stat().st_size]
    assert [layer["name"] for layer in told["layers"]] == [layer.name for layer in model.layers]
    assert told["layers"][0] == {
        "name": "0", "operator": "Convolution", "shape": [8, 8, 8], "weight_bytes": 8 * 9 + 3 * 8 * 8,
    }  # fmt: skip
    digests = {layer.digest for layer in model.layers if hasattr(layer, "digest")}
    assert {kernel["certificate"]["constants"] for kernel in told["kernels"]} == digests
    assert told["inputs"][0]["scale"] == model.tensors["input"].params.scale


def test_inspect_refuses_a_kernel_that_rounds_wrongly_or_is_another(made, tmp_path, capsys, monkeypatch):
    model = model_file.load(made.read_bytes())
    layers = [replace(la, digest="0" * 64) if hasattr(la, "digest") else la for la in model.layers]
    other = tmp_path / "other.gemq"
    other.write_bytes(model_file.save(replace(model, layers=tuple(layers))))
    assert gemedge("inspect", other) == 3
    expected = f"gemedge: {other}: layer '1': its kernel is not the one that was certified\n"
    assert capsys.readouterr() == ("", expected)
    right = FixedActivation.evaluate
    monkeypatch.setattr(FixedActivation, "evaluate", lambda self, raw, run: right(self, raw, run) ^ (raw == 1234))
    assert gemedge("inspect", made) == 1
    assert "layer '1': gem(n=1): all 65,536 inputs: 1 misrounded" in capsys.readouterr().err


@pytest.mark.parametrize("change", [lambda b: b[:100], lambda b: b[:-1], lambda b: b[:500] + b"?" + b[501:]])
def test_inspect_refuses_a_damaged_model_in_one_line(made, change, tmp_path, capsys):
    bad = tmp_path / "bad.gemq"
    bad.write_bytes(change(made.read_bytes()))
    assert gemedge("inspect", bad) == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"gemedge: {bad}: its ") or "no sound gemedge model" in err

"""gemedge calibrate as a user runs it."""

import json

import numpy as np
import onnx
import onnx.parser
import pytest

from gemedge.cli import _status
from gemedge.quant.ranges import Ranges

TEXT = """<ir_version: 8, opset_import: ["": 18, "ai.gemedge": 1]>
g (float[batch, 4] x) => (float[batch, 2] z) <float[4,2] w = {1,2,3,4,5,6,7,8}>
{ h = MatMul(x, w) z = ai.gemedge.GEM<n=1, epsilon=1.0>(h) }"""
X = np.random.default_rng(0).standard_normal((100, 4))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=X, labels=np.arange(100))
    (tmp_path / "mycode.py").write_text("import numpy as np\ndef batches(): yield np.ones((3, 4))\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return _status(["calibrate", "m.onnx", *arguments])


def test_it_writes_ranges_and_prints_the_widest_first(folder, capsys):
    assert run("--data", "d.npz") == 0
    printed = capsys.readouterr()
    ranges = Ranges.from_json((folder / "m.ranges.json").read_bytes())
    assert list(ranges) == ["x", "h", "z"]
    assert ranges["x"].max == float(np.float32(X.max()))
    rows = [line.split("|")[1].strip() for line in printed.out.splitlines() if line.startswith("|")]
    assert rows == ["tensor", "h", "z", "x"]
    assert "3 tensors, minmax, 100 samples" in printed.out
    assert printed.err == "gemedge: the data's array 'labels' is no input of the model and is ignored\n"


@pytest.mark.parametrize(
    ("arguments", "method", "samples"),
    [
        (["--method", "percentile", "--percentile", "90"], "percentile(90.0)", 100),
        (["--method", "mse", "--bits", "16"], "mse(bits=16)", 100),
        (["--method", "entropy", "--symmetric", "--workers", "3"], "entropy, symmetric", 100),
        (["--limit", "7", "--batch", "2"], "minmax", 7),
        (["--data", "mycode:batches"], "minmax", 3),
    ],
)
def test_options_are_taken(folder, capsys, arguments, method, samples):
    assert run("--data", "d.npz", *arguments, "-o", "r.json", "--json", "--quiet") == 0
    printed = capsys.readouterr().out
    assert printed == (folder / "r.json").read_text()
    found = json.loads(printed)
    assert (found["method"], found["samples"]) == (method, samples)


def test_quiet_prints_nothing(capsys):
    assert run("--data", "d.npz", "--quiet") == 0
    assert tuple(capsys.readouterr()) == ("", "")


FAILURES = {
    "data missing": (["--data", "no.npz"], 5, "no.npz: it is not there; name a .npy or .npz file, a folder of them"),
    "nan in data": (["--data", "nan.npy"], 5, "nan.npy: array 'x', sample 8, element [1] is nan"),
    "wrong shape": (["--data", "wide.npy"], 5, "wide.npy: array 'x' of shape [10, 5] does not fit input 'x', which"),
    "no samples": (["--data", "none.npy"], 5, "none.npy: it holds no samples"),
    "code missing": (["--data", "nocode:f"], 2, "data nocode:f: No module named 'nocode'"),
    "output exists": (["--data", "d.npz", "-o", "old.json"], 6, "old.json exists; --force replaces it"),
    "output is the data": (["--data", "d.npz", "-o", "d.npz", "--force"], 6, "d.npz is the input; name another"),
    "bad method": (["--data", "d.npz", "--method", "best"], 2, "'best' is not one of"),
    "bad percentile": (["--data", "d.npz", "--percentile", "7"], 2, "percentile 7.0 is not between 50 and 100"),
    "bad scheduler": (["--data", "d.npz", "--scheduler", "host"], 2, "scheduler 'host' is not of the form tls://"),
    "no data": ([], 2, "Missing option '--data'"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_each_failure_is_one_line_and_writes_nothing(folder, capsys, kind):
    nan = np.ones((10, 4), np.float32)
    nan[8, 1] = np.nan
    np.save("nan.npy", nan)
    np.save("wide.npy", np.ones((10, 5), np.float32))
    np.save("none.npy", np.ones((0, 4), np.float32))
    (folder / "old.json").write_text("old")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    arguments, status, message = FAILURES[kind]
    assert run(*arguments) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("gemedge: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_bad_model_is_named(folder, capsys):
    (folder / "m.onnx").write_bytes(b"\0" * 64)
    assert run("--data", "d.npz") in (3, 4)
    assert capsys.readouterr().err.startswith("gemedge: m.onnx: ")


@pytest.mark.long
def test_a_dask_scheduler_without_encryption_is_warned_of(capsys):
    assert run("--data", "d.npz", "--scheduler", "tcp://127.0.0.1:9") == 2
    lines = capsys.readouterr().err.splitlines()
    assert "tcp://127.0.0.1:9 is neither encrypted nor authenticated" in lines[0]
    assert "scheduler tcp://127.0.0.1:9 does not answer" in lines[-1]

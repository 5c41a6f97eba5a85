"""`gemedge calibrate`, `quantize` and `simulate` with bad input: a row for each way, and interrupted in the middle."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from networks import NETWORKS
from onnx import numpy_helper
from test_cli_quantize import gemedge
from thinned import thinned

import gemedge.nn as gnn
from gemedge import model_file
from gemedge.quant.simulate import simulate

ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 4)).astype(np.float32)
WEIGHT = RNG.standard_normal((4, 3)).astype(np.float32)
BIAS = np.ones(3, np.float32)
TEXT = """<ir_version: 8, opset_import: ["": 18, "ai.gemedge": 1]>
g (float[{shape}] x) => (float[{shape}] z)
{{ h = Gemm(x, w, b) a = ai.gemedge.GEM<n=1, epsilon=1.0>(h) z = Gemm<transB=1>(a, w) }}"""
TOKENS = """<ir_version: 8, opset_import: ["": 18]>
g (int64[batch, 5] t) => (float[batch, 5, 4] z) { e = Gather(w, t) z = Relu(e) }"""
FREE = """<ir_version: 8, opset_import: ["": 18]>
g (float[batch, 2, time] x) => (float[batch, 2, time] z) { z = Relu(x) }"""


def written(path: Path, text: str, **weights: np.ndarray) -> None:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(model, path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Models m, tokens and free, sound data for each, and m.gemq."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "m.onnx", TEXT.format(shape="batch, 4"), w=WEIGHT, b=BIAS)
    written(tmp_path / "tokens.onnx", TOKENS, w=RNG.standard_normal((7, 4)).astype(np.float32))
    written(tmp_path / "free.onnx", FREE)
    np.save("d.npy", X)
    np.save("t.npy", RNG.integers(0, 7, (20, 5)))
    np.save("f.npy", np.ones((3, 2, 6), np.float32))
    assert gemedge("quantize", "m.onnx", "--data", "d.npy", "-o", "m.gemq", "--quiet") == 0
    return tmp_path


def with_(value: float) -> np.ndarray:
    x = X.copy()
    x[8, 1] = value
    return x


@dataclass(frozen=True)
class Row:
    """What is run on an array saved as bad.npy, or with another model, and what must come of it."""

    status: int
    says: str
    arguments: tuple[str, ...]
    bad: np.ndarray | None = None
    weights: tuple[np.ndarray, np.ndarray] | None = None


def data(command: str, model: str, says: str, array: np.ndarray, *, status: int = 5, extra: tuple = ()) -> Row:
    return Row(status, says, (command, model, "--data", "bad.npy", *extra), array)


DATA = {
    "no samples": ("bad.npy: it holds no samples", X[:0]),
    "a wrong shape": ("bad.npy: array 'x' of shape [20, 3] does not fit input 'x', which takes", X[:, :3]),
    "text": ("bad.npy: its type is <U", np.full((20, 4), "1.0")),
    "complex numbers": ("bad.npy: its type is complex64", X.astype(np.complex64)),
    "NaN": ("bad.npy: array 'x', sample 8, element [1] is nan; every number must be finite", with_(np.nan)),
    "infinity": ("bad.npy: array 'x', sample 8, element [1] is inf; every number must be finite", with_(np.inf)),
    "beyond float32": ("bad.npy: array 'x', sample 8, element [1] is 1e+300; it does not fit", X.astype(float) * 1e300),
}
DATA["beyond float32"][1][:] = 0
DATA["beyond float32"][1][8, 1] = 1e300
MODELS = {"calibrate": "m.onnx", "quantize": "m.onnx", "simulate": "m.gemq"}
ROWS = {
    **{
        f"{command}: {kind}": data(command, model, says, array)
        for command, model in MODELS.items()
        for kind, (says, array) in DATA.items()
    },
    "tokens beyond the table": data(
        "quantize", "tokens.onnx", "the model does not run on samples 0 to 3: Non-zero", np.full((4, 5), 7)
    ),
    "tokens as floats": data(
        "quantize",
        "tokens.onnx",
        "bad.npy: array 't' of type float32 does not fit input 't'",
        np.ones((4, 5), np.float32),
    ),
    "a size that never gets a value": Row(
        4,
        "free.onnx: tensor 'x' of shape [batch, 2, time] varies in more than",
        ("quantize", "free.onnx", "--data", "f.npy"),
    ),
    "weights that overflow": Row(
        5,
        "m.onnx: tensor 'h', element [",
        ("quantize", "m.onnx", "--data", "d.npy"),
        weights=(np.full((4, 3), 3e38, np.float32), BIAS),
    ),
    "weights that are infinite": Row(
        5,
        "tensor 'h', element [0, ",
        ("quantize", "m.onnx", "--data", "d.npy"),
        weights=(np.full((4, 3), np.inf, np.float32), BIAS),
    ),
    "a bias that does not fit": Row(
        5,
        "m.onnx: node 'h' (Gemm): a bias of 1 does not fit its accumulator",
        ("quantize", "m.onnx", "--data", "d.npy"),
        weights=(WEIGHT * np.float32(1e-20), BIAS),
    ),
    "a .gemq to quantize": Row(
        3, "m.gemq: it is a model in integers, which", ("quantize", "m.gemq", "--data", "d.npy", "-o", "n.gemq")
    ),
    "a .gemq to calibrate": Row(
        3, "m.gemq: it is a model in integers, which", ("calibrate", "m.gemq", "--data", "d.npy")
    ),
    "a .gemq to export in a float form": Row(
        2,
        "--gem is not for --format onnx of a quantized model",
        ("export", "m.gemq", "--gem", "custom", "-o", "n.onnx"),
    ),
    "an .onnx to simulate": Row(3, "m.onnx: it is no .gemq file", ("simulate", "m.onnx", "--data", "d.npy")),
    "an output in no folder": Row(6, "no does not exist", ("quantize", "m.onnx", "--data", "d.npy", "-o", "no/m.gemq")),
    "an output in a file": Row(
        6, "m.onnx/m.gemq: Not a directory", ("quantize", "m.onnx", "--data", "d.npy", "-o", "m.onnx/m.gemq")
    ),
    "an output that is there": Row(6, "m.gemq exists; --force replaces it", ("quantize", "m.onnx", "--data", "d.npy")),
    "an output of simulate in no folder": Row(
        6, "no does not exist", ("simulate", "m.gemq", "--data", "d.npy", "-o", "no/o.npz")
    ),
    "a scheduler that is none": Row(
        2,
        "scheduler 'host' is not of the form tls://",
        ("quantize", "m.onnx", "--data", "d.npy", "--scheduler", "host", "-o", "n.gemq"),
    ),
}


@pytest.mark.parametrize("name", thinned(ROWS, 3))
def test_bad_input_is_one_line_and_nothing_is_written(name, folder, capsys):
    row = ROWS[name]
    if row.bad is not None:
        np.save("bad.npy", row.bad)
    if row.weights is not None:
        written(folder / "m.onnx", TEXT.format(shape="batch, 4"), w=row.weights[0], b=row.weights[1])
    if row.status == 5 and "quantize" in row.arguments and "-o" not in row.arguments:
        (folder / "m.gemq").write_bytes(b"old")
        row = Row(row.status, row.says, (*row.arguments, "-o", "m.gemq", "--force"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    status = gemedge(*row.arguments)
    printed = capsys.readouterr()
    assert (status, printed.out) == (row.status, ""), printed
    assert printed.err.startswith("gemedge: ")
    lines = [
        line
        for line in printed.err.splitlines()
        if "it is exported as it is" not in line and "its range has no width" not in line
    ]
    assert len(lines) == 1, printed.err
    assert row.says in lines[0]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


DAMAGED = {
    "empty": (lambda content: b"", "its header of 0 bytes does not fit a file of 0"),
    "cut": (lambda content: content[:-7], "digest does not match"),
    "half": (lambda content: content[: len(content) // 2], "m.gemq: "),
    "a flipped bit": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "digest does not match"),
    "newer": (
        lambda content: content.replace(b'"version":"1"', b'"version":"2"'),
        "of version '2'; this gemedge reads",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_model_is_refused(kind, folder, capsys):
    change, says = DAMAGED[kind]
    (folder / "m.gemq").write_bytes(change((folder / "m.gemq").read_bytes()))
    (folder / "m.out.npz").write_bytes(b"old")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert gemedge("simulate", "m.gemq", "--data", "d.npy", "--force") == 3
    printed = capsys.readouterr()
    assert printed.err.startswith("gemedge: m.gemq: ")
    assert printed.err.count("\n") == 1
    assert says in printed.err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_tokens_beyond_the_table_are_refused_by_integers_as_well(folder, capsys):
    assert gemedge("quantize", "tokens.onnx", "--data", "t.npy", "--quiet") == 0
    np.save("bad.npy", np.full((4, 5), -1))
    before = sorted(folder.iterdir())
    assert gemedge("simulate", "tokens.gemq", "--data", "bad.npy") == 5
    err = capsys.readouterr().err
    assert re.fullmatch(r"gemedge: .*tokens.gemq: layer '.*': index -1 of a table of 7 rows\n", err)
    np.save("bad.npy", np.ones((4, 5), np.float32))
    assert gemedge("simulate", "tokens.gemq", "--data", "bad.npy") == 5
    assert "of type float32 does not fit input 't'" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


# What looks bad and is not


SOUND = {
    "constantly zero": (np.zeros((20, 4), np.float32), WEIGHT, np.zeros(3, np.float32), 1e-6),
    "one sample": (X[:1], WEIGHT, BIAS, 0.1),
    "a channel of zero weights": (X, WEIGHT * np.float32([1, 0, 1]), BIAS, 0.2),
    "a channel of zeros": (X, WEIGHT * np.float32([1, 0, 1]), BIAS * np.float32([1, 0, 1]), 0.2),
    "huge weights": (X, np.float32(1e15) * WEIGHT, BIAS, 2e29),
    "tiny weights": (X, np.float32(1e-12) * WEIGHT, BIAS * np.float32(1e-12), 2e-25),
}


@pytest.mark.parametrize("scheme", thinned(["int8", "q15"], 2))
@pytest.mark.parametrize("kind", thinned(SOUND, 2))
def test_a_degenerate_network_is_quantized_all_the_same(kind, scheme, folder):
    x, weight, bias, tolerance = SOUND[kind]
    written(folder / "m.onnx", TEXT.format(shape="batch, 4"), w=weight, b=bias)
    np.save("d.npy", x)
    arguments = ("--data", "d.npy", "--scheme", scheme, "--quiet", "--force")
    assert gemedge("quantize", "m.onnx", *arguments) == 0
    made = simulate(model_file.load((folder / "m.gemq").read_bytes()), {"x": x})["z"]
    exact = onnx_session(folder / "m.onnx").run(None, {"x": x})[0]
    assert np.abs(made - exact).max() <= tolerance


EMPTY = {  # sizes of input and output, the tensor at fault, and a model
    "an output": (4, 0, "z", "z = MatMul(x, w)", {"w": np.zeros((4, 0), np.float32)}),
    "an input": (0, 3, "x", "z = MatMul(x, w)", {"w": np.zeros((0, 3), np.float32)}),
    "a part": (4, 0, "z", "z = Slice(x, s, s, o)", {"s": np.array([2]), "o": np.array([1])}),
}


@pytest.mark.parametrize("row", EMPTY)
def test_what_holds_no_numbers_is_refused_by_name(row, tmp_path, capsys):
    given, made, name, nodes, weights = EMPTY[row]
    text = f'<ir_version: 8, opset_import: ["": 18]> g (float[n, {given}] x) => (float[n, {made}] z) {{ {nodes} }}'
    written(tmp_path / "m.onnx", text, **weights)
    np.save(tmp_path / "d.npy", np.ones((5, given), np.float32))
    arguments = ("quantize", tmp_path / "m.onnx", "--data", tmp_path / "d.npy", "-o", tmp_path / "m.gemq")
    assert gemedge(*arguments) == 4
    told = capsys.readouterr().err
    assert told == f"gemedge: {tmp_path / 'm.onnx'}: tensor '{name}' of shape [n, 0] holds no numbers\n"
    assert not (tmp_path / "m.gemq").exists()


def onnx_session(path: Path):
    import onnxruntime

    assert gemedge("export", path, "-o", path.with_suffix(".f.onnx"), "--quiet", "--force") == 0
    return onnxruntime.InferenceSession(str(path.with_suffix(".f.onnx")))


# Masks of minus infinity


@pytest.mark.parametrize("scheme", thinned(["int8", "q15"], 2))
def test_a_causal_mask_of_minus_infinity_is_calibrated(scheme, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network = NETWORKS["gpt"]
    model, tokens = network.model(lambda: gnn.GEM(1)), network.inputs(40)["tokens"]
    gnn.save(model, "gpt.pt", tokens[:2])
    np.savez("tokens.npz", tokens=tokens.numpy())
    arguments = ("--input-shape", "tokens:batch,9:int64", "--scheme", scheme, "--quiet")
    assert gemedge("quantize", "gpt.pt", "--data", "tokens.npz", *arguments) == 0, capsys.readouterr()
    assert gemedge("simulate", "gpt.gemq", "--data", "tokens.npz", "--quiet") == 0
    found = np.load("gpt.out.npz")["output"]
    with torch.no_grad():
        exact = model(tokens).numpy()
    assert 10 * np.log10(np.square(exact).sum() / np.square(found - exact).sum()) > 25
    changed = tokens.numpy().copy()
    changed[:, -1] = (changed[:, -1] + 1) % 50
    later = simulate(model_file.load(Path("gpt.gemq").read_bytes()), {"tokens": changed})["output"]
    np.testing.assert_array_equal(later[:, :-1], found[:, :-1])  # no token sees the next


# Interrupted

CODE = """import pathlib, time, numpy as np
def batches():
    yield np.ones((3, 4), np.float32)
    pathlib.Path("started").touch()
    time.sleep(600)
"""


@pytest.mark.parametrize("command", thinned(["calibrate", "quantize", "simulate"], 3))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_run_says_so_and_leaves_the_old_output(command, number, folder):
    (folder / "slow.py").write_text(CODE)
    np.save("large.npy", np.zeros((1 << 20, 4), np.float32))
    (folder / "out").write_bytes(b"old")
    model, source = ("m.gemq", "large.npy") if command == "simulate" else ("m.onnx", "slow:batches")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    arguments = [command, model, "--data", source, "-o", "out", "--force", "--batch", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gemedge", *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert running(process, folder / ("large.npy" if command == "simulate" else "started"))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "gemedge: interrupted\n")
    (folder / "started").unlink(missing_ok=True)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def running(process: subprocess.Popen, sign: Path) -> bool:
    """Whether the process comes to hold the file open, or makes it, before it ends."""
    was_there = sign.exists()
    for _ in range(6000):
        if process.poll() is not None:
            return False
        opened = [os.path.realpath(link) for link in Path(f"/proc/{process.pid}/fd").glob("*")] if was_there else []
        if str(sign.resolve()) in opened or (sign.exists() and not was_there):
            time.sleep(0.3)
            return True
        time.sleep(0.01)
    return False


def test_names_with_slashes_and_of_numpys_options_are_written_and_read(folder, capsys):
    body = (
        '<ir_version: 8, opset_import: ["": 18]>\ng (float[batch, 4] x) => (float[batch, 4] file)\n{{ file = Neg(x) }}'
    )
    written(folder / "n.onnx", body.replace("{{", "{").replace("}}", "}"))
    np.save("n.npy", np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4))
    assert gemedge("quantize", "n.onnx", "--data", "n.npy", "--quiet") == 0, capsys.readouterr()
    assert gemedge("simulate", "n.gemq", "--data", "n.npy", "--layer", "file", "--quiet") == 0, capsys.readouterr()
    found = np.load("n.out.npz")
    assert {name: str(found[name].dtype) for name in found} == {"file": "float32", "file.raw": "int8"}


@pytest.mark.parametrize("scheme", ["int8", "q7", "int16x8"])
def test_ranges_without_a_scale_are_refused_naming_the_tensor(scheme, folder, capsys):
    written(folder / "m.onnx", TEXT.format(shape="batch, 4"), w=np.eye(4, dtype=np.float32), b=np.zeros(4, np.float32))
    np.save("d.npy", np.full((3, 4), 1e-44, np.float32))
    assert gemedge("quantize", "m.onnx", "--data", "d.npy", "--scheme", scheme, "-o", "t.gemq", "--quiet") == 5
    assert "leaves no float32 scale" in capsys.readouterr().err
    assert not Path("t.gemq").exists()

"""`gemedge export` as its users run it: every kind of file, every option, and what is printed."""

import importlib
import json
import os
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from networks import NETWORKS
from torch import nn

import gemedge.nn as gnn
from gemedge import Activation, UsageError, cli
from gemedge.capture import InputShape, capture_module
from gemedge.export import check
from gemedge.export.to_qdq import to_qdq
from gemedge.fixed import Rounding
from gemedge.nn import EGEM, GEM, SEGEM
from gemedge.quant.calibrate import calibrate
from gemedge.quant.quantize import quantize

X = torch.linspace(-2, 2, 24).reshape(2, 12)


def build() -> nn.Module:
    """For --arch: the network of the state dict."""
    kinds = iter([EGEM(2, 0.5), SEGEM(1, 0.25)])
    return NETWORKS["mlp"].model(lambda: next(kinds))


class Own(nn.Sequential):
    """For --allow."""


class TwoNamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = GEM()

    def forward(self, tokens: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.act(tokens.to(scale.dtype).sum(1) * scale)


MODEL = build()
with torch.no_grad():
    WANTED = MODEL(X).numpy()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return tmp_path


def gemedge(*arguments: str) -> int:
    return cli._status(["export", *map(str, arguments)])


def check_runs(path: Path = Path("model.onnx"), x: torch.Tensor = X, wanted: np.ndarray = WANTED) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [value.name for value in session.get_inputs()]
    np.testing.assert_allclose(session.run(None, {name: x.numpy()})[0], wanted, rtol=0, atol=1e-5)


def exporter_archive() -> None:
    batch = torch.export.Dim("n", min=1)
    program = torch.export.export(MODEL, (X,), dynamic_shapes=({0: batch},))
    torch.export.save(program, "model.pt")


def torchscript() -> None:
    plain = nn.Sequential(nn.Linear(12, 3), nn.ReLU())
    torch.manual_seed(0)
    torch.jit.save(torch.jit.trace(plain.eval(), X), "model.pt")


FILES = {
    "a file of gemedge.nn.save": (lambda: gnn.save(MODEL, "model.pt", X), []),
    "an archive of torch.export.save": (exporter_archive, []),
    "a module": (lambda: torch.save(MODEL, "model.pt"), ["--input-shape", "?,12"]),
    "a module with an example": (
        lambda: (torch.save(MODEL, "model.pt"), np.save("x.npy", X.numpy().astype(np.float64))),
        ["--example", "x.npy"],
    ),
    "a state dict": (
        lambda: torch.save(MODEL.state_dict(), "model.pt"),
        ["--arch", "test_cli_export:build", "--input-shape", "input:batch,12"],
    ),
    "a class of one's own": (
        lambda: torch.save(Own(*MODEL), "model.pt"),
        ["--allow", "test_cli_export.Own", "--input-shape", "4,12:float32"],
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_each_kind_of_file_gives_a_model_that_runs(kind, capsys):
    write, options = FILES[kind]
    write()
    assert gemedge("model.pt", *options) == 0, capsys.readouterr().err
    batch = 4 if "4,12:float32" in options else 2
    x = torch.cat([X, X])[:batch]
    check_runs(x=x, wanted=np.concatenate([WANTED, WANTED])[:batch])
    printed = capsys.readouterr().out
    assert "1 x egem(n=2, epsilon=0.5), 1 x segem(n=1, epsilon=0.25)" in printed
    assert "function, opset 18" in printed
    assert "model.onnx, " in printed
    assert "sets of inputs compared" in printed


def test_torchscript_needs_trust_and_then_says_what_it_did(capsys):
    torchscript()
    assert gemedge("model.pt", "--input-shape", "?,12") == 3
    assert "runs code of its own when it is loaded; --trust" in capsys.readouterr().err
    assert not Path("model.onnx").exists()
    assert gemedge("model.pt", "--input-shape", "?,12", "--trust") == 0
    assert "--trust: loaded a TorchScript archive by running the code it holds" in capsys.readouterr().err
    check_runs(wanted=torch.jit.load("model.pt")(X).detach().numpy())


def test_onnx_in_its_own_custom_form_to_another_opset_and_form_with_weights_beside_it():
    gnn.save(MODEL, "model.pt", X)
    assert gemedge("model.pt", "--gem", "custom", "--external-data", "-o", "custom.onnx", "--quiet") == 0
    assert Path("custom.onnx.data").stat().st_size > 1000
    assert not onnx.load("custom.onnx", load_external_data=False).functions
    for form in ("function", "primitive"):
        assert gemedge("custom.onnx", "-o", f"{form}.onnx", "--gem", form, "--opset", "21", "--quiet") == 0
        assert next(e.version for e in onnx.load(f"{form}.onnx").opset_import if e.domain == "") == 21
        check_runs(Path(f"{form}.onnx"))
    assert gemedge("function.onnx", "-o", "down.onnx", "--opset", "17", "--quiet") == 0
    check_runs(Path("down.onnx"))


LOCAL = """<ir_version: 8, opset_import: ["" : 16, "my.domain": 1, "ai.gemedge": 1]>
g (float[N,4] x) => (float[N,4] y) { a = my.domain.Act(x)  y = Add(a, a) }
<domain: "my.domain", opset_import: ["": 16, "ai.gemedge": 1]> Act (X) => (Y) {
  D = Add(X, X)  Y = ai.gemedge.GEM<n=2, epsilon=0.5>(D) }"""


@pytest.mark.parametrize("opset", ["16", "18"])
@pytest.mark.parametrize("options", [[], ["--opset", "17", "--gem", "primitive"]])
def test_onnx_with_a_gem_node_in_a_function_of_its_own_exports_at_any_opset(opset, options):
    text = LOCAL.replace('"" : 16', f'"" : {opset}').replace('"": 16', f'"": {opset}')
    Path("local.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    assert gemedge("local.onnx", "-o", "model.onnx", "--quiet", *options) == 0
    listed = {entry.key: entry.value for entry in onnx.load("model.onnx").metadata_props}["gemedge.activations"]
    assert [entry["activation"] for entry in json.loads(listed)] == ["egem(n=2, epsilon=0.5)"]
    x = X.reshape(6, 4)
    check_runs(x=x, wanted=2 * Activation.egem(2, 0.5)(2 * x.numpy()))


def test_a_quantized_model_of_float_operators_exports_again_at_any_opset():
    torch.manual_seed(0)
    captured = capture_module(nn.Sequential(nn.Linear(4, 5), gnn.GEM(2)), X.reshape(6, 4)).model
    name = captured.graph.inputs[0].name
    ranges = calibrate(captured, [{name: X.reshape(6, 4).numpy()}])
    content = to_qdq(quantize(captured, ranges, scheme="int8", rounding=Rounding.SINGLE))
    Path("qdq.onnx").write_bytes(content)
    for form, opset in (("function", "18"), ("primitive", "17"), ("custom", "21")):
        assert gemedge("qdq.onnx", "-o", f"{form}.onnx", "--gem", form, "--opset", opset, "--quiet") == 0
        kinds = [node.op_type for node in onnx.load(f"{form}.onnx").graph.node]
        assert ("GEM" in kinds) == (form != "primitive")
        assert not [kind for kind in kinds if kind.startswith("Quantized")]


def test_named_inputs_with_types_and_a_named_example_in_any_order(capsys):
    torch.save(TwoNamed(), "model.pt")
    own = ["--allow", "test_cli_export.TwoNamed"]
    shapes = ["--input-shape", "scale:n", "--input-shape", "tokens:n,length:int64"]
    assert gemedge("model.pt", *own, *shapes, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(v["name"], v["type"]) for v in told["inputs"]] == [("scale", "float32"), ("tokens", "int64")]
    assert told["inputs"][1]["shape"] == [told["inputs"][0]["shape"][0], "length"]
    tokens, scale = np.arange(10).reshape(2, 5), np.array([0.5, -0.25])
    np.savez("x.npz", scale=scale, tokens=tokens)
    assert gemedge("model.pt", *own, "--example", "x.npz", "--force", "--quiet") == 0
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    got = session.run(None, {"tokens": tokens, "scale": scale.astype(np.float32)})[0]
    np.testing.assert_allclose(got, GEM().activation(tokens.sum(1) * scale), atol=1e-6)
    gnn.save(TwoNamed(), "saved.pt", {"tokens": torch.from_numpy(tokens), "scale": torch.ones(2)})
    assert gemedge("saved.pt", "--example", "x.npz", "--quiet") == 0
    assert gemedge("saved.pt", "--input-shape", "tokens:2,7", "--force", "--quiet") == 2  # the file fixes the length
    assert "--input-shape: 'tokens' cannot be [2, 7]; the file holds it as [?, 5]" in capsys.readouterr().err
    assert gemedge("saved.pt", "--input-shape", "scale:3", "--input-shape", "tokens:3,5", "--force", "--quiet") == 0
    assert gemedge("saved.pt", "--input-shape", "other:3", "--force", "--quiet") == 2
    assert "--input-shape: the model has no input 'other'; it takes 'tokens', 'scale'" in capsys.readouterr().err


def test_json_says_what_was_written_and_quiet_says_nothing(capsys):
    gnn.save(MODEL, "model.pt", X)
    assert gemedge("model.pt", "--json", "-o", "out.onnx", "--external-data", "--gem", "primitive") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == {name: os.path.getsize(name) for name in ("out.onnx.data", "out.onnx")}
    assert (told["format"], told["gem"], told["opset"]) == ("onnx", "primitive", 18)
    assert told["inputs"] == [{"name": "input", "type": "float32", "shape": ["batch", 12]}]
    assert told["outputs"] == [{"name": "output", "type": "float32", "shape": ["batch", 5]}]
    assert told["activations"] == [
        {"node": "1", "activation": "egem(n=2, epsilon=0.5)"},
        {"node": "3", "activation": "segem(n=1, epsilon=0.25)"},
    ]
    assert {entry["probe"] for entry in told["compared"]} >= {"example", "zeros", "three samples"}
    assert all(entry["max_abs"] <= entry["allowed"] for entry in told["compared"])
    assert gemedge("model.pt", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_a_shape_too_many_is_a_usage_error(capsys):
    torch.save(MODEL, "model.pt")
    assert gemedge("model.pt", "--input-shape", "?,12", "--input-shape", "?,12") == 2
    assert "--input-shape: the model has no input number 2; it takes 'input'" in capsys.readouterr().err


def test_an_existing_file_needs_force_and_no_check_says_so(capsys):
    gnn.save(MODEL, "model.pt", X)
    Path("model.onnx").write_text("mine")
    assert gemedge("model.pt") == 6
    assert capsys.readouterr().err == "gemedge: model.onnx exists; --force replaces it\n"
    assert Path("model.onnx").read_text() == "mine"
    assert gemedge("model.pt", "--force", "--no-check") == 0
    assert "not compared (--no-check)" in capsys.readouterr().out
    check_runs()


def test_the_same_file_whatever_its_name_and_folder(folder):
    gnn.save(MODEL, "model.pt", X)
    Path("elsewhere").mkdir()
    Path("elsewhere/net.bin").write_bytes(Path("model.pt").read_bytes())
    assert gemedge("model.pt", "--quiet") == 0
    assert gemedge(folder / "elsewhere/net.bin", "-q") == 0
    assert Path("elsewhere/net.onnx").read_bytes() == Path("model.onnx").read_bytes()


def test_a_failed_check_writes_nothing_and_names_the_worst_output(monkeypatch, capsys):
    to_onnx = importlib.import_module("gemedge.export.to_onnx")
    true = to_onnx.to_onnx

    def perturbed(model, *arguments, **options):
        wrong = model.clone()
        bias = wrong.graph.initializers["4.bias"]
        array = bias.const_value.numpy().copy()
        array[3] += 0.25
        import onnx_ir as ir

        bias.const_value = ir.tensor(array, name="4.bias")
        return true(wrong, *arguments, **options)

    monkeypatch.setattr(to_onnx, "to_onnx", perturbed)
    gnn.save(MODEL, "model.pt", X)
    assert gemedge("model.pt") == 1
    shown = capsys.readouterr()
    assert "the exported model differs from the original: output 'output' on " in shown.err
    assert ", 3]: " in shown.err
    assert "off by 0.25 (" in shown.err
    assert shown.out == ""
    assert sorted(os.listdir()) == ["model.pt"]


@pytest.mark.parametrize(
    ("wrong", "passes"),
    [(1e-6, True), (1e-2, False), (np.nan, False), (np.inf, False)],
)
def test_comparison_finds_the_worst_element(wrong, passes):
    wanted = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)
    got = wanted.copy()
    got[1, 0] += np.float32(wrong)
    found = check.compare("example", "y", wanted, got)
    assert (found.index, found.passes) == ((1, 0), passes)


@pytest.mark.parametrize(
    ("wanted", "got", "ulp"),
    [
        (np.float32([1, 2, 3]), np.float32([1, 2, np.nextafter(np.float32(3), np.float32(4))]), 1),
        (np.float32([0, 1]), np.float32([-0.0, 1]), 0),
        (np.float32([-1.4e-45, 1]), np.float32([1.4e-45, 1]), 2),
        (np.float32([1, 0]), np.float32([-1, 0]), 2 * 0x3F800000),
        (np.float16([1, np.nan]), np.float16([1.001, np.nan]), 1),
        (np.float64([-1.7e308]), np.float64([1.7e308]), 2 * struct.unpack("<q", struct.pack("<d", 1.7e308))[0]),
        (np.int64([7, 9]), np.int64([7, 4]), 5),
        (np.float32([]), np.float32([]), 0),
        (np.float32(2), np.float32(2), 0),
    ],
)
def test_comparison_counts_units_in_the_last_place(wanted, got, ulp):
    assert check.compare("example", "y", wanted, got).max_ulp == ulp


def test_comparison_in_blocks_is_that_of_the_whole(monkeypatch):
    wanted = np.random.default_rng(0).standard_normal((6, 7)).astype(np.float32)
    got = wanted + np.random.default_rng(1).standard_normal((6, 7)).astype(np.float32)
    whole = check.compare("example", "y", wanted, got)
    error = np.abs(wanted.astype(np.float64) - got)
    assert (whole.index, whole.max_abs) == (np.unravel_index(error.argmax(), error.shape), error.max())
    monkeypatch.setattr(check, "_BLOCK", 5)
    assert check.compare("example", "y", wanted, got) == whole


@pytest.mark.parametrize(
    ("text", "name", "dims", "dtype"),
    [
        ("1,3,32,32", "", (1, 3, 32, 32), ""),
        ("x:?,3", "x", ("?", 3), ""),
        ("tokens:batch,128:int64", "tokens", ("batch", 128), "int64"),
        ("4,12:float32", "", (4, 12), "float32"),
        ("12:uint8", "", (12,), "uint8"),
        ("n:int64", "", ("n",), "int64"),
        ("x:n", "x", ("n",), ""),
    ],
)
def test_a_shape_is_read_as_it_is_written(text, name, dims, dtype):
    assert InputShape.parse(text) == InputShape(name, dims, dtype)


@pytest.mark.parametrize("text", ["", "1,,3", "0,3", "x:", "12:3", "1,3:x:int64", "-1,3"])
def test_a_shape_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=r"is not sizes such as|is not one of float16"):
        InputShape.parse(text)


COMMAND = [sys.executable, "-m", "gemedge"]


def shell(script: str, **environment: str) -> str:
    return subprocess.run(
        COMMAND, env={**os.environ, "PYTHONPATH": package(), **environment}, capture_output=True, text=True
    ).stdout


def package() -> str:
    return str(Path(cli.__file__).parents[2])


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_shell_completion_prints_a_script(name):
    script = shell("", _GEMEDGE_COMPLETE=f"{name}_source")
    assert "_GEMEDGE_COMPLETE" in script
    assert "gemedge" in script.splitlines()[0] or name != "zsh"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("gemedge ex", {"plain,export"}),
        ("gemedge export --g", {"plain,--gem"}),
        ("gemedge export --gem p", {"plain,primitive"}),
    ],
)
def test_shell_completion_completes_commands_options_and_choices(words, wanted):
    shown = shell("", _GEMEDGE_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
    assert set(shown.split()) == wanted


SWEEP = ["activation", "gem(1)", "--sweep", "--ns", "1", "--epsilons", "1", "--formats", "Q3.12", "--jobs", "1"]


@pytest.mark.parametrize(
    ("arguments", "phases"),
    [
        (["export", "model.pt"], ["gemedge export model.pt: building", ": tracing", ": comparing"]),
        (["export", "model.pt", "--quiet"], []),
        (SWEEP, ["certifying"]),
        ([*SWEEP, "--quiet"], []),
    ],
)
def test_long_work_shows_its_progress_on_a_terminal_unless_quiet(arguments, phases):
    gnn.save(MODEL, "model.pt", X)
    reader, terminal = os.openpty()
    environment = {**os.environ, "PYTHONPATH": package(), "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([*COMMAND, *arguments], env=environment, stderr=terminal, stdout=subprocess.DEVNULL) as run:
        os.close(terminal)
        shown = b""
        with suppress(OSError):  # Linux's way to say that the other end is closed
            while part := os.read(reader, 4096):
                shown += part
    os.close(reader)
    assert run.returncode == 0
    assert all(phase in shown.decode() for phase in phases)
    assert bool(shown) == bool(phases)


def test_help_lists_each_option_and_starts_no_library():
    shown = subprocess.run(
        [*COMMAND, "export", "--help"], env={**os.environ, "PYTHONPATH": package()}, capture_output=True, text=True
    ).stdout
    command = importlib.import_module("gemedge.cli.export").command
    options = [name for parameter in command.params for name in parameter.opts if name.startswith("-")]
    assert len(options) >= 15
    for name in options:
        assert name in shown

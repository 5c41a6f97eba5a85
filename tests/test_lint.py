"""Findings before the work: what is lost in a format, what has no integer form, what was found among primitives."""

import json

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from test_prepare import parsed

import gemedge.quant.job as job
from gemedge import ModelError, confined
from gemedge.capture import forms
from gemedge.cli import _status
from gemedge.quant import lint
from gemedge.quant.formats import Formats
from gemedge.quant.histogram import Histogram
from gemedge.quant.prepare import Prepared, prepare
from gemedge.quant.ranges import Range, Ranges

INT8, INT16 = Formats("int8"), Formats("int16x8")
BODY = """h = MatMul (x, w) a = ai.gemedge.GEM <n = 1, epsilon = 0.01> (h)
    s = MatMul (a, w) y = ai.gemedge.SEGEM <n = 2, epsilon = 0.01> (s)"""
MODEL = parsed("g", BODY, "float[n,4] x", "float[n,4] y", {"w": np.ones((4, 4))})


def ranges(typical: dict[str, float] | None = None, **ends: tuple[float, float]) -> Ranges:
    return Ranges({name: Range(*pair) for name, pair in ends.items()}, "minmax", 10, typical or {})


def test_an_epsilon_below_one_lsb_is_named_with_both():
    found = lint.of_ranges(MODEL, ranges(h=(-2.55, 2.55), s=(-1.0, 1.55)), INT8)
    assert found == [
        "node 'GEM_1': epsilon 0.01 of egem(n=1, epsilon=0.01) is below one LSB of its input, 0.02 in int8:"
        " it is ReLU there"
    ]
    assert "SEGEM_3" in lint.of_ranges(MODEL, ranges(s=(-2.0, 2.0)), INT8)[0]
    assert "its tail below 0 is lost" in lint.of_ranges(MODEL, ranges(s=(-2.0, 2.0)), INT8)[0]
    assert lint.of_ranges(MODEL, ranges(h=(-2.55, 2.55), s=(-2.0, 2.0)), INT16) == []


@pytest.mark.parametrize(
    ("formats", "ends", "typical", "finding"),
    [
        (
            INT8,
            (0.0, 100.0),
            0.1,
            "tensor 'x' reaches 100, but half of its numbers other than 0 are below 0.1; one LSB",
        ),
        (INT8, (0.0, 100.0), 0.3, ""),
        (INT8, (0.0, 100.0), 0.0, ""),
        (INT16, (-100.0, 1.0), 0.09, "tensor 'x' reaches 100, but half"),
        (INT16, (-100.0, 1.0), 0.1, ""),
        (INT8, (0.5, 0.5), 0.5, "tensor 'x' is always 0.5 on this data: its range has no width"),
    ],
)
def test_a_range_that_its_format_cannot_serve_is_named(formats, ends, typical, finding):
    (line,) = lint.of_ranges(MODEL, ranges({"x": typical}, x=ends), formats) or [""]
    assert line.startswith(finding) and bool(line) == bool(finding)  # noqa: PT018
    assert lint.of_ranges(MODEL, ranges({"z": 1e-9}, z=(0.0, 100.0)), INT8) == []  # no tensor of the model


def test_two_varying_tensors_without_an_integer_form_are_named_all_at_once():
    body = "a = MatMul (x, w) q = Div (x, a) p = Pow (q, a) m = Max (p, x) s = Add (m, x) y = Sqrt (s)"
    made = prepare(parsed("g", body, "float[n,4] x", "float[n,4] y", {"w": np.ones((4, 4))}))
    assert lint.of_graph(made) == [
        "node 'Div_1' (Div): its operands 'a' and 'x' both vary; it has no integer form",
        "node 'Pow_2' (Pow): its operands 'a' and 'q' both vary; it has no integer form",
        "node 'Max_3' (Max): its operands 'p' and 'x' both vary; it has no integer form",
    ]


@pytest.mark.parametrize(
    ("numbers", "wanted"),
    [([0, 0, 0, 1, -2, 4], 2.0), ([0.0, 0.0], 0.0), ([-3.0], 3.0), ([1.0, -1.0, 64.0, 64.0], 1.0)],
)
def test_the_typical_magnitude_is_the_median_without_zeros(numbers, wanted):
    histogram = Histogram()
    histogram.add(np.array(numbers, np.float32))
    assert histogram.typical() == pytest.approx(wanted, rel=1 / 128)


def test_preparing_in_the_child_gives_what_preparing_here_does():
    primitive = forms.to_form(MODEL.clone(), "primitive")
    here, there = prepare(primitive), job.prepare_confined(primitive)
    assert (here.notes, here.findings) == (there.notes, there.findings)
    assert len(here.findings) == 2
    assert ir.to_proto(here.model).SerializeToString(deterministic=True) == ir.to_proto(there.model).SerializeToString(
        deterministic=True
    )
    assert isinstance(there, Prepared)


def test_a_preparation_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(confined, "_CHILD", "slow_preparation")
    with pytest.raises(ModelError, match=r"^preparing it took more than 1 seconds of processor time$"):
        job.prepare_confined(MODEL)


TEXT = """<ir_version: 9, opset_import: ["": 20]>
g (float[batch, 4] x) => (float[batch, 4] z)
<float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}, float zero = {0.0}, float one = {1.0}, float e = {0.001}>
{ h = MatMul(x, w) r = Max(h, zero) q = Div(e, r) p = Mul(q, q) d = Add(p, one) g = Div(r, d) z = MatMul(g, w) }"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_quantize_tells_its_findings_and_q_keeps_quiet(folder, capsys):
    assert _status(["quantize", "m.onnx", "--data", "d.npz", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)["findings"]
    assert "5 operators compute egem(n=1, epsilon=0.001) and became one" in found[0]
    assert "is below one LSB of its input" in found[1]
    assert printed.err.splitlines() == [f"gemedge: {line}" for line in found]
    assert _status(["quantize", "m.onnx", "--data", "d.npz", "-q", "--force"]) == 0
    assert capsys.readouterr().err == ""


def test_json_has_the_notes_on_the_data(folder, capsys):
    onnx.save(onnx.parser.parse_model(TEXT.replace("batch", "3")), "three.onnx")
    assert _status(["quantize", "three.onnx", "--data", "d.npz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [
        "the model takes 3 samples at a time; the last 1 are left out"
    ]


def test_calibrate_names_the_tensors_that_quantize_asks_for(folder, capsys):
    assert _status(["calibrate", "m.onnx", "--data", "d.npz", "-o", "r.json"]) == 0
    assert list(Ranges.from_json((folder / "r.json").read_bytes())) == ["x", "h", "g", "z"]
    assert "compute egem" in capsys.readouterr().err
    assert _status(["quantize", "m.onnx", "--data", "d.npz", "--ranges", "r.json"]) == 0
    with_ranges = (folder / "m.gemq").read_bytes()
    assert _status(["quantize", "m.onnx", "--data", "d.npz", "--force"]) == 0
    assert (folder / "m.gemq").read_bytes() == with_ranges


def test_what_cannot_be_quantized_is_told_before_calibration(folder, capsys):
    onnx.save(onnx.parser.parse_model(TEXT.replace("g = Div(r, d)", "g = Div(x, d)")), folder / "m.onnx")
    assert _status(["quantize", "m.onnx", "--data", "d.npz"]) == 4
    assert "its operands " in capsys.readouterr().err.splitlines()[0]


CUSTOM = """<ir_version: 8, opset_import: ["": 18, "ai.gemedge": 1]>
g (float[batch, 4] x) => (float[batch, 4] z) <float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}>
{ h = MatMul(x, w) a = ai.gemedge.GEM<n=1>(h) b = MatMul(a, w) c = ai.gemedge.SEGEM<n=1>(b)
  s = Sigmoid(c) t = Mul(s, c) z = MatMul(t, w) }"""


def test_shapes_are_known_behind_activations_without_a_function_body(folder, capsys):
    onnx.save(onnx.parser.parse_model(CUSTOM), folder / "m.onnx")
    assert _status(["quantize", "m.onnx", "--data", "d.npz", "--json"]) == 0
    layers = [error["layer"] for error in json.loads(capsys.readouterr().out)["errors"]]
    assert sorted(layers) == ["a", "b", "c", "h", "t", "z"]

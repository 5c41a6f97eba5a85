"""Layers quantized otherwise than the rest: the TOML file, and integers where two schemes meet."""

import itertools
import json

import independent
import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from float_runs import float_tensors, ranges_of
from test_cli_quantize import gemedge
from test_simulate import every_operator
from torch import nn

import gemedge.nn as gnn
from gemedge import UsageError, model_file
from gemedge.capture import capture_module
from gemedge.fixed import Rounding
from gemedge.model import SCHEMES
from gemedge.quant.choose import Choice
from gemedge.quant.config import Config, Rule
from gemedge.quant.quantize import quantize, reals_of
from gemedge.quant.ranges import Range
from gemedge.quant.simulate import simulate

ROUNDINGS = [(Rounding.SINGLE, SCHEMES), (Rounding.DOUBLE, ("int8", "q7"))]
PAIRS = [
    (first, second, rounding) for rounding, known in ROUNDINGS for first, second in itertools.product(known, known)
]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    model, x = every_operator()
    found = capture_module(model.eval(), x[:1], opset=20)
    tensors = float_tensors(found.model, {found.model.graph.inputs[0].name: x.numpy()})
    ranges = {name: Range(float(values.min()), float(values.max())) for name, values in tensors.items()}
    return found.model, ranges, x.numpy(), tensors


def same_integers(model, ranges, x, scheme, rounding, scheme_of):
    """The quantized model, after a second reading of its file gave the same integers at every layer."""
    quantized = quantize(model, ranges, scheme=scheme, rounding=rounding, scheme_of=scheme_of)
    names = [layer.name for layer in quantized.layers]
    ours = simulate(quantized, {"x": x}, layers=names, raw=True)
    theirs = independent.run(model_file.save(quantized), {quantized.inputs[0]: x})
    for layer in quantized.layers:
        np.testing.assert_array_equal(ours[layer.name], np.broadcast_to(theirs[layer.output], ours[layer.name].shape))
    return quantized


@pytest.mark.parametrize(("first", "second", "rounding"), [pair for pair in PAIRS if pair[0] != pair[1]])
def test_two_schemes_side_by_side_give_the_integers_that_the_file_prescribes(network, first, second, rounding):
    model, ranges, x, tensors = network
    every_other = {node.name for node in itertools.islice(model.graph, 0, None, 2)}
    quantized = same_integers(model, ranges, x, first, rounding, lambda name: second if name in every_other else None)
    widths = {tensor.quantized.bits for tensor in quantized.tensors.values()}
    assert widths == {8 if scheme in ("int8", "q7") else 16 for scheme in (first, second)}
    for name, values in simulate(quantized, {"x": x}).items():
        assert 10 * np.log10(np.square(tensors[name]).mean() / np.square(values - tensors[name]).mean()) > 12, name


@pytest.mark.parametrize("kind", ["GEM", "Add", "Concat", "Conv", "Gemm", "Relu", "AveragePool", "Mul"])
@pytest.mark.parametrize(("scheme", "other"), [("int8", "int16x8"), ("int16x8", "int8"), ("q7", "q15"), ("q15", "q7")])
def test_one_kind_of_layer_in_another_width(network, kind, scheme, other):
    model, ranges, x, _ = network
    names = {node.name for node in model.graph if node.op_type == kind}
    assert names
    quantized = same_integers(model, ranges, x, scheme, Rounding.SINGLE, lambda name: other if name in names else None)
    bits = 8 if other in ("int8", "q7") else 16
    made = [quantized.tensors[layer.output] for layer in quantized.layers if layer.name in names]
    assert made
    assert all(tensor.quantized.bits == bits for tensor in made)


def test_the_float_constants_of_any_two_schemes_are_found_again(network):
    model, ranges, *_ = network
    for one, other in itertools.permutations(SCHEMES, 2):
        rule = dict.fromkeys([node.name for node in model.graph][::2], other)
        quantized = quantize(model, ranges, scheme=one, rounding=Rounding.SINGLE, scheme_of=rule.get)
        weighted = [layer.name for layer in quantized.layers if hasattr(layer, "weight")]
        reals = reals_of(model, quantized)
        assert len(weighted) >= 3
        for name in weighted:
            codes = quantized.layer(name).weight
            scales = reals[name].scales.reshape(-1, *[1] * (codes.ndim - 1))
            assert np.abs(codes * scales - reals[name].weight).max() <= 0.51 * scales.max(), (one, other, name)


def test_a_relu_of_another_scheme_is_a_layer_of_its_own(network):
    torch.manual_seed(0)
    found = capture_module(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(1, 3))
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    ranges = ranges_of(float_tensors(found.model, {found.model.graph.inputs[0].name: x}))
    fused = quantize(found.model, ranges, scheme="int8", rounding=Rounding.SINGLE)
    split = quantize(found.model, ranges, scheme="int8", rounding=Rounding.SINGLE, scheme_of={"1": "int16x8"}.get)
    assert [type(layer).__name__ for layer in fused.layers] == ["Dense"]
    assert [type(layer).__name__ for layer in split.layers] == ["Dense", "Activate"]


def test_later_rules_win_key_by_key():
    config = Config.from_toml(
        b'[[layer]]\nname = "a*"\nscheme = "q15"\nrange = [-1, 2.5]\n[[layer]]\nname = "ab"\nscheme = "q7"\n'
        b'[[layer]]\nname = "x[0]"\nmethod = "percentile"\npercentile = 99\n'
    )
    assert [config.scheme_of(name) for name in ("a", "ab", "abc", "b")] == ["q15", "q7", "q15", None]
    assert config.rules[0] == Rule("a*", "q15", Range(-1.0, 2.5))
    assert config.rules[2].names("x[0]")
    assert not config.rules[2].names("X0")


ERRORS = {
    "no TOML": ("name = ", "it is not TOML: "),
    "no text": (b"\xff", "it is not TOML: "),
    "an unknown key": ("schema = 'int8'", "key 'schema' is not one of scheme, rounding, layer"),
    "an unknown scheme": ("scheme = 'int4'", "scheme: 'int4' is not one of int8, int16x8, q7, q15"),
    "a scheme that is a list": ("scheme = ['int8']", "scheme: \"['int8']\" is not one of int8"),
    "an unknown rounding": ("rounding = 'up'", "rounding: 'up' is not one of single, double"),
    "a layer that is no table": ("layer = 3", "layer: it must be tables, each begun by [[layer]]"),
    "a lone table": ("[layer]\nname = 'a'", "layer: it must be tables, each begun by [[layer]]"),
    "no name": ("[[layer]]\nscheme = 'q7'", "layer table 1: name: it is missing"),
    "an empty name": ("[[layer]]\nname = ''\nscheme = 'q7'", "layer table 1 (''): name: it must not be empty"),
    "a name that is a number": ("[[layer]]\nname = 1\nscheme = 'q7'", "layer table 1: name: '1' is not a text"),
    "nothing set": ("[[layer]]\nname = 'a'", "layer table 1 ('a'): it sets neither scheme nor range nor method"),
    "an unknown key of a layer": (
        "[[layer]]\nname = 'a'\nbits = 4",
        "layer table 1 ('a'): key 'bits' is not one of name, scheme, range, method, percentile",
    ),
    "an unknown scheme of the second": (
        "[[layer]]\nname = 'a'\nscheme = 'q7'\n[[layer]]\nname = 'b'\nscheme = 'Q7'",
        "layer table 2 ('b'): scheme: 'Q7' is not one of int8, int16x8, q7, q15",
    ),
    "one end": ("[[layer]]\nname = 'a'\nrange = [1]", "range: [1] is not [low, high] of finite numbers"),
    "ends of text": ("[[layer]]\nname = 'a'\nrange = ['1', '2']", "is not [low, high] of finite numbers"),
    "ends of truth": ("[[layer]]\nname = 'a'\nrange = [false, true]", "is not [low, high] of finite numbers"),
    "infinite ends": ("[[layer]]\nname = 'a'\nrange = [-inf, 1]", "range: [-inf, 1] is not [low, high]"),
    "ends the wrong way": ("[[layer]]\nname = 'a'\nrange = [2, 1]", "range: range [2.0, 1.0] must be two finite"),
    "an end too large": (f"[[layer]]\nname = 'a'\nrange = [0, 1{'0' * 400}]", "range: "),
    "an unknown method": ("[[layer]]\nname = 'a'\nmethod = 'best'", "('a'): method 'best' is not one of minmax"),
    "a percentile too low": (
        "[[layer]]\nname = 'a'\nmethod = 'percentile'\npercentile = 7",
        "percentile 7 is not between 50 and 100",
    ),
    "a percentile alone": ("[[layer]]\nname = 'a'\nscheme = 'q7'\npercentile = 99", "it needs method"),
    "range and method": ("[[layer]]\nname = 'a'\nrange = [0, 1]\nmethod = 'mse'", "range and method exclude each"),
    "deep nesting": ("a = " + "[" * 100_000, "it is not TOML: "),
    "too large": ("#" * (1 << 21), "it is larger than 1 MiB"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_a_bad_configuration_names_table_and_key(kind):
    text, message = ERRORS[kind]
    with pytest.raises(UsageError) as caught:
        Config.from_toml(text if isinstance(text, bytes) else text.encode())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_node_without_a_name_is_called_as_its_output():
    text = (
        '<ir_version: 8, opset_import: ["": 18]> g (float[batch, 2] x) => (float[batch, 2] z) { h = Neg(x) z = Abs(h) }'
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    config = Config((Rule("h", "int16x8"), Rule("x", "int16x8")))
    config.check_names(model)
    ranges = dict.fromkeys("xhz", Range(-1.0, 1.0))
    made = quantize(model, ranges, scheme="int8", rounding=Rounding.SINGLE, scheme_of=config.scheme_of)
    assert {name: tensor.quantized.bits for name, tensor in made.tensors.items()} == {"x": 16, "h": 16, "z": 8}
    with pytest.raises(UsageError, match="no layer has it; there are 'x', 'h', 'z'"):
        Config((Rule("w", "q7"),)).check_names(model)


# From the command line


@pytest.fixture
def folder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 8), gnn.GEM(1), nn.Linear(8, 8), nn.ReLU(), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(8, 2)
    )
    gnn.save(model, tmp_path / "m.pt", torch.randn(1, 3))
    np.savez(tmp_path / "d.npz", input=np.random.default_rng(1).standard_normal((200, 3)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quantized(folder, text, capsys, *arguments):
    (folder / "c.toml").write_text(text)
    assert gemedge("quantize", "m.pt", "--data", "d.npz", "--config", "c.toml", "--json", *arguments) == 0
    printed = capsys.readouterr()
    return model_file.load((folder / "m.gemq").read_bytes()), json.loads(printed.out), printed.err


def test_rules_reach_the_file(folder, capsys):
    text = "scheme = 'int16x8'\n[[layer]]\nname = '1'\nscheme = 'int8'\n[[layer]]\nname = '6'\nrange = [-8, 8]\n"
    made, _, err = quantized(folder, text, capsys)
    bits = {layer.name: made.tensors[layer.output].quantized.bits for layer in made.layers}
    assert (made.scheme, bits["0"], bits["1"], bits["2"]) == ("int16x8", 16, 8, 16)
    assert made.tensors[made.layer("6").output].quantized.scale == np.float32(8 / 32767)
    assert err == ""


def test_the_command_line_wins_over_the_file(folder, capsys):
    made, told, _ = quantized(folder, "scheme = 'q15'\nrounding = 'double'\n", capsys, "--scheme", "q7")
    assert (made.scheme, made.rounding.value, told["scheme"]) == ("q7", "double", "q7")


def test_a_method_for_one_layer_narrows_its_range(folder, capsys):
    whole, _, _ = quantized(folder, "", capsys)
    text = "[[layer]]\nname = '0'\nmethod = 'percentile'\npercentile = 90\n"
    cut, _, _ = quantized(folder, text, capsys, "--force")
    scales = {
        name: [made.tensors[made.layer(name).output].quantized.scale for made in (whole, cut)] for name in ("0", "2")
    }
    assert scales["0"][1] < 0.8 * scales["0"][0]
    assert scales["2"][1] == scales["2"][0]


def test_a_range_is_found_for_the_width_of_its_own_layer(network):
    model = network[0]
    first = next(node.name for node in model.graph if node.op_type == "Conv")
    config = Config((Rule(first, "int16x8"),))
    choices = config.choices(model, Choice("mse"), "int8")
    assert list(choices.values()) == [Choice("mse", bits=16, symmetric=True)]
    with pytest.raises(UsageError, match=f"layer '{first}', int16x8: method entropy is defined for 8 bits"):
        config.choices(model, Choice("entropy"), "int8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[layer]]\nname = '5'\nscheme = 'q15'", "c.toml: layer table 1 ('5'): scheme: no layer of this name has a"),
        ("[[layer]]\nname = '2'\nrange = [0, 1]", "c.toml: layer table 1 ('2'): range: no layer of this name has a"),
    ],
)
def test_a_rule_that_changed_nothing_is_told(text, message, folder, capsys):
    _, _, err = quantized(folder, text, capsys)
    lines = err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[layer]]\nname = 'conv*'\nscheme = 'q7'", "c.toml: layer table 1 ('conv*'): name: no layer has it; there"),
        ("scheme = 4", "c.toml: scheme: '4' is not one of int8"),
        (None, "c.toml: No such file or directory"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(text, message, folder, capsys):
    if text is not None:
        (folder / "c.toml").write_text(text)
    before = sorted(folder.iterdir())
    assert gemedge("quantize", "m.pt", "--data", "d.npz", "--config", "c.toml") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert sorted(folder.iterdir()) == before

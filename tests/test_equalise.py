"""Equalisation and bias correction: the float function is kept, and what each gains is measured."""

import json

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from float_runs import float_tensors, ranges_of
from test_cli_quantize import gemedge
from torch import nn

import gemedge.nn as gnn
from gemedge import DataError, model_file
from gemedge.capture import capture_module, forms
from gemedge.fixed import Rounding
from gemedge.model import SCHEMES
from gemedge.quant.bias_correction import correct_biases
from gemedge.quant.equalise import equalise
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import simulate

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((64, 3, 8, 8)).astype(np.float32)


def unbalanced(between: nn.Module) -> nn.Module:
    """Channel 2 is a hundred times as large between the two convolutions as the others are; the function is sound."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), between, nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].weight[2] *= 100
        model[0].bias[2] *= 100
        model[2].weight[2] /= 100
    return model


def captured(model: nn.Module, x: np.ndarray) -> ir.Model:
    return capture_module(model, torch.from_numpy(x[:1]), opset=20).model


def outputs(model: ir.Model, x: np.ndarray) -> np.ndarray:
    shown = forms.to_form(model.clone(), "function")
    session = onnxruntime.InferenceSession(ir.to_proto(shown).SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def in_integers(model: ir.Model, x: np.ndarray, scheme="int8"):
    ranges = ranges_of(float_tensors(model, {model.graph.inputs[0].name: x}))
    return quantize(model, ranges, scheme=scheme, rounding=Rounding.SINGLE)


def decibels(exact: np.ndarray, found: np.ndarray) -> float:
    return 10 * np.log10(np.square(exact).sum() / np.square(found - exact).sum())


def sqnr(quantized, model: ir.Model, x: np.ndarray) -> float:
    return decibels(outputs(model, x), next(iter(simulate(quantized, {"input": x}).values())))


def test_equalisation_keeps_the_function_and_gains_decibels():
    model = captured(unbalanced(nn.ReLU()), IMAGES)
    made = equalise(model)
    assert made.pairs == 3
    assert made.note == "3 pairs of layers equalised"
    exact = outputs(model, IMAGES)
    np.testing.assert_allclose(outputs(made.model, IMAGES), exact, rtol=1e-5, atol=1e-6 * np.abs(exact).max())
    before, after = (sqnr(in_integers(m, IMAGES), m, IMAGES) for m in (model, made.model))
    assert after > before + 10, (before, after)


def test_the_channels_of_a_pair_end_with_like_magnitudes():
    made = equalise(captured(unbalanced(nn.ReLU()), IMAGES)).model
    weights = {node.name: node.inputs[1].const_value.numpy() for node in made.graph if node.op_type in ("Conv", "Gemm")}
    outgoing, incoming = np.abs(weights["0"]).max((1, 2, 3)), np.abs(weights["2"]).max((1, 2, 3))
    np.testing.assert_allclose(outgoing, incoming, rtol=1e-2)
    np.testing.assert_allclose(np.abs(weights["5"]).max((1, 2, 3)), np.abs(weights["9"]).max(0), rtol=1e-2)


def test_the_model_given_is_left_as_it_was():
    model = captured(unbalanced(nn.ReLU()), IMAGES)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    equalise(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("between", "pairs", "note"),
    [
        (gnn.EGEM(1, 0.5), 2, "2 pairs of layers equalised; 1 not, as GEM between them would not keep the same"),
        (nn.Sigmoid(), 2, "2 pairs of layers equalised; 1 not, as Sigmoid between"),
        (nn.Identity(), 3, "3 pairs of layers equalised"),
    ],
)
def test_what_is_not_homogeneous_is_left_alone_and_told(between, pairs, note):
    model = captured(unbalanced(between), IMAGES)
    made = equalise(model)
    assert made.pairs == pairs
    assert made.note.startswith(note)
    exact = outputs(model, IMAGES)
    np.testing.assert_allclose(outputs(made.model, IMAGES), exact, rtol=1e-5, atol=1e-6 * np.abs(exact).max())


class Shared(nn.Module):
    """One layer read twice, and one weight used twice: neither may be scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        z = torch.relu(self.twice(y)) + y
        return self.last(torch.relu(self.twice(z)))


def test_shared_tensors_and_weights_are_left_alone():
    torch.manual_seed(0)
    x = RNG.standard_normal((32, 4)).astype(np.float32)
    model = captured(Shared().eval(), x)
    made = equalise(model)
    np.testing.assert_array_equal(outputs(made.model, x), outputs(model, x))
    assert made.pairs == 0


def test_dead_channels_survive():
    model = unbalanced(nn.ReLU())
    with torch.no_grad():
        model[0].weight[1] = 0
        model[5].weight[:, 3] = 0
    graph = captured(model, IMAGES)
    exact = outputs(graph, IMAGES)
    np.testing.assert_allclose(outputs(equalise(graph).model, IMAGES), exact, rtol=1e-5, atol=1e-6)


# Bias correction


def mean_errors(model: ir.Model, quantized, x: np.ndarray) -> dict[str, float]:
    """The mean error of each layer with weights, over samples and places, worst channel."""
    floats = float_tensors(model, {model.graph.inputs[0].name: x})
    names = [layer.name for layer in quantized.layers if type(layer).__name__ in ("Convolution", "Dense")]
    known = {layer.name for layer in quantized.layers}
    names = [f"{name}/clamp" if f"{name}/clamp" in known else name for name in names]
    integers = simulate(quantized, {"input": x}, layers=names, raw=True)
    found = {}
    for name in names:
        tensor = quantized.layer(name).output
        params = quantized.tensors[tensor].quantized
        error = (integers[name].astype(np.float64) - params.zero_point) * params.scale - floats[tensor]
        axes = (0, 2, 3) if error.ndim == 4 else (0,)
        found[name] = float(np.abs(error.mean(axes)).max() / params.scale)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bias_correction_lowers_the_mean_error_of_every_layer(scheme):
    model = captured(unbalanced(gnn.EGEM(1, 0.5)), IMAGES)
    quantized = in_integers(model, IMAGES, scheme)
    corrected = correct_biases(model, quantized, [{"input": IMAGES[:40]}, {"input": IMAGES[40:]}])
    before, after = (mean_errors(model, made, IMAGES) for made in (quantized, corrected.model))
    assert len(before) == 4
    assert corrected.layers >= 3
    assert sum(after.values()) < 0.5 * sum(before.values()), (before, after)
    assert all(after[name] <= max(before[name], 0.3) for name in before), (before, after)


def test_a_bias_that_was_lost_is_found_again():
    model = captured(unbalanced(nn.ReLU()), IMAGES)
    quantized = in_integers(model, IMAGES)
    spoilt = model.clone()
    ranges = ranges_of(float_tensors(model, {model.graph.inputs[0].name: IMAGES}))
    for name in ("0.bias", "5.bias", "9.bias"):
        value = spoilt.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy() * 0, name=name)
    broken = quantize(spoilt, ranges, scheme="int8", rounding=Rounding.SINGLE)
    mended = correct_biases(model, broken, [{"input": IMAGES}]).model
    worse, better, whole = (sqnr(made, model, IMAGES) for made in (broken, mended, quantized))
    assert better > worse + 10
    assert better > whole - 3


def test_the_corrected_model_is_the_same_but_for_biases():
    model = captured(unbalanced(nn.ReLU()), IMAGES)
    quantized = in_integers(model, IMAGES)
    made = correct_biases(model, quantized, [{"input": IMAGES}]).model
    assert model_file.load(model_file.save(made)).layers[0].name == quantized.layers[0].name
    for old, new in zip(quantized.layers, made.layers, strict=True):
        assert (old.name, old.inputs, old.output) == (new.name, new.inputs, new.output)
        if hasattr(old, "weight"):
            np.testing.assert_array_equal(old.weight, new.weight)


def test_no_samples_are_refused():
    model = captured(unbalanced(nn.ReLU()), IMAGES)
    with pytest.raises(DataError, match="the data has no samples"):
        correct_biases(model, in_integers(model, IMAGES), [])


# From the command line


@pytest.mark.long
def test_both_are_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gnn.save(unbalanced(nn.ReLU()), "m.pt", torch.from_numpy(IMAGES[:1]))
    np.save("d.npy", IMAGES)
    arguments = ("quantize", "m.pt", "--data", "d.npy", "--equalise", "--bias-correction")
    assert gemedge(*arguments, "--json") == 0
    told = json.loads(capsys.readouterr().out)["steps"]
    assert [step["option"] for step in told] == ["equalise", "bias correction"]
    before, after = told[0]["outputs"]["output"]
    assert after > before + 10
    assert told[1]["outputs"]["output"][0] == after
    assert told[0]["worst"][1] > told[0]["worst"][0] + 10
    assert gemedge(*arguments, "--force") == 0
    printed = capsys.readouterr().out
    worst = [f"{number:.1f}" for number in told[0]["worst"]]
    assert f"3 pairs of layers equalised; worst tensor {' -> '.join(worst)} dB" in printed
    assert f"output output {before:.1f} -> {after:.1f} dB" in printed
    assert "layers; worst tensor" in next(line for line in printed.splitlines() if line.startswith("bias correction"))


def test_given_ranges_and_equalisation_exclude_each_other(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert gemedge("quantize", "m.pt", "--data", "d.npy", "--ranges", "r.json", "--equalise") == 2
    assert capsys.readouterr().err == "gemedge: --ranges and --equalise exclude each other: ranges are found or given\n"

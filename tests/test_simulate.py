"""Quantize and simulate: the integers that the file alone prescribes, and close to the float model."""

import independent
import numpy as np
import onnx_ir as ir
import pytest
import torch
from float_runs import Range, decibels, float_tensors, ranges_of
from torch import nn

import gemedge.nn as gnn
from gemedge import DataError, ModelError, QuantizationError, UnsupportedError, model_file
from gemedge.capture import capture_module
from gemedge.fixed import Rounding
from gemedge.model import SCHEMES
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import simulate

CASES = [(scheme, Rounding.SINGLE) for scheme in SCHEMES] + [("int8", Rounding.DOUBLE), ("q7", Rounding.DOUBLE)]


class EveryOperator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.act = gnn.GEM(1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.smooth = gnn.SEGEM(2, 0.1)
        self.grouped = nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=2, bias=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.average = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.head = nn.Linear(18, 6)
        self.fine = gnn.EGEM(2, 0.01)
        self.leaky = nn.LeakyReLU(0.1)
        self.tail = nn.Linear(16 * 6, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.act(self.norm(self.stem(x)))
        y = self.smooth(self.depthwise(x)) + x
        y = y - self.grouped(y)
        y = torch.cat([self.pool(y), self.average(y) * torch.sigmoid(self.average(y))], 1)
        y = nn.functional.pad(y, (1, 2, 0, 1), value=0.25)
        y = y.flatten(2)
        z = self.fine(self.leaky(self.head(nn.functional.relu(y))))
        return {"tall": nn.functional.hardswish(y.transpose(1, 2)), "score": self.tail(torch.tanh(z).flatten(1))}


def every_operator() -> tuple[nn.Module, torch.Tensor]:
    return EveryOperator(), torch.randn(4, 3, 7, 9)


def conv1d() -> tuple[nn.Module, torch.Tensor]:
    model = nn.Sequential(
        nn.Conv1d(2, 6, 5, stride=2, padding=2),
        gnn.GEM(2),
        nn.Conv1d(6, 6, 3, groups=6),
        nn.GELU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
        gnn.SEGEM(1, 1.0),
    )
    return model, torch.randn(5, 2, 21)


def mlp() -> tuple[nn.Module, torch.Tensor]:
    layers = [
        nn.Linear(20, 16),
        gnn.EGEM(1, 1e-4),
        nn.Linear(16, 16),
        gnn.EGEM(1, 10.0),
        nn.Linear(16, 5),
        nn.Sigmoid(),
    ]
    return nn.Sequential(*layers), torch.randn(6, 20)


MAKERS = {"every operator": every_operator, "conv1d": conv1d, "mlp": mlp}


@pytest.fixture(scope="module", params=MAKERS, ids=str)
def captured(request):
    torch.manual_seed(3)
    model, x = MAKERS[request.param]()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
    found = capture_module(model.eval(), x[:1], opset=20)
    tensors = float_tensors(found.model, {found.model.graph.inputs[0].name: x.numpy()})
    return found.model, ranges_of(tensors), x.numpy(), tensors


@pytest.mark.parametrize(("scheme", "rounding"), CASES)
def test_a_second_reading_of_the_file_gives_the_same_integers_at_every_layer(captured, scheme, rounding):
    model, ranges, x, _ = captured
    quantized = quantize(model, ranges, scheme=scheme, rounding=rounding)
    names = [layer.name for layer in quantized.layers]
    ours = simulate(quantized, {"x": x}, layers=names, raw=True)
    theirs = independent.run(model_file.save(quantized), {quantized.inputs[0]: x})
    for layer in quantized.layers:
        np.testing.assert_array_equal(ours[layer.name], np.broadcast_to(theirs[layer.output], ours[layer.name].shape))
    assert len(names) >= 6


@pytest.mark.parametrize(("scheme", "least"), [("int8", 18), ("q7", 12), ("int16x8", 30), ("q15", 55)])
def test_integers_stand_for_numbers_near_the_float_models(captured, scheme, least):
    model, ranges, x, tensors = captured
    outputs = simulate(quantize(model, ranges, scheme=scheme, rounding=Rounding.SINGLE), {"x": x})
    for name, values in outputs.items():
        assert decibels(tensors[name], values) > least, name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_file_survives_a_round_trip_and_safetensors_reads_it(captured, scheme):
    import safetensors.numpy

    model, ranges, x, _ = captured
    quantized = quantize(model, ranges, scheme=scheme, rounding=Rounding.SINGLE)
    content = model_file.save(quantized)
    again = model_file.load(content)
    assert model_file.save(again) == content
    first, second = simulate(quantized, {"x": x}, raw=True), simulate(again, {"x": x}, raw=True)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    weights = safetensors.numpy.load(content)
    assert sum(array.nbytes for array in weights.values()) > 100


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    found = capture_module(nn.Sequential(nn.Linear(3, 2), gnn.GEM(1)), torch.randn(1, 3))
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    return found.model, ranges_of(float_tensors(found.model, {"input": x}))


def test_every_flipped_bit_of_a_small_file_is_refused(small):
    model, ranges = small
    content = model_file.save(quantize(model, ranges, scheme="int8", rounding=Rounding.SINGLE))
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(ModelError):
            model_file.load(bytes(damaged))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "digest does not match"),
        (lambda content: content + b"x", "digest does not match"),
        (lambda content: content[:40], "does not fit a file of 40"),
        (lambda content: b"", "does not fit a file of 0"),
        (
            lambda content: content.replace(b'"version":"1"', b'"version":"9"'),
            "of version '9'; this gemedge reads version 1",
        ),
        (lambda content: content.replace(b'"gemedge model"', b'"some other ai"'), "its format is 'some other ai'"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(small, change, message):
    model, ranges = small
    content = model_file.save(quantize(model, ranges, scheme="int8", rounding=Rounding.SINGLE))
    with pytest.raises(ModelError, match=message):
        model_file.load(change(content))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input": np.zeros((2, 4), np.float32)}, r"has shape \[2, 4\]; the model takes \[batch, 3\]"),
        ({"input": np.full((1, 3), np.nan)}, "holds NaN or infinity"),
        ({"a": np.zeros((1, 3)), "b": np.zeros((1, 3))}, "inputs 'a', 'b'; the model takes 'input'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(small, inputs, message):
    model, ranges = small
    with pytest.raises(DataError, match=message):
        simulate(quantize(model, ranges, scheme="int8", rounding=Rounding.SINGLE), inputs)


def test_a_tensor_without_a_range_is_named(small):
    model, ranges = small
    name = next(name for name in ranges if name not in ("input", "output"))
    with pytest.raises(QuantizationError, match=f"tensor '{name}' has no range"):
        quantize(model, {k: v for k, v in ranges.items() if k != name}, scheme="int8", rounding=Rounding.SINGLE)


def test_all_operators_without_an_integer_form_are_named_at_once():
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, 1) + torch.sin(x)

    found = capture_module(Odd(), torch.randn(1, 3))
    with pytest.raises(UnsupportedError, match=r"no integer form for .*\(CumSum\), .*\(Sin\)"):
        quantize(found.model, {}, scheme="int8", rounding=Rounding.SINGLE)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_accumulator_that_could_overflow_is_refused(scheme):
    found = capture_module(nn.Sequential(nn.Linear(2**9, 2)), torch.randn(1, 2**9))
    ranges = {"input": Range(-1e-6, 1e-6), "output": Range(-1.0, 1.0)}
    found.model.graph.initializers["0.bias"].const_value = ir.tensor(np.float32([1e6, 1e9]))
    with pytest.raises(QuantizationError, match=r"node '0' \(Gemm\): a bias|layer '0': its accumulator can reach"):
        quantize(found.model, ranges, scheme=scheme, rounding=Rounding.SINGLE)

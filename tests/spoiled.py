"""Networks spoiled in one place, and what the report says of them."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from networks import NETWORKS
from torch import nn

from gemedge.capture import capture_module
from gemedge.fixed import Rounding, dequantize
from gemedge.model import QuantizedModel, Scheme
from gemedge.operators import Interpolate
from gemedge.quant.calibrate import calibrate
from gemedge.quant.compare import compare
from gemedge.quant.prepare import OPSET, prepare
from gemedge.quant.quantize import quantize, reals_of
from gemedge.quant.ranges import Range
from gemedge.quant.report import Report, report

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import mnist

CALIBRATION = 64


@dataclass(frozen=True)
class Float:
    """A prepared float model, ranges from calibration, and samples to compare on."""

    model: ir.Model
    ranges: Mapping[str, Range]
    inputs: dict[str, np.ndarray]

    @classmethod
    def of(cls, module: nn.Module, samples: torch.Tensor, compared: int) -> "Float":
        model = prepare(capture_module(module, samples[:1], opset=OPSET).model).model
        name = model.graph.inputs[0].name
        ranges = calibrate(model, [{name: samples[:CALIBRATION].numpy()}], workers=1)
        return cls(model, dict(ranges), {name: samples[:compared].numpy()})

    def tensor(self, layer: str) -> str:
        """The tensor that the node of this name makes."""
        return next(node.outputs[0].name for node in self.model.graph if node.name == layer)

    def ranged(self, layer: str, change: Callable[[Range], Range]) -> "Float":
        tensor = self.tensor(layer)
        return replace(self, ranges={**self.ranges, tensor: change(self.ranges[tensor])})

    def quantized(self, scheme: Scheme) -> QuantizedModel:
        return quantize(self.model, self.ranges, scheme=scheme, rounding=Rounding.SINGLE)

    def report(self, quantized: QuantizedModel, labels: np.ndarray | None = None) -> Report:
        reals, found = reals_of(self.model, quantized), compare(self.model, quantized, [self.inputs])
        return report(reals, quantized, found, self.inputs, labels)


def demo_cnn(make: Callable[[], nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    """The demo's network after one epoch, and test images."""
    torch.manual_seed(0)
    images, labels, test_images, _ = mnist.load()
    model = mnist.cnn(make)
    mnist.train(model, images, labels, epochs=1)
    return model.eval(), test_images[:CALIBRATION]


def resnet20(make: Callable[[], nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    """The ResNet-20 with the statistics of its samples in its batch norms, as after training: every layer counts."""
    network = NETWORKS["resnet20"]
    model, samples = network.model(make), network.inputs(16)["input"]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model.train()(samples)
    return model.eval(), samples


def louder(norm: nn.BatchNorm2d, behind: nn.Conv2d, channel: int, factor: float) -> None:
    """One channel's weights times a factor, and the next layer's divided by it: through ReLU the same function."""
    with torch.no_grad():
        norm.weight[channel] *= factor
        norm.bias[channel] *= factor
        behind.weight[:, channel] /= factor


def with_table(model: QuantizedModel, name: str) -> QuantizedModel:
    """513 entries with straight lines between them in place of an activation's kernel."""
    layer = model.layer(name)
    given, made = (model.tensors[tensor].quantized for tensor in (layer.inputs[0], layer.output))
    codes = np.minimum(np.arange(-32768, 32769, 128), 32767)
    entries = np.floor(np.asarray(layer.activation(dequantize(codes, given))) / made.scale + 0.5)
    entries = np.clip(entries + made.zero_point, made.raw_min, made.raw_max).astype(np.int16)
    table = Interpolate(layer.name, layer.inputs, layer.output, str(layer.activation), entries)
    return replace(model, layers=tuple(table if old is layer else old for old in model.layers))

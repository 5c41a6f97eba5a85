"""Images a second by integers: `OMP_NUM_THREADS=1 python -m benchmarks.simulate`.

The ResNet-8 of MLPerf Tiny with GEM, batch 64, one thread, in every scheme, beside onnxruntime's float model in the
same run. To reach: a quarter of LiteRT's int8 interpreter, which was measured at 2,500 images a second on the
reference machine: 625 in int8. And a ResNet-56 on 32x32 images in int8 on all processors: 50.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

import gemedge.nn as gnn
from benchmarks.row import Row, main
from benchmarks.timing import interleaved
from gemedge.capture import capture_module, forms
from gemedge.export.run import onnxruntime_options
from gemedge.fixed import Rounding
from gemedge.model import SCHEMES, Scheme
from gemedge.quant.calibrate import calibrate
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import simulate

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from networks import Residual

BATCH = 64
ROUNDS = 7
INT8_REACH, DEEP_REACH = 625, 50
FLOAT = "onnxruntime, float"


def rows(quick: bool) -> list[Row]:
    """Images a second of ResNet-8 in every scheme, and of ResNet-56."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32)
    found = _rows("ResNet-8, one thread", rates(resnet8(), images, SCHEMES), 1 if quick else ROUNDS, INT8_REACH)
    if quick:
        return found
    workers = os.cpu_count() or 1
    deep = rates(resnet56(), images, ["int8"], workers=workers)
    return found + _rows(f"ResNet-56, {workers} threads", deep, 3, DEEP_REACH)


def _rows(title: str, calls: dict[str, Callable[[], object]], rounds: int, reach: float) -> list[Row]:
    medians = interleaved(calls, rounds)
    peer = BATCH / medians[FLOAT]
    return [
        Row(
            f"Simulate, {title}, batch {BATCH}",
            name,
            BATCH / seconds,
            "images a second",
            at_least=reach if name == "int8" else None,
            beside={f"share of {FLOAT}": BATCH / seconds / peer},
        )
        for name, seconds in medians.items()
    ]


def rates(
    model: nn.Module, images: Tensor, schemes: "list[Scheme] | tuple[Scheme, ...]", workers: int = 1
) -> dict[str, Callable[[], object]]:
    """A call for each scheme, and one for the float model in onnxruntime with gemedge's kernel."""
    settle(model, images)
    found = capture_module(model, images[:1]).model
    name = found.graph.inputs[0].name or ""
    given = {name: images.numpy()}
    ranges = calibrate(found, [{name: images[:16].numpy()}], workers=1)
    calls: dict[str, Callable[[], object]] = {}
    for scheme in schemes:
        quantized = quantize(found, ranges, scheme=scheme, rounding=Rounding.SINGLE)
        calls[scheme] = partial(simulate, quantized, given, workers=workers)
    options = onnxruntime_options()
    options.intra_op_num_threads = workers
    content = ir.to_proto(forms.to_form(found.clone(), "function")).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    calls[FLOAT] = lambda: np.asarray(session.run(None, given)[0])
    return calls


def settle(model: nn.Module, images: Tensor) -> None:
    """Batch norms take the images' own statistics, so that numbers neither vanish nor explode; then eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    model.eval()


class Tiny(nn.Module):
    """A block of MLPerf Tiny's ResNet-8: a shortcut by a convolution where the size changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), gnn.GEM(1))
        self.second = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1), nn.BatchNorm2d(after))
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(before, after, 1, stride)
        self.last = gnn.GEM(1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.second(self.first(x)) + self.shortcut(x))
        return out


def resnet8() -> nn.Module:
    """78,666 parameters with the statistics of batch norm, 12,501,632 products an image."""
    stem = [nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), gnn.GEM(1)]
    blocks = [Tiny(16, 16, 1), Tiny(16, 32, 2), Tiny(32, 64, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet56() -> nn.Module:
    """The ResNet-56 of CIFAR-10: three stages of nine blocks."""
    make = partial(gnn.GEM, 1)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), make()]
    for before, after in ((16, 16), (16, 32), (32, 64)):
        layers += [Residual(make, before, after, after // before), *(Residual(make, after, after, 1) for _ in range(8))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


if __name__ == "__main__":
    main(rows)

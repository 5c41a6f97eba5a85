"""Images a second by integers: `OMP_NUM_THREADS=1 python -m benchmarks.simulate`.

The ResNet-8 of MLPerf Tiny with GEM, batch 64, one thread, in every scheme, by NumPy and by its C (--engine c), beside
onnxruntime's float model and LiteRT's int8 interpreter in the same run. LiteRT runs the same integers, with GEM as the
tables that its operators permit, and the same layers with Relu for GEM, which its kernels fuse. To reach: by NumPy a
quarter of what LiteRT's interpreter was measured at on the reference machine, 625 in int8; by C, GEM and all, as many
as LiteRT with Relu here. And a ResNet-56 on 32x32 images in int8 on all processors: 50.
"""

import os
import sys
from collections import Counter
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
from gemedge.export import folder, host, to_tflite
from gemedge.export.run import onnxruntime_options
from gemedge.fixed import Rounding
from gemedge.model import SCHEMES, QuantizedModel, Scheme
from gemedge.quant.calibrate import calibrate
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import border, entered, simulate

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from networks import Residual

BATCH = 64
ROUNDS = 7
INT8_REACH, DEEP_REACH = 625, 50
FLOAT = "onnxruntime, float"
BY_C = "int8, C"
LITERT, LITERT_RELU = "int8, LiteRT", "int8 with Relu, LiteRT"


def rows(quick: bool) -> list[Row]:
    """Images a second of ResNet-8 in every scheme, and of ResNet-56."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32)
    calls = rates(resnet8(), images, SCHEMES)
    for scheme in SCHEMES:
        calls[f"{scheme}, C"] = by_c(quantized(resnet8(), images, scheme), images)
    calls[LITERT] = by_litert(quantized(resnet8(), images, "int8"), images)
    calls[LITERT_RELU] = by_litert(quantized(resnet8(nn.ReLU), images, "int8"), images)
    found = _rows("ResNet-8, one thread", calls, 1 if quick else ROUNDS, INT8_REACH)
    if quick:
        return found
    workers = os.cpu_count() or 1
    deep = rates(resnet56(), images, ["int8"], workers=workers)
    return found + _rows(f"ResNet-56, {workers} threads", deep, 3, DEEP_REACH)


def _rows(title: str, calls: dict[str, Callable[[], object]], rounds: int, reach: float) -> list[Row]:
    medians = interleaved(calls, rounds)
    peers = [name for name in (FLOAT, LITERT) if name in medians]
    return [
        Row(
            f"Simulate, {title}, batch {BATCH}",
            name,
            BATCH / seconds,
            "images a second",
            ratio=medians[LITERT_RELU] / seconds if name == BY_C else None,
            peer=LITERT_RELU if name == BY_C else "",
            at_least={"int8": reach, BY_C: 1.0}.get(name),
            beside={f"share of {peer}": medians[peer] / seconds for peer in peers},
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


def quantized(model: nn.Module, images: Tensor, scheme: Scheme) -> QuantizedModel:
    """A network in integers, by its ranges on a few of the images."""
    settle(model, images)
    found = capture_module(model, images[:1]).model
    ranges = calibrate(found, [{found.graph.inputs[0].name or "": images[:16].numpy()}], workers=1)
    return quantize(found, ranges, scheme=scheme, rounding=Rounding.SINGLE)


def by_c(model: QuantizedModel, images: Tensor) -> Callable[[], object]:
    """As gemedge simulate --engine c, on one thread."""
    exported = folder.of_model(model, "resnet")
    built = host.Host(model, exported.arena, host.library(exported))
    given = {model.inputs[0]: images.numpy()}
    return lambda: built.run(entered(model, border(model, given), Counter()), workers=1)


def by_litert(model: QuantizedModel, images: Tensor) -> Callable[[], object]:
    """LiteRT's interpreter on the exported file, from the same integers, on one thread."""
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

    written = to_tflite.to_tflite(model)
    integers = entered(model, border(model, {model.inputs[0]: images.numpy()}), Counter())
    (array,) = to_tflite.laid(written.inputs, [integers[value.name] for value in written.inputs])
    interpreter = Interpreter(model_content=written.content, num_threads=1)
    index, output = (
        details[0]["index"] for details in (interpreter.get_input_details(), interpreter.get_output_details())
    )
    interpreter.resize_tensor_input(index, array.shape)
    interpreter.allocate_tensors()

    def call() -> object:
        interpreter.set_tensor(index, array)
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return call


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

    def __init__(self, before: int, after: int, stride: int, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), make())
        self.second = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1), nn.BatchNorm2d(after))
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(before, after, 1, stride)
        self.last = make()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.second(self.first(x)) + self.shortcut(x))
        return out


def resnet8(make: Callable[[], nn.Module] = partial(gnn.GEM, 1)) -> nn.Module:  # noqa: B008
    """78,666 parameters with the statistics of batch norm, 12,501,632 products an image."""
    stem = [nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), make()]
    blocks = [Tiny(16, 16, 1, make), Tiny(16, 32, 2, make), Tiny(32, 64, 2, make)]
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

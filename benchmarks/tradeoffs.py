"""What each activation and scheme buys on the demo's network: `python -m benchmarks.tradeoffs`.

The CNN of examples/mnist.py is trained once with each activation on 4,000 digits, and quantized in every scheme. SQNR
and accuracy are of `simulate` on 1,000 test digits; flash and instructions are those of the exported C on an emulated
Cortex-M4, whose integers are compared on the way. One training each: differences of accuracy below a point are chance.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import gemedge.nn as gnn
from benchmarks.row import Row, main
from gemedge import Rounding
from gemedge.capture import capture_module
from gemedge.cli.emulate import measured
from gemedge.model import SCHEMES
from gemedge.quant.calibrate import calibrate
from gemedge.quant.prepare import OPSET, prepare
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import simulate
from gemedge.targets import estimate, target_named

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import mnist

TARGET = "cortex-m4"
TITLE = f"The demo's network on {TARGET}"
CALIBRATION = 500
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "GEM n=1": partial(gnn.GEM, 1),
    "GEM n=2": partial(gnn.GEM, 2),
    "E-GEM n=1, epsilon 0.1": partial(gnn.EGEM, 1, 0.1),
    "SE-GEM n=1, epsilon 0.1": partial(gnn.SEGEM, 1, 0.1),
    "SE-GEM n=1, epsilon 1": partial(gnn.SEGEM, 1, 1.0),
}


def rows(quick: bool) -> list[Row]:
    """SQNR in dB of the outputs, beside accuracy, flash and instructions."""
    torch.set_num_threads(1)
    data = mnist.load()
    names = ("GEM n=1",) if quick else tuple(ACTIVATIONS)
    return [row for name in names for row in _of(name, data, epochs=1 if quick else 6)]


def _of(name: str, data: tuple[Tensor, Tensor, Tensor, Tensor], *, epochs: int) -> list[Row]:
    torch.manual_seed(0)
    images, labels, test_images, test_labels = data
    model = mnist.cnn(ACTIVATIONS[name])
    mnist.train(model, images, labels, epochs=epochs)
    with torch.no_grad():
        exact = model(test_images).numpy()
    graph = prepare(capture_module(model, test_images[:1], opset=OPSET).model).model
    given = graph.graph.inputs[0].name or ""
    ranges = calibrate(graph, [{given: part.numpy()} for part in images[:CALIBRATION].split(50)], workers=1)
    found = []
    for scheme in SCHEMES:
        quantized = quantize(graph, ranges, scheme=scheme, rounding=Rounding.SINGLE)
        (outputs,) = simulate(quantized, {given: test_images.numpy()}, workers=1).values()
        sqnr = 10 * np.log10(np.square(exact).sum() / np.square(outputs - exact).sum())
        target = target_named(TARGET)
        ran, why = measured(quantized, target, {given: test_images[:1].numpy()})
        assert ran is not None, why
        cost = estimate(quantized, target, ran)
        beside = {
            "accuracy, %": _accuracy(outputs, test_labels),
            "in float, %": _accuracy(exact, test_labels),
            "flash, bytes": float(cost.flash.value),
            "instructions": float(cost.instructions.value),
        }
        found.append(Row(TITLE, f"{name}, {scheme}", float(sqnr), "SQNR, dB", beside=beside))
    return found


def _accuracy(logits: np.ndarray, labels: Tensor) -> float:
    return 100 * float((logits.argmax(1) == labels.numpy()).mean())


if __name__ == "__main__":
    main(rows)

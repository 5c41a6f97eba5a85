"""One CNN, one training pipeline, twelve activations, several seeds; then the same networks in integers.

`python examples/compare_activations.py [--seeds N] [--epochs N]` prints a table of test accuracies, mean and deviation
over the seeds, and of what each integer scheme loses, and draws both into ./compare_activations.png. GEM is E-GEM at
epsilon 1. The last two rows train epsilon itself; it begins at 0.5, and the lines below say where it ended.

What a few minutes on 4,000 small digits can show: that each activation trains at all with the same settings, that the
whole way to integers works for each, and gross differences in what integers lose. What they cannot: which activation
is better. With so few seeds, differences below two deviations mean nothing, and differences on larger data and in
deeper networks may have the other sign. For that, read the paper, or put your own data and network in here.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import matplotlib as mpl
import mnist
import numpy as np
import torch
from torch import Tensor, nn

import gemedge.nn as gnn
from gemedge.capture import capture_module
from gemedge.fixed import Rounding
from gemedge.model import SCHEMES, Scheme
from gemedge.quant.calibrate import calibrate
from gemedge.quant.prepare import prepare
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import simulate

mpl.use("Agg")
from matplotlib import pyplot as plt

PICTURE = "compare_activations.png"
CALIBRATION = 200
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "GEM, n=1": lambda: gnn.GEM(1),
    "GEM, n=2": lambda: gnn.GEM(2),
    "E-GEM, epsilon 0.01": lambda: gnn.EGEM(1, 0.01),
    "E-GEM, epsilon 0.1": lambda: gnn.EGEM(1, 0.1),
    "SE-GEM, epsilon 0.01": lambda: gnn.SEGEM(1, 0.01),
    "SE-GEM, epsilon 0.1": lambda: gnn.SEGEM(1, 0.1),
    "SE-GEM, epsilon 1": lambda: gnn.SEGEM(1, 1.0),
    "E-GEM, learned": lambda: gnn.EGEM(1, 0.5, learnable=True),
    "SE-GEM, learned": lambda: gnn.SEGEM(1, 0.5, learnable=True),
}


@dataclass
class Results:
    """Of one activation: an accuracy for each seed, and what each scheme lost of it, in points."""

    accuracies: list[float] = field(default_factory=list)
    lost: dict[Scheme, list[float]] = field(default_factory=lambda: {scheme: [] for scheme in SCHEMES})
    epsilons: list[list[float]] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    data = mnist.load()
    print(f"{len(data[0]):,} digits to train, {len(data[2]):,} to test; {given.epochs} epochs, {given.seeds} seeds\n")
    print(f"{'':<21}{'accuracy, %':>14}  points lost in {'':<4}{''.join(f'{scheme:>9}' for scheme in SCHEMES)}")
    found = {}
    for name, make in ACTIVATIONS.items():
        found[name] = results = Results()
        for seed in range(given.seeds):
            measure(make, seed, given.epochs, data, results)
        cells = "".join(f"{np.mean(points):>9.2f}" for points in results.lost.values())
        print(f"{name:<21}{shown(results.accuracies):>14}{'':<21}{cells}", flush=True)
    print("\naccuracy: mean +- standard deviation over the seeds")
    for name, results in found.items():
        if results.epsilons:
            print(f"{name}, epsilon of each layer, by seed: {results.epsilons}")
            print("\n".join(f"  {note}" for note in results.notes))
    draw(found)
    print(f"plot: {PICTURE}; {time.process_time() - start:.0f} s of processor time")
    print("A few minutes on small data do not tell which activation is better; see the top of this script.")


def measure(make: Callable[[], nn.Module], seed: int, epochs: int, data: tuple[Tensor, ...], results: Results) -> None:
    """Train one network, and add to the results how it and its integers do."""
    images, labels, test_images, test_labels = data
    torch.manual_seed(seed)
    model = mnist.cnn(make)
    mnist.train(model, images, labels, epochs=epochs)
    right = test_labels.numpy()
    with torch.no_grad():
        accuracy = percent(model(test_images).numpy(), right)
    results.accuracies.append(accuracy)
    layers = [module for module in model.modules() if isinstance(module, gnn.EGEM | gnn.SEGEM)]
    if any("log_epsilon" in dict(layer.named_parameters()) for layer in layers):
        results.epsilons.append([round(layer.epsilon, 3) for layer in layers])
    captured = capture_module(model, test_images[:1])
    results.notes = tuple(note for note in captured.notes if "epsilon" in note)
    prepared = prepare(captured.model).model
    (name,) = (value.name or "" for value in prepared.graph.inputs)
    ranges = calibrate(prepared, [{name: part.numpy()} for part in images[:CALIBRATION].split(50)], workers=1)
    for scheme, points in results.lost.items():
        integers = quantize(prepared, ranges, scheme=scheme, rounding=Rounding.SINGLE)
        (outputs,) = simulate(integers, {name: test_images.numpy()}, workers=1).values()
        points.append(accuracy - percent(outputs, right))


def percent(outputs: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float((outputs.argmax(1) == labels).mean())


def shown(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} +- {np.std(values, ddof=1) if len(values) > 1 else 0:.2f}"


def draw(found: dict[str, Results]) -> None:
    """Each seed's accuracy beside the mean, and what integers lose."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    rows = np.arange(len(found))
    for row, results in zip(rows, found.values(), strict=True):
        left.plot(results.accuracies, [row] * len(results.accuracies), "o", color="tab:blue", alpha=0.5)
        left.plot(np.mean(results.accuracies), row, "|", color="black", markersize=16)
    for index, scheme in enumerate(SCHEMES):
        lost = [np.mean(results.lost[scheme]) for results in found.values()]
        right.barh(rows + 0.2 * (index - 1.5), lost, 0.2, label=scheme)
    left.set(title="test accuracy, each seed and the mean", xlabel="%")
    left.set_yticks(rows, found)
    left.invert_yaxis()
    right.set(title="lost in integers, mean", xlabel="points of accuracy")
    right.legend()
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    main()

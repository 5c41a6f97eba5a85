"""Draws docs/numerics.png: python docs/numerics_figure.py (from the repository's root, with the extra `report`)."""

from pathlib import Path

import matplotlib
import numpy as np

from gemedge import Activation, FixedActivation, QFormat
from gemedge.rational import RECIPROCALS
from gemedge.table import Table

matplotlib.use("Agg")
from matplotlib import pyplot

EPSILONS = np.geomspace(1e-4, 10, 26)


def main() -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    x = np.linspace(1, 2, 6400, endpoint=False)
    error = 1 - x * np.array(RECIPROCALS)[((x - 1) * 64).astype(int)] / 65536
    largest = np.abs(error).reshape(64, 100).max(axis=1)
    for power, name in ((1, "table of 128 bytes"), (2, "one Newton step"), (3, "one cubic step")):
        left.step(x[::100], np.log2(largest**power), where="post", label=name)
    left.axhline(-20, color="k", linewidth=0.8, linestyle=":", label="a quarter LSB of 18 bits")
    left.set(ylim=(-28, 0), xlabel="denominator, normalised", ylabel="log2 of the largest relative error")
    formats = QFormat(3, 12), QFormat(3, 12)
    raw = np.arange(-32768, 32768, dtype=np.int16)
    for n, colour in zip((1, 2, 4), ("C0", "C1", "C2"), strict=True):
        errors = []
        for epsilon in EPSILONS:
            activation = Activation.egem(n, epsilon)
            ideal = activation(raw / 4096.0) * 4096
            table = Table(activation, *formats, entries=513, interpolation="linear")
            errors.append(
                (abs(table(raw) - ideal).max(), abs(FixedActivation(activation, *formats)(raw) - ideal).max())
            )
        usual, ours = zip(*errors, strict=True)
        right.loglog(EPSILONS, usual, colour, label=f"513-entry table, n={n}")
        right.loglog(EPSILONS, ours, colour, linestyle="--", label=f"kernel, n={n}")
    right.set(xlabel="epsilon", ylabel="largest error over all codes, LSB (Q3.12)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(Path("docs/numerics.png"), dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()

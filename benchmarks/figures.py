"""The figures of the benchmarks, drawn from their rows alone."""

from collections.abc import Sequence

import matplotlib as mpl

from benchmarks.row import Row

mpl.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

MARKERS = {"int8": "o", "int16x8": "s", "q7": "^", "q15": "D"}
SIZES = ("parameters", "samples")


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """By file name, those that the rows have something for."""
    drawn = {}
    if any(row.table.startswith("Cost by") for row in rows):
        drawn["growth.png"] = _growth(rows)
    if any("instructions" in row.beside for row in rows):
        drawn["tradeoffs.png"] = _tradeoffs([row for row in rows if "instructions" in row.beside])
    return drawn


def _growth(rows: Sequence[Row]) -> Figure:
    """Time and memory over the size of the model and of the data; a line that rises as the dotted one is linear."""
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for column, of in zip(axes.T, SIZES, strict=True):
        points = [row for row in rows if row.table == f"Cost by {of}"]
        ends = {row.name: row.beside["of the last two"] for row in rows if row.table == f"Exponents by {of}"}
        for step in dict.fromkeys(name.rpartition(", ")[0] for name in ends):
            seen = [row for row in points if row.name.rpartition(", ")[0] == step]
            sizes = [row.beside[of] for row in seen]
            slopes = ends[f"{step}, time"], ends[f"{step}, memory"]
            costs = [row.value for row in seen], [max(1.0, row.beside["peak, MB"]) for row in seen]
            for axis, cost, slope in zip(column, costs, slopes, strict=True):
                axis.loglog(sizes, cost, marker="o", markersize=4, label=f"{step}: {slope:.2f}")
        for axis, name in zip(column, ("CPU time, s", "peak above the start, MB"), strict=True):
            axis.set(xlabel=of, ylabel=name)
            left, right = axis.get_xlim()
            bottom, top = axis.get_ylim()
            reach = min(right / left, top / bottom)
            axis.plot([right / reach, right], [top / reach, top], "k:", linewidth=1, label="linear: 1")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8, title="exponent of the last two", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _tradeoffs(rows: Sequence[Row]) -> Figure:
    """SQNR against flash and against instructions; colours are activations, marks schemes."""
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    parts = [(row, *row.name.rpartition(", ")[::2]) for row in rows]
    colours = {name: f"C{place}" for place, name in enumerate(dict.fromkeys(name for _, name, _ in parts))}
    scales = ("flash, bytes", 1024, "flash, KB"), ("instructions", 1e6, "million instructions an image")
    for axis, (of, scale, label) in zip(axes, scales, strict=True):
        for row, name, scheme in parts:
            axis.plot(row.beside[of] / scale, row.value, MARKERS[scheme], color=colours[name], alpha=0.75)
        axis.set(xlabel=label)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="SQNR of the outputs, dB")
    shown = [pyplot.Line2D([], [], color=colour, linewidth=4, label=name) for name, colour in colours.items()]
    shown += [pyplot.Line2D([], [], color="k", marker=mark, linestyle="", label=s) for s, mark in MARKERS.items()]
    figure.legend(handles=shown, loc="outside right center", fontsize=8)
    return figure

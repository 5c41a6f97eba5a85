"""The figures of `gemedge activation`; matplotlib is the extra `report` and is loaded here only when one is drawn."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemedge.certificate import inputs_to_check
from gemedge.errors import UnsupportedError, UsageError
from gemedge.kernel import FixedActivation

if TYPE_CHECKING:
    from gemedge.methods import Method

_SMALLEST = 1e-3  # LSB: what is smaller is drawn there
SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Refuse now what could not be drawn later."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--plot {path}: it must end in .png, .svg or .pdf")
    pyplot_of()


def draw(kernel: FixedActivation, methods: "Sequence[Method]", kind: str) -> bytes:
    """The function, the error of each method in LSB over all codes, and the gate, as the bytes of a file."""
    raw = inputs_to_check(kernel.in_params)
    source, target = kernel.in_params, kernel.out_params
    x = (raw.astype(np.float64) - source.zero_point) * source.scale
    value = kernel.activation.derivative(x, 0, side="left")
    ideal = np.clip(value / target.scale + target.zero_point, target.raw_min, target.raw_max)
    pyplot = pyplot_of()
    figure, axes = pyplot.subplots(3, 1, figsize=(9, 11), sharex=True, layout="constrained")
    axes[0].plot(x, value, color="0.6", linewidth=4, label="exact")
    given = (methods[0].outputs - float(target.zero_point)) * target.scale
    axes[0].plot(x, given, linewidth=1.2, label=methods[0].name)
    axes[0].set_ylabel("output")
    axes[0].set_title(f"{kernel.activation} from {source} to {target}")
    near_zero = float(np.clip(kernel.activation.epsilon, source.scale, abs(x).max()))
    starts = np.unique(np.floor(np.arcsinh(x / near_zero) * 40), return_index=True)[1]
    for method in methods:
        label = f"{method.name}: at most {method.certificate.max_error:.3g}"
        largest = np.maximum.reduceat(np.abs(method.outputs - ideal), starts)
        axes[1].step(x[starts], np.maximum(largest, _SMALLEST), where="post", linewidth=1.2, label=label)
    axes[1].axhline(0.5, color="k", linewidth=0.8, linestyle=":")
    axes[1].set_yscale("log")
    axes[1].set_ylabel("largest error around x, LSB of the output")
    with np.errstate(all="ignore"):
        axes[2].plot(x, np.where(x == 0, np.nan, value / x), label="f(x) / x")
    axes[2].set_ylabel("gate")
    axes[2].set_xlabel("x")
    axes[2].set_xscale("asinh", linear_width=near_zero)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(loc="upper left", fontsize=8)
    return figure_bytes(figure, kind)


def draw_sweep(rows: "Sequence[dict[str, Any]]", kind: str) -> bytes:
    """Largest error of the 513-entry table, in LSB, over epsilon and n for each pair of formats."""
    pyplot = pyplot_of()
    from matplotlib.colors import LogNorm

    pairs = list(dict.fromkeys((row["in"], row["out"]) for row in rows))
    epsilons = list(dict.fromkeys(row["epsilon"] for row in rows))
    ns = list(dict.fromkeys(row["n"] for row in rows))
    found = {(row["in"], row["out"], row["n"], row["epsilon"]): row for row in rows}
    errors = [[_number(found[*pair, n, e]["table_max_error"]) for e in epsilons] for pair in pairs for n in ns]
    figure, axis = pyplot.subplots(figsize=(2.5 + 0.75 * len(epsilons), 2 + 0.24 * len(errors)), layout="constrained")
    image = axis.imshow(np.array(errors), norm=LogNorm(vmin=0.4), aspect="auto", cmap="viridis")
    for y, row in enumerate(errors):
        for x, error in enumerate(row):
            axis.text(x, y, f"{error:.3g}", ha="center", va="center", fontsize=6, color="w")
    axis.set_xticks(range(len(epsilons)), [f"{e:g}" for e in epsilons])
    axis.set_yticks(range(len(errors)), [f"{i} to {o}, n={n}" for i, o in pairs for n in ns], fontsize=7)
    axis.set_xlabel("epsilon")
    worst = max(_number(row["max_error"]) for row in rows)
    misrounded = sum(int(row["misrounded"] or 0) for row in rows)
    axis.set_title(
        f"largest error of the 513-entry table, LSB\nthe kernel: at most {worst:.3g}, {misrounded} codes misrounded",
        fontsize=9,
    )
    figure.colorbar(image)
    return figure_bytes(figure, kind)


def _number(value: Any) -> float:
    return float("nan") if value in ("", None) else float(value)


def figure_bytes(figure: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    figure.savefig(buffer, format=kind, dpi=130, metadata=metadata)
    pyplot_of().close(figure)
    return buffer.getvalue()


def pyplot_of() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UnsupportedError("a figure needs matplotlib: pip install gemedge[report]") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "gemedge"
    from matplotlib import pyplot

    return pyplot

"""gemedge quantize --budget: the search for formats per layer, its front as a table and as a figure."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemedge.cli import console
from gemedge.errors import PromiseError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from gemedge.model import QuantizedModel
    from gemedge.quant.compare import Comparison
    from gemedge.quant.search import Candidate, Front, Score

_NAMED = 4


class Asked:
    """The options of a search, understood before any work."""

    def __init__(
        self, budget: str, metric: str, labels: Path | None, target: str, plot: Path | None, limit: int | None
    ) -> None:
        from gemedge.cli.activation_plot import check_plot
        from gemedge.cli.report import labels_of
        from gemedge.quant.search import Budget
        from gemedge.targets import target_named

        if metric == "accuracy" and labels is None:
            raise UsageError("--metric accuracy needs --labels, a .npy file with the class of each sample")
        self.budget, self.metric, self.plot = Budget.parse(budget), metric, plot
        self.target = target_named(target)
        self.labels = None if labels is None else labels_of(labels, limit)
        if plot is not None:
            check_plot(plot)

    def score(self, comparison: "Comparison") -> "Score":
        """Of a model, from its comparison with the float model."""
        from gemedge.quant.attribution import decibels
        from gemedge.quant.report import classes_of, noise_of
        from gemedge.quant.search import Score

        noise, *_ = noise_of(comparison)
        if self.labels is None:
            return Score(decibels(noise))
        first = next(iter(comparison.exact))
        classes = classes_of(comparison.exact[first], comparison.found[first], self.labels)
        return Score(decibels(noise), None if classes is None else classes.accuracy)

    def search(
        self,
        graph: "ir.Model",
        ranges: Any,
        scheme: Any,
        rounding: Any,
        probe: "dict[str, np.ndarray]",
        compare: "Callable[[QuantizedModel], Comparison]",
    ) -> "Front":
        from gemedge.quant.search import Search

        def measure(model: "QuantizedModel") -> "Score":
            return self.score(compare(model))

        return Search(graph, ranges, scheme, rounding, self.target, self.budget, probe, measure).run(self.metric)

    def require(self, model: "QuantizedModel") -> None:
        """PromiseError where the model is larger than the budget, as one recalibrated for its formats could be."""
        from gemedge.targets import estimate, fits

        fit = fits(estimate(model, self.target), self.budget.flash, self.budget.ram)
        if not fit.holds:
            raise PromiseError(f"the model found does not fit the budget: {fit.text}")

    def figure(self, front: "Front") -> bytes:
        """Quality over the share of the budget, a point for each candidate of the front."""
        from gemedge.cli.activation_plot import figure_bytes, pyplot_of
        from gemedge.quant.search import quality

        assert self.plot is not None  # noqa: S101 - asked only then
        share = [100 * self.budget.share(candidate.cost) for candidate in front.candidates]
        good = [quality(candidate.score, self.metric) for candidate in front.candidates]
        figure, axis = pyplot_of().subplots(figsize=(8, 5), layout="constrained")
        axis.step(share, good, where="post", color="0.7")
        axis.plot(share, good, "o")
        for x, y, candidate in zip(share, good, front.candidates, strict=True):
            axis.annotate(f"{len(candidate.wide)} wide", (x, y), (4, -12), textcoords="offset points", fontsize=7)
        axis.plot(share[-1:], good[-1:], "o", markersize=12, fillstyle="none", color="k")
        axis.set_xlabel(f"share of the budget on {self.target.name}, %")
        axis.set_ylabel("SQNR, dB" if self.metric == "sqnr" else "accuracy")
        axis.set_title(f"{front.scheme}: layers of 16 bits where they gain most")
        axis.grid(alpha=0.3)
        return figure_bytes(figure, self.plot.suffix[1:])


def print_front(front: "Front", beside: Sequence[Path]) -> None:
    """The front, whose last row was taken, and the files written beside the model."""
    rows = [_row(candidate) for candidate in front.candidates]
    header = ("layers with 16 bits, cheapest choice first", "flash", "RAM", "SQNR, dB", "accuracy")
    console.print_table(header, rows)
    console.print_fields(
        [("taken", f"the last row, of {front.measured} measured"), *(("file", str(p)) for p in beside)]
    )


def _row(candidate: "Candidate") -> tuple[str, ...]:
    names = candidate.wide
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    score, cost = candidate.score, candidate.cost
    accuracy = "" if score.accuracy is None else f"{score.accuracy:.2%}"
    shown = ", ".join(names[:_NAMED]) + more or "none"
    return shown, f"{cost.flash.value:,}", f"{cost.ram.value:,}", f"{score.sqnr:.1f}", accuracy


def front_as_json(front: "Front") -> list[dict[str, Any]]:
    return [
        {
            "wide": list(candidate.wide),
            "flash": candidate.cost.flash.value,
            "ram": candidate.cost.ram.value,
            "sqnr_db": candidate.score.sqnr if abs(candidate.score.sqnr) < float("inf") else None,
            "accuracy": candidate.score.accuracy,
        }
        for candidate in front.candidates
    ]

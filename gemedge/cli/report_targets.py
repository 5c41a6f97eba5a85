"""What a network costs on a microcontroller, as tables in the terminal and as a part of the page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any

from gemedge.cli import console
from gemedge.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from gemedge.arena import Placement, Plan
    from gemedge.costs import Target
    from gemedge.model import QuantizedModel
    from gemedge.targets import Estimate, Fit, LayerCost

_ROWS = 30
_HEADER = ("layer", "kind", "MACs", "weights", "tables", "constants", "live RAM", "instructions", "cycles")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 760, 300, 66, 34  # of the picture, and of its margins
_NAMED = 46  # pixels: narrower boxes carry their name only as a tooltip
_TICKS = 4


class Chip:
    """The options --target, --flash and --ram, understood before any work."""

    def __init__(self, target: str | None, flash: str | None, ram: str | None) -> None:
        from gemedge.targets import parse_size, target_named

        if target is None and (flash or ram):
            raise UsageError("--flash and --ram need --target, the chip whose memory they are")
        self.target: Target | None = None if target is None else target_named(target)
        self.flash = None if flash is None else parse_size(flash)
        self.ram = None if ram is None else parse_size(ram)

    def cost(self, model: "QuantizedModel", inputs: "Mapping[str, np.ndarray]") -> "Cost | None":
        """What the model costs on the target, where one is given; the first of the inputs is run there if it can be."""
        from gemedge.cli.emulate import measured
        from gemedge.targets import estimate, fits, plan_for

        if self.target is None:
            return None
        found, known = measured(model, self.target, inputs)
        costs = estimate(model, self.target, found)
        return Cost(costs, plan_for(model), fits(costs, self.flash, self.ram), self, known)


class Cost:
    """An estimate, the plan of its arena, whether it fits, and how what a run takes is known."""

    def __init__(self, estimate: "Estimate", plan: "Plan", fit: "Fit", chip: Chip, known: str) -> None:
        self.estimate, self.plan, self.fit, self.chip, self.known = estimate, plan, fit, chip, known

    def as_json(self) -> dict[str, Any]:
        plan = self.plan
        arena = {
            "bytes": plan.size,
            "lower_bound": plan.lower_bound,
            "placements": [asdict(placed) for placed in plan.placements],
            "scratch": [asdict(placed) for placed in plan.scratch],
        }
        limits = {"flash": self.chip.flash, "ram": self.chip.ram}
        over = {"flash": self.fit.flash_over, "ram": self.fit.ram_over}
        return {
            **self.estimate.as_json(),
            "plan": arena,
            "limits": limits,
            "over": over,
            "fits": self.fit.holds,
            "known": self.known,
        }

    def print(self) -> None:
        """The totals, the layers that cost most, and whether it fits."""
        found, plan = self.estimate, self.plan
        name = found.target.name
        limits = {"flash": self.chip.flash, "ram": self.chip.ram}
        rows = [
            (total, f"{figure.value:,}", _of(figure.value, limits.get(total)), figure.how)
            for total, figure in found.totals().items()
        ]
        console.print_table((f"on {name}", "bytes or count", "of the chip's", "known how"), rows)
        layers = sorted(found.layers, key=lambda layer: _price(layer, found), reverse=True)[:_ROWS]
        console.print_table(
            ("layer, dearest first", *_HEADER[1:]),
            [(layer.name, layer.kind, *_numbers(layer)) for layer in layers],
        )
        bound = "the least there can be" if plan.size == plan.lower_bound else f"at least {plan.lower_bound:,} needed"
        fields = [("arena", f"{plan.size:,} bytes, {bound}"), ("run", self.known), ("fits", self._fits())]
        if (cycles := found.measured.all_cycles) is not None:
            fields.insert(2, ("cycles", f"{cycles}, {found.measured.timed}"))
        console.print_fields(fields)

    def _fits(self) -> str:
        if self.chip.flash is None and self.chip.ram is None:
            return "no --flash or --ram to compare with"
        return "yes" if self.fit.holds else f"no: {self.fit.text}"


def _price(layer: "LayerCost", found: "Estimate") -> int:
    """What layers are ordered by: instructions where they were counted, else cycles where these were."""
    if found.measured.all_instructions is None and layer.cycles is not None:
        return layer.cycles.high
    return layer.instructions.value


def _of(value: int, limit: int | None) -> str:
    return "" if limit is None else f"{value / limit:.0%} of {limit:,}"


def _numbers(layer: Any) -> tuple[str, ...]:
    counted = (layer.macs, layer.weights, layer.tables, layer.constants, layer.live)
    cycles = "" if layer.cycles is None else str(layer.cycles)
    return (*(f"{number:,}" for number in counted), f"{layer.instructions.value:,} {layer.instructions.how}", cycles)


# The page


def section(estimate: "Estimate", plan: "Plan", fit: "Fit | None" = None, known: str = "") -> str:
    """The part of a page on one target: whether it fits, the totals, the arena's picture, the layers.

    known: how what a run takes is known.
    """
    name = escape(estimate.target.name)
    verdict = ""
    if fit is not None:
        verdict = f'<p class="{"fits" if fit.holds else "misses"}">{escape(_printable(fit.text))}</p>'
    totals = [(total, f"{figure.value:,}", str(figure.how)) for total, figure in estimate.totals().items()]
    layers = [(layer.name, layer.kind, *_numbers(layer)) for layer in estimate.layers]
    if (cycles := estimate.measured.all_cycles) is not None:
        totals.append(("cycles", str(cycles), estimate.measured.timed))
    return (
        f'<section id="target"><h2>On {name}</h2>{verdict}'
        f"{_table(('total', 'bytes or count', 'known how'), totals)}<p>{escape(_printable(known))}</p>"
        f"<h3>The arena, {plan.size:,} bytes (at least {plan.lower_bound:,})</h3>{arena_svg(plan)}"
        f"<details><summary>Layer by layer</summary>{_table(_HEADER, layers)}</details></section>"
    )


def arena_svg(plan: "Plan") -> str:
    """A picture of the arena: time in layers to the right, bytes upwards, a box for each tensor while it is live."""
    right, top = _WIDTH - 8, 8
    steps = plan.layers + 2  # from before the first layer to after the last
    across = (right - _LEFT) / steps
    up = (_HEIGHT - _BOTTOM - top) / max(plan.size, 1)
    parts = [*_axes(plan, across, up)]
    for index, placed in enumerate([*plan.placements, *plan.scratch]):
        x, width = _LEFT + (placed.first + 1) * across, (placed.last - placed.first + 1) * across
        height = placed.size * up
        y = _HEIGHT - _BOTTOM - placed.end * up
        hue = "#bbb" if index >= len(plan.placements) else f"hsl({index * 47 % 360} 55% 72%)"
        parts.append(
            f'<g><title>{_said(placed)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
            f' fill="{hue}" stroke="#333" stroke-width=".5"/>{_label(placed, x, y, width, height)}</g>'
        )
    title = f"Lifetimes of {len(plan.placements)} tensors in an arena of {plan.size:,} bytes"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}"'
        f' font-family="sans-serif" font-size="10">{"".join(parts)}</svg>'
    )


def _axes(plan: "Plan", across: float, up: float) -> Iterator[str]:
    floor = _HEIGHT - _BOTTOM
    yield f'<rect x="{_LEFT}" y="8" width="{_WIDTH - 8 - _LEFT}" height="{floor - 8}" fill="none" stroke="#999"/>'
    for tick in range(_TICKS + 1):
        size = plan.size * tick // _TICKS
        y = floor - size * up
        yield f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{size:,}</text>'
    for index in range(0, plan.layers, max(1, plan.layers // 12)):
        x = _LEFT + (index + 1.5) * across
        yield f'<text x="{x:.1f}" y="{floor + 12}" text-anchor="middle">{index}</text>'
    yield f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">layer</text>'


def _said(placed: "Placement") -> str:
    over = f", over {placed.over}" if placed.over else ""
    text = f"{placed.tensor}: {placed.size:,} bytes at {placed.offset:,}, layers {placed.first} to {placed.last}{over}"
    return escape(_printable(text))


def _label(placed: "Placement", x: float, y: float, width: float, height: float) -> str:
    if width < _NAMED or height < 11:
        return ""
    most = int(width / 5.5)
    name = _printable(placed.tensor)
    shown = name if len(name) <= most else f"{name[: most - 1]}…"
    return f'<text x="{x + 3:.1f}" y="{y + height / 2 + 3:.1f}">{escape(shown)}</text>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(_printable(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

"""What a network costs on a microcontroller, before it runs there: flash, RAM and instructions, layer by layer.

Every figure says how it is known. counted: exact from the model (multiply-accumulates, bytes of weights, tables and
constants, the arena). emulated: counted while the code ran on an emulated target; such figures are given as
`Measured` and replace estimates. estimated: from the coefficients below.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gemedge.arena import Plan, plan
from gemedge.costs import TARGETS, Target, code_bytes, instructions, multiply_accumulates, scratch_bytes, stack_bytes
from gemedge.errors import FormatError, UsageError
from gemedge.model import QuantizedModel
from gemedge.storage import count

How = Literal["counted", "emulated", "estimated"]
_CERTAINTY: tuple[How, ...] = ("counted", "emulated", "estimated")
_SIZE = re.compile(r"(\d{1,12})\s*([kKmM]?)(?:i?[bB])?")
_LARGEST = 3
_IN_FLASH = (".text", ".rodata", ".data", ".progmem")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and how it is known; a sum is known as its least certain part is."""

    value: int
    how: How

    def __add__(self, other: "Figure") -> "Figure":
        return Figure(self.value + other.value, max(self.how, other.how, key=_CERTAINTY.index))


@dataclass(frozen=True, slots=True)
class Cycles:
    """At least low and at most high, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,} to {self.high:,}"


@dataclass(frozen=True, slots=True)
class Measured:
    """What ran on the emulated target, of one sample: instructions and cycles by layer and of the whole run, bytes of
    code, of the program's sections, of its arena and of stack. Cycles, or instructions, are known of some targets only.

    timed: in words, how cycles are known.
    """

    instructions: Mapping[str, int] = field(default_factory=dict)
    cycles: Mapping[str, Cycles] = field(default_factory=dict)
    all_instructions: int | None = None
    all_cycles: Cycles | None = None
    sections: Mapping[str, int] = field(default_factory=dict)
    code: int | None = None
    arena: int | None = None
    stack: int | None = None
    timed: str = ""

    @property
    def flash(self) -> int | None:
        """Bytes of what a program keeps in flash: also what its variables begin as."""
        return sum(self.sections.get(name, 0) for name in _IN_FLASH) if self.sections else None


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer. weights, tables, constants: flash bytes that layers before it do not hold. live: bytes of the arena
    that hold something while it runs. All counted but instructions.
    """

    name: str
    kind: str
    macs: int
    weights: int
    tables: int
    constants: int
    live: int
    instructions: Figure
    cycles: Cycles | None = None

    @property
    def flash(self) -> int:
        return self.weights + self.tables + self.constants


@dataclass(frozen=True, slots=True)
class Estimate:
    """A network on a target. code: of the kernels that it uses. Times are of one sample. measured: what ran there."""

    target: Target
    layers: tuple[LayerCost, ...]
    code: Figure
    arena: Figure
    stack: Figure
    measured: Measured = field(default_factory=Measured)

    @property
    def weights(self) -> Figure:
        return Figure(sum(layer.weights for layer in self.layers), "counted")

    @property
    def tables(self) -> Figure:
        return Figure(sum(layer.tables for layer in self.layers), "counted")

    @property
    def constants(self) -> Figure:
        return Figure(sum(layer.constants for layer in self.layers), "counted")

    @property
    def macs(self) -> Figure:
        return Figure(sum(layer.macs for layer in self.layers), "counted")

    @property
    def instructions(self) -> Figure:
        """Of the whole run; where it was measured, a little less than its layers, which were shown meanwhile."""
        if self.measured.all_instructions is not None:
            return Figure(self.measured.all_instructions, "emulated")
        return sum((layer.instructions for layer in self.layers), Figure(0, "counted"))

    @property
    def flash(self) -> Figure:
        """Of the program built for the target, where there is one; else the sum of its parts."""
        if self.measured.flash is not None:
            return Figure(self.measured.flash, "emulated")
        return self.weights + self.tables + self.constants + self.code

    @property
    def ram(self) -> Figure:
        return self.arena + self.stack

    def totals(self) -> dict[str, Figure]:
        """Every total by its name, parts before their sum."""
        names = ("weights", "tables", "constants", "code", "flash", "arena", "stack", "ram", "macs", "instructions")
        return {name: getattr(self, name) for name in names}

    def as_json(self) -> dict[str, Any]:
        return {
            "target": self.target.name,
            "totals": {name: _told(figure) for name, figure in self.totals().items()},
            "cycles": _span(self.measured.all_cycles),
            "timed": self.measured.timed,
            "sections": dict(self.measured.sections),
            "layers": [
                {
                    "layer": layer.name,
                    "kind": layer.kind,
                    "macs": layer.macs,
                    "weights": layer.weights,
                    "tables": layer.tables,
                    "constants": layer.constants,
                    "live": layer.live,
                    "instructions": _told(layer.instructions),
                    "cycles": _span(layer.cycles),
                }
                for layer in self.layers
            ],
        }


@dataclass(frozen=True, slots=True)
class Fit:
    """How an estimate lies to a chip's memory. over: bytes too many of flash and of RAM, 0 where it fits."""

    flash_over: int
    ram_over: int
    text: str

    @property
    def holds(self) -> bool:
        return not (self.flash_over or self.ram_over)


def target_named(name: str) -> Target:
    if name not in TARGETS:
        raise UsageError(f"target {name!r} is not one of {', '.join(TARGETS)}")
    return TARGETS[name]


def plan_for(model: QuantizedModel) -> Plan:
    """The arena with the scratch memory that kernels need."""
    scratch = {layer.name: scratch_bytes(layer, model) for layer in model.layers}
    return plan(model, scratch=scratch)


def estimate(model: QuantizedModel, target: Target, measured: Measured | None = None) -> Estimate:
    """What the network costs on the target; measured figures replace estimates."""
    known = measured or Measured()
    if unknown := known.instructions.keys() - {layer.name for layer in model.layers}:
        raise FormatError(f"instructions of {sorted(unknown)[0]!r}, which is no layer")
    planned = plan_for(model)
    stored = count(model)
    layers = []
    for index, layer in enumerate(model.layers):
        found = known.instructions.get(layer.name)
        cost = Figure(instructions(layer, model, target), "estimated") if found is None else Figure(found, "emulated")
        held = stored[layer.name]
        macs = multiply_accumulates(layer, model)
        live = _live(planned, index)
        kind = type(layer).__name__
        cycles = known.cycles.get(layer.name)
        layers.append(LayerCost(layer.name, kind, macs, held.weights, held.tables, held.constants, live, cost, cycles))
    return Estimate(
        target,
        tuple(layers),
        _measured(known.code, code_bytes(model, target)),
        _arena(known.arena, planned),
        _measured(known.stack, stack_bytes(model, target)),
        known,
    )


def fits(estimate: Estimate, flash: int | None, ram: int | None) -> Fit:
    """Whether the network fits so many bytes, None for any number, and which layers weigh most where it does not."""
    flash_over = 0 if flash is None else max(0, estimate.flash.value - flash)
    ram_over = 0 if ram is None else max(0, estimate.ram.value - ram)
    parts = []
    if flash_over:
        parts.append(_missed("flash", estimate.flash, flash_over, ((x.flash, x.name) for x in estimate.layers)))
    if ram_over:
        parts.append(_missed("RAM", estimate.ram, ram_over, ((x.live, x.name) for x in estimate.layers)))
    words = "; ".join(parts) if parts else f"it fits {estimate.target.name}"
    return Fit(flash_over, ram_over, words)


def parse_size(text: str) -> int:
    """Bytes from text such as 65536, 64k, 64K, 64KB or 1M, where k is 1024. UsageError says what is allowed."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or int(found[1]) == 0:
        raise UsageError(f"size {text[:40]!r} must be a positive whole number of bytes, such as 65536, 64k or 1M")
    return int(found[1]) << {"": 0, "k": 10, "m": 20}[found[2].lower()]


def _missed(memory: str, figure: Figure, over: int, layers: Iterable[tuple[int, str]]) -> str:
    largest = sorted(layers, key=lambda item: -item[0])[:_LARGEST]
    shown = ", ".join(f"{name!r} {size:,}" for size, name in largest if size)
    at = f"; most at {shown}" if shown else ""
    return f"{memory}: {figure.value:,} bytes ({figure.how}), {over:,} too many{at}"


def _live(planned: Plan, index: int) -> int:
    """Bytes of the arena, each counted once, that hold something while the layer of this number runs."""
    spans = sorted(
        (placed.offset, placed.end)
        for placed in (*planned.placements, *planned.scratch)
        if placed.first <= index <= placed.last
    )
    live = reached = 0
    for begin, end in spans:
        live += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return live


def _measured(found: int | None, otherwise: float) -> Figure:
    return Figure(math.ceil(otherwise), "estimated") if found is None else Figure(found, "emulated")


def _arena(found: int | None, planned: Plan) -> Figure:
    return Figure(planned.size, "counted") if found is None else _measured(found, 0)


def _told(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "how": figure.how}


def _span(cycles: Cycles | None) -> dict[str, int] | None:
    return None if cycles is None else {"low": cycles.low, "high": cycles.high}

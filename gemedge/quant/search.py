"""Which layers deserve 16 bits: formats per layer on the front between memory and accuracy, within a budget.

From all layers at 8 bits, the layer that gains most SQNR for the memory it takes is widened, again and again, while
the budget holds. Gains come from the emulator, memory from real models on the target; the front is measured with
integers. The input, too, may be widened; a Relu or Clip that a layer takes in goes with it.
"""

import glob
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from gemedge.capture.reading import layer_name
from gemedge.costs import Target
from gemedge.errors import GemedgeError, PromiseError, UsageError
from gemedge.fixed import QuantParams, Rounding
from gemedge.model import Op, QuantizedModel, Scheme
from gemedge.moving import Moving
from gemedge.operators import MaxPool
from gemedge.quant.attribution import Probe
from gemedge.quant.config import Config, Rule
from gemedge.quant.emulate import ALL, Causes
from gemedge.quant.lower.lowering import Range
from gemedge.quant.quantize import quantize, reals_of
from gemedge.targets import Estimate, estimate, fits, parse_size

WIDER: Mapping[Scheme, Scheme] = {"int8": "int16x8", "q7": "q15"}
_MEASURED = 12  # candidates
_RANKED = 48  # units: those that gain most by themselves
_LEAST_GAIN = 0.002  # of the noise that is left, 0.01 dB
_LEAST_SHARE = 1e-5  # of a budget: what costs less is as good as free


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of flash and of RAM, None for any number; at least one is named."""

    flash: int | None
    ram: int | None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """From text such as flash=64k,ram=32k. UsageError says what is allowed."""
        found: dict[str, int] = {}
        for part in text.split(","):
            name, sign, size = part.partition("=")
            name = name.strip()
            if name not in ("flash", "ram") or not sign or name in found:
                raise UsageError(f"budget {text[:60]!r}: it must be flash=SIZE, ram=SIZE or flash=SIZE,ram=SIZE")
            found[name] = parse_size(size)
        return cls(found.get("flash"), found.get("ram"))

    def share(self, cost: Estimate) -> float:
        """How much of the budget a network takes, the mean of flash and RAM where both are named."""
        pairs = self._pairs(cost)
        return sum(used / limit for used, limit in pairs) / len(pairs)

    def growth(self, before: Estimate, after: Estimate) -> float:
        """The shares that it takes more, summed."""
        pairs = zip(self._pairs(before), self._pairs(after), strict=True)
        return sum((new - old) / limit for (old, limit), (new, _) in pairs)

    def _pairs(self, cost: Estimate) -> list[tuple[int, int]]:
        pairs = ((cost.flash.value, self.flash), (cost.ram.value, self.ram))
        return [(used, limit) for used, limit in pairs if limit is not None]


@dataclass(frozen=True, slots=True)
class Score:
    """What integers gave on data: SQNR of the outputs in dB, and accuracy where there are labels."""

    sqnr: float
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice of formats: the layers with 16 bits, the model, what it costs and how good it was measured to be."""

    wide: tuple[str, ...]
    model: QuantizedModel
    cost: Estimate
    score: Score


@dataclass(frozen=True, slots=True)
class Front:
    """candidates: those measured that no other beats, cheapest first, each better than the one before."""

    scheme: Scheme
    rounding: Rounding
    candidates: tuple[Candidate, ...]
    measured: int

    @property
    def chosen(self) -> Candidate:
        return self.candidates[-1]

    @property
    def config(self) -> Config:
        """The rules that give the chosen model."""
        wide = WIDER[self.scheme]
        rules = tuple(Rule(glob.escape(name), wide) for name in self.chosen.wide)
        return Config(rules, self.scheme, self.rounding)


def to_toml(config: Config) -> str:
    """The schemes of a configuration as the file that Config.from_toml reads."""
    lines = []
    if config.scheme is not None:
        lines.append(f'scheme = "{config.scheme}"')
    if config.rounding is not None:
        lines.append(f'rounding = "{config.rounding.value}"')
    for rule in config.rules:
        name = json.dumps(rule.name, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines += ["", "[[layer]]", f"name = {name}", f'scheme = "{rule.scheme}"']
    return "\n".join(lines) + "\n"


@dataclass
class Search:
    """The network, what is known of it, and the budget. probe_inputs: a few samples. measure: a model's score."""

    graph: ir.Model
    ranges: Mapping[str, Range]
    scheme: Scheme
    rounding: Rounding
    target: Target
    budget: Budget
    probe_inputs: Mapping[str, np.ndarray]
    measure: Callable[[QuantizedModel], Score]
    _made: dict[frozenset[str], tuple[QuantizedModel, Estimate] | None] = field(default_factory=dict)

    def run(self, metric: str) -> Front:
        """The front by `sqnr` or `accuracy`. PromiseError says the least memory where no choice fits the budget."""
        asked: list[str] = []
        narrow = quantize(self.graph, self.ranges, scheme=self.scheme, rounding=self.rounding, scheme_of=asked.append)
        units = units_of(self.graph, narrow, dict.fromkeys(asked))
        probe = Probe.of(narrow, reals_of(self.graph, narrow), self.probe_inputs)
        gains = _Gains(probe, units, weights=self.scheme == "q7")
        path = [self._start(units)]
        path += self._widened(path[0], gains, units)
        everything = self._all(units)
        if everything not in path and self._fits(everything):
            path.append(everything)
        picked = (
            path if len(path) <= _MEASURED else [path[i] for i in np.linspace(0, len(path) - 1, _MEASURED, dtype=int)]
        )
        return Front(self.scheme, self.rounding, self._front(picked, metric), len(picked))

    def _start(self, units: Mapping[str, "Unit"]) -> frozenset[str]:
        """All layers at 8 bits, or what is smaller: a kernel of 16 bits may take less than a table of 8."""
        best: frozenset[str] = frozenset()
        if self._fits(best):
            return best
        for unit in units.values():
            more = best | set(unit.names)
            made, now = self._model(more), self._model(best)
            if made is not None and now is not None and self.budget.growth(now[1], made[1]) < 0:
                best = more
            if self._fits(best):
                return best
        found = self._model(best)
        assert found is not None  # noqa: S101 - all at 8 bits was made by run
        missed = fits(found[1], self.budget.flash, self.budget.ram)
        raise PromiseError(f"no choice of formats fits the budget; the smallest needs {missed.text}")

    def _widened(self, start: frozenset[str], gains: "_Gains", units: Mapping[str, "Unit"]) -> Iterator[frozenset[str]]:
        """One layer more each time: the one that removes most noise for its share of the budget, judged anew."""
        wide = start
        known = {name: gains.of(unit, wide) for name, unit in units.items() if not wide & set(unit.names)}
        known = dict(sorted(known.items(), key=lambda item: -item[1])[:_RANKED])
        price = {name: self._price(start, units[name]) for name in known}
        fresh, idle = set(known), set[str]()
        while left := known.keys() - idle:
            name = max(sorted(left), key=lambda name: known[name] / price[name])
            if name not in fresh:
                known[name] = gains.of(units[name], wide)
                fresh.add(name)
            elif known[name] < _LEAST_GAIN * gains.noise(wide):
                idle.add(name)  # until others are widened: then it may be most of what is left
            else:
                del known[name]
                more = wide | set(units[name].names)
                if self._fits(more):
                    wide, fresh, idle = more, set(), set()
                    yield wide

    def _price(self, start: frozenset[str], unit: "Unit") -> float:
        before, after = self._model(start), self._model(start | set(unit.names))
        if before is None or after is None:
            return float("inf")
        return max(self.budget.growth(before[1], after[1]), _LEAST_SHARE)

    def _fits(self, wide: frozenset[str]) -> bool:
        made = self._model(wide)
        return made is not None and fits(made[1], self.budget.flash, self.budget.ram).holds

    def _model(self, wide: frozenset[str]) -> tuple[QuantizedModel, Estimate] | None:
        """The model with these layers at 16 bits and its cost; None where there is no such model."""
        if wide not in self._made:
            wider = WIDER[self.scheme]
            try:
                made = quantize(
                    self.graph,
                    self.ranges,
                    scheme=self.scheme,
                    rounding=self.rounding,
                    scheme_of=lambda name: wider if name in wide else None,
                )
                self._made[wide] = (made, estimate(made, self.target))
            except GemedgeError:
                if not wide:
                    raise
                self._made[wide] = None
        return self._made[wide]

    def _all(self, units: Mapping[str, "Unit"]) -> frozenset[str]:
        return frozenset(name for unit in units.values() for name in unit.names)

    def _front(self, picked: Sequence[frozenset[str]], metric: str) -> tuple[Candidate, ...]:
        candidates = []
        for wide in picked:
            made = self._model(wide)
            if made is not None:
                candidates.append(Candidate(tuple(sorted(wide)), *made, self.measure(made[0])))
        return front_of(candidates, self.budget, metric)


def front_of(candidates: Sequence[Candidate], budget: Budget, metric: str) -> tuple[Candidate, ...]:
    """Those that no cheaper one equals, cheapest first."""
    found: list[Candidate] = []
    ordered = sorted(candidates, key=lambda c: (budget.share(c.cost), -quality(c.score, metric)))
    for candidate in ordered:
        if not found or quality(candidate.score, metric) > quality(found[-1].score, metric):
            found.append(candidate)
    return tuple(found)


def quality(score: Score, metric: str) -> float:
    """The number that is to be large."""
    if metric == "sqnr":
        return score.sqnr
    if score.accuracy is None:
        raise UsageError("metric accuracy needs labels")
    return score.accuracy


# What can be widened


@dataclass(frozen=True, slots=True)
class Unit:
    """Layers that are widened together: their names in the float model, and in the integers' layers and tensors."""

    names: tuple[str, ...]
    layers: frozenset[str]
    tensors: tuple[str, ...]


def units_of(graph: ir.Model, narrow: QuantizedModel, asked: Mapping[str, None]) -> dict[str, Unit]:
    """The inputs, and the layers that have a format of their own, by name."""
    heads: dict[str, str] = {}
    made = {layer.name.partition("/")[0] if layer.name not in asked else layer.name for layer in narrow.layers}
    for node in graph.graph:
        name = layer_name(node)
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        before = layer_name(producer) if producer is not None else ""
        if name in asked:
            heads[name] = heads[before] if name not in made and before in heads else name
    units = {
        name: Unit((name,), frozenset([name]), (name,))
        for name in narrow.inputs
        if narrow.tensors[name].params is not None
    }
    for head in dict.fromkeys(heads.values()):
        layers = [layer for layer in narrow.layers if layer.name == head or layer.name.startswith(f"{head}/")]
        tensors = tuple(layer.output for layer in layers if _has_format(layer))
        if tensors:
            names = tuple(name for name, other in heads.items() if other == head)
            units[head] = Unit(names, frozenset(layer.name for layer in layers), tensors)
    return units


def _has_format(layer: Op) -> bool:
    return not isinstance(layer, Moving | MaxPool)


@dataclass
class _Gains:
    """How much of the outputs' noise widening a unit removes, as the emulator has it: nearly what it did before others
    were widened, so that an old figure is a good guess.
    """

    probe: Probe
    units: Mapping[str, Unit]
    weights: bool  # whether they are widened, too
    _known: dict[frozenset[str], float] = field(default_factory=dict)

    def of(self, unit: Unit, wide: frozenset[str]) -> float:
        return self.noise(wide) - self.noise(wide | set(unit.names))

    def noise(self, wide: frozenset[str]) -> float:
        if wide not in self._known:
            units = [unit for unit in self.units.values() if wide & set(unit.names)]
            layers = frozenset(name for unit in units for name in unit.layers)
            gone: Causes = frozenset({"kernel", "weights"} if self.weights else {"kernel"})
            found = self.probe.model.tensors
            tensors = {name: _finer(found[name].quantized) for unit in units for name in unit.tensors}
            self._known[wide] = self.probe.error(lambda name: ALL - gone if name in layers else ALL, params=tensors)
        return self._known[wide]


def _finer(params: QuantParams) -> QuantParams:
    """16 bits, symmetric, over at least the same range."""
    return QuantParams(params.scale / 128, 0, 16) if params.bits == 8 else params

"""Where a quantized network's output error comes from: which cause, which layer, and which cause within it.

Error is the outputs' noise over their signal, each in mean square, averaged over the outputs. Parts are switched off
one after another and what the error falls by is the part's share, so that shares sum to the total; parts interact, so
the opposite order gives other shares, and both are kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, log10

import numpy as np

from gemedge.model import Op, QuantizedModel
from gemedge.moving import Concatenate, Constant, Embed, Moving
from gemedge.operators import MaxPool
from gemedge.quant.emulate import ALL, CAUSES, NONE, Cause, Causes, emulate
from gemedge.quant.lower.lowering import Real

_MOST_STEPS = 96  # parts that layers are switched off in; more layers go in groups
_SPLIT = 12  # parts whose share is split by cause


@dataclass(frozen=True, slots=True)
class Share:
    """A part's share of the error: switched off after those before it, and after those behind it.

    layers: one or, in a deep network, a group of neighbours. causes: the first share split, of the largest parts.
    """

    layers: tuple[str, ...]
    forward: float
    reverse: float
    causes: Mapping[Cause, float]

    @property
    def mean(self) -> float:
        return (self.forward + self.reverse) / 2


@dataclass(frozen=True, slots=True)
class Attribution:
    """noise: of the integers, over the signal. causes: cause -> share in the order of CAUSES and in reverse.

    rescaling: what the emulation leaves out, the rounding of multipliers to integers.
    """

    noise: float
    rescaling: float
    causes: Mapping[Cause, tuple[float, float]]
    layers: tuple[Share, ...]

    @property
    def sqnr(self) -> float:
        """Of the outputs, in dB; inf where integers and floats agree."""
        return decibels(self.noise)


def noise_over_signal(exact: np.ndarray, found: np.ndarray) -> float:
    """The error's power over that of the exact numbers; where those are all 0, 1 for any error."""
    signal, error = float(np.square(exact).sum()), float(np.square(found - exact).sum())
    return error / signal if signal else float(error > 0)


def decibels(noise: float) -> float:
    return inf if noise <= 0 else -10 * log10(noise)


@dataclass(frozen=True, slots=True)
class Probe:
    """The model on one set of samples: what it gives with no cause on and with all, and any other way when asked.

    inputs: arrays by the model's names, few samples. exact, rounded: all tensors by name, as float64.
    """

    model: QuantizedModel
    reals: Mapping[str, Real]
    inputs: Mapping[str, np.ndarray]
    exact: Mapping[str, np.ndarray]
    rounded: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, model: QuantizedModel, reals: Mapping[str, Real], inputs: Mapping[str, np.ndarray]) -> "Probe":
        exact, rounded = (
            emulate(model, reals, inputs, _everywhere(on), keep=list(model.tensors)) for on in (NONE, ALL)
        )
        return cls(model, reals, inputs, exact, rounded)

    def noise(self, outputs: Mapping[str, np.ndarray]) -> float:
        """Of output tensors, by tensor name, over the float outputs' signal."""
        names = dict.fromkeys(self.model.outputs.values())
        return float(np.mean([noise_over_signal(self.exact[name], outputs[name]) for name in names]))

    def before(self, layer: str) -> dict[str, np.ndarray]:
        """The rounded tensors that are there when a layer is run; none for an input's name."""
        names = [each.name for each in self.model.layers]
        if layer not in names:
            return {}
        made = [*self.model.inputs, *(each.output for each in self.model.layers[: names.index(layer)])]
        return {name: self.rounded[name] for name in made}

    def error(self, causes: Callable[[str], Causes], **changes: Mapping) -> float:
        """The outputs' noise with these causes at each layer and these changes of `emulate`."""
        return self.noise(emulate(self.model, self.reals, self.inputs, causes, **changes))


def attribute(probe: Probe, integers: Mapping[str, np.ndarray]) -> Attribution:
    """The shares of causes and layers. integers: the simulated outputs, dequantized, by tensor name."""
    noise = probe.noise(integers)
    total = probe.noise(probe.rounded)
    falling, rising = (
        _steps([probe.error(_everywhere(on)) for on in _sets(order)]) for order in (CAUSES, CAUSES[::-1])
    )
    causes = {cause: (falling[i], rising[len(CAUSES) - 1 - i]) for i, cause in enumerate(CAUSES)}
    return Attribution(noise, noise - total, causes, tuple(_layers(probe)))


def _sets(order: Sequence[Cause]) -> list[Causes]:
    """All causes, then one fewer each time in this order, down to none."""
    return [frozenset(order[i:]) for i in range(len(order) + 1)]


def _steps(errors: Sequence[float]) -> list[float]:
    return [before - after for before, after in pairwise(errors)]


def _everywhere(on: Causes) -> Callable[[str], Causes]:
    return lambda _: on


def _layers(probe: Probe) -> list[Share]:
    """Each part's share; tensors before the part that changes are known and not run again."""
    parts = _parts(probe.model)
    forward, reverse = [], []
    for index in range(len(parts) + 1):
        exact = {name for part in parts[:index] for name in part}
        forward.append(probe.error(_without(exact), known=_before(probe, probe.exact, parts, index)))
        behind = {name for part in parts[index:] for name in part}
        reverse.append(probe.error(_without(behind), known=_before(probe, probe.rounded, parts, index)))
    falling, rising = _steps(forward), [-step for step in _steps(reverse)]
    largest = sorted(range(len(parts)), key=lambda i: -(falling[i] + rising[i]))[:_SPLIT]
    return [
        Share(part, falling[i], rising[i], _split(probe, parts, i) if i in largest else {})
        for i, part in enumerate(parts)
    ]


def _split(probe: Probe, parts: Sequence[tuple[str, ...]], index: int) -> dict[Cause, float]:
    """A part's forward share by cause, those before it being exact."""
    exact = {name for part in parts[:index] for name in part}
    known = _before(probe, probe.exact, parts, index)

    def error(on: Causes) -> float:
        return probe.error(lambda name: on if name in parts[index] else NONE if name in exact else ALL, known=known)

    return dict(zip(CAUSES, _steps([error(on) for on in _sets(CAUSES)]), strict=True))


def _parts(model: QuantizedModel) -> list[tuple[str, ...]]:
    """Inputs and layers that lose something, in order, in at most _MOST_STEPS groups of neighbours."""
    names = [name for name in model.inputs if model.tensors[name].params is not None]
    names += [layer.name for layer in model.layers if loses(layer)]
    size = -(-len(names) // _MOST_STEPS)
    return [tuple(names[i : i + size]) for i in range(0, len(names), size)]


def loses(layer: Op) -> bool:
    """Whether a layer's numbers differ from the float model's by more than its input's do."""
    return not isinstance(layer, Moving | MaxPool) or isinstance(layer, Constant | Embed | Concatenate)


def _without(exact: set[str]) -> Callable[[str], Causes]:
    return lambda name: NONE if name in exact else ALL


def _before(
    probe: Probe, tensors: Mapping[str, np.ndarray], parts: Sequence[tuple[str, ...]], index: int
) -> dict[str, np.ndarray]:
    """The tensors that the first parts settle: inputs and layers before the next part's first layer.

    A later part's inputs and constants are left out, as they are not settled yet.
    """
    if index == len(parts):
        return {name: tensors[name] for name in probe.model.outputs.values()}
    unsettled = {name for part in parts[index:] for name in part}
    first = parts[index][0]
    known = {name: tensors[name] for name in probe.model.inputs if name not in unsettled}
    for layer in probe.model.layers:
        if layer.name == first:
            break
        if layer.name not in unsettled and all(name in known for name in layer.inputs):
            known[layer.output] = tensors[layer.output]
    return known

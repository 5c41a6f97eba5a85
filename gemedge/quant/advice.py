"""What to change in a quantized network, and what each change would gain: measured, by emulating the change."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gemedge.fixed import QuantParams
from gemedge.operators import Activate, Convolution, Dense, Interpolate, Lookup
from gemedge.quant.attribution import Attribution, Probe, decibels
from gemedge.quant.emulate import ALL, Cause, Causes

Change = Literal["range", "kernel", "equalise", "16-bit weights", "16 bits"]
_TRIED = 8  # layers, those with the largest shares
_LEAST = 0.1  # dB; less is not worth a line
_WIDER = (1, 2, 3, 4)  # integer bits more
_NEAR = 0.5  # dB; a narrower range that comes this near the best one is taken
_SEEN = 1e-4  # share of numbers; saturation below it is not blamed
_DOMINATES = 8.0  # times the median channel


@dataclass(frozen=True, slots=True)
class Advice:
    """One change at one layer. gain: of the outputs' SQNR, in dB. saturated: share of the layer's numbers.

    range: the new range of the tensor that the layer makes, where the change is one.
    """

    layer: str
    cause: Cause
    change: Change
    text: str
    gain: float
    range: tuple[float, float] | None = None


def advise(probe: Probe, attribution: Attribution, saturated: Mapping[str, float]) -> list[Advice]:
    """Changes that gain something, the best first. saturated: the share of each layer's numbers beyond its format."""
    before = decibels(probe.noise(probe.rounded))
    blamed = sorted(attribution.layers, key=lambda share: -max(share.forward, share.reverse))
    names = [name for share in blamed for name in share.layers][:_TRIED]
    names += [name for name, share in sorted(saturated.items(), key=lambda item: -item[1]) if share][:_TRIED]
    weighted = [layer for layer in probe.model.layers if isinstance(layer, Convolution | Dense)]
    ratios = {layer.name: _loudest(probe, layer)[1] for layer in weighted}  # what they spoil, layers behind may lose
    names += [name for name, ratio in sorted(ratios.items(), key=lambda item: -item[1]) if ratio > _DOMINATES][:_TRIED]
    found = []
    for name in dict.fromkeys(names):
        for advice in _for_layer(probe, name, saturated.get(name, 0.0)):
            gain = decibels(advice.error) - before
            if gain >= _LEAST:
                found.append(advice.with_gain(gain))
    return sorted(found, key=lambda advice: -advice.gain * _WORTH[advice.change])


# What a decibel is worth: changes that cost the device nothing come before those that cost memory and time.
_WORTH: dict[Change, float] = {"range": 1.0, "equalise": 1.0, "kernel": 1.0, "16-bit weights": 0.7, "16 bits": 0.6}


@dataclass(frozen=True, slots=True)
class _Trial:
    layer: str
    cause: Cause
    change: Change
    text: str
    error: float
    range: tuple[float, float] | None = None

    def with_gain(self, gain: float) -> Advice:
        return Advice(self.layer, self.cause, self.change, f"{self.text} gains {gain:.1f} dB", gain, self.range)


def _for_layer(probe: Probe, name: str, saturated: float) -> Iterator[_Trial]:
    layer = next((layer for layer in probe.model.layers if layer.name == name), None)
    tensor = name if layer is None else layer.output
    params = probe.model.tensors[tensor].params
    if params is None:
        return
    yield from _ranges(probe, name, tensor, params, saturated)
    if isinstance(layer, Convolution | Dense):
        yield from _channels(probe, layer)
    if params.bits == 8:
        fine = QuantParams(max(abs(end) for end in _ends(params)) / (1 << 15), 0, 16)
        yield _Trial(
            name,
            "rounding",
            "16 bits",
            f"{_quoted(name)} rounds its numbers to 8 bits{_why(probe, tensor, params)}: 16 bits there",
            _in_format(probe, name, tensor, fine),
        )
    if isinstance(layer, Convolution | Dense) and layer.weight.dtype == np.int8:
        yield _Trial(
            name,
            "weights",
            "16-bit weights",
            f"{_quoted(name)} rounds its weights to 8 bits: 16 bits for them",
            probe.error(_less(name, "weights"), known=probe.before(name)),
        )
    if isinstance(layer, Interpolate | Lookup):
        yield _Trial(
            name,
            "kernel",
            "kernel",
            f"{_quoted(name)} takes {layer.function} from a table of {layer.table.size} entries: an exact kernel",
            probe.error(_less(name, "kernel"), known=probe.before(name)),
        )


def _ranges(probe: Probe, name: str, tensor: str, params: QuantParams, saturated: float) -> Iterator[_Trial]:
    """Wider where numbers are cut off, narrower where codes lie idle."""
    values = probe.exact[tensor]
    low, high = _ends(params)
    if saturated >= _SEEN:
        errors = {bits: _in_format(probe, name, tensor, _scaled(params, 2.0**bits)) for bits in _WIDER}
        best = decibels(min(errors.values()))
        bits = next(bits for bits, error in errors.items() if decibels(error) >= best - _NEAR)
        more = "one integer bit" if bits == 1 else f"{bits} integer bits"
        text = f"{_quoted(name)} saturates {saturated:.2%} of its numbers: {more} more"
        yield _Trial(name, "saturation", "range", text, errors[bits], _ends(_scaled(params, 2.0**bits)))
        return
    used = max(_part(values.max(), high), _part(values.min(), low))
    bits = int(np.floor(-np.log2(used))) if used > 0 else 0
    if bits >= 1:
        finer = _scaled(params, 2.0**-bits)
        more = "one fraction bit" if bits == 1 else f"{bits} fraction bits"
        text = f"{_quoted(name)} uses {100 * used:.2g}% of its range{_why(probe, tensor, params)}: {more} more"
        yield _Trial(name, "rounding", "range", text, _in_format(probe, name, tensor, finer), _ends(finer))


def _loudest(probe: Probe, layer: Convolution | Dense) -> tuple[int, float]:
    """The channel that reaches furthest, and how many times as far as the median channel (0 where that is silent)."""
    values = np.abs(probe.exact[layer.output])
    axis = 1 if isinstance(layer, Convolution) else values.ndim - 1
    peaks = values.max(tuple(a for a in range(values.ndim) if a != axis))
    median = float(np.median(peaks))
    return int(peaks.argmax()), float(peaks.max()) / median if median else 0.0


def _channels(probe: Probe, layer: Convolution | Dense) -> Iterator[_Trial]:
    """A channel that dwarfs the others leaves them few codes, up to the layers that weigh it down again."""
    channel, ratio = _loudest(probe, layer)
    if ratio <= _DOMINATES:
        return
    between, weighing = _until_weighed(probe, layer.output)
    quiet = between | {layer.name}

    def causes(name: str) -> Causes:
        return ALL - {"rounding"} if name in quiet else ALL - {"weights"} if name in weighing else ALL

    text = (
        f"channel {channel} of {_quoted(layer.name)} reaches {ratio:.0f} times the median"
        " channel: smaller weights there and larger ones behind"
    )
    yield _Trial(layer.name, "rounding", "equalise", text, probe.error(causes, known=probe.before(layer.name)))


def _until_weighed(probe: Probe, tensor: str) -> tuple[set[str], set[str]]:
    """The layers that a tensor runs through until weights multiply it, and the layers that do."""
    reached, between, weighing = {tensor}, set(), set()
    for layer in probe.model.layers:
        if reached & set(layer.inputs):
            if isinstance(layer, Convolution | Dense):
                weighing.add(layer.name)
            else:
                between.add(layer.name)
                reached.add(layer.output)
    return between, weighing


def _in_format(probe: Probe, name: str, tensor: str, params: QuantParams) -> float:
    """The outputs' noise with another format for the tensor that a layer, or an input, gives."""
    return probe.error(lambda _: ALL, params={tensor: params}, known=probe.before(name))


def _part(value: float, end: float) -> float:
    return float(value) / end if end and value * end > 0 else 0.0


def _scaled(params: QuantParams, factor: float) -> QuantParams:
    return QuantParams(params.scale * factor, params.zero_point, params.bits)


def _ends(params: QuantParams) -> tuple[float, float]:
    low, high = ((end - params.zero_point) * params.scale for end in (params.raw_min, params.raw_max))
    return low, high


def _less(name: str, cause: Cause) -> Callable:
    return lambda layer: ALL - {cause} if layer == name else ALL


def _why(probe: Probe, tensor: str, params: QuantParams) -> str:
    """What makes rounding hurt here: an epsilon that the grid cannot show."""
    found = ""
    for reader in probe.model.layers:
        if isinstance(reader, Activate) and tensor in reader.inputs:
            epsilon = reader.activation.epsilon
            if reader.activation.family != "rational" and epsilon < params.scale:
                found += f" (epsilon {epsilon:.4g} of {_quoted(reader.name)} is below one LSB, {params.scale:.4g})"
    return found


def _quoted(name: str) -> str:
    return f"`{name}`"

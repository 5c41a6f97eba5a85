"""GEM against the choices: what an activation of a network would lose and cost by other ways, on its own data."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gemedge.activation import Activation, Branch
from gemedge.fixed import dequantize, quantize
from gemedge.kernel import FixedActivation
from gemedge.methods import compare
from gemedge.operators import Activate
from gemedge.quant.attribution import Probe, decibels
from gemedge.quant.emulate import ALL

_RELU = Activation.rational(negative=Branch(), positive=Branch(slope=Fraction(1)))


@dataclass(frozen=True, slots=True)
class Way:
    """One way to compute an activation. max_lsb, mean_lsb: error on the codes that the data gives.

    sqnr: of the network's outputs in dB with this way in this one place. flash_bytes: of constants, code not counted;
    multiplies, look_ups: of the dearest element.
    """

    name: str
    max_lsb: float
    mean_lsb: float
    sqnr: float
    flash_bytes: int
    multiplies: int
    look_ups: int


@dataclass(frozen=True, slots=True)
class Alternatives:
    """An activation layer and the ways to compute it, the network's own first."""

    layer: str
    activation: str
    ways: tuple[Way, ...]


def alternatives(layer: Activate, probe: Probe) -> Alternatives:
    """The kernel, the tables that exist for its formats, and ReLU in its place."""
    model = probe.model
    given, made = model.tensors[layer.inputs[0]].quantized, model.tensors[layer.output].quantized
    codes = quantize(probe.rounded[layer.inputs[0]], given)
    exact = np.asarray(layer.activation(dequantize(codes, given))) / made.scale + made.zero_point
    exact = np.clip(exact, made.raw_min, made.raw_max)
    ways = []
    for method in compare(model.kernels[layer.name]):
        found = method.outputs[codes - given.raw_min]
        ways.append(
            _way(layer, probe, method.name, found, exact, method.flash_bytes, method.multiplies, method.look_ups)
        )
    relu = FixedActivation(_RELU, given, made)(codes)
    ways.append(_way(layer, probe, "ReLU instead", relu, exact, 0, int(given.scale != made.scale), 0))
    return Alternatives(layer.name, str(layer.activation), tuple(ways))


def _way(
    layer: Activate, probe: Probe, name: str, found: np.ndarray, exact: np.ndarray, flash: int, times: int, reads: int
) -> Way:
    error = np.abs(found - exact)
    made = probe.model.tensors[layer.output].quantized
    known = probe.before(layer.name) | {layer.output: dequantize(found, made)}
    sqnr = decibels(probe.error(lambda _: ALL, known=known))
    return Way(name, float(error.max()), float(error.mean()), sqnr, flash, times, reads)

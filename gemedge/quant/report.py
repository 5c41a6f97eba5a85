"""All that is known of a quantized model on data: how far it is from the float model, why, and what to change."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np

from gemedge.errors import DataError
from gemedge.fixed import dequantize
from gemedge.model import QuantizedModel
from gemedge.operators import Activate
from gemedge.quant.advice import Advice, advise
from gemedge.quant.attribution import Attribution, Probe, attribute, decibels, noise_over_signal
from gemedge.quant.choices import Alternatives, alternatives
from gemedge.quant.compare import Comparison, TensorError
from gemedge.quant.lower.lowering import Real
from gemedge.quant.simulate import simulate

_MOST_CHOICES = 64  # activations, in a deep network the first; the report says how many there are
_MOST_SHOWN = 64  # outputs of the worst sample


@dataclass(frozen=True, slots=True)
class Classes:
    """Of a network whose first output scores classes: how often both agree, and how often each is right.

    float_accuracy, accuracy: None without labels.
    """

    agreement: float
    float_accuracy: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Worst:
    """The sample whose outputs differ most, by its number in the data.

    exact, found: the first _MOST_SHOWN numbers of its first output, by the float model and by the integers.
    """

    sample: int
    sqnr: float
    exact: tuple[float, ...]
    found: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """sqnr: of the outputs over all samples, in dB. probed: samples that the attribution and the advice ran on.

    operators: what each layer is, by its name. activations: how many GEM and SE-GEM layers there are, of which
    choices covers the first.
    """

    scheme: str
    rounding: str
    samples: int
    layers: int
    operators: Mapping[str, str]
    sqnr: float
    worst: Worst
    classes: Classes | None
    tensors: tuple[TensorError, ...]
    attribution: Attribution
    probed: int
    advice: tuple[Advice, ...]
    choices: tuple[Alternatives, ...]
    activations: int

    @property
    def headline(self) -> str:
        """What to change first and what it would gain, or that nothing stands out."""
        if not self.advice:
            return "no single change gains 0.1 dB: the error is spread over the network"
        return self.advice[0].text

    def as_json(self) -> dict[str, Any]:
        """Everything, numbers that are not finite as null."""
        found: dict[str, Any] = _plain(asdict(self))
        return {"headline": self.headline, **found}


def report(
    reals: Mapping[str, Real],
    quantized: QuantizedModel,
    comparison: Comparison,
    probe_inputs: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
) -> Report:
    """The report on a comparison of both models.

    reals: what quantized's constants stood for, as `reals_of` finds. probe_inputs: a few samples by the model's input
    names, which the attribution runs on. labels: integers [samples], or None. Raises DataError.
    """
    probe = Probe.of(quantized, reals, probe_inputs)
    raw = simulate(quantized, probe_inputs, raw=True)
    integers = {
        tensor: dequantize(raw[name], quantized.tensors[tensor].quantized) for name, tensor in quantized.outputs.items()
    }
    attribution = attribute(probe, integers)
    gems = [
        layer for layer in quantized.layers if isinstance(layer, Activate) and layer.activation.family != "rational"
    ]
    saturated = {error.layer: error.saturated for error in comparison.errors}
    noise, place, share = noise_of(comparison)
    first = next(iter(comparison.exact))
    shown = [
        tuple(float(x) for x in side[first][place].reshape(-1)[:_MOST_SHOWN])
        for side in (comparison.exact, comparison.found)
    ]
    return Report(
        scheme=quantized.scheme,
        rounding=quantized.rounding.value,
        samples=len(comparison.exact[first]),
        layers=len(quantized.layers),
        operators={layer.name: type(layer).__name__ for layer in quantized.layers},
        sqnr=decibels(noise),
        worst=Worst(place, decibels(share), *shown),
        classes=classes_of(comparison.exact[first], comparison.found[first], labels),
        tensors=comparison.errors,
        attribution=attribution,
        probed=len(next(iter(probe_inputs.values()))),
        advice=tuple(advise(probe, attribution, saturated)),
        choices=tuple(alternatives(layer, probe) for layer in gems[:_MOST_CHOICES]),
        activations=len(gems),
    )


def noise_of(comparison: Comparison) -> tuple[float, int, float]:
    """The outputs' noise over their signal, the sample with the most of it, and how much that sample has."""
    ratios, by_sample = [], []
    for name, exact in comparison.exact.items():
        wide = exact.astype(np.float64).reshape(len(exact), -1)
        found = comparison.found[name].reshape(len(exact), -1)
        error, signal = np.square(found - wide).sum(1), np.square(wide).sum(1)
        ratios.append(noise_over_signal(wide, found))
        by_sample.append(error / np.where(signal > 0, signal, 1.0))
    worst = np.mean(by_sample, axis=0)
    place = int(np.argmax(worst))
    return float(np.mean(ratios)), place, float(worst[place])


def check_labels(labels: np.ndarray, scores: np.ndarray) -> None:
    """Raise DataError where labels are not one class of the scores [samples, classes] for each sample."""
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise DataError(f"labels need an output of class scores [samples, classes], not {list(scores.shape)}")
    if labels.dtype.kind not in "iu":
        raise DataError(f"labels of type {labels.dtype}; they must be whole numbers")
    if labels.shape != scores.shape[:1]:
        raise DataError(f"labels of shape {list(labels.shape)} for {len(scores)} samples")
    outside = np.flatnonzero((labels < 0) | (labels >= scores.shape[1]))
    if outside.size:
        label = f"label {labels[outside[0]]} of sample {outside[0]}"
        raise DataError(f"{label}; the classes are 0 to {scores.shape[1] - 1}")


def classes_of(exact: np.ndarray, found: np.ndarray, labels: np.ndarray | None) -> Classes | None:
    if labels is not None:
        check_labels(labels, exact)
    if exact.ndim != 2 or exact.shape[1] < 2:
        return None
    theirs, ours = exact.argmax(1), found.argmax(1)
    right = [None, None] if labels is None else [float((side == labels).mean()) for side in (theirs, ours)]
    return Classes(float((theirs == ours).mean()), *right)


def _plain(value: Any) -> Any:
    """For JSON: tuples as lists, keys as text, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value

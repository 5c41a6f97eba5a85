"""Biases moved so that the integers of each layer have the float model's mean, channel by channel.

Layer by layer in order, as Nagel et al. 2019, section 4.2, with measured means: a layer is run on integers that
already come from corrected layers, compared with the float model's output for the same samples, and run again. A
clamp that follows is run with it. A new bias is kept where it lessens the error and the model still proves that its
accumulators fit.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from gemedge.errors import DataError, FormatError, QuantizationError
from gemedge.model import Op, QuantizedModel
from gemedge.moving import Clamp
from gemedge.operators import Convolution, Dense
from gemedge.quant.batches import Batch
from gemedge.quant.calibrate import runner
from gemedge.quant.evaluate import Run, evaluate
from gemedge.quant.simulate import Integers, border

_SAMPLES = 8  # of one evaluation: what is within a layer stays in the cache
_ROUNDS = 3  # where a Relu cuts, moving the bias moves the mean by less


@dataclass(frozen=True, slots=True)
class Corrected:
    """The model with its new biases, and how many layers have one."""

    model: QuantizedModel
    layers: int


def correct_biases(model: ir.Model, quantized: QuantizedModel, batches: Iterable[Batch]) -> Corrected:
    """The quantized model with biases for which each layer's mean error on the batches is least.

    All tensors that are alive between two layers are held for all samples: a few hundred samples are enough.
    Raises DataError where there are none.
    """
    run, given = runner(model), []
    ends = {end.output: layer for end, layer in _corrected(quantized)}
    totals: dict[str, np.ndarray] = {}
    samples = 0
    for batch in batches:
        given.append(border(quantized, batch))
        count = len(next(iter(batch.values())))
        for name, array in run(batch, samples):
            if name in ends:
                totals[name] = totals.get(name, 0.0) + count * _per_channel(array, ends[name])
        samples += count
    if samples == 0:
        raise DataError("the data has no samples")
    integers = {name: np.concatenate([part[name] for part in given]) for name in given[0]}
    return _in_order(quantized, integers, {name: total / samples for name, total in totals.items()})


def _corrected(quantized: QuantizedModel) -> list[tuple[Op, Convolution | Dense]]:
    """Layers with weights, each after the layer, itself or a clamp, whose output is a tensor of the float model."""
    clamps = {layer.inputs[0]: layer for layer in quantized.layers if isinstance(layer, Clamp)}
    weighted = [layer for layer in quantized.layers if isinstance(layer, Convolution | Dense)]
    return [(clamps.get(layer.output, layer), layer) for layer in weighted]


def _in_order(quantized: QuantizedModel, known: Integers, means: dict[str, np.ndarray]) -> Corrected:
    last_use = {name: index for index, layer in enumerate(quantized.layers) for name in layer.inputs}
    ends = {layer.name: end for end, layer in _corrected(quantized)}
    model, moved = quantized, 0
    for index, layer in enumerate(quantized.layers):
        current: Op = layer
        if isinstance(layer, Convolution | Dense) and ends[layer.name].output in means:
            better = _better(model, layer, ends[layer.name], known, means[ends[layer.name].output])
            if better is not None:
                model, current, moved = _with(model, better), better, moved + 1
        known[layer.output] = _evaluate(current, known, quantized)
        for name in {name for name in layer.inputs if last_use[name] == index and name in known}:
            del known[name]
    return Corrected(model, moved)


def _better(
    model: QuantizedModel, layer: Convolution | Dense, end: Op, known: Integers, mean: np.ndarray
) -> Convolution | Dense | None:
    """The layer with the bias of the rounds tried whose mean error is least; None where that is its own."""
    best, least, tried = None, np.inf, layer
    for _ in range(_ROUNDS + 1):
        error = _mean_error(tried, end, known, mean, model)
        if np.abs(error).sum() < least:
            best, least = tried, float(np.abs(error).sum())
        else:
            break
        step = error / model.tensors[layer.output].quantized.scale * np.exp2(layer.shift)
        with np.errstate(divide="ignore", invalid="ignore"):
            move = np.where(layer.mantissa > 0, np.rint(step / layer.mantissa), 0.0)
        if not move.any() or np.abs(move).max() >= 2.0**46:
            break
        tried = replace(tried, bias=(tried.bias + move.astype(np.int64)).astype(layer.bias.dtype))
        try:
            _with(model, tried)
        except (QuantizationError, FormatError):
            break
    return None if best is layer else best


def _mean_error(
    layer: Convolution | Dense, end: Op, known: Integers, mean: np.ndarray, model: QuantizedModel
) -> np.ndarray:
    """The float mean less the integers' mean of each output channel, in real units."""
    made = model.tensors[end.output]
    raw = _evaluate(layer, known, model)
    if isinstance(end, Clamp):
        raw = _evaluate(end, {layer.output: raw}, model)
    return mean - (_per_channel(raw, layer) - made.quantized.zero_point) * made.quantized.scale


def _per_channel(values: np.ndarray, layer: Convolution | Dense) -> np.ndarray:
    """The mean of each output channel, whatever the axis of the batch."""
    axis = 1 if isinstance(layer, Convolution) else -1
    return np.moveaxis(values.astype(np.float64), axis, 0).reshape(len(layer.weight), -1).mean(1)


def _evaluate(layer: Op, known: Integers, model: QuantizedModel) -> np.ndarray:
    """The layer's integers for all samples, a few at a time."""
    tensors, made = [model.tensors[name] for name in layer.inputs], model.tensors[layer.output]
    samples, parts = len(next(iter(known.values()))), []
    for start in range(0, samples, _SAMPLES):
        given = [known[name][start : start + _SAMPLES] for name in layer.inputs]
        parts.append(evaluate(layer, given, tensors, made, Run(model, min(_SAMPLES, samples - start))))
    return np.concatenate(parts)


def _with(model: QuantizedModel, layer: Op) -> QuantizedModel:
    """The model with another layer in the place of the one of its name; it checks itself again."""
    return replace(model, layers=tuple(layer if old.name == layer.name else old for old in model.layers))

"""A quantized model in real numbers, with each cause of its error on or off at each layer.

With every cause off it is the float model; with every cause on it gives the simulated integers' numbers but for the
rescaling's own rounding. What is between tells which layer and which cause an error comes from.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gemedge.fixed import QuantParams
from gemedge.model import Op, QuantizedModel
from gemedge.moving import Clamp, Concatenate, Constant, Embed, Pad, Reshape, Spread, Take, Transpose
from gemedge.operators import (
    Activate,
    AveragePool,
    Choose,
    Combine,
    Convolution,
    Dense,
    GemmlowpSum,
    Interpolate,
    LayerNormalization,
    Lookup,
    MatrixMultiply,
    MaxPool,
    Multiply,
    Operator,
    RawAveragePool,
    Softmax,
    Tensor,
)
from gemedge.quant.evaluate import aligned, pool_windows, slide
from gemedge.quant.lower.lowering import Real

Cause = Literal["weights", "rounding", "saturation", "kernel"]
CAUSES: tuple[Cause, ...] = ("kernel", "saturation", "rounding", "weights")  # the order in which they are switched off
Causes = frozenset[Cause]
ALL: Causes = frozenset(CAUSES)
NONE: Causes = frozenset()
Arrays = list[np.ndarray]


@dataclass(frozen=True, slots=True)
class Place:
    """One layer as it is emulated: the tensors around it, what its constants stood for, and the causes that act."""

    tensors: list[Tensor]
    made: Tensor
    real: Real
    on: Causes
    samples: int


def emulate(
    model: QuantizedModel,
    reals: Mapping[str, Real],
    inputs: Mapping[str, np.ndarray],
    causes: Callable[[str], Causes],
    *,
    keep: Iterable[str] | None = None,
    known: Mapping[str, np.ndarray] | None = None,
    params: Mapping[str, QuantParams] | None = None,
) -> dict[str, np.ndarray]:
    """Tensors by name as float64 [batch, *shape], the outputs' by default.

    inputs: float arrays or indices by the model's names. causes: those that act at a layer, or at an input, by its
    name. known: tensors that are given, so that layers which only they need are not run. params: formats to
    emulate in place of the model's, by tensor.
    """
    kept = set(model.outputs.values()) if keep is None else set(keep)
    formats = params or {}
    found = dict(known or {})
    samples = len(next(iter(inputs.values())))
    for name in model.inputs:
        if name not in found:
            x, tensor = inputs[name], model.tensors[name]
            if tensor.params is None:
                found[name] = x.astype(np.int64)
            else:
                found[name] = _written(x.astype(np.float64), formats.get(name, tensor.params), causes(name))
    needed = _needed(model, kept, found)
    last_use = {name: layer.name for layer in needed for name in layer.inputs}
    for layer in needed:
        tensors = [model.tensors[name] for name in layer.inputs]
        made, on = model.tensors[layer.output], causes(layer.name)
        place = Place(tensors, made, reals.get(layer.name, Real()), on, samples)
        value = _EMULATE[type(layer)](layer, [found[name] for name in layer.inputs], place)
        if place.real.bounds is not None:
            value = np.clip(value, *place.real.bounds)
        if not isinstance(layer, _MOVES) and made.params is not None:
            value = _written(value, formats.get(layer.output, made.params), on)
        found[layer.output] = value
        for name in layer.inputs:
            if last_use[name] == layer.name and name not in kept:
                found.pop(name, None)
    return {name: found[name] for name in kept}


def _needed(model: QuantizedModel, kept: set[str], known: Mapping[str, np.ndarray]) -> list[Op]:
    """The layers, in order, that the kept tensors depend on beyond those known."""
    wanted, needed = kept - known.keys(), []
    for layer in reversed(model.layers):
        if layer.output in wanted:
            needed.append(layer)
            wanted |= set(layer.inputs) - known.keys()
    return needed[::-1]


def _written(x: np.ndarray, params: QuantParams, on: Causes) -> np.ndarray:
    """x as its format keeps it: rounded to its grid, held within its ends."""
    low, high = ((end - params.zero_point) * params.scale for end in (params.raw_min, params.raw_max))
    if "saturation" in on:
        x = np.clip(x, low, high)
    if "rounding" in on:
        x = np.floor(x / params.scale + 0.5) * params.scale
    return x


# Sums of products


def _weight(weight: np.ndarray, real: Real, place: Place) -> np.ndarray:
    """The weights, as integers stand for them where their rounding acts."""
    if real.weight is None or real.scales is None or "weights" not in place.on:
        return weight.astype(np.float64) if real.weight is None else real.weight
    return weight * real.scales.reshape(-1, *[1] * (weight.ndim - 1))


def _bias(op: Convolution | Dense, place: Place) -> np.ndarray:
    real = place.real
    if real.bias is None or real.scales is None:
        return op.bias.astype(np.float64)
    return op.bias * place.tensors[0].quantized.scale * real.scales if "weights" in place.on else real.bias


def _convolution(op: Convolution, given: Arrays, place: Place) -> np.ndarray:
    sums = slide(op, given[0], _weight(op.weight, place.real, place)) + _bias(op, place)
    return np.moveaxis(sums, -1, 1)


def _dense(op: Dense, given: Arrays, place: Place) -> np.ndarray:
    product: np.ndarray = given[0] @ _weight(op.weight, place.real, place).T
    return product + _bias(op, place)


def _matrix_multiply(_: MatrixMultiply, given: Arrays, place: Place) -> np.ndarray:
    left, right = (aligned(x, place.made) for x in given)
    product: np.ndarray = left @ right
    return product


# One number at a time


def _activate(op: Activate, given: Arrays, _: Place) -> np.ndarray:
    return np.asarray(op.activation(given[0]))


def _table(op: Lookup | Interpolate, given: Arrays, place: Place) -> np.ndarray:
    """The function; or the table's entries, straight lines between them, where the kernel acts."""
    if "kernel" not in place.on and place.real.function is not None:
        return place.real.function(given[0])
    codes, made = place.tensors[0].quantized, place.made.quantized
    step = 1 if isinstance(op, Lookup) else 128
    position = given[0] / codes.scale + codes.zero_point
    entries = (op.table.astype(np.float64) - made.zero_point) * made.scale
    places = codes.raw_min + step * np.arange(op.table.size)
    return np.interp(position, places, entries)


def _sum(op: Combine | GemmlowpSum, given: Arrays, place: Place) -> np.ndarray:
    """Sums and differences; one tensor alone is multiplied by a number, which its mantissa tells."""
    if len(given) == 1:
        factor = float(op.mantissa.flat[0]) / 2.0 ** int(op.shift.flat[0])
        return given[0] * factor * place.made.quantized.scale / place.tensors[0].quantized.scale
    signs = np.sign(op.mantissa[: len(given)])
    parts = [sign * aligned(x, place.made) for x, sign in zip(given, signs, strict=True)]
    return sum(parts[1:], parts[0])


def _multiply(_: Multiply, given: Arrays, place: Place) -> np.ndarray:
    return aligned(given[0], place.made) * aligned(given[1], place.made)


def _choose(op: Choose, given: Arrays, place: Place) -> np.ndarray:
    return np.where(op.condition, *(aligned(x, place.made) for x in given))


# Over a window or an axis


def _max_pool(op: MaxPool, given: Arrays, _: Place) -> np.ndarray:
    return np.moveaxis(pool_windows(op, given[0], -np.inf).max(tuple(range(-len(op.kernel), 0))), -1, 1)


def _average_pool(op: AveragePool | RawAveragePool, given: Arrays, _: Place) -> np.ndarray:
    axes = tuple(range(-len(op.kernel), 0))
    counted = float(isinstance(op, AveragePool) and op.count_padding)
    counts = pool_windows(op, np.ones((1, 1, *given[0].shape[2:])), counted).sum(axes)
    return np.moveaxis(pool_windows(op, given[0], 0.0).sum(axes) / counts, -1, 1)


def _softmax(op: Softmax, given: Arrays, _: Place) -> np.ndarray:
    x = np.where(op.mask.astype(bool), given[0], -np.inf) if op.mask.size else given[0]
    shares = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True))


def _layer_normalization(op: LayerNormalization, given: Arrays, place: Place) -> np.ndarray:
    real, scale = place.real, place.tensors[0].quantized.scale
    epsilon = op.epsilon * scale**2 / given[0].shape[-1] ** 2 if real.scales is None else float(real.scales)
    norm = (given[0] - given[0].mean(-1, keepdims=True)) / np.sqrt(given[0].var(-1, keepdims=True) + epsilon)
    weight = np.ones(1) if real.weight is None else real.weight
    return np.asarray(norm * weight + (0.0 if real.bias is None else real.bias))


# Numbers moved


def _constant(op: Constant, _: Arrays, place: Place) -> np.ndarray:
    return np.broadcast_to(_stored(op.value, place), (place.samples, *op.value.shape))


def _embed(op: Embed, given: Arrays, place: Place) -> np.ndarray:
    return _stored(op.table, place)[given[0]]


def _stored(codes: np.ndarray, place: Place) -> np.ndarray:
    params = place.made.quantized
    if place.real.weight is None or "weights" in place.on:
        return (codes.astype(np.float64) - params.zero_point) * params.scale
    return place.real.weight


def _reshape(op: Reshape, given: Arrays, place: Place) -> np.ndarray:
    factor = 1.0
    if place.made.params is not None:
        factor = place.made.params.scale / place.tensors[0].quantized.scale
    return given[0].reshape(len(given[0]), *op.shape) * factor


def _transpose(op: Transpose, given: Arrays, _: Place) -> np.ndarray:
    return given[0].transpose(0, *(axis + 1 for axis in op.order))


def _take(op: Take, given: Arrays, _: Place) -> np.ndarray:
    return given[0].take(op.places, axis=op.axis + 1)


def _pad(op: Pad, given: Arrays, place: Place) -> np.ndarray:
    axes, params = len(op.pads) // 2, place.tensors[0].quantized
    margins = [(0, 0), *((op.pads[a], op.pads[a + axes]) for a in range(axes))]
    return np.pad(given[0], margins, constant_values=(op.value - params.zero_point) * params.scale)


def _spread(op: Spread, given: Arrays, place: Place) -> np.ndarray:
    spread = np.zeros((place.samples, *place.made.shape))
    spread[(slice(None), slice(None), *(slice(None, None, stride) for stride in op.strides))] = given[0]
    return spread


def _clamp(op: Clamp, given: Arrays, place: Place) -> np.ndarray:
    """Ends at an end of the format are infinite: beyond them lies saturation, a cause of its own."""
    params = place.tensors[0].quantized
    low = -np.inf if op.low == params.raw_min else (op.low - params.zero_point) * params.scale
    high = np.inf if op.high == params.raw_max else (op.high - params.zero_point) * params.scale
    return np.clip(given[0], low, high)


def _concatenate(op: Concatenate, given: Arrays, _: Place) -> np.ndarray:
    return np.concatenate(given, axis=op.axis + 1)


_MOVES = (Constant, Embed, Reshape, Transpose, Take, Pad, Spread, Clamp, MaxPool)
_EMULATE: dict[type[Operator], Callable[..., np.ndarray]] = {
    Constant: _constant,
    Convolution: _convolution,
    Dense: _dense,
    MatrixMultiply: _matrix_multiply,
    Activate: _activate,
    Lookup: _table,
    Interpolate: _table,
    Combine: _sum,
    GemmlowpSum: _sum,
    Multiply: _multiply,
    Choose: _choose,
    Concatenate: _concatenate,
    MaxPool: _max_pool,
    AveragePool: _average_pool,
    RawAveragePool: _average_pool,
    Softmax: _softmax,
    LayerNormalization: _layer_normalization,
    Embed: _embed,
    Reshape: _reshape,
    Transpose: _transpose,
    Take: _take,
    Pad: _pad,
    Spread: _spread,
    Clamp: _clamp,
}

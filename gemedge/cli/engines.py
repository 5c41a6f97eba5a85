"""A quantized model in other people's runtimes: each layer's integers beside those that simulate makes of the same.

Every layer is judged by itself: simulate gets the integers that the runtime gave the layer, so a difference counts
where it arises and not in the layers behind it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gemedge.export.tflite_run import Runtime
    from gemedge.export.to_tflite import Written
    from gemedge.model import QuantizedModel

SAMPLES = 4


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """How far a layer is off by itself: its largest difference in LSB, and the share of its numbers that differ."""

    layer: str
    kind: str
    max_lsb: int
    share: float


def random_integers(model: "QuantizedModel", samples: int = SAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
    """Integers of the inputs by name: half of the codes around zero, half anywhere; indices within their tables."""
    from gemedge.moving import Embed

    rng = np.random.default_rng(seed)
    found = {}
    for name in model.inputs:
        tensor = model.tensors[name]
        size = (samples, *tensor.shape)
        if tensor.params is None:
            rows = [len(layer.table) for layer in model.layers if isinstance(layer, Embed) and name in layer.inputs]
            found[name] = rng.integers(0, min(rows, default=1), size)
            continue
        params = tensor.params
        near = np.rint(rng.standard_normal(size) * (1 << (params.bits - 4))).astype(np.int64) + params.zero_point
        anywhere = rng.integers(params.raw_min, params.raw_max + 1, size)
        codes = np.where(rng.integers(0, 2, size) == 0, near, anywhere)
        found[name] = np.clip(codes, params.raw_min, params.raw_max).astype(f"i{params.bits // 8}")
    return found


def made_in_tflite(runtime: "Runtime", written: "Written", integers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The integers of a file's outputs by their tensors, as a TensorFlow Lite runtime makes them."""
    from gemedge.export import tflite_run, to_tflite

    inputs = to_tflite.laid(written.inputs, [integers[value.name] for value in written.inputs])
    outputs = tflite_run.run(runtime, written.content, inputs, dynamic=written.dynamic)
    return {value.name: value.from_memory(array) for value, array in zip(written.outputs, outputs, strict=True)}


def has_our_law(model: "QuantizedModel", runtime: "Runtime") -> bool:
    """Whether a TensorFlow Lite runtime rounds as the model does: Micro, whose law rounding double is, at 8 bits."""
    from gemedge.export.tflite_run import MICRO
    from gemedge.fixed import Rounding

    wide = any(tensor.params is not None and tensor.params.bits > 8 for tensor in model.tensors.values())
    return runtime.name == MICRO and model.rounding is Rounding.DOUBLE and not wide


def differences(model: "QuantizedModel", found: Mapping[str, np.ndarray]) -> list[LayerDifference]:
    """Each layer whose integers an engine gave, against simulate on what the engine gave it; worst first.

    found: integers [samples, *shape] by tensor, with those of the inputs.
    """
    from gemedge.moving import Constant
    from gemedge.quant.evaluate import Run, evaluate

    known = dict(found)
    samples = len(found[model.inputs[0]])
    context = Run(model, samples)
    seen = []
    for layer in model.layers:
        tensors = [model.tensors[name] for name in layer.inputs]
        wanted = evaluate(layer, [known[name] for name in layer.inputs], tensors, model.tensors[layer.output], context)
        if isinstance(layer, Constant):
            known[layer.output] = wanted
            continue
        off = np.abs(known[layer.output].astype(np.int64) - wanted.astype(np.int64))
        seen.append(LayerDifference(layer.name, type(layer).__name__, int(off.max()), float((off > 0).mean())))
    return sorted(seen, key=lambda difference: (difference.max_lsb, difference.share), reverse=True)

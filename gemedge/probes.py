"""Seeded inputs of a quantized model: on what an export is compared with simulate where no data is at hand."""

import numpy as np

from gemedge.fixed import QuantParams
from gemedge.model import QuantizedModel
from gemedge.moving import Embed, Pad, Reshape, Spread, Take, Transpose

SAMPLES = 16
_ANY_INDEX = 2  # where no table says how many rows there are
_MOVING = Reshape | Transpose | Take | Pad | Spread


def probes(model: QuantizedModel, samples: int = SAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs by name, [samples, *shape], the same for the same seed.

    All of a format's numbers are alike likely, and some lie beyond its ends; indices are such that every table has.
    """
    rng = np.random.default_rng(seed)
    rows = rows_of(model)
    made = {}
    for name in model.inputs:
        tensor = model.tensors[name]
        shape = (samples, *tensor.shape)
        if tensor.params is None:
            made[name] = rng.integers(0, rows.get(name, _ANY_INDEX), shape)
        else:
            made[name] = _numbers(rng, tensor.params, shape)
    return made


def probe(model: QuantizedModel, number: int) -> dict[str, np.ndarray]:
    """The sample of this number of a self-test that was exported without data, [1, *shape] by input name."""
    return probes(model, 1, seed=number)


def rows_of(model: QuantizedModel) -> dict[str, int]:
    """For each tensor of indices, how many rows the smallest table has that is read by it."""
    rows: dict[str, int] = {}
    for layer in reversed(model.layers):
        found = len(layer.table) if isinstance(layer, Embed) else rows.get(layer.output)
        if isinstance(layer, Embed | _MOVING) and found is not None:
            (given,) = layer.inputs
            rows[given] = min(found, rows.get(given, found))
    return rows


def _numbers(rng: np.random.Generator, params: QuantParams, shape: tuple[int, ...]) -> np.ndarray:
    beyond = 1 << (params.bits - 5)
    codes = rng.uniform(params.raw_min - beyond, params.raw_max + beyond, shape)
    return ((codes - params.zero_point) * params.scale).astype(np.float32)

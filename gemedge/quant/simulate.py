"""The one meaning of a quantized model: integers from the border's quantize to its dequantize.

The only floats inside are matrix products of integers in float32 or float64, taken where no partial sum can
reach 2**24 or 2**53: in whatever order BLAS adds, every sum is exact; and rescalings in float64
where they are proven to round as the integers do (gemedge.quant.evaluate).
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gemedge.errors import DataError, UsageError
from gemedge.fixed import dequantize, quantize
from gemedge.model import QuantizedModel
from gemedge.operators import Tensor
from gemedge.quant.evaluate import Run, evaluate, stored_type

Integers = dict[str, np.ndarray]
Part = tuple[Integers, Counter[str]]
_SAMPLES = 8  # at a time: what is between two layers stays in the cache


def simulate(
    model: QuantizedModel,
    inputs: Mapping[str, np.ndarray],
    *,
    layers: Iterable[str] = (),
    raw: bool = False,
    saturated: Counter[str] | None = None,
    workers: int | None = None,
) -> dict[str, np.ndarray]:
    """The model's outputs, dequantized to float32, for a batch of float inputs by name.

    inputs: arrays [batch, *shape]; a lone input may have any name. layers: names of layers whose integers are
    wanted too, with `.raw` behind a name that is an output's. raw gives the outputs' integers. saturated: adds for
    each layer and input how many of its numbers lay beyond their format. workers: threads, None for one a processor,
    each with a few samples at a time; the results are the same whatever their number. (BLAS has threads of its own,
    which gain nothing here: set OMP_NUM_THREADS=1.) Raises DataError for inputs that do not fit, naming the input,
    and UsageError.
    """
    wanted = {name: model.layer(name).output for name in layers}
    keep = {*wanted.values(), *model.outputs.values()}
    given = border(model, inputs)
    samples = len(next(iter(given.values())))

    def part(start: int) -> Part:
        few = {name: array[start : start + _SAMPLES] for name, array in given.items()}
        counts = Counter[str]()
        integers = entered(model, few, counts)
        made = run(model, integers, keep=keep, saturated=None if saturated is None else counts)
        return made, counts

    parts = []
    for made, counts in _in_order(part, range(0, max(samples, 1), _SAMPLES), workers):
        parts.append(made)
        if saturated is not None:
            saturated.update(counts)
    integers = {name: np.concatenate([part[name] for part in parts]) for name in keep}
    return results(model, integers, layers=wanted, raw=raw)


def results(model: QuantizedModel, integers: Integers, *, layers: Iterable[str], raw: bool) -> dict[str, np.ndarray]:
    """What simulate gives, of the integers of the tensors that outputs and layers name."""
    made = {name: integers[tensor] for name, tensor in model.outputs.items()}
    if not raw:
        made = {
            name: dequantize(made[name], model.tensors[tensor].quantized).astype(np.float32)
            for name, tensor in model.outputs.items()
        }
    for name in layers:
        made[name if raw or name not in made else f"{name}.raw"] = integers[model.layer(name).output]
    return made


def _in_order(part: Callable[[int], Part], starts: range, workers: int | None) -> list[Part]:
    """What part gives for each start; the first error in that order, whoever was faster."""
    count = min(workers if workers is not None else os.cpu_count() or 1, len(starts))
    if count < 1:
        raise UsageError(f"workers={workers} must be at least 1")
    if count == 1:
        return [part(start) for start in starts]
    pool = ThreadPoolExecutor(count)
    try:
        return list(pool.map(part, starts))
    finally:
        pool.shutdown(cancel_futures=True)


def border(model: QuantizedModel, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs under the model's names; DataError where one is missing, of another shape, or not finite."""
    given = {model.inputs[0]: next(iter(inputs.values()))} if len(inputs) == len(model.inputs) == 1 else dict(inputs)
    if set(given) != set(model.inputs):
        raise DataError(f"inputs {', '.join(map(repr, inputs))}; the model takes {', '.join(map(repr, model.inputs))}")
    for name, array in given.items():
        tensor = model.tensors[name]
        if array.shape[1:] != tensor.shape or array.ndim == 0:
            raise DataError(f"input {name!r} has shape {list(array.shape)}; the model takes [batch, {_list(tensor)}]")
        if tensor.params is None and not (array == np.rint(array)).all():
            raise DataError(f"input {name!r} takes whole numbers, indices; it holds others")
        if tensor.params is not None and not np.isfinite(array).all():
            raise DataError(f"input {name!r} holds NaN or infinity")
    if len({len(array) for array in given.values()}) > 1:
        shown = ", ".join(f"{len(array)} in {name!r}" for name, array in given.items())
        raise DataError(f"inputs must have as many samples each; there are {shown}")
    return given


def entered(model: QuantizedModel, inputs: Mapping[str, np.ndarray], saturated: Counter[str]) -> Integers:
    """Floats as the integers of the model's inputs, those beyond a format counted; indices as they are."""
    integers = {}
    for name, array in inputs.items():
        tensor = model.tensors[name]
        params = tensor.params
        if params is None:
            integers[name] = array.astype(np.int64)
        else:
            integers[name] = quantize(array, params).astype(stored_type(tensor))
            low, high = (
                (end - params.zero_point) * params.scale for end in (params.raw_min - 0.5, params.raw_max + 0.5)
            )
            saturated[name] += int(np.count_nonzero(array < low) + np.count_nonzero(array > high))
    return integers


def run(
    model: QuantizedModel, integers: Integers, *, keep: Iterable[str], saturated: Counter[str] | None = None
) -> Integers:
    """The integers of the tensors to keep, from those of the inputs; others are dropped after their last use."""
    kept = set(keep)
    last_use = {name: index for index, layer in enumerate(model.layers) for name in layer.inputs}
    known = dict(integers)
    context = Run(model, len(next(iter(integers.values()))), saturated)
    for index, layer in enumerate(model.layers):
        given = [known[name] for name in layer.inputs]
        tensors = [model.tensors[name] for name in layer.inputs]
        made = model.tensors[layer.output]
        known[layer.output] = evaluate(layer, given, tensors, made, context)
        for name in layer.inputs:
            if last_use[name] == index and name not in kept:
                known.pop(name, None)
    return {name: array for name, array in known.items() if name in kept}


def _list(tensor: Tensor) -> str:
    return ", ".join(map(str, tensor.shape))

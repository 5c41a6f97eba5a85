"""Where a run first differs from what the model means, and the probable cause."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from gemedge.model import QuantizedModel
from gemedge.operators import Tensor


@dataclass(frozen=True, slots=True)
class Difference:
    """The first number that differs, of the first layer or output that does. count: of its size numbers."""

    sample: int
    layer: str
    kind: str
    index: tuple[int, ...]
    wanted: int
    found: int
    count: int
    size: int
    cause: str

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.layer!r} at {list(self.index)} of sample {self.sample} is {self.found}, "
            f"not {self.wanted}; {self.count:,} of its {self.size:,} numbers differ; probably {self.cause}"
        )


def first_difference(
    model: QuantizedModel,
    sample: int,
    wanted: Mapping[str, np.ndarray],
    layers: Mapping[int, np.ndarray],
    outputs: Mapping[str, np.ndarray],
) -> Difference | None:
    """None where all that was shown is as wanted.

    wanted: integers by tensor, [*shape]; layers: those shown, by the layer's number; outputs: by the output's name.
    """
    shown = [
        (model.layers[i].name, type(model.layers[i]).__name__, model.layers[i].output, layers[i])
        for i in sorted(layers)
    ]
    shown += [(name, "output", model.outputs[name], array) for name, array in outputs.items()]
    for name, kind, tensor, found in shown:
        right = wanted[tensor].astype(np.int64)
        wrong = found.astype(np.int64) != right
        if wrong.any():
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            cause = probable_cause(right, found.astype(np.int64), model.tensors[tensor])
            values = int(right[index]), int(found[index])
            return Difference(sample, name, kind, index, *values, int(wrong.sum()), wrong.size, cause)
    return None


def probable_cause(wanted: np.ndarray, found: np.ndarray, tensor: Tensor) -> str:
    """What in one layer makes these numbers of those, when its inputs were right."""
    wrong = wanted != found
    apart = found - wanted
    params = tensor.params
    ends = () if params is None else (params.raw_min, params.raw_max)
    if found.size > 1 and (found == found.flat[0]).all():
        return f"its numbers were not made: all are {int(found.flat[0])}"
    if np.array_equal(np.sort(wanted, axis=None), np.sort(found, axis=None)):
        return "its layout in memory: the same numbers lie in another order"
    if params is not None and np.isin(wanted[wrong], ends).all():
        return "saturation: only numbers at an end of the format differ"
    if params is not None and np.isin(found[wrong], ends).all():
        return "a sum that overflows or a scale: all that differ lie at an end of the format"
    inside = ~(np.isin(wanted, ends) | np.isin(found, ends))
    if (shift := _same(apart[inside])) not in (None, 0):
        return f"a zero point or a bias: all numbers are {shift:+} off"
    if wanted.ndim > 1 and (channels := _shifted_channels(apart, inside)):
        return f"a bias or a weight: all numbers of {_listed(channels)} alone are off by the same"
    if int(np.abs(apart).max()) == 1:
        return f"rounding: {wrong.mean():.1%} of its numbers are off by one"
    return f"weights, a multiplier or a shift: its numbers are up to {int(np.abs(apart).max()):,} off"


def _same(numbers: np.ndarray) -> int | None:
    return int(numbers[0]) if numbers.size and (numbers == numbers[0]).all() else None


def _shifted_channels(apart: np.ndarray, inside: np.ndarray) -> list[int]:
    """The channels that are wrong, where in each all are off by one number, and others are right."""
    found = [_same(part[kept]) for part, kept in zip(apart, inside, strict=True)]
    shifted = [channel for channel, shift in enumerate(found) if shift]
    others = [channel for channel in range(len(apart)) if channel not in shifted]
    return shifted if others and not apart[others].any() else []


def _listed(channels: Iterable[int]) -> str:
    found = list(channels)
    many = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"channel{'s' if len(found) > 1 else ''} {', '.join(map(str, found[:3]))}{many}"

"""How far a quantized model's numbers are from the float model's, tensor by tensor, on data."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, log10

import numpy as np
import onnx_ir as ir

from gemedge.fixed import QuantParams, dequantize
from gemedge.model import QuantizedModel
from gemedge.operators import Bounded, Tensor
from gemedge.quant.batches import Batch
from gemedge.quant.calibrate import runner
from gemedge.quant.simulate import simulate

BINS = 48  # of a histogram; two more count what lies outside
_MARGIN = 1 / 8  # of the format's width, shown beyond each end


@dataclass(frozen=True, slots=True)
class TensorError:
    """One tensor of the float model beside its integers.

    sqnr: signal to quantization noise in dB, inf where equal. max_abs, mean_abs in real units; max_lsb, mean_lsb in
    the tensor's own LSB. cosine: of the two as vectors. saturated: share of numbers cut off at an end of the format
    that no Relu means to be there. codes: how many different integers appear, of 2**bits. low, high: of the float
    tensor. exact, found: histograms of floats and of integers over BINS equal bins from a little below to a little
    above the format, with one bin more on each side for what lies outside.
    """

    layer: str
    tensor: str
    params: QuantParams
    sqnr: float
    max_abs: float
    mean_abs: float
    cosine: float
    saturated: float
    codes: int
    low: float
    high: float
    exact: tuple[int, ...]
    found: tuple[int, ...]

    @property
    def max_lsb(self) -> float:
        return self.max_abs / self.params.scale

    @property
    def mean_lsb(self) -> float:
        return self.mean_abs / self.params.scale


@dataclass(frozen=True, slots=True)
class Comparison:
    """errors: of every tensor that both models have, the lowest SQNR first. exact, found: outputs by name."""

    errors: tuple[TensorError, ...]
    exact: Mapping[str, np.ndarray]
    found: Mapping[str, np.ndarray]


def compare(model: ir.Model, quantized: QuantizedModel, batches: Iterable[Batch]) -> Comparison:
    """Both models on the same data. Tensors that no float tensor equals, inside a lowered node, are left out."""
    run = runner(model)
    sums: dict[str, _Sum] = {}
    saturated: Counter[str] = Counter()
    outputs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in quantized.outputs}
    first = 0
    for batch in batches:
        names = [layer.name for layer in quantized.layers]
        integers = simulate(quantized, batch, layers=names, raw=True, saturated=saturated)
        exact = dict(run(batch, first))
        first += len(next(iter(batch.values())))
        for layer in quantized.layers:
            tensor = quantized.tensors[layer.output]
            if layer.output in exact and tensor.params is not None:
                total = sums.setdefault(layer.name, _Sum(tensor, tensor.params))
                total.add(exact[layer.output], integers[layer.name])
        for name, tensor_name in quantized.outputs.items():
            numbers = dequantize(integers[name], quantized.tensors[tensor_name].quantized)
            outputs[name].append((exact.get(name, numbers).astype(np.float32), numbers.astype(np.float32)))
    errors = [total.error(name, saturated.get(name)) for name, total in sums.items()]
    pairs = {name: [np.concatenate(side) for side in zip(*parts, strict=True)] for name, parts in outputs.items()}
    return Comparison(
        tuple(sorted(errors, key=lambda error: error.sqnr)),
        {name: exact for name, (exact, _) in pairs.items()},
        {name: found for name, (_, found) in pairs.items()},
    )


def histogram_edges(params: QuantParams) -> np.ndarray:
    """The BINS + 1 edges, in real units, that a tensor's histograms are counted in."""
    low, high = ((end - params.zero_point) * params.scale for end in (params.raw_min, params.raw_max))
    margin = (high - low) * _MARGIN
    return np.linspace(low - margin, high + margin, BINS + 1)


@dataclass(slots=True)
class _Sum:
    tensor: Tensor
    params: QuantParams
    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    power: float = 0.0
    largest: float = 0.0
    absolute: float = 0.0
    ends: int = 0
    count: int = 0
    low: float = inf
    high: float = -inf
    seen: np.ndarray = field(init=False)
    exact: np.ndarray = field(default_factory=lambda: np.zeros(BINS + 2, np.int64))
    found: np.ndarray = field(default_factory=lambda: np.zeros(BINS + 2, np.int64))

    def __post_init__(self) -> None:
        self.seen = np.zeros(1 << self.params.bits, bool)

    def add(self, exact: np.ndarray, raw: np.ndarray) -> None:
        params = self.params
        wide = _batch_first(exact.astype(np.float64), raw, params)
        finite = np.isfinite(wide)
        if not finite.all():  # what a mask hides
            wide, raw = wide[finite], raw[finite]
        real = dequantize(raw, params)
        difference = np.abs(real - wide)
        self.signal += float(np.square(wide).sum())
        self.noise += float(np.square(difference).sum())
        self.product += float((wide * real).sum())
        self.power += float(np.square(real).sum())
        self.largest = max(self.largest, float(difference.max(initial=0)))
        self.absolute += float(difference.sum())
        ends = (_counts_at(raw, params.raw_min, self.tensor.bounded, "low")) | (
            _counts_at(raw, params.raw_max, self.tensor.bounded, "high")
        )
        self.ends += int((ends & (difference > params.scale / 2)).sum())
        self.count += raw.size
        self.low, self.high = min(self.low, float(wide.min(initial=inf))), max(self.high, float(wide.max(initial=-inf)))
        self.seen[raw.reshape(-1).astype(np.int64) - params.raw_min] = True
        edges = histogram_edges(params)
        for counts, values in ((self.exact, wide), (self.found, real)):
            counts += np.bincount(np.searchsorted(edges, values.reshape(-1), side="right"), minlength=BINS + 2)

    def error(self, layer: str, saturated: int | None) -> TensorError:
        """saturated: the count of a layer that rescales; others are judged by their ends."""
        sqnr = 10 * log10(self.signal / self.noise) if self.noise and self.signal else (-inf if self.noise else inf)
        lengths = (self.signal * self.power) ** 0.5
        count = max(self.count, 1)
        return TensorError(
            layer=layer,
            tensor=self.tensor.name,
            params=self.params,
            sqnr=sqnr,
            max_abs=self.largest,
            mean_abs=self.absolute / count,
            cosine=self.product / lengths if lengths else float(self.signal == self.power),
            saturated=(self.ends if saturated is None else saturated) / count,
            codes=int(self.seen.sum()),
            low=min(self.low, self.high),
            high=max(self.low, self.high),
            exact=tuple(int(n) for n in self.exact),
            found=tuple(int(n) for n in self.found),
        )


def _counts_at(raw: np.ndarray, end: int, bounded: Bounded, side: Bounded) -> np.ndarray:
    meant = bounded in (side, "both")
    return np.zeros(raw.shape, bool) if meant else raw == end


def _batch_first(exact: np.ndarray, raw: np.ndarray, params: QuantParams) -> np.ndarray:
    """The float tensor with its batch on the first axis, as integers have it, which may be merged with the second.

    Where the sizes allow several axes, the batch's is the one for which the numbers are nearest.
    """
    places = [axis for axis in range(exact.ndim) if np.moveaxis(exact, axis, 0).shape == raw.shape]
    moved = [np.moveaxis(exact, axis, 0) for axis in places] or [exact.reshape(raw.shape)]
    if len(moved) == 1:
        return moved[0]
    real = dequantize(raw, params)
    return min(moved, key=lambda array: float(np.square(array - real).sum()))

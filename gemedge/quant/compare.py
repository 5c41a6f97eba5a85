"""How far a quantized model's numbers are from the float model's, tensor by tensor, on data."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, log10

import numpy as np
import onnx_ir as ir

from gemedge.fixed import dequantize
from gemedge.model import QuantizedModel
from gemedge.quant.batches import Batch
from gemedge.quant.calibrate import runner
from gemedge.quant.simulate import simulate


@dataclass(frozen=True, slots=True)
class TensorError:
    """One tensor of the float model beside its integers.

    sqnr: signal to quantization noise in dB, inf where equal; max_abs in real units; max_lsb in the tensor's
    own LSB; saturated: share of integers at an end of their range whose number lies beyond it.
    """

    layer: str
    tensor: str
    sqnr: float
    max_abs: float
    max_lsb: float
    saturated: float


def compare(model: ir.Model, quantized: QuantizedModel, batches: Iterable[Batch]) -> list[TensorError]:
    """Every tensor that both models have, the lowest SQNR first."""
    run = runner(model)
    sums: dict[str, _Sum] = {}
    for batch in batches:
        integers = simulate(quantized, batch, layers=[layer.name for layer in quantized.layers], raw=True)
        exact = dict(run(batch, 0))
        for layer in quantized.layers:
            if layer.output in exact:
                sums.setdefault(layer.name, _Sum()).add(
                    exact[layer.output], integers[layer.name], quantized, layer.output
                )
    outputs = {layer.name: layer.output for layer in quantized.layers}
    errors = [total.error(name, outputs[name], quantized) for name, total in sums.items()]
    return sorted(errors, key=lambda error: error.sqnr)


@dataclass(slots=True)
class _Sum:
    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    ends: int = 0
    count: int = 0

    def add(self, exact: np.ndarray, raw: np.ndarray, quantized: QuantizedModel, tensor: str) -> None:
        params = quantized.tensors[tensor].quantized
        real = dequantize(raw, params)
        wide = _batch_first(exact.astype(np.float64), real)
        difference = real - wide
        self.signal += float(np.square(wide).sum())
        self.noise += float(np.square(difference).sum())
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0)))
        ends = (raw == params.raw_min) | (raw == params.raw_max)
        self.ends += int((ends & (np.abs(difference) > params.scale / 2)).sum())
        self.count += raw.size

    def error(self, layer: str, tensor: str, quantized: QuantizedModel) -> TensorError:
        sqnr = 10 * log10(self.signal / self.noise) if self.noise and self.signal else (-inf if self.noise else inf)
        lsb = quantized.tensors[tensor].quantized.scale
        return TensorError(layer, tensor, sqnr, self.largest, self.largest / lsb, self.ends / max(self.count, 1))


def _batch_first(exact: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The float tensor with its batch on the first axis, as integers have it, which may be merged with the second.

    Where the sizes allow several axes, the batch's is the one for which the numbers are nearest.
    """
    places = [axis for axis in range(exact.ndim) if np.moveaxis(exact, axis, 0).shape == real.shape]
    moved = [np.moveaxis(exact, axis, 0) for axis in places] or [exact.reshape(real.shape)]
    return moved[0] if len(moved) == 1 else min(moved, key=lambda array: float(np.square(array - real).sum()))

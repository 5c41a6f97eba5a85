"""What every integer layer is written with: its tensors, and the multipliers that runtimes compute from scales.

Runtimes make a multiplier of a layer's scales, in float64, so a layer is written only where they get its mantissa and
shift: to the bit for gemmlowp's law, as nearly as the other laws take them.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from gemedge.errors import UnsupportedError
from gemedge.export.layout import orders
from gemedge.export.tflite_activations import Form, default_form
from gemedge.export.tflite_tensors import Tensors, Value
from gemedge.export.tflite_writer import Graph
from gemedge.fixed import Multiplier, QuantParams
from gemedge.kernel import FixedActivation
from gemedge.model import Op, QuantizedModel, uses_gemmlowp
from gemedge.moving import Concatenate, Constant, Reshape
from gemedge.operators import Dense, Tensor

_NEARLY = Fraction(1, 1 << 14)  # relative: a mantissa of 15 bits, rounded
INDEX_TYPE = "int32"


class Writer(Tensors):
    """A quantized model's tensors. gem: the form of its activations, None for each one's default."""

    def __init__(self, model: QuantizedModel, gem: Form | None) -> None:
        super().__init__(Graph(dynamic=not _needs_one_sample(model)))
        self.model, self.gem = model, gem
        self.custom: dict[str, FixedActivation] = {}  # kernels of operators of ours, by layer
        self._orders = orders(model)
        for name in model.inputs:
            self.add(self.value(model.tensors[name]))

    def value(self, tensor: Tensor, array: np.ndarray | None = None) -> Value:
        dtype = INDEX_TYPE if tensor.params is None else f"int{tensor.params.bits}"
        return Value(tensor.name, tensor.shape, self._orders[tensor.name], dtype, tensor.params, array)

    def given(self, layer: Op) -> list[Tensor]:
        return [self.model.tensors[name] for name in layer.inputs]

    def made(self, layer: Op) -> Tensor:
        return self.model.tensors[layer.output]

    def elementwise(self, layer: Op) -> list[int]:
        """Its inputs in the order of its output, with as many axes."""
        order = self.values[layer.output].order
        return [self.operand(name, order) for name in layer.inputs]

    def form_of(self, params: QuantParams) -> Form:
        return self.gem or default_form(params)

    def read_by_dense_alone(self, name: str) -> bool:
        readers = [layer for layer in self.model.layers if name in layer.inputs]
        return name not in self.model.outputs.values() and all(isinstance(layer, Dense) for layer in readers)

    def requantized(self, layer: Op, index: int, source: str, mantissa: int, shift: int) -> int:
        """A tensor with the parameters of the layer's output."""
        given, made = self.model.tensors[source].quantized, self.made(layer).quantized
        self.check_multiplier(layer, [given.scale], made.scale, mantissa, shift)
        if given == made:
            return index
        output = self.temporary(self.values[layer.output], self.graph.shape(index), source)
        return self.graph.operator("QUANTIZE", [index], output)

    def check_multiplier(self, layer: Op, scales: Sequence[float], out: float, mantissa: int, shift: int) -> None:
        """UnsupportedError where runtimes compute another multiplier than the layer's."""
        product = 1.0
        for scale in scales:
            product *= scale
        real = Fraction(product / out)
        if uses_gemmlowp(layer, self.given(layer), self.model.rounding):
            multiplier = Multiplier.from_real(real)
            same = (multiplier.mantissa, 31 - multiplier.shift) == (mantissa, shift)
        else:
            same = abs(Fraction(mantissa) / (1 << shift) - real) <= _NEARLY * real
        if not same:
            raise UnsupportedError(
                f"it rescales by {mantissa} * 2^-{shift}; TensorFlow Lite would by {float(real):.9g}, from its scales"
            )


def _needs_one_sample(model: QuantizedModel) -> bool:
    """Whether constants stand where each sample needs its own: beside tensors, not in arithmetic with them."""
    constants = {layer.output for layer in model.layers if isinstance(layer, Constant)}
    beside = [layer for layer in model.layers if isinstance(layer, Concatenate | Reshape)]
    return any(constants & set(layer.inputs) for layer in beside)


def flat_places(value: Value) -> np.ndarray:
    """Which number of the flattened tensor lies at each place of memory."""
    return np.arange(np.prod(value.shape, dtype=int)).reshape(value.shape).transpose(value.order).reshape(-1)

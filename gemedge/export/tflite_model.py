"""What every integer layer is written with: its tensors, and the multipliers that runtimes compute from scales.

Runtimes make a multiplier of a layer's scales, in float64, so a layer is written only where they get its mantissa and
shift: to the bit for gemmlowp's law, as nearly as the other laws take them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from gemedge.errors import UnsupportedError
from gemedge.export.float_operators import FloatModel
from gemedge.export.layout import orders
from gemedge.export.tflite_activations import Form, default_form
from gemedge.export.tflite_tensors import Tensors, Value
from gemedge.export.tflite_writer import Graph, Scales
from gemedge.fixed import Multiplier, QuantParams
from gemedge.kernel import FixedActivation
from gemedge.model import Op, QuantizedModel, uses_gemmlowp
from gemedge.moving import Concatenate, Constant, Reshape
from gemedge.operators import Convolution, Dense, Operator, Tensor

_LEAST = 2.0**-60  # of a multiplier that must come out as 0
_NEARLY = Fraction(1, 1 << 14)  # relative: a mantissa of 15 bits, rounded
INDEX_TYPE = "int32"


class Writer(Tensors, ABC):
    """A model's tensors and layers; what weights and padding are differs between integers and real numbers."""

    def __init__(self, model: QuantizedModel | FloatModel, graph: Graph) -> None:
        super().__init__(graph)
        self._tensors, self._layers = model.tensors, model.layers
        self._inputs, self._outputs = set(model.inputs), set(model.outputs.values())
        self._orders = orders(model)

    @abstractmethod
    def dtype(self, tensor: Tensor) -> str:
        """The type of its numbers in the file."""

    @abstractmethod
    def constants(self, layer: Convolution | Dense, weight: np.ndarray, axis: int) -> list[int]:
        """The weights, with the output channels along an axis, and the bias."""

    def value(self, tensor: Tensor, array: np.ndarray | None = None) -> Value:
        shape, order = tensor.shape, self._orders[tensor.name]
        return Value(tensor.name, shape, order, self.dtype(tensor), tensor.params, array)

    def given(self, layer: Operator) -> list[Tensor]:
        return [self._tensors[name] for name in layer.inputs]

    def made(self, layer: Operator) -> Tensor:
        return self._tensors[layer.output]

    def elementwise(self, layer: Operator) -> list[int]:
        """Its inputs in the order of its output, with as many axes."""
        order = self.values[layer.output].order
        return [self.operand(name, order) for name in layer.inputs]

    def output(self, name: str) -> int:
        """The tensor to hand out for a value; a copy where it is an input, too."""
        value = self.values[name]
        if value.value is not None:
            raise UnsupportedError(f"output {name!r} is a constant")
        if name in self._inputs:
            return self.reshape(self.indices[name], self.temporary(value, value.laid, "output"))
        return self.indices[name]

    def read_by_dense_alone(self, name: str) -> bool:
        readers = [layer for layer in self._layers if name in layer.inputs]
        return name not in self._outputs and all(isinstance(layer, Dense) for layer in readers)


class IntegerWriter(Writer):
    """A quantized model. gem: the form of its activations, None for each one's default."""

    def __init__(self, model: QuantizedModel, gem: Form | None) -> None:
        super().__init__(model, Graph(dynamic=not _needs_one_sample(model)))
        self.model, self.gem = model, gem
        self.custom: dict[str, FixedActivation] = {}  # kernels of operators of ours, by layer
        for name in model.inputs:
            self.add(self.value(model.tensors[name]))

    def dtype(self, tensor: Tensor) -> str:
        return INDEX_TYPE if tensor.params is None else f"int{tensor.params.bits}"

    def constants(self, layer: Convolution | Dense, weight: np.ndarray, axis: int) -> list[int]:
        """With the scales that give the layer's multipliers."""
        (given,), made = self.given(layer), self.made(layer)
        if weight.dtype != np.int8:
            raise UnsupportedError(f"its weights have {8 * weight.dtype.itemsize} bits; TensorFlow Lite takes 8")
        in_scale, out_scale = given.quantized.scale, made.quantized.scale
        scales = weight_scales(layer.mantissa, layer.shift, given.quantized, made.quantized)
        for scale, mantissa, shift in zip(scales, layer.mantissa, layer.shift, strict=True):
            if mantissa:
                self.check_multiplier(layer, [in_scale, float(scale)], out_scale, int(mantissa), int(shift))
        bias = layer.bias.astype(np.int64 if given.quantized.bits == 16 else np.int32)
        if not np.array_equal(bias, layer.bias):
            raise UnsupportedError("its bias is beyond 32 bits")
        bias_scales = (scales.astype(np.float64) * in_scale).astype(np.float32)
        return [
            self.graph.constant(f"{layer.name}/weight", weight, Scales(scales, axis)),
            self.graph.constant(f"{layer.name}/bias", bias, Scales(bias_scales, 0)),
        ]

    def form_of(self, params: QuantParams) -> Form:
        return self.gem or default_form(params)

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


def weight_scales(mantissa: np.ndarray, shift: np.ndarray, given: QuantParams, made: QuantParams) -> np.ndarray:
    """The float32 scales of weights whose multipliers are these: those that they were made of, 24 bits of 31."""
    factor = Fraction(made.scale) / Fraction(given.scale)
    reals = [Fraction(int(m), 1 << int(s)) * factor for m, s in zip(mantissa, shift, strict=True)]
    return np.array([float(real) or _LEAST * float(factor) for real in reals], np.float32)


def _needs_one_sample(model: QuantizedModel) -> bool:
    """Whether constants stand where each sample needs its own: beside tensors, not in arithmetic with them."""
    constants = {layer.output for layer in model.layers if isinstance(layer, Constant)}
    beside = [layer for layer in model.layers if isinstance(layer, Concatenate | Reshape)]
    return any(constants & set(layer.inputs) for layer in beside)


def flat_places(value: Value) -> np.ndarray:
    """Which number of the flattened tensor lies at each place of memory."""
    return np.arange(np.prod(value.shape, dtype=int)).reshape(value.shape).transpose(value.order).reshape(-1)

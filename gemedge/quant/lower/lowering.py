"""What lowering one node needs to know: which integers stand for each tensor, and where the batch lies.

Integer tensors have no batch axis, ONNX's have one somewhere, mostly first. A batch of free size is given a prime
size that no other axis has, so that it is known again in every shape that a node computes. Where ONNX merges the
batch with an axis of k, as heads of attention are, the integers keep an axis of k in its place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from gemedge.capture.reading import (
    FOLDED,
    Constants,
    attribute,
    fold,
    input_of,
    layer_name,
    name_of,
    only_reader,
    sample_shape,
)
from gemedge.errors import GemedgeError, QuantizationError, UnsupportedError, about
from gemedge.fixed import Multiplier, QuantParams, Rounding, scaling
from gemedge.fixed import quantize as to_integers
from gemedge.model import Op, accumulator_bits, uses_gemmlowp
from gemedge.moving import Clamp, Constant
from gemedge.operators import Bounded, Tensor
from gemedge.quant.formats import Formats

_PRIMES = (127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193, 197, 199, 211, 223, 227, 229)


class Range(Protocol):
    """The smallest and the largest value that matters of a tensor."""

    @property
    def min(self) -> float: ...
    @property
    def max(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Target:
    """What a rescaling layer makes: the ONNX value, its parameters, and the bounds of a Relu or Clip it takes in.

    clamp: the bounds as codes, where the format's own ends are not already there.
    """

    value: ir.Value
    params: QuantParams
    clamp: tuple[int, int] | None = None
    bounds: tuple[float, float] | None = None

    @property
    def bounded(self) -> Bounded:
        """At which ends of the format those bounds hold all that lies beyond."""
        if self.bounds is None:
            return "none"
        params = self.params
        least, most = ((end - params.zero_point) * params.scale for end in (params.raw_min - 0.5, params.raw_max + 0.5))
        ends = (self.bounds[0] >= least, self.bounds[1] <= most)
        return "both" if all(ends) else "low" if ends[0] else "high" if ends[1] else "none"


@dataclass(frozen=True, slots=True)
class Real:
    """What a layer's constants stood for before they became integers: float64, in the layer's own layout.

    weight: of a constant or table of rows, its numbers. scales: what one integer of the weights stands for, for each
    output channel. function: what a table holds. bounds: of the Relu or Clip that the layer took in.
    """

    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    scales: np.ndarray | None = None
    function: Callable[[np.ndarray], np.ndarray] | None = None
    bounds: tuple[float, float] | None = None


Handler = Callable[["Lowering", ir.Node], None]


class Lowering(Constants):
    """The layers and tensors made so far.

    formats_of: the Formats of a layer by its name. Constants that are read as tensors become layers when first read.
    """

    def __init__(
        self,
        model: ir.Model,
        ranges: Mapping[str, Range],
        formats_of: Callable[[str], Formats],
        rounding: Rounding,
        known: Mapping[str, QuantParams] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.graph = model.graph
        self.functions = model.functions
        self.opset = model.opset_imports.get("", 18)
        self.ranges = ranges
        self.formats_of = formats_of
        self.rounding = rounding
        self.given_params = known or {}  # by tensor, in place of what its range would give
        self.tensors: dict[str, Tensor] = {}
        self.layers: list[Op] = []
        self.reals: dict[str, Real] = {}  # by the layer's name
        self.values: dict[str, Tensor] = {}  # by the ONNX name
        self.batch_axes: dict[str, int] = {}
        self.merged: set[str] = set()  # values whose batch axis holds more than the batch
        self.masks: dict[str, np.ndarray] = {}  # of numbers that only a Softmax reads
        self.absorbed: set[ir.Node] = set()
        self._placed: dict[tuple[str, tuple[int, ...], str], Tensor] = {}  # by name, shape and scheme
        self._names: set[str] = set()
        self.batch = self._batch_size()

    def lower(self, handlers: Mapping[str, Handler]) -> None:
        """Every node by its handler; constants by folding. An error names the node."""
        for value in self.graph.inputs:
            self._input(value)
        for node in self.graph:
            if node in self.absorbed:
                continue
            try:
                if not self._folded(node):
                    handlers[node.op_type](self, node)
            except GemedgeError as error:
                raise type(error)(f"node {layer_name(node)!r} ({node.op_type}): {error}") from error

    # Tensors and constants

    def source(self, value: ir.Value | None, node: ir.Node | None = None) -> Tensor:
        """The tensor that a node reads; a constant becomes a layer of its own, its batch axis dropped."""
        if value is None:
            raise UnsupportedError("an input is missing")
        if name_of(value) in self.values:
            return self.values[name_of(value)]
        array = self.constant(value)
        if array is None:
            raise UnsupportedError(f"input {name_of(value)!r} is neither a tensor nor a constant")
        sample = self.sample(array, node)
        formats = self.formats_of(layer_name(node) if node else "")
        if not np.isfinite(array).all():
            raise UnsupportedError(f"constant {name_of(value)!r} holds infinity or NaN")
        key = (name_of(value), sample.shape, formats.scheme)
        if key in self._placed:
            return self._placed[key]
        params = formats.params(float(array.min(initial=0)), float(array.max(initial=0)))
        codes = to_integers(sample, params).astype(f"i{params.bits // 8}")
        tensor = Tensor(self._unused(name_of(value)), codes.shape, params)
        layer = Constant(self._layer_name(f"constant {tensor.name}"), (), tensor.name, codes)
        self.layers.append(layer)
        self.reals[layer.name] = Real(weight=sample.astype(np.float64))
        self.tensors[tensor.name] = self._placed[key] = tensor
        return tensor

    def sources(self, node: ir.Node) -> list[Tensor]:
        """What an element-wise node reads. The batch must lie equally far from the last axis in all of it."""
        given = [value for value in node.inputs if value is not None]
        self.check_beside(given)
        return [self.source(value, node) for value in given]

    def check_beside(self, given: Sequence[ir.Value | None]) -> None:
        """Refuses tensors whose batch lies at different distances from the last axis."""
        tensors = [value for value in given if value is not None and name_of(value) in self.values]
        if len({len(self.shape(value)) - self.batch_axis(value) for value in tensors}) > 1:
            raise UnsupportedError("its inputs have the batch on different axes")

    def channels_first(self, node: ir.Node) -> Tensor:
        """The tensor [C, *size] that a node slides a window over; the batch must be ONNX's first axis and alone."""
        value = input_of(node)
        given = self.source(value)
        if self.batch_axis(value) != 0 or name_of(value) in self.merged:
            raise UnsupportedError("its input must have the batch on the first axis, and nothing else there")
        return given

    def shape(self, value: ir.Value) -> list[int]:
        """The ONNX shape, with the batch's size in its place."""
        if name_of(value) in self.values:
            sizes = list(self.values[name_of(value)].shape)
            if name_of(value) in self.merged:
                sizes[self.batch_axis(value)] *= self.batch
            else:
                sizes.insert(self.batch_axis(value), self.batch)
            return sizes
        array = self.constant(value)
        if array is None:
            raise UnsupportedError(f"input {name_of(value)!r} is neither a tensor nor a constant")
        return list(array.shape)

    def batch_axis(self, value: ir.Value) -> int:
        return self.batch_axes.get(name_of(value), 0)

    def axis(self, value: ir.Value, axis: int) -> int:
        """An axis of an ONNX tensor, negative ones from the end, as an axis of the integers without the batch."""
        count, batch = len(self.shape(value)), self.batch_axis(value)
        if not -count <= axis < count:
            raise UnsupportedError(f"axis {axis} of a tensor with {count}")
        if axis % count == batch:
            raise UnsupportedError(f"axis {axis} is the batch")
        return axis % count - (axis % count > batch and name_of(value) not in self.merged)

    def params(self, value: ir.Value, node: ir.Node | None = None) -> QuantParams:
        """The parameters that a value's range gives in the format of the layer that makes it."""
        name = name_of(value)
        if name in self.given_params:
            return self.given_params[name]
        if name not in self.ranges:
            raise QuantizationError(f"tensor {name!r} has no range; calibrate with data that reaches it")
        layer = node or value.producer()
        formats = self.formats_of(layer_name(layer) if layer is not None else name)
        with about(f"tensor {name!r}"):
            return formats.params(self.ranges[name].min, self.ranges[name].max)

    def formats(self, node: ir.Node) -> Formats:
        return self.formats_of(layer_name(node))

    # Layers

    def add(
        self,
        node: ir.Node,
        kind: Callable[..., Op],
        given: Sequence[Tensor],
        *fields: Any,
        target: Target | None = None,
        step: str = "",
        batch: int | None = None,
        merged: bool | None = None,
        real: Real | None = None,
    ) -> Tensor:
        """A layer for a node, and the tensor that it makes.

        target: by default the node's output with its input's parameters. step names a layer within a node, whose
        tensor is not an ONNX one. batch: the output's batch axis, and whether it is merged with another; as the
        input's by default.
        """
        value = target.value if target is not None else node.outputs[0]
        params = target.params if target is not None else given[0].params
        clamp = target.clamp if target is not None else None
        bounded = target.bounded if target is not None else "none"
        inner = step or ("unclamped" if clamp else "")
        made = self._append(
            node.name or name_of(value), name_of(value), step, inner, kind, given, fields, params, bounded
        )
        if target is not None and target.bounds is not None:
            real = replace(real or Real(), bounds=target.bounds)
        if real is not None:
            self.reals[self.layers[-1].name] = real
        if clamp:
            made = self._append(node.name or name_of(value), name_of(value), "clamp", "", Clamp, [made], clamp, params)
        if not step:
            self._known(value, made, self._batch_after(node.inputs) if batch is None else batch)
            if merged or (merged is None and self.is_merged(node)):
                self.merged.add(name_of(value))
        return made

    def _append(
        self,
        layer_name: str,
        value_name: str,
        step: str,
        inner: str,
        kind: Callable[..., Op],
        given: Sequence[Tensor],
        fields: Sequence[Any],
        params: QuantParams | None,
        bounded: Bounded = "none",
    ) -> Tensor:
        """A layer, `step` of a node's if that is not empty, and its tensor, `inner` of a value's likewise."""
        output = self._unused(f"{value_name} {inner}" if inner else value_name)
        name = self._layer_name(f"{layer_name}/{step}" if step else layer_name)
        layer = kind(name, tuple(tensor.name for tensor in given), output, *fields)
        tensor = Tensor(output, layer.output_shape([tensor.shape for tensor in given]), params, bounded)
        self.layers.append(layer)
        self.tensors[output] = tensor
        return tensor

    def alias(self, node: ir.Node, tensor: Tensor, batch: int | None = None) -> None:
        """The node's output is its input's tensor. batch: its batch axis there, as the input's by default."""
        self.values[name_of(node.outputs[0])] = tensor
        self.batch_axes[name_of(node.outputs[0])] = self._batch_after(node.inputs) if batch is None else batch
        if self.is_merged(node):
            self.merged.add(name_of(node.outputs[0]))

    def is_merged(self, node: ir.Node) -> bool:
        """Whether the batch shares its axis in what the node reads."""
        return any(value is not None and name_of(value) in self.merged for value in node.inputs)

    def target(self, node: ir.Node, value: ir.Value | None = None) -> Target:
        """Where a rescaling layer puts its output: behind a Relu or Clip of its scheme that alone reads it, absorbed.

        Rounding is monotone, so clamping the codes equals clamping the numbers before they are rounded.
        """
        value = value or node.outputs[0]
        reader = only_reader(value)
        bounds = None if reader is None else self._bounds(reader)
        if reader is None or bounds is None or self.formats(reader) != self.formats(node):
            return Target(value, self.params(value, node))
        self.absorbed.add(reader)
        final = reader.outputs[0]
        params = self.params(final, node)
        low, high = (int(code) for code in to_integers(np.array(bounds), params))
        clamp = (low, high) if (low, high) != (params.raw_min, params.raw_max) else None
        return Target(final, params, clamp, bounds)

    def _bounds(self, reader: ir.Node) -> tuple[float, float] | None:
        """Between which numbers a Relu or Clip holds its input, where those are constants."""
        if reader.domain not in ("", "ai.onnx") or reader.op_type not in ("Relu", "Clip"):
            return None
        if reader.op_type == "Relu":
            return 0.0, np.inf
        given = [*reader.inputs[1:], None, None][:2]
        found = [self.constant(value) for value in given]
        if any(value is not None and constant is None for value, constant in zip(given, found, strict=True)):
            return None
        low, high = (
            default if c is None else float(c.item()) for c, default in zip(found, (-np.inf, np.inf), strict=True)
        )
        return low, high

    def real(self, numerator: Sequence[float], denominator: float) -> Fraction:
        """The product of scales over a scale: exactly, or for gemmlowp's law in float64 as TensorFlow Lite does."""
        if self.rounding is Rounding.DOUBLE:
            product = 1.0
            for scale in numerator:
                product *= scale
            return Fraction(product / denominator)
        exact = Fraction(1)
        for scale in numerator:
            exact *= Fraction(scale)
        return exact / Fraction(denominator)

    def rescaled(
        self,
        node: ir.Node,
        kind: Callable[..., Op],
        given: Sequence[Tensor],
        *fields: Any,
        reals: Sequence[Fraction],
        target: Target,
        real: Real | None = None,
    ) -> None:
        """`add` for an operator whose last fields are mantissas and shifts: those of these numbers."""
        empty = np.zeros(len(reals), np.int64)
        draft = kind("", tuple(tensor.name for tensor in given), "", *fields, empty, empty)
        self.add(node, kind, given, *fields, *self.scalings(draft, given, reals), target=target, real=real)

    def scalings(self, draft: Op, given: Sequence[Tensor], reals: Sequence[Fraction]) -> tuple[np.ndarray, np.ndarray]:
        """Mantissas and shifts of a layer whose draft says how far its accumulator reaches."""
        bound = draft.accumulator_bound(given)
        pairs = [self._scaling(draft, given, real, bound) for real in reals]
        return np.array([m for m, _ in pairs], np.int64), np.array([s for _, s in pairs], np.int64)

    def _scaling(self, draft: Op, given: Sequence[Tensor], real: Fraction, bound: int) -> tuple[int, int]:
        if uses_gemmlowp(draft, given, self.rounding):
            multiplier = Multiplier.from_real(real)
            return multiplier.mantissa, 31 - multiplier.shift
        if self.rounding is Rounding.DOUBLE and accumulator_bits(draft, given) > 32:
            return _sixteen_bits(real)
        power_of_two = real.numerator & (real.numerator - 1) == 0 == real.denominator & (real.denominator - 1)
        return scaling(real, bound, power_of_two=power_of_two)

    # Bookkeeping

    def _input(self, value: ir.Value) -> None:
        shape = sample_shape(value)
        whole = value.dtype is not None and value.dtype.is_integer()
        self._known(value, Tensor(self._unused(name_of(value)), shape, None if whole else self.params(value)), 0)

    def _known(self, value: ir.Value, tensor: Tensor, batch: int) -> Tensor:
        self.tensors[tensor.name] = self.values[name_of(value)] = tensor
        self.batch_axes[name_of(value)] = batch
        return tensor

    def _batch_after(self, inputs: Sequence[ir.Value | None]) -> int:
        """The batch axis of what has as many axes as the longest input."""
        axes = [
            (len(self.shape(value)), self.batch_axis(value))
            for value in inputs
            if value is not None and name_of(value) in self.values
        ]
        return max(axes, default=(0, 0))[1]

    def sample(self, array: np.ndarray, node: ir.Node | None) -> np.ndarray:
        """A constant without the axis that meets the batch, which must hold the same numbers throughout."""
        if node is None:
            return array
        beside = [value for value in node.inputs if value is not None and name_of(value) in self.values]
        longest, batch = max(((len(self.shape(v)), self.batch_axis(v)) for v in beside), default=(array.ndim, 0))
        axes = max(longest, array.ndim)
        batch += axes - longest
        full = array.reshape((1,) * (axes - array.ndim) + array.shape)
        if self.is_merged(node):
            if full.shape[batch] != 1:
                raise UnsupportedError("a constant reaches along an axis merged with the batch")
            return full
        first = full.take(0, axis=batch)
        if not (full == np.expand_dims(first, batch)).all():
            raise UnsupportedError("a constant differs from sample to sample")
        return first

    def _folded(self, node: ir.Node) -> bool:
        """Whether the node was constant; what it makes is then known."""
        if node.op_type in ("Shape", "Size") and node.inputs[0] is not None:
            sizes = np.array(self.shape(node.inputs[0]), np.int64)
            if node.op_type == "Size":
                made = [np.array(sizes.prod())]
            else:
                made = [sizes[attribute(node, "start", 0) : attribute(node, "end", None)]]
        else:
            constants = [self.constant(value) for value in node.inputs]
            known = all(c is not None or v is None for c, v in zip(constants, node.inputs, strict=True))
            if not known or node.op_type not in FOLDED or node.domain not in ("", "ai.onnx"):
                return False
            made = fold(node, constants, self.opset)
        for value, array in zip(node.outputs, made, strict=True):
            self.known[name_of(value)] = array
        return True

    def _batch_size(self) -> int:
        given = self.graph.inputs[0].shape if self.graph.inputs else None
        if given is not None and len(given) and isinstance(given[0], int):
            return given[0]
        values = [*self.graph.inputs, *(value for node in self.graph for value in node.outputs)]
        sizes = {size for value in values if value.shape is not None for size in value.shape if isinstance(size, int)}
        return next(prime for prime in (*_PRIMES, 1) if all(size % prime for size in sizes if size))

    def _layer_name(self, name: str) -> str:
        unique, count = name, 1
        while unique in self._names:
            count += 1
            unique = f"{name} {count}"
        self._names.add(unique)
        return unique

    def _unused(self, name: str) -> str:
        unique, count = name, 1
        while unique in self.tensors:
            count += 1
            unique = f"{name} {count}"
        return unique


def _sixteen_bits(real: Fraction) -> tuple[int, int]:
    """TensorFlow Lite's mantissa of 15 bits for 64-bit accumulators, and the shift to the right that goes with it."""
    multiplier = Multiplier.from_real(real)
    reduced = (multiplier.mantissa + (1 << 15)) >> 16 if multiplier.mantissa < 0x7FFF0000 else 0x7FFF
    return reduced, 15 - multiplier.shift

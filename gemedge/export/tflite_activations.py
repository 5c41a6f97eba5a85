"""The three forms of an activation in TensorFlow Lite: a table, float operators, one operator of ours.

table    CAST, ADD, GATHER: the kernel's own outputs for all codes, exact in every runtime that gathers their type
float    DEQUANTIZE, the formula of gemedge.activation operation for operation, QUANTIZE
custom   one operator `gemedge.Activation`, whose kernel is emitted beside the model (gemedge/export/tflite_custom.py)
"""

from fractions import Fraction
from typing import Literal, get_args

import numpy as np

from gemedge.activation import Activation, Branch, segem_limit
from gemedge.errors import UnsupportedError
from gemedge.export.tflite_tensors import Tensors, Value
from gemedge.fixed import QuantParams

Form = Literal["table", "float", "custom"]
FORMS: tuple[Form, ...] = get_args(Form)


def default_form(params: QuantParams) -> Form:
    """A table where it is small; at 16 bits float operators, which TensorFlow Lite Micro runs, too."""
    return "table" if params.bits == 8 else "float"


def by_table(to: Tensors, source: str, name: str, outputs: np.ndarray) -> None:
    """The value `name` from the outputs for all codes of another, the lowest first."""
    graph, given = to.graph, to.values[source]
    first = -(len(outputs) // 2)
    index = to.operand(source, to.values[name].order)
    wide = graph.tensor(f"{name}/wide", graph.shape(index), "int32")
    options = {"inDataType": graph.type_of(given.dtype), "outDataType": graph.type_of("int32")}
    graph.operator("CAST", [index], wide, **options)
    place = graph.tensor(f"{name}/place", graph.shape(index), "int32")
    graph.operator("ADD", [wide, graph.constant("first", np.array([-first], np.int32))], place)
    table = graph.constant(f"{name}/table", outputs, to.values[name].params)
    graph.operator("GATHER", [table, place], to.indices[name])


def by_floats(to: Tensors, source: str, name: str, activation: Activation) -> None:
    """The value `name` through float32 numbers."""
    graph, made = to.graph, to.values[name]
    index = to.operand(source, made.order)
    real = graph.operator("DEQUANTIZE", [index], graph.tensor(f"{name}/real", made.laid, "float32"))
    value = Value(name, made.shape, made.order, "float32")
    result = Formula(to, value, activation).write(real, graph.tensor(f"{name}/result", made.laid, "float32"))
    graph.operator("QUANTIZE", [result], to.indices[name])


class Formula:
    """An activation in float32 operators, operation for operation as gemedge.activation computes it.

    The number comes first in a maximum or minimum: TensorFlow Lite Micro compares, and gives the second for NaN.
    """

    def __init__(self, to: Tensors, value: Value, activation: Activation) -> None:
        self._graph, self._value, self._activation = to.graph, value, activation
        self._steps = 0

    def write(self, x: int, made: int) -> int:
        activation, n = self._activation, self._activation.n
        if activation.family == "gem" and n is not None:
            return self._gem(x, n, made)
        if activation.family == "segem" and n is not None:
            return self._segem(x, n, made)
        slope = _straight(activation)
        if slope is None:
            raise UnsupportedError(f"{activation} has no form in float operators; take table or custom")
        if slope == 0:
            return self._graph.operator("RELU", [x], made)
        return self._graph.operator("LEAKY_RELU", [x], made, alpha=slope)

    def _gem(self, x: int, n: int, made: int) -> int:
        above = self._step("MAXIMUM", self._number(0.0), x)
        power = self._even_power(self._step("DIV", self._number(self._activation.epsilon), above), n)
        return self._graph.operator("DIV", [above, self._step("ADD", power, self._number(1.0))], made)

    def _segem(self, x: int, n: int, made: int) -> int:
        epsilon, one = self._number(self._activation.epsilon), self._number(1.0)
        below = self._step("MAXIMUM", self._number(0.0), self._graph.operator("NEG", [x], self._temporary()))
        t = self._step("MINIMUM", self._number(segem_limit(n)), self._step("DIV", below, epsilon))
        total = t
        for _ in range(1, 2 * n):
            total = self._step("MUL", self._step("ADD", total, one), t)
        gate = self._step("DIV", total, self._step("ADD", one, total))
        above = self._step("MAXIMUM", self._number(0.0), x)
        return self._graph.operator("SUB", [above, self._step("MUL", epsilon, gate)], made)

    def _even_power(self, square: int, n: int) -> int:
        power = None
        for bit in range(n.bit_length()):
            square = self._step("MUL", square, square)
            if n >> bit & 1:
                power = square if power is None else self._step("MUL", power, square)
        assert power is not None  # noqa: S101 - n is 1 or more
        return power

    def _step(self, code: str, *inputs: int) -> int:
        return self._graph.operator(code, inputs, self._temporary())

    def _temporary(self) -> int:
        self._steps += 1
        return self._graph.tensor(f"{self._value.name}/step{self._steps}", self._value.laid, "float32")

    def _number(self, number: float) -> int:
        return self._graph.constant("number", np.array([number], np.float32))


def _straight(activation: Activation) -> float | None:
    """The slope below zero of a Relu or a leaky Relu, None for another function."""
    below, above = activation.negative, activation.positive
    if above == Branch(slope=Fraction(1)) and below == Branch(slope=below.slope):
        return -float(below.slope)
    return None

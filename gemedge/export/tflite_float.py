"""A float model as a TensorFlow Lite file: built-in operators on float32, GEM by the formula of gemedge.activation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from gemedge.errors import UnsupportedError
from gemedge.export import tflite_moving as moving
from gemedge.export import tflite_windows as windows
from gemedge.export.float_nodes import read
from gemedge.export.float_operators import Arithmetic, FloatModel, Function, Mean, Normalize, Shares
from gemedge.export.tflite_activations import Formula
from gemedge.export.tflite_model import INDEX_TYPE, Writer
from gemedge.export.tflite_tensors import identity
from gemedge.export.tflite_writer import Border, Graph
from gemedge.export.to_tflite import METADATA_VERSION, Written
from gemedge.moving import Concatenate, Embed, Pad, Reshape, Spread, Take, Transpose
from gemedge.operators import (
    Activate,
    Convolution,
    Dense,
    MatrixMultiply,
    MaxPool,
    Operator,
    RawAveragePool,
    Tensor,
)


def to_tflite_float(model: ir.Model) -> Written:
    """The file of a captured float model, the same bytes each time; images and signals have channels last.

    UnsupportedError names every node that has no TensorFlow Lite operator, or whose batch is not its first axis.
    """
    found = read(model)
    to = FloatWriter(found, dynamic=not isinstance((model.graph.inputs[0].shape or (1,))[0], int))
    for layer in found.layers:
        try:
            to.add(to.value(to.made(layer)))
            _CALLS[type(layer)](to, layer)
        except UnsupportedError as error:
            raise UnsupportedError(f"node {layer.name!r} in TensorFlow Lite: {error}") from error
    inputs = [Border(name, to.indices[name]) for name in found.inputs]
    outputs = [Border(name, to.output(tensor)) for name, tensor in found.outputs.items()]
    content = to.graph.finish(inputs, outputs, _metadata(to, found))
    sides = [tuple(to.values[name] for name in names) for names in (found.inputs, found.outputs.values())]
    return Written(content, sides[0], sides[1], to.graph.dynamic, {})


class FloatWriter(Writer):
    """A float model's tensors and constants."""

    def __init__(self, model: FloatModel, *, dynamic: bool) -> None:
        super().__init__(model, Graph(dynamic=dynamic))
        self._indices = model.indices
        for name, array in model.constants.items():
            self.add_constant(self.value(model.tensors[name], array))
        for name in model.inputs:
            self.add(self.value(model.tensors[name]))

    def dtype(self, tensor: Tensor) -> str:
        return INDEX_TYPE if tensor.name in self._indices else "float32"

    def constants(self, layer: Convolution | Dense, weight: np.ndarray, axis: int) -> list[int]:  # noqa: ARG002
        named = {"weight": weight, "bias": layer.bias}
        return [self.graph.constant(f"{layer.name}/{n}", array.astype(np.float32)) for n, array in named.items()]

    def number(self, number: float) -> int:
        return self.graph.constant("number", np.array([number], np.float32))


def _metadata(to: FloatWriter, model: FloatModel) -> dict[str, Any]:
    activations = [
        {
            "layer": layer.name,
            "activation": str(layer.activation),
            "n": layer.activation.n,
            "epsilon": layer.activation.epsilon,
            "form": "float",
        }
        for layer in model.layers
        if isinstance(layer, Activate)
    ]
    borders = (*model.inputs, *model.outputs.values())
    axes = {name: list(to.values[name].axes) for name in borders}
    return {"version": METADATA_VERSION, "scheme": "float32", "axes": axes, "activations": activations}


def _activate(to: FloatWriter, layer: Activate) -> None:
    value = to.values[layer.output]
    Formula(to, value, layer.activation).write(to.elementwise(layer)[0], to.indices[layer.output])


def _function(to: FloatWriter, layer: Function) -> None:
    to.graph.operator(layer.code, to.elementwise(layer), to.indices[layer.output], **layer.options)


def _arithmetic(to: FloatWriter, layer: Arithmetic) -> None:
    to.graph.operator(layer.code, to.elementwise(layer), to.indices[layer.output])


def _matrix_multiply(to: FloatWriter, layer: MatrixMultiply) -> None:
    axes = identity(len(to.values[layer.output].shape))
    to.write(layer.output, "BATCH_MATMUL", [to.operand(name, axes) for name in layer.inputs], axes)


def _mean(to: FloatWriter, layer: Mean) -> None:
    given = to.values[layer.inputs[0]]
    places = [1 + given.order.index(axis) for axis in layer.axes]
    axes = to.graph.constant("axes", np.array(places, np.int32))
    kept = [axis for axis in range(len(given.shape)) if layer.keeps or axis not in layer.axes]
    order = tuple(kept.index(axis) for axis in given.order if axis in kept)
    to.write(layer.output, "MEAN", [to.operand(given.name), axes], order, keepDims=layer.keeps)


def _shares(to: FloatWriter, layer: Shares) -> None:
    given = to.values[layer.inputs[0]]
    order = (*(axis for axis in given.order if axis != layer.axis), layer.axis)
    to.write(layer.output, "SOFTMAX", [to.operand(given.name, order)], order, beta=1.0)


def _normalize(to: FloatWriter, layer: Normalize) -> None:
    """Mean, difference, mean of its square, reciprocal root: TensorFlow Lite has no operator for all."""
    made = to.values[layer.output]
    order = identity(len(made.shape))
    last = range(len(order) - layer.weight.ndim, len(order))
    axes = to.graph.constant("axes", np.array([1 + axis for axis in last], np.int32))
    small = tuple(1 if axis in last else size for axis, size in enumerate(made.shape))

    def step(code: str, inputs: list[int], name: str, shape: tuple[int, ...], **options: Any) -> int:
        return to.graph.operator(code, inputs, to.temporary(made, shape, name), **options)

    x = to.operand(layer.inputs[0], order)
    mean = step("MEAN", [x, axes], "mean", small, keepDims=True)
    centred = step("SUB", [x, mean], "centred", made.shape)
    square = step("MUL", [centred, centred], "square", made.shape)
    variance = step("MEAN", [square, axes], "variance", small, keepDims=True)
    above = step("ADD", [variance, to.number(layer.epsilon)], "above", small)
    norm = step("MUL", [centred, step("RSQRT", [above], "root", small)], "norm", made.shape)
    weight, bias = (to.graph.constant(f"{layer.name}/affine", array.astype(np.float32)[None])
                    for array in (layer.weight, layer.bias))  # fmt: skip
    scaled = step("MUL", [norm, weight], "scaled", made.shape)
    to.write(made.name, "ADD", [scaled, bias], order)


def _concatenate(to: FloatWriter, layer: Concatenate) -> None:
    moving.concatenate(to, layer, to.elementwise(layer))


_CALLS: dict[type[Operator], Callable[..., None]] = {
    Convolution: windows.convolution,
    Dense: windows.dense,
    MatrixMultiply: _matrix_multiply,
    Activate: _activate,
    Function: _function,
    Arithmetic: _arithmetic,
    MaxPool: windows.max_pool,
    RawAveragePool: windows.raw_average_pool,
    Mean: _mean,
    Shares: _shares,
    Normalize: _normalize,
    Embed: moving.embed,
    Reshape: moving.reshape,
    Transpose: moving.transpose,
    Concatenate: _concatenate,
    Take: moving.take,
    Pad: moving.pad,
    Spread: moving.spread,
}

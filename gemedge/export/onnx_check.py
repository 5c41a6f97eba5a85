"""An exported quantized model in onnxruntime: its outputs, and the integers of each of its tensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from gemedge.errors import UnsupportedError, reason
from gemedge.export.onnx_writer import element_of, offset_of
from gemedge.export.to_integer_onnx import TENSORS
from gemedge.model import QuantizedModel


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """How far a layer's integers are from simulate's: the largest difference, and how many of how many differ."""

    layer: str
    largest: int
    differing: int
    numbers: int

    @property
    def share(self) -> float:
        return self.differing / max(self.numbers, 1)

    def __str__(self) -> str:
        return f"layer {self.layer!r}: {self.differing:,} of {self.numbers:,} differ, by up to {self.largest} LSB"


def all_shown(content: bytes) -> bytes:
    """The file with all tensors of the model among its outputs."""
    proto = onnx.ModelProto.FromString(content)
    shown = {value.name for value in (*proto.graph.output, *proto.graph.input)}
    for entry in tensors_of(proto).values():
        if (value := entry["value"]) not in shown:
            shown.add(value)
            element = element_of(entry["type"])
            proto.graph.output.append(onnx.helper.make_tensor_value_info(value, element, None))
    return bytes(proto.SerializeToString())


def tensors_of(proto: onnx.ModelProto) -> dict[str, dict[str, Any]]:
    """What the file says of each of the model's tensors: its name in the graph, its type and more."""
    found: dict[str, dict[str, Any]] = json.loads(next(e.value for e in proto.metadata_props if e.key == TENSORS))
    return found


class Engine:
    """The file in onnxruntime, every tensor shown. UnsupportedError where it cannot be loaded or run."""

    def __init__(self, content: bytes, model: QuantizedModel, options: Any = None) -> None:
        """options: onnxruntime's SessionOptions; None for one thread and its usual optimisations."""
        import onnxruntime

        self._model = model
        self._values = {name: entry["value"] for name, entry in tensors_of(onnx.ModelProto.FromString(content)).items()}
        if options is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
        options.log_severity_level = 4
        shown = all_shown(content)
        try:
            self._session = onnxruntime.InferenceSession(shown, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own, of several classes
            raise UnsupportedError(f"onnxruntime cannot load the exported model: {reason(error)}") from error

    def integers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The integers of each layer, by the layer's name, for inputs as the file takes them."""
        layers = {layer.name: layer.output for layer in self._model.layers}
        names = list(dict.fromkeys(self._values[tensor] for tensor in layers.values()))
        arrays = dict(zip(names, self._run(names, inputs), strict=True)) if names else {}
        return {
            layer: arrays[self._values[tensor]].astype(np.int64) - offset_of(self._model.tensors[tensor])
            for layer, tensor in layers.items()
        }

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = list(self._model.outputs)
        return dict(zip(names, self._run(names, inputs), strict=True))

    def _run(self, names: list[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return [np.asarray(array) for array in self._session.run(names, dict(inputs))]
        except Exception as error:  # onnxruntime's own, of several classes
            raise UnsupportedError(f"onnxruntime cannot run the exported model: {reason(error)}") from error


def difference(layer: str, expected: np.ndarray, found: np.ndarray) -> LayerDifference:
    """Integers of one layer beside those it should have; UnsupportedError where the shapes are others."""
    if expected.shape != found.shape:
        raise UnsupportedError(f"layer {layer!r} has shape {found.shape} instead of {expected.shape}")
    apart = np.abs(expected.astype(np.int64) - found.astype(np.int64))
    return LayerDifference(layer, int(apart.max(initial=0)), int(np.count_nonzero(apart)), apart.size)


def joined(one: LayerDifference, other: LayerDifference) -> LayerDifference:
    """Of two runs of one layer."""
    largest = max(one.largest, other.largest)
    return LayerDifference(one.layer, largest, one.differing + other.differing, one.numbers + other.numbers)

"""A network in integers as a TensorFlow Lite file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemedge.errors import UnsupportedError
from gemedge.export.tflite_activations import Form
from gemedge.export.tflite_layers import write
from gemedge.export.tflite_model import Writer
from gemedge.export.tflite_tensors import Value, identity
from gemedge.export.tflite_writer import Border
from gemedge.kernel import FixedActivation
from gemedge.model import QuantizedModel
from gemedge.operators import Activate

SCHEMES = ("int8", "int16x8")
METADATA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Written:
    """The file, and how its inputs and outputs lie in it, in the file's order.

    kernels: of the operators of ours in it, by layer.
    """

    content: bytes
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    dynamic: bool
    kernels: dict[str, FixedActivation]


def to_tflite(model: QuantizedModel, *, gem: Form | None = None, observed: bool = False) -> Written:
    """The file of a model of scheme int8 or int16x8: the same bytes each time.

    gem: the form of its activations; None takes a table at 8 bits and float operators at 16. observed: every
    layer's tensor is an output, too. Inputs and outputs have channels last where they are images or signals.
    UnsupportedError names a layer that TensorFlow Lite has no operator for.
    """
    if model.scheme not in SCHEMES:
        raise UnsupportedError(f"scheme {model.scheme}; TensorFlow Lite takes {' and '.join(SCHEMES)}")
    to = Writer(model, gem)
    for layer in model.layers:
        write(to, layer)
    inputs = [Border(name, to.indices[name]) for name in model.inputs]
    outputs = [Border(name, _own(to, name, tensor)) for name, tensor in model.outputs.items()]
    shown = list(model.outputs.values())
    if observed:
        rest = [layer.output for layer in model.layers if layer.output in to.indices and layer.output not in shown]
        outputs += [Border(f"layer {name}", to.indices[name]) for name in rest]
        shown += rest
    content = to.graph.finish(inputs, outputs, _metadata(to))
    return Written(
        content,
        tuple(to.values[name] for name in model.inputs),
        tuple(to.values[name] for name in shown),
        to.graph.dynamic,
        to.custom,
    )


def _own(to: Writer, name: str, tensor: str) -> int:
    """The output's tensor; a copy where it is an input, too."""
    value = to.values[tensor]
    if value.value is not None:
        raise UnsupportedError(f"output {name!r} is a constant")
    if tensor in to.model.inputs:
        return to.reshape(to.indices[tensor], to.temporary(value, value.laid, "output"))
    return to.indices[tensor]


def _metadata(to: Writer) -> dict[str, Any]:
    """What a reader of the file cannot see in it."""
    model = to.model
    activations = [
        {
            "layer": layer.name,
            "activation": str(layer.activation),
            "n": layer.activation.n,
            "epsilon": layer.activation.epsilon,
            "form": to.form_of(model.tensors[layer.inputs[0]].quantized),
            "digest": layer.digest,
        }
        for layer in model.layers
        if isinstance(layer, Activate)
    ]
    borders = (*model.inputs, *model.outputs.values())
    return {
        "version": METADATA_VERSION,
        "scheme": model.scheme,
        "rounding": model.rounding.value,
        "axes": {name: list(to.values[name].axes) for name in borders},
        "activations": activations,
    }


def layout_name(value: Value) -> str:
    """NHWC, NWC or the numbers of the model's axes."""
    if value.order == identity(len(value.order)):
        return "as in the model"
    return {3: "NWC", 4: "NHWC"}.get(len(value.axes), str(list(value.axes)))


def laid(values: Sequence[Value], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Arrays [batch, *shape] of the model as the file has them, in its types."""
    return [value.to_memory(array.astype(value.dtype)) for value, array in zip(values, arrays, strict=True)]

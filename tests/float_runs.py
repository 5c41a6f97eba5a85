"""The float model's numbers, by onnxruntime: what ranges are made of and what integers are compared with."""

from collections import namedtuple
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime

from gemedge.capture import forms

Range = namedtuple("Range", "min max")


def float_tensors(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of the model by name, for these inputs."""
    shown = forms.to_form(model.clone(), "function")
    outputs = {value.name for value in shown.graph.outputs}
    shown.graph.outputs.extend(v for node in shown.graph for v in node.outputs if v.name and v.name not in outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(shown).SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    return dict(inputs) | dict(zip(names, session.run(names, dict(inputs)), strict=True))


def ranges_of(tensors: Mapping[str, np.ndarray]) -> dict[str, Range]:
    found = {}
    for name, values in tensors.items():
        if values.dtype == np.float32 and np.isfinite(values).any():
            finite = values[np.isfinite(values)]
            found[name] = Range(float(finite.min()), float(finite.max()))
    return found


def decibels(exact: np.ndarray, found: np.ndarray) -> float:
    """The signal over the error; infinity where there is none."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.square(exact).mean() / np.square(found - exact).mean()))

"""TorchScript: loading it runs code of its own, so only a trusted file comes here."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.utils._pytree as pytree
from torch.onnx import register_custom_op_symbolic, symbolic_helper  # type: ignore[attr-defined]

from gemedge.capture import Captured, naming, onnx_input, reference, schema, trace
from gemedge.capture.inputs import Arrays
from gemedge.errors import ModelError, UnsupportedError

_EXPORTER_OPSETS = range(17, 21)


def captured(
    data: memoryview, example: Arrays, dynamic: Mapping[str, Mapping[int, str]] | None, opset: int
) -> Captured:
    """The script in a file as a float ONNX model, with what it gives on probes.

    Raises ModelError where torch cannot load it, UnsupportedError where it cannot be written as ONNX.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            script = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
    except Exception as error:
        raise ModelError(f"torch cannot load it: {trace.first_line(error)}") from error
    model = _exported(script, example, dynamic, opset)

    def run(inputs: Arrays) -> list[np.ndarray]:
        with torch.no_grad():
            result = script(*(torch.from_numpy(np.array(array)) for array in inputs.values()))
        return [leaf.detach().numpy() for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]

    return reference.captured(model, example, run)


def _exported(script: Any, example: Arrays, dynamic: Mapping[str, Mapping[int, str]] | None, opset: int) -> ir.Model:
    for operator, op_type in (("gem", "GEM"), ("segem", "SEGEM")):
        register_custom_op_symbolic(f"gemedge::{operator}", _symbolic(op_type), _EXPORTER_OPSETS[0])
    axes = dynamic if dynamic is not None else {name: {0: "batch"} for name in example}
    buffer = io.BytesIO()
    try:
        with trace.quiet():
            torch.onnx.export(
                script,
                tuple(torch.from_numpy(np.array(array)) for array in example.values()),
                buffer,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=opset if opset in _EXPORTER_OPSETS else _EXPORTER_OPSETS[1],
                input_names=list(example),
                dynamic_axes={name: dict(names) for name, names in axes.items()},
                custom_opsets={schema.DOMAIN: schema.VERSION},
            )
    except Exception as error:
        raise UnsupportedError(f"torch.onnx cannot translate the script: {trace.first_line(error)}") from error
    model, _ = onnx_input.read(Path(), memoryview(buffer.getvalue()), opset)
    for index, value in enumerate(model.graph.outputs):
        value.name = "output" if len(model.graph.outputs) == 1 else f"output_{index}"
    for node in model.graph.all_nodes():
        node.name = (node.name or node.op_type).strip("/").rpartition("/")[0].replace("/", ".") or node.op_type
    naming.forget_origin(model)
    return model


def _symbolic(op_type: str) -> Any:
    def translate(graph: Any, x: Any, n: Any, epsilon: Any) -> Any:
        whole, scale = symbolic_helper._maybe_get_const(n, "i"), symbolic_helper._maybe_get_const(epsilon, "f")
        return graph.op(f"{schema.DOMAIN}::{op_type}", x, n_i=whole, epsilon_f=scale).setType(x.type())

    return translate

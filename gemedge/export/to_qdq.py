"""A quantized model as ONNX for other tools: float operators between QuantizeLinear and DequantizeLinear.

Its formats and weights are the model's, its arithmetic is the runtime's: floats that round as they do there. What
comes out is near simulate's integers, and how near is measured (gemedge.export.onnx_check), not promised.
An activation from 8 bits to 8 bits is one node, QuantizedGEM or QuantizedSEGEM of domain ai.gemedge, whose function
body is the three operators: gemedge's kernel for onnxruntime takes them in one pass over bytes, with the same integers.
"""

import numpy as np

from gemedge.errors import UsageError
from gemedge.export.onnx_writer import Writer
from gemedge.export.qdq_layers import Reals, write
from gemedge.export.to_integer_onnx import OPSET, check_writable, entered, finished, leave
from gemedge.model import QuantizedModel
from gemedge.operators import Convolution, Dense

_OPSET_OF_INT16 = 21  # from here on QuantizeLinear makes it


def to_qdq(model: QuantizedModel, *, opset: int | None = None, raw: bool = False) -> bytes:
    """The file's bytes, the same for the same model.

    opset: from 17 to 21, and 21 where anything has 16 bits; None for 18 or 21. raw: as of to_integer_onnx.
    metadata_props are those of the integer form; a tensor of 16 bits lies as int16.
    """
    wide = _wide(model)
    if opset is None:
        opset = _OPSET_OF_INT16 if wide else OPSET
    check_writable(model, opset)
    if wide and opset < _OPSET_OF_INT16:
        raise UsageError(f"{wide} has 16 bits, which QuantizeLinear makes from opset {_OPSET_OF_INT16} on, not {opset}")
    to = Writer(model, opset, wide=np.int16)
    reals = Reals(to)
    for name in model.inputs:
        to.prefix, tensor = f"{name}.raw", model.tensors[name]
        floats = not raw and tensor.params is not None
        to.values[name] = reals.quantized(name, tensor) if floats else entered(to, tensor, raw=raw)
    for layer in model.layers:
        to.prefix = layer.name
        to.values[layer.output] = write(reals, layer)
    for name, output in model.outputs.items():
        to.prefix, tensor = f"{output}.real", model.tensors[output]
        if raw or tensor.params is None:
            leave(to, name, tensor, raw=raw)
        else:
            to.add("Identity", reals.of(tensor), output=name)
    return finished(to, form="qdq", raw=raw)


def _wide(model: QuantizedModel) -> str:
    """What in the model has 16 bits, or nothing."""
    for tensor in model.tensors.values():
        if tensor.params is not None and tensor.params.bits > 8:
            return f"tensor {tensor.name!r}"
    weights = (layer for layer in model.layers if isinstance(layer, Convolution | Dense))
    return next((f"the weight of layer {layer.name!r}" for layer in weights if layer.weight.dtype != np.int8), "")

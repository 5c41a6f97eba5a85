"""The two operators of domain ai.gemedge: one node for one activation.

Attributes n (int, 1 to 16, default 1) and epsilon (float, default 1); one input and one output of the same
float type and shape. GEM stands for E-GEM at any epsilon. A quantized model in float operators has functions of the
domain beside them, each an operator between DequantizeLinear and QuantizeLinear.
"""

import onnx
import onnx.shape_inference
import onnx_ir as ir
from onnx.defs import OpSchema

from gemedge.activation import Activation
from gemedge.errors import ActivationError, ModelError

DOMAIN = "ai.gemedge"
VERSION = 1
OP_TYPES = ("GEM", "SEGEM")
QUANTIZED = {"QuantizedGEM": "GEM", "QuantizedSEGEM": "SEGEM"}  # functions, and what stands in their bodies


def register() -> None:
    """Make the operators known to onnx in this process; a second call does nothing."""
    for op_type in OP_TYPES:
        if not onnx.defs.has(op_type, DOMAIN):
            onnx.defs.register_schema(_schema(op_type))


def activation_of(node: ir.Node) -> Activation:
    """The activation a GEM or SEGEM node stands for; ModelError names a node whose attributes are impossible."""
    n, epsilon = node.attributes.get("n"), node.attributes.get("epsilon")
    make = Activation.segem if node.op_type == "SEGEM" else Activation.egem
    try:
        return make(n.as_int() if n else 1, epsilon.as_float() if epsilon else 1.0)
    except (ActivationError, TypeError, ValueError) as error:
        raise ModelError(f"node {node.name!r}: {error}") from error


def is_activation(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type in OP_TYPES


def _schema(op_type: str) -> OpSchema:
    schema = OpSchema(
        op_type,
        DOMAIN,
        VERSION,
        doc=f"The activation {op_type} of arXiv 2604.21677, elementwise.",
        inputs=[OpSchema.FormalParameter("X", "T")],
        outputs=[OpSchema.FormalParameter("Y", "T")],
        type_constraints=[("T", ["tensor(float16)", "tensor(float)", "tensor(double)"], "Floating-point tensors.")],
        attributes=[
            OpSchema.Attribute("n", onnx.helper.make_attribute("n", 1), "The paper's N, from 1 to 16."),
            OpSchema.Attribute("epsilon", onnx.helper.make_attribute("epsilon", 1.0), "The scale, positive."),
        ],
    )
    schema.set_type_and_shape_inference_function(_infer)
    return schema


def _infer(context: onnx.shape_inference.InferenceContext) -> None:
    context.set_output_type(0, context.get_input_type(0))

"""The error report: each tensor beside its integers, wherever the float model has the batch."""

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from test_simulate import Range

from gemedge.fixed import Rounding
from gemedge.quant.compare import compare
from gemedge.quant.quantize import quantize

TEXT = """<ir_version: 8, opset_import: ["": 18]>
g (float[batch, {size}, 3] x) => (float[batch, {size}, 3] z)
{{ t = Transpose<perm=[1, 2, 0]>(x) u = Neg(t) z = Transpose<perm=[2, 0, 1]>(u) }}"""


@pytest.mark.parametrize("size", [4, 5], ids=["an axis as long as the batch", "no such axis"])
def test_a_tensor_whose_batch_lies_last_is_compared_number_by_number(size):
    model = ir.from_proto(onnx.parser.parse_model(TEXT.format(size=size)))
    x = np.random.default_rng(0).standard_normal((4, size, 3)).astype(np.float32)
    ranges = dict.fromkeys("xtuz", Range(float(x.min()), float(x.max())))
    quantized = quantize(model, ranges, scheme="int16x8", rounding=Rounding.SINGLE)
    errors = compare(model, quantized, [{"x": x}]).errors
    assert [error.tensor for error in errors] == ["u"]  # the others are the same integers
    assert all(error.sqnr > 70 for error in errors), errors

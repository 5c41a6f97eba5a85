"""Speed of exported quantized models: `OMP_NUM_THREADS=1 python -m benchmarks.integer_onnx`.

The ResNet-8 of MLPerf Tiny with GEM in int8, batch 64, onnxruntime on one thread: the integer form and the qdq form
beside the float model, with and without gemedge's kernel for the activations, in the same run. To reach, of
the faster float model's time: 4 times in the integer form, 1.2 times in the qdq form with the same kernel.
"""

from functools import partial
from time import process_time

import onnx_ir as ir
import onnxruntime
import torch

from benchmarks.row import Row, main, timed
from benchmarks.simulate import BATCH, resnet8, settle
from benchmarks.timing import interleaved
from gemedge.capture import capture_module, forms
from gemedge.export.run import onnxruntime_options
from gemedge.export.to_integer_onnx import to_integer_onnx
from gemedge.export.to_qdq import to_qdq
from gemedge.fixed import Rounding
from gemedge.quant.calibrate import calibrate
from gemedge.quant.quantize import quantize

ROUNDS = 21
INTEGER_REACH, QDQ_REACH = 4.0, 1.2


def rows(quick: bool) -> list[Row]:
    """The time of one run in each form."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32)
    network = resnet8()
    settle(network, images)
    found = capture_module(network, images[:1]).model
    name = found.graph.inputs[0].name or ""
    ranges = calibrate(found, [{name: images[:16].numpy()}], workers=1)
    model = quantize(found, ranges, scheme="int8", rounding=Rounding.SINGLE)
    real = ir.to_proto(forms.to_form(found.clone(), "function")).SerializeToString()
    files = {"float": real, "qdq": to_qdq(model), "integer": to_integer_onnx(model)}
    files["integer, double"] = to_integer_onnx(quantize(found, ranges, scheme="int8", rounding=Rounding.DOUBLE))
    sessions = {form: session(content, fused=False) for form, content in files.items()}
    sessions |= {f"{form}, kernel": session(files[form], fused=True) for form in ("float", "qdq")}
    given = {name: images.numpy()}
    rivals = {form: partial(running.run, None, given) for form, running in sessions.items()}
    medians = interleaved(rivals, 1 if quick else ROUNDS, process_time)
    goals = {"integer": INTEGER_REACH, "qdq, kernel": QDQ_REACH}
    return timed(f"Quantized ONNX, ResNet-8, batch {BATCH}, one thread", medians, "float, kernel", goals)


def session(content: bytes, *, fused: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime_options() if fused else onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main(rows)

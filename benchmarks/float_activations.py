"""GEM in torch and in onnxruntime's standard operators beside GELU: `python -m benchmarks.float_activations`.

One million float32, one thread, one process, medians of interleaved turns. To reach: torch forward and
backward at most 1.3 of F.gelu's, compiled at most 0.6; the function form in onnxruntime at most 1.8 of Gelu for n=1
and 2.4 for n=2.
"""

from collections.abc import Callable
from time import process_time

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
import torch
import torch.nn.functional as F

import gemedge.nn as gnn
from benchmarks.row import Row, main, timed
from benchmarks.timing import interleaved
from gemedge.capture import forms

ELEMENTS = 1 << 20
ROUNDS = 200


def forward_and_backward(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ELEMENTS, generator=generator, requires_grad=True)
    grad = torch.randn(ELEMENTS, generator=generator)

    def call() -> None:
        x.grad = None
        function(x).backward(grad)

    return call


def onnx_node(node: str) -> Callable[[], object]:
    header = '<ir_version: 9, opset_import: ["": 20, "ai.gemedge": 1]>'
    proto = onnx.parser.parse_model(f"{header} g (float[N] X) => (float[N] Y) {{ {node} }}")
    model = ir.to_proto(forms.to_form(ir.from_proto(proto), "function"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal(ELEMENTS).astype(np.float32)
    return lambda: session.run(None, {"X": x})


def rows(quick: bool) -> list[Row]:
    """Milliseconds of a million numbers in torch and in onnxruntime."""
    torch.set_num_threads(1)
    rounds = 2 if quick else ROUNDS
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "F.gelu": F.gelu,
        "F.relu": F.relu,
        "F.silu": F.silu,
        "GEM n=1": gnn.GEM(1),
        "GEM n=2": gnn.GEM(2),
        "SE-GEM n=1": gnn.SEGEM(1),
    }
    if not quick:
        functions |= {f"GEM n={n}, compiled": torch.compile(gnn.GEM(n)) for n in (1, 2)}
    reach = {"GEM n=1": 1.3, "GEM n=2": 1.3, "GEM n=1, compiled": 0.6, "GEM n=2, compiled": 0.6}
    medians = interleaved({name: forward_and_backward(call) for name, call in functions.items()}, rounds, process_time)
    found = timed("torch, forward and backward", medians, "F.gelu", reach)
    nodes = {
        "Gelu": "Y = Gelu(X)",
        "Relu": "Y = Relu(X)",
        "GEM n=1, function": "Y = ai.gemedge.GEM <n=1, epsilon=1.0> (X)",
        "GEM n=2, function": "Y = ai.gemedge.GEM <n=2, epsilon=1.0> (X)",
        "SE-GEM n=1, function": "Y = ai.gemedge.SEGEM <n=1, epsilon=1.0> (X)",
    }
    reach = {"GEM n=1, function": 1.8, "GEM n=2, function": 2.4}
    medians = interleaved({name: onnx_node(node) for name, node in nodes.items()}, rounds, process_time)
    return found + timed("onnxruntime, standard operators", medians, "Gelu", reach)


if __name__ == "__main__":
    main(rows)

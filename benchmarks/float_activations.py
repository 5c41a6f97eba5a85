"""GEM in torch and in onnxruntime's standard operators beside GELU: `python benchmarks/float_activations.py`.

One million float32, one thread, one process, medians of interleaved turns. To reach (issue 2): torch forward and
backward at most 1.3 of F.gelu's, compiled at most 0.6; the function form in onnxruntime at most 1.8 of Gelu for n=1
and 2.4 for n=2.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
import torch
import torch.nn.functional as F
from timing import interleaved

import gemedge.nn as gnn
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


def table(title: str, rivals: Mapping[str, Callable[[], object]], reach: Mapping[str, float]) -> None:
    medians = interleaved(rivals, ROUNDS)
    peer = next(iter(medians.values()))
    print(f"\n{title}\n{'':24}{'ms':>8}{'ratio':>8}{'reach':>8}")
    for name, seconds in medians.items():
        wanted = f"{reach[name]:8.2f}" if name in reach else ""
        print(f"{name:24}{seconds * 1e3:8.3f}{seconds / peer:8.2f}{wanted}")


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {ELEMENTS:,} float32, one thread")
    rivals: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "F.gelu": F.gelu,
        "F.relu": F.relu,
        "F.silu": F.silu,
        "GEM n=1": gnn.GEM(1),
        "GEM n=2": gnn.GEM(2),
        "SE-GEM n=1": gnn.SEGEM(1),
        "GEM n=1, compiled": torch.compile(gnn.GEM(1)),
        "GEM n=2, compiled": torch.compile(gnn.GEM(2)),
    }
    reach = {"GEM n=1": 1.3, "GEM n=2": 1.3, "GEM n=1, compiled": 0.6, "GEM n=2, compiled": 0.6}
    table("torch, forward and backward", {name: forward_and_backward(call) for name, call in rivals.items()}, reach)
    nodes = {
        "Gelu": "Y = Gelu(X)",
        "Relu": "Y = Relu(X)",
        "GEM n=1, function": "Y = ai.gemedge.GEM <n=1, epsilon=1.0> (X)",
        "GEM n=2, function": "Y = ai.gemedge.GEM <n=2, epsilon=1.0> (X)",
        "SE-GEM n=1, function": "Y = ai.gemedge.SEGEM <n=1, epsilon=1.0> (X)",
    }
    reach = {"GEM n=1, function": 1.8, "GEM n=2, function": 2.4}
    table("onnxruntime, standard operators", {name: onnx_node(node) for name, node in nodes.items()}, reach)


if __name__ == "__main__":
    main()

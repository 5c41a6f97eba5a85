"""The fused kernels beside onnxruntime's own activations: `python -m benchmarks.fused_kernel`.

One million float32, one thread, one process; each call is a whole `session.run`, its output allocated by
onnxruntime. To reach: at most 0.4 of Gelu and at most 1.6 of Relu.
"""

from collections.abc import Callable
from time import process_time

import numpy as np
import onnx.parser
import onnxruntime

from benchmarks.row import Row, main, timed
from benchmarks.timing import interleaved
from gemedge.export.run import onnxruntime_options

ELEMENTS = 1_000_000
ROUNDS = 300
NODES = {
    "Relu": "Y = Relu(X)",
    "Gelu": "Y = Gelu(X)",
    "GEM n=1": "Y = ai.gemedge.GEM <n=1, epsilon=1.0> (X)",
    "GEM n=2": "Y = ai.gemedge.GEM <n=2, epsilon=1.0> (X)",
    "SE-GEM n=1": "Y = ai.gemedge.SEGEM <n=1, epsilon=1.0> (X)",
}


def caller(node: str, x: np.ndarray) -> Callable[[], object]:
    options = onnxruntime_options()
    options.intra_op_num_threads = 1
    header = '<ir_version: 9, opset_import: ["": 20, "ai.gemedge": 1]>'
    model = onnx.parser.parse_model(f"{header} g (float[N] X) => (float[N] Y) {{ {node} }}")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"X": x})


def rows(quick: bool) -> list[Row]:
    """Milliseconds of a million numbers, against Gelu and against Relu."""
    x = np.random.default_rng(0).standard_normal(ELEMENTS).astype(np.float32)
    medians = interleaved({name: caller(node, x) for name, node in NODES.items()}, 2 if quick else ROUNDS, process_time)
    fused = [name for name in medians if "GEM" in name]
    return [
        row
        for peer, reach in (("Gelu", 0.4), ("Relu", 1.6))
        for row in timed(f"onnxruntime, fused kernel, beside {peer}", medians, peer, dict.fromkeys(fused, reach))
    ]


if __name__ == "__main__":
    main(rows)

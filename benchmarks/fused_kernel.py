"""The fused kernels beside onnxruntime's own activations: `python benchmarks/fused_kernel.py`.

One million float32, one thread, one process; each call is a whole `session.run`, its output allocated by
onnxruntime. To reach (issue 2): at most 0.4 of Gelu and at most 1.6 of Relu.
"""

from collections.abc import Callable

import numpy as np
import onnx.parser
import onnxruntime
from timing import interleaved

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


def main() -> None:
    x = np.random.default_rng(0).standard_normal(ELEMENTS).astype(np.float32)
    medians = interleaved({name: caller(node, x) for name, node in NODES.items()}, ROUNDS)
    print(f"onnxruntime {onnxruntime.__version__}, {ELEMENTS:,} float32, one thread, medians of {ROUNDS} rounds")
    print(f"{'':12}{'ms':>8}{'of Gelu':>10}{'of Relu':>10}")
    for name, seconds in medians.items():
        of_gelu, of_relu = seconds / medians["Gelu"], seconds / medians["Relu"]
        print(f"{name:12}{seconds * 1e3:8.3f}{of_gelu:10.2f}{of_relu:10.2f}")
    fused = [seconds for name, seconds in medians.items() if "GEM" in name]
    reached = max(fused) <= 0.4 * medians["Gelu"] and max(fused) <= 1.6 * medians["Relu"]
    print("reached" if reached else "NOT reached: at most 0.40 of Gelu and 1.60 of Relu")


if __name__ == "__main__":
    main()

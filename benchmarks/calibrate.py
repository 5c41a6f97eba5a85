"""Samples per second and peak memory of calibration: `python benchmarks/calibrate.py`.

To show (issue 4): time grows linearly and memory not at all with the samples. A convolutional network on 32x32
pictures, every tensor observed, two ways to run: one thread and one a processor. Each size runs in a fresh
process, data on disk; the peak is the process's, its 0-sample part (imports, the model) measured first.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir

SIZES = (100, 1_000, 10_000)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npy"
        out = np.lib.format.open_memmap(path, "w+", np.float32, (SIZES[-1], 3, 32, 32))
        for first in range(0, SIZES[-1], 1000):
            out[first : first + 1000] = np.random.default_rng(first).standard_normal((1000, 3, 32, 32))
        out.flush()
        print(f"{'samples':>8} {'workers':>8} {'seconds':>8} {'samples/s':>10} {'peak above the start, MB':>25}")
        for workers in sorted({1, os.cpu_count() or 1}):
            for size in SIZES:
                command = [sys.executable, __file__, str(path), str(size), str(workers)]
                run = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
                seconds, megabytes = json.loads(run.stdout)
                print(f"{size:>8,} {workers:>8} {seconds:>8.2f} {size / seconds:>10,.0f} {megabytes:>25.0f}")


def measure(path: Path, size: int, workers: int) -> None:
    from gemedge.quant.batches import inputs_of, open_data
    from gemedge.quant.calibrate import calibrate

    model = network()
    inputs = inputs_of(model)
    before = peak()
    start = time.perf_counter()
    calibrate(model, open_data(path, inputs, limit=size), workers=workers)
    print(json.dumps([time.perf_counter() - start, peak() - before]))


def peak() -> float:
    """Megabytes, of this process alone: what getrusage says begins with its parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def network() -> ir.Model:
    """Four convolutions with GEM, 16 to 64 channels."""
    channels = [3, 16, 32, 32, 64]
    lines, weights, last = [], [], "x"
    for index, (given, made) in enumerate(itertools.pairwise(channels)):
        stride = 1 if index == 0 else 2
        weights.append((f"w{index}", (made, given, 3, 3)))
        lines.append(f"c{index} = Conv<pads=[1,1,1,1], strides=[{stride},{stride}]>({last}, w{index})")
        last = f"g{index}"
        lines.append(f"{last} = ai.gemedge.GEM<n=1, epsilon=1.0>(c{index})")
    declared = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in weights)
    text = (
        '<ir_version: 8, opset_import: ["": 18, "ai.gemedge": 1]>'
        f"g (float[batch, 3, 32, 32] x, {declared}) => (float[batch, 64, 1, 1] z)"
        f" {{ {' '.join(lines)} z = GlobalAveragePool({last}) }}"
    )
    proto = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    for name, shape in weights:
        array = generator.standard_normal(shape).astype(np.float32) * np.float32(np.prod(shape[1:]) ** -0.5)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    del proto.graph.input[1:]
    return ir.from_proto(proto)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()

"""Samples per second and peak memory of calibration: `python -m benchmarks.calibrate`.

To show: time grows linearly and memory not at all with the samples. A convolutional network on 32x32
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

from benchmarks.row import Row, main

SIZES = (100, 1_000, 10_000)


def rows(quick: bool) -> list[Row]:
    """Samples a second for each size and number of threads, and the peak above the start."""
    sizes = SIZES[:1] if quick else SIZES
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npy"
        out = np.lib.format.open_memmap(path, "w+", np.float32, (sizes[-1], 3, 32, 32))
        for first in range(0, len(out), 1000):
            piece = out[first : first + 1000]
            piece[:] = np.random.default_rng(first).standard_normal(piece.shape)
        out.flush()
        for workers in sorted({1, os.cpu_count() or 1}):
            for size in sizes:
                command = [sys.executable, "-m", "benchmarks.calibrate", str(path), str(size), str(workers)]
                run = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
                seconds, megabytes = json.loads(run.stdout)
                name = f"{size:,} samples, {workers} {'thread' if workers == 1 else 'threads'}"
                beside = {"peak above the start, MB": megabytes}
                found.append(Row("Calibrate a small CNN", name, size / seconds, "samples a second", beside=beside))
    return found


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
    if sys.argv[1:] and sys.argv[1].endswith(".npy"):
        measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(rows)

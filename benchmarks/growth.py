"""How cost grows with the model and with the data: `python -m benchmarks.growth`.

Models are decoders of GPT-2's architecture, from 0.1 million parameters to its 124 million, on 32 tokens; data are
samples for a small CNN, on disk. Each point is a fresh process that loads what the step needs and then measures the
step alone: its seconds, and its peak memory above what was there before. Exponents are slopes of log cost over log
size, fitted through all points and over the last two, where fixed costs no longer hide growth. To reach, in time and
in memory, by either: nothing worse than linear, which leaves a tenth for noise.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

import gemedge.nn as gnn
from benchmarks.row import Row, main
from gemedge import Rounding, model_file
from gemedge.capture import capture_module, packing
from gemedge.export import export_checked
from gemedge.export.to_c import to_c
from gemedge.quant.batches import inputs_of, open_data
from gemedge.quant.calibrate import calibrate
from gemedge.quant.compare import compare
from gemedge.quant.prepare import OPSET, prepare
from gemedge.quant.quantize import quantize
from gemedge.quant.ranges import Ranges
from gemedge.quant.simulate import simulate

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from networks import NETWORKS, Block

TOKENS = 32
BATCH = 64
MODELS = ((2, 64, 256), (4, 128, 1024), (6, 384, 2048), (8, 512, 25_000), (12, 768, 50_257))  # blocks, width, words
SAMPLES = (100, 1_000, 10_000, 100_000)
LINEAR = 1.1
LAST = "of the last two"
Done = tuple[float, float]  # seconds, bytes


class Decoder(nn.Module):
    """GPT-2's architecture; the last layer's weight is the embedding's."""

    def __init__(self, blocks: int, width: int, words: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(words, width), nn.Embedding(1024, width)
        make = partial(gnn.GEM, 1)
        self.blocks = nn.Sequential(*(Block(make, width, width // 32, causal=True) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def rows(quick: bool) -> list[Row]:
    """Points and exponents of every step."""
    models, samples = (MODELS[:2], SAMPLES[:2]) if quick else (MODELS, SAMPLES)
    found: dict[tuple[str, str], list[tuple[int, Done]]] = {}
    for shape in models:
        with tempfile.TemporaryDirectory() as folder:
            for step in MODEL_STEPS:
                size, *cost = _in_a_process("model", step, folder, *map(str, shape))
                found.setdefault(("parameters", step), []).append((int(size), (cost[0], cost[1])))
    with tempfile.TemporaryDirectory() as folder:
        _write_data(Path(folder) / "data.npy", samples[-1])
        for count in samples:
            for step in DATA_STEPS:
                size, *cost = _in_a_process("data", step, folder, str(count))
                found.setdefault(("samples", step), []).append((int(size), (cost[0], cost[1])))
    points, exponents = [], []
    for (of, step), seen in found.items():
        points += [
            Row(f"Cost by {of}", f"{step}, {size:,}", seconds, "s", beside={of: size, "peak, MB": peak / 1e6})
            for size, (seconds, peak) in seen
        ]
        exponents += _exponents(of, step, seen)
    return points + exponents


def _exponents(of: str, step: str, seen: list[tuple[int, Done]]) -> list[Row]:
    """The exponents of time and of memory, each judged by the larger. Memory below 1 MB has none to speak of."""
    sizes = np.log([size for size, _ in seen])
    found = []
    for i, (name, least) in enumerate((("time", 1e-4), ("memory", 1e6))):
        cost = np.log([max(both[i], least) for _, both in seen])
        beside = {
            LAST: float((cost[-1] - cost[-2]) / (sizes[-1] - sizes[-2])),
            "fitted to all": float(np.polyfit(sizes, cost, 1)[0]),
        }
        larger = max(beside.values())
        found.append(Row(f"Exponents by {of}", f"{step}, {name}", larger, "larger", at_most=LINEAR, beside=beside))
    return found


def _in_a_process(*words: str) -> list[float]:
    """Size, seconds and bytes of one point."""
    command = [sys.executable, "-m", "benchmarks.growth", "--point", *words]
    found = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    point: list[float] = json.loads(found.stdout.splitlines()[-1])
    return point


def _write_data(path: Path, count: int) -> None:
    out = np.lib.format.open_memmap(path, "w+", np.float32, (count, *NETWORKS["cnn"].shapes["input"]))
    for first in range(0, count, 1000):
        piece = out[first : first + 1000]
        piece[:] = np.random.default_rng(first).standard_normal(piece.shape)
    out.flush()


# One point, in a process of its own. A step loads, gives the work, and the work gives what writes for the next step.


def model_point(step: str, folder: Path, shape: tuple[int, int, int]) -> list[float]:
    """Parameters, seconds and bytes."""
    blocks, width, words = shape
    size = words * width + 1024 * width + blocks * (12 * width + 13) * width + 2 * width
    generator = np.random.default_rng(0)
    tokens = [{"tokens": generator.integers(0, words, (2, TOKENS))} for _ in range(2)]

    def live() -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        return Decoder(*shape).eval(), torch.from_numpy(tokens[0]["tokens"])

    def captured() -> Callable[[], object]:
        capture_module(nn.Linear(1, 1), torch.zeros(1, 1))  # imports what torch imports late
        return partial(capture_module, *live(), opset=OPSET)

    def prepared() -> ir.Model:
        return _load_graph(folder / "prepared")

    def exported() -> Callable[[], object]:
        found = capture_module(*live())
        return partial(
            export_checked, found, "onnx", gem="function", external_data=True, name="m", check=True, confined=False
        )

    begin: dict[str, Callable[[], Callable[[], object]]] = {
        "capture": captured,
        "export onnx": exported,
        "prepare": lambda: partial(prepare, _load_graph(folder / "captured")),
        "calibrate": lambda: partial(calibrate, prepared(), tokens, workers=1),
        "quantize": lambda: partial(
            quantize,
            prepared(),
            Ranges.from_json((folder / "ranges").read_text()),
            scheme="int8",
            rounding=Rounding.SINGLE,
        ),
        "simulate": lambda: partial(
            simulate, model_file.load((folder / "quantized").read_bytes()), tokens[0], workers=1
        ),
        "export c": lambda: partial(to_c, model_file.load((folder / "quantized").read_bytes()), "net"),
    }
    keep: dict[str, Callable[..., object]] = {
        "capture": lambda made: _save_graph(folder / "captured", made.model),
        "prepare": lambda made: _save_graph(folder / "prepared", made.model),
        "calibrate": lambda made: (folder / "ranges").write_text(made.to_json()),
        "quantize": lambda made: (folder / "quantized").write_bytes(model_file.save(made)),
    }
    seconds, peak, made = measured(begin[step]())
    if step in keep:
        keep[step](made)
    return [size, seconds, peak]


MODEL_STEPS = ("capture", "export onnx", "prepare", "calibrate", "quantize", "simulate", "export c")
DATA_STEPS = ("calibrate", "simulate", "compare")


def data_point(step: str, folder: Path, count: int) -> list[float]:
    """Samples, seconds and bytes."""
    network = NETWORKS["cnn"]
    model = prepare(capture_module(network.model(lambda: gnn.GEM(1)), network.inputs(), opset=OPSET).model).model
    data = open_data(folder / "data.npy", inputs_of(model), batch=BATCH, limit=count)
    few = open_data(folder / "data.npy", inputs_of(model), batch=BATCH, limit=BATCH)
    quantized = quantize(model, calibrate(model, few, workers=1), scheme="int8", rounding=Rounding.SINGLE)
    work: dict[str, Callable[[], object]] = {
        "calibrate": lambda: calibrate(model, data, workers=1),
        "simulate": lambda: [simulate(quantized, batch, workers=1) for batch in data],
        "compare": lambda: compare(model, quantized, data),
    }
    seconds, peak, _ = measured(work[step])
    return [count, seconds, peak]


def measured(work: Callable[[], object]) -> tuple[float, float, object]:
    """Seconds, bytes at the peak above those at the start, and the result."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    start = time.process_time()
    made = work()
    return time.process_time() - start, _status("VmHWM") - before, made


def _status(name: str) -> int:
    """Bytes, of this process alone: what getrusage says begins with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def _save_graph(path: Path, model: ir.Model) -> None:
    graph, pieces = packing.pack(model)
    path.with_suffix(".graph").write_bytes(graph)
    path.with_suffix(".data").write_bytes(b"".join(pieces))


def _load_graph(path: Path) -> ir.Model:
    return packing.unpack(path.with_suffix(".graph").read_bytes(), memoryview(path.with_suffix(".data").read_bytes()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--point"]:
        kind, step, folder, *sizes = sys.argv[2:]
        shape = [int(size) for size in sizes]
        point = (
            model_point(step, Path(folder), (shape[0], shape[1], shape[2]))
            if kind == "model"
            else data_point(step, Path(folder), shape[0])
        )
        print(json.dumps(point))
    else:
        main(rows)

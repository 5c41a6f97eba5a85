"""The export of GPT-2's 124 million parameters beside torch's exporter alone: `python -m benchmarks.export_gpt2`.

Random weights, 128 tokens, each in fresh processes: `gemedge export` of the saved network with GEM, which compares the
file with the network in onnxruntime before it appears; and torch.onnx.export with saving of the same network with GELU,
which compares nothing. Memory is the largest process's, its libraries included. To reach: 60 s, and 3.2 times the
weights.
"""

import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.row import Row, main

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import export_large

GOALS = {"gpt2": (60.0, 3.2)}  # seconds, multiples of the weights
OURS, THEIRS = "gemedge export, check included", "torch.onnx.export and save, nothing compared"
TORCH_ALONE = """
import logging, sys, torch
logging.disable()
sys.path.insert(0, sys.argv[1])
import export_large
model = export_large.NETWORKS[sys.argv[2]](torch.nn.GELU).eval()
example = export_large.example(sys.argv[2])
torch.onnx.export(model, (example,), dynamo=True, verbose=False).save(sys.argv[3], external_data=True)
"""


def rows(quick: bool) -> list[Row]:
    """Seconds, and the peak in multiples of the weights; of BERT-small where it is to be quick."""
    torch.set_num_threads(1)
    network = "bert_small" if quick else "gpt2"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.pt2")
        parameters = export_large.save(network, path)
        command = ("export", str(path), "--format", "onnx", "--external-data", "--quiet")
        ours = export_large.watched("-m", "gemedge", *command)
        alone = ("-c", TORCH_ALONE, str(Path(export_large.__file__).parent), network, str(Path(folder, "torch.onnx")))
        theirs = export_large.watched("-W", "ignore", *alone)
    title, peak = f"Export of {network}, {parameters:,} parameters", ours.peak / (4 * parameters)
    most_seconds, most_memory = GOALS.get(network, (None, None))
    beside = {"CPU, s": ours.processor, "of torch's": ours.seconds / theirs.seconds}
    memory = {"MB": ours.peak / 1e6, "of torch's": ours.peak / theirs.peak}
    multiples = f"{title}: peak", "times the weights"
    return [
        Row(title, OURS, ours.seconds, "s", at_most=most_seconds, beside=beside),
        Row(title, THEIRS, theirs.seconds, "s", beside={"CPU, s": theirs.processor}),
        Row(multiples[0], OURS, peak, multiples[1], at_most=most_memory, beside=memory),
        Row(multiples[0], THEIRS, theirs.peak / (4 * parameters), multiples[1], beside={"MB": theirs.peak / 1e6}),
    ]


if __name__ == "__main__":
    main(rows)

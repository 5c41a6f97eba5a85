"""GPT-2 with 124 million parameters, ViT-S/16 and BERT-small: random weights with GEM, exported and compared.

`python examples/export_large.py [gpt2|vit_small|bert_small] [--gem FORM]` saves the network and runs `gemedge export`
on the file, which compares the result with the original before it appears: GPT-2 and BERT on 128 tokens. It prints
the seconds and the largest memory of any of its processes, in multiples of the weights. Nothing is trained here, and
nothing is downloaded; examples/train_text.py trains small ones.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import models
import torch
from torch import Tensor

import gemedge.nn as gnn

# A process of its own runs the command, so that what made the network is not counted with it.
WATCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss, used.ru_utime + used.ru_stime)
"""
NETWORKS = {"gpt2": models.gpt2, "vit_small": models.vit_small, "bert_small": models.bert_small}


@dataclass(frozen=True)
class Watched:
    """What a command printed, its seconds on the clock and of the processor, and the bytes of its largest process."""

    shown: str
    seconds: float
    processor: float
    peak: int


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("network", nargs="?", default="gpt2", choices=NETWORKS)
    parser.add_argument("--gem", default="function", choices=("function", "primitive", "custom"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{given.network}.pt2")
        size = 4 * save(given.network, path)
        command = ["export", str(path), "--format", "onnx", "--gem", given.gem, "--external-data"]
        print("$ gemedge", *command, flush=True)
        run = watched("-m", "gemedge", *command)
    print(run.shown)
    print(f"{run.seconds:.0f} s, {run.processor:.0f} s of processor time", end="; ")
    print(f"largest process {run.peak / 2**20:,.0f} MB, {run.peak / size:.2f} times the weights")


def watched(*command: str) -> Watched:
    """Run Python with these words."""
    start = time.perf_counter()
    words = [sys.executable, "-c", WATCH, sys.executable, *command]
    run = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    seconds = time.perf_counter() - start
    shown, _, used = run.stdout.strip().rpartition("\n")
    peak, processor = used.split()
    return Watched(shown, seconds, float(processor), int(peak) * (1 if sys.platform == "darwin" else 1024))


def save(name: str, path: Path) -> int:
    """Write the network of this name to a file; how many parameters it has."""
    torch.manual_seed(0)
    model = NETWORKS[name](lambda: gnn.GEM(1)).eval()
    gnn.save(model, path, example(name))
    return models.parameters(model)


def example(name: str) -> Tensor:
    """A picture, or 128 tokens."""
    return torch.randn(1, 3, 224, 224) if name == "vit_small" else torch.randint(0, 30000, (1, 128))


if __name__ == "__main__":
    main()

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
from pathlib import Path

import models
import torch

import gemedge.nn as gnn

# A process of its own runs the command, so that what made the network is not counted with it.
WATCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss, used.ru_utime + used.ru_stime)
"""
NETWORKS = {"gpt2": models.gpt2, "vit_small": models.vit_small, "bert_small": models.bert_small}


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
        start = time.perf_counter()
        watched = [sys.executable, "-c", WATCH, sys.executable, "-m", "gemedge", *command]
        run = subprocess.run(watched, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
        seconds = time.perf_counter() - start
    shown, _, used = run.stdout.strip().rpartition("\n")
    peak, processor = int(used.split()[0]) * (1 if sys.platform == "darwin" else 1024), float(used.split()[1])
    print(shown)
    print(f"{seconds:.0f} s, {processor:.0f} s of processor time", end="; ")
    print(f"largest process {peak / 2**20:,.0f} MB, {peak / size:.2f} times the weights")


def save(name: str, path: Path) -> int:
    """Write the network of this name to a file; how many parameters it has."""
    torch.manual_seed(0)
    model = NETWORKS[name](lambda: gnn.GEM(1)).eval()
    example = torch.randn(1, 3, 224, 224) if name == "vit_small" else torch.randint(0, 30000, (1, 128))
    gnn.save(model, path, example)
    return models.parameters(model)


if __name__ == "__main__":
    main()

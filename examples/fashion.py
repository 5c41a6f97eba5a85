"""Fashion-MNIST: 70,000 pictures of ten kinds of clothes, 28x28, MIT licence.

`apt-get install dataset-fashion-mnist` puts the four files where they are looked for by default.
"""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path("/usr/share/datasets/fashion-mnist")


def is_installed(folder: Path = FOLDER) -> bool:
    return (folder / "train-images-idx3-ubyte.gz").is_file()


def load(folder: Path = FOLDER) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [N, 1, 28, 28] in [0, 1] and labels [N]: 60,000 to train, 10,000 to test.

    folder: where the four .gz files of MNIST's idx format are. Exits with a line saying how to get them.
    """
    if not is_installed(folder):
        raise SystemExit(f"Fashion-MNIST is not in {folder}: apt-get install dataset-fashion-mnist, or name its folder")
    train, test = (_part(folder, name) for name in ("train", "t10k"))
    return *train, *test


def _part(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    pixels = _idx(folder / f"{name}-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
    labels = _idx(folder / f"{name}-labels-idx1-ubyte.gz", header=8)
    return torch.from_numpy(pixels.astype(np.float32) / 255), torch.from_numpy(labels.astype(np.int64))


def _idx(path: Path, header: int) -> np.ndarray:
    """The bytes after an idx file's header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)

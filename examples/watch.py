"""Seven shoulder exercises as a smart watch feels them: six channels at 50 Hz, from the package seglearn (BSD-3).

`pip install --no-deps seglearn==1.2.5` is enough: only its data file is read.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WINDOW = 100  # two seconds
HELD_OUT = (8, 9, 10)  # of ten people


def load(window: int = WINDOW) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows [N, 6, window] and their exercise [N]: to train, and of three other people to test.

    Each channel has mean 0 and deviation 1 over the training windows; windows overlap by half.
    """
    package = importlib.util.find_spec("seglearn")
    if package is None or package.origin is None:
        raise SystemExit("the recordings are in the package seglearn: pip install --no-deps seglearn==1.2.5")
    file = Path(package.origin).parent / "data/watch_dataset.npy"
    found = np.load(file, allow_pickle=True).item()  # the package's own data, as trusted as its code
    parts: dict[bool, tuple[list[np.ndarray], list[int]]] = {False: ([], []), True: ([], [])}
    for recording, label, subject in zip(found["X"], found["y"], found["subject"], strict=True):
        windows, labels = parts[int(subject) in HELD_OUT]
        for start in range(0, len(recording) - window + 1, window // 2):
            windows.append(recording[start : start + window].T)
            labels.append(int(label))
    (windows, labels), (test_windows, test_labels) = parts.values()
    train, test = (torch.from_numpy(np.stack(part).astype(np.float32)) for part in (windows, test_windows))
    mean, deviation = train.mean((0, 2), keepdim=True), train.std((0, 2), keepdim=True)
    return (train - mean) / deviation, torch.tensor(labels), (test - mean) / deviation, torch.tensor(test_labels)


def cnn(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Three convolutions in time and a classifier: 8,823 parameters."""
    return nn.Sequential(
        nn.Conv1d(6, 32, 5, stride=2, padding=2),
        nn.BatchNorm1d(32),
        activation(),
        nn.Conv1d(32, 32, 5, stride=2, padding=2),
        nn.BatchNorm1d(32),
        activation(),
        nn.Conv1d(32, 24, 3, padding=1),
        nn.BatchNorm1d(24),
        activation(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(24, 7),
    )

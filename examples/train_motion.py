"""MLPerf Tiny's DS-CNN and autoencoder, on the motion of a smart watch (examples/watch.py) in place of sound.

No labelled speech and no machine's noise is to be had in a package: what follows is not keyword spotting. The shapes
are MLPerf Tiny's. DS-CNN gets a spectrogram of 4.2 s of motion, 49 frames of 10 frequencies, and names the exercise,
of people that it has never seen. The autoencoder gets 128 moments of five channels, learns to repeat one exercise, and
is to tell the six others by their larger error.
`python examples/train_motion.py [ds_cnn] [autoencoder] [--steps N]` trains each for seconds, and takes it
through gemedge.
"""

import argparse
import time

import models
import numpy as np
import torch
import watch
from deploy import deploy
from torch import Tensor
from torch.nn import functional
from training import fit

import gemedge.nn as gnn

STEPS = {"ds_cnn": 300, "autoencoder": 600}
FRAME, HOP, FRAMES = 20, 4, 49  # at 50 Hz; a frame of 20 has 10 frequencies besides its mean
KNOWN = 6  # the exercise that the autoencoder learns


def spectrograms(windows: Tensor) -> Tensor:
    """[N, 6, 212] to [N, 1, 49, 10]: the logarithm of each frequency's energy in all channels."""
    frames = windows.unfold(2, FRAME, HOP) * torch.hann_window(FRAME)
    energy = torch.fft.rfft(frames)[..., 1:].abs().square().sum(1)
    return energy.add(1e-3).log().unsqueeze(1)


def train_ds_cnn(steps: int) -> None:
    windows, labels, test_windows, test_labels = watch.load((FRAMES - 1) * HOP + FRAME)
    inputs, test = spectrograms(windows), spectrograms(test_windows)
    model = models.ds_cnn(lambda: gnn.GEM(1))

    def loss() -> Tensor:
        batch = torch.randint(len(inputs), (64,))
        return functional.cross_entropy(model(inputs[batch]), labels[batch])

    def accuracy(outputs: np.ndarray) -> float:
        return float((outputs.argmax(1) == test_labels.numpy()).mean())

    fit(model, loss, steps=steps, rate=1e-2)
    deploy("ds_cnn", model, inputs[:200], test, accuracy, "accuracy", emulated=("int8", "int16x8"))


def train_autoencoder(steps: int) -> None:
    windows, labels, test_windows, test_labels = watch.load(128)
    inputs, test = windows[labels == KNOWN, :5].flatten(1), test_windows[:, :5].flatten(1)
    model = models.autoencoder(lambda: gnn.GEM(1))

    def loss() -> Tensor:
        batch = inputs[torch.randint(len(inputs), (64,))]
        return functional.mse_loss(model(batch), batch)

    def auc(outputs: np.ndarray) -> float:
        """How often another exercise has the larger error of a pair, one of each kind."""
        errors, known = np.square(outputs - test.numpy()).mean(1), (test_labels == KNOWN).numpy()
        return float((errors[~known][:, None] > errors[known]).mean())

    fit(model, loss, steps=steps, rate=5e-3)
    calibration = inputs[torch.randperm(len(inputs))[:200]]
    deploy("autoencoder", model, calibration, test, auc, "AUC", emulated=("int8", "int16x8"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=list(STEPS), metavar="NETWORK", help=", ".join(STEPS))
    parser.add_argument("--steps", type=int, help="of training, instead of each network's own number")
    given = parser.parse_args()
    if unknown := set(given.networks) - STEPS.keys():
        parser.error(f"{sorted(unknown)[0]} is not one of {', '.join(STEPS)}")
    torch.set_num_threads(1)
    for name in given.networks:
        torch.manual_seed(0)
        start = time.process_time()
        (train_ds_cnn if name == "ds_cnn" else train_autoencoder)(given.steps or STEPS[name])
        print(f"{name}: {time.process_time() - start:.0f} s of processor time in all\n")


if __name__ == "__main__":
    main()

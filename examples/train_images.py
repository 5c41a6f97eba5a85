"""Networks for pictures: an MLP and a CNN, MLPerf Tiny's ResNet-8 and MobileNet, the paper's ResNet-56 and a small ViT.

`python examples/train_images.py [NETWORK ...] [--steps N]` trains each with GEM for up to a minute and takes it
through gemedge. The pictures are Fashion-MNIST's clothes where they are installed (examples/fashion.py says how), and
else the digits of examples/mnist.py; both are grey and 28x28, so that the networks for 32x32 and 96x96 in three
colours get them padded and enlarged. These are not the data that MLPerf Tiny and the paper report on.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import fashion
import mnist
import models
import numpy as np
import torch
from deploy import deploy
from torch import Tensor, nn
from torch.nn import functional
from training import fit

import gemedge.nn as gnn
from gemedge.model import SCHEMES

Pictures = Callable[[Tensor], Tensor]
TEST = 500


def as_they_are(images: Tensor) -> Tensor:
    return images


def padded(images: Tensor) -> Tensor:
    """[N, 3, 32, 32]"""
    return functional.pad(images, (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous()


def enlarged(images: Tensor) -> Tensor:
    """[N, 3, 96, 96]"""
    return functional.interpolate(padded(images), scale_factor=3, mode="bilinear")


def tiny_vit(make: models.Make) -> models.ViT:
    """49 patches of 4x4, four layers of 64: 205,000 parameters."""
    return models.ViT(make, channels=1, size=28, patch=4, width=64, layers=4, heads=4, classes=10)


@dataclass(frozen=True)
class Plan:
    """How a network is built and trained. footwear: two classes, shoes (of the digits 5, 7 and 9) and all else.

    emulated: the schemes that run on an emulated microcontroller.
    """

    build: Callable[[models.Make], nn.Module]
    pictures: Pictures
    steps: int
    rate: float
    batch: int = 64
    footwear: bool = False
    test: int = TEST
    emulated: tuple[str, ...] = ()

    def target(self, labels: Tensor) -> Tensor:
        return torch.isin(labels, torch.tensor([5, 7, 9])).long() if self.footwear else labels


PLANS = {
    "mlp": Plan(models.mlp, as_they_are, 600, 1e-2, emulated=SCHEMES),
    "cnn": Plan(mnist.cnn, as_they_are, 600, 1e-2, emulated=SCHEMES),
    "resnet8": Plan(models.resnet8, padded, 400, 1e-2, emulated=("int8",)),
    "mobilenet": Plan(models.mobilenet, enlarged, 400, 1e-2, batch=32, footwear=True, test=200),
    "vit": Plan(tiny_vit, as_they_are, 600, 2e-3),
    "resnet56": Plan(models.resnet56, padded, 150, 1e-2, batch=32, test=200),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=list(PLANS), metavar="NETWORK", help=", ".join(PLANS))
    parser.add_argument("--steps", type=int, help="of training, instead of each network's own number")
    given = parser.parse_args()
    if unknown := set(given.networks) - PLANS.keys():
        parser.error(f"{sorted(unknown)[0]} is not one of {', '.join(PLANS)}")
    torch.set_num_threads(1)
    images, labels, test_images, test_labels = fashion.load() if fashion.is_installed() else mnist.load()
    for name in given.networks:
        plan = PLANS[name]
        steps = given.steps or plan.steps
        torch.manual_seed(0)
        model = plan.build(lambda: gnn.GEM(1))
        start = time.process_time()

        def loss(plan: Plan = plan, model: nn.Module = model) -> Tensor:
            batch = torch.randint(len(images), (plan.batch,))
            return functional.cross_entropy(model(plan.pictures(images[batch])), plan.target(labels[batch]))

        fit(model, loss, steps=steps, rate=plan.rate)
        print(f"{name}: trained {steps} steps of {plan.batch} in {time.process_time() - start:.0f} s of processor time")
        right = plan.target(test_labels[: plan.test]).numpy()

        def accuracy(outputs: np.ndarray, right: np.ndarray = right) -> float:
            return float((outputs.argmax(1) == right).mean())

        calibration, test = plan.pictures(images[:200]), plan.pictures(test_images[: plan.test])
        deploy(name, model, calibration, test, accuracy, "accuracy", emulated=plan.emulated)


if __name__ == "__main__":
    main()

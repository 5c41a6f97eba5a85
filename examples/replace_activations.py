"""GEM put into other people's networks: torchvision's, timm's, and those of Hugging Face's transformers.

`python examples/replace_activations.py [torchvision] [timm] [transformers]` builds a small network of each package
with random weights, swaps its activations with `gemedge.nn.replace_activations`, shows what was swapped, and exports
it in three forms, each compared with the network itself. `pip install 'gemedge[models]'` installs the packages; one
that is missing is named. Weights trained with another activation have to be trained further after the swap.
"""

import argparse
import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

import gemedge.nn as gnn
from gemedge.capture import capture_module
from gemedge.capture.forms import FORMS
from gemedge.export import export_checked

Case = tuple[nn.Module, Tensor, list[str]]


def of_torchvision() -> Case:
    models = importlib.import_module("torchvision.models")
    model = models.resnet18(weights=None)
    return model, torch.randn(1, 3, 224, 224), gnn.replace_activations(model, dict.fromkeys(KINDS, gnn.GEM(1)))


def of_timm() -> Case:
    timm = importlib.import_module("timm")
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    return model, torch.randn(1, 3, 224, 224), gnn.replace_activations(model, dict.fromkeys(KINDS, gnn.GEM(1)))


class Logits(nn.Module):
    """A network of transformers as a function of its tokens alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits


def of_transformers() -> Case:
    """Its activations are modules of its own classes, which are named like any other."""
    transformers = importlib.import_module("transformers")
    activations = importlib.import_module("transformers.activations")
    config = transformers.GPT2Config(
        n_layer=2, n_embd=64, n_head=2, vocab_size=500, bos_token_id=None, eos_token_id=None
    )
    model = Logits(transformers.GPT2LMHeadModel(config))
    swapped = gnn.replace_activations(model, {activations.NewGELUActivation: gnn.GEM(2)})
    return model, torch.randint(0, 500, (1, 16)), swapped


KINDS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.GELU, nn.SiLU)
PACKAGES: dict[str, Callable[[], Case]] = {
    "torchvision": of_torchvision,
    "timm": of_timm,
    "transformers": of_transformers,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("packages", nargs="*", default=list(PACKAGES), metavar="PACKAGE", help=", ".join(PACKAGES))
    given = parser.parse_args()
    if unknown := set(given.packages) - PACKAGES.keys():
        parser.error(f"{sorted(unknown)[0]} is not one of {', '.join(PACKAGES)}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for package in given.packages:
        try:
            model, example, swapped = PACKAGES[package]()
        except ImportError as error:
            raise SystemExit(f"{package} is not installed ({error}): pip install 'gemedge[models]'") from error
        model.eval()
        print(f"{package}: {len(swapped)} activations swapped, the first {swapped[0]}")
        captured = capture_module(model, example)
        for form in FORMS:
            exported = export_checked(
                captured, "onnx", gem=form, external_data=False, name="model.onnx", check=True, confined=False
            )
            worst, size = exported.differences[0], len(exported.files["model.onnx"])
            checked = f"largest error {worst.max_abs:.1e}, {worst.allowed:.1e} allowed"
            print(f"  {form:<10}ONNX, {size:,} bytes, {checked}")


if __name__ == "__main__":
    main()

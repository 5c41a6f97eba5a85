"""Small GPT and BERT networks on characters of real English: the reference of the language that comes with Python.

`python examples/train_text.py [gpt] [bert] [--steps N]` trains each for about a minute and takes it through gemedge.
GPT says which character comes next; BERT, with four layers as BERT-small has, which ones were masked. Both are
thousands of times too small, and trained a million times too little, to be judged as language models: of BERT's masked
characters a third come out right, where naming a space each time would be right for a quarter.
"""

import argparse
import time
from pydoc_data.topics import topics

import models
import numpy as np
import torch
from deploy import deploy
from torch import Tensor
from torch.nn import functional
from training import fit

import gemedge.nn as gnn

LENGTH, TEST = 64, 100
STEPS = {"gpt": 600, "bert": 600}


def load() -> tuple[Tensor, Tensor, int]:
    """The text as numbers of characters: nine tenths to train, one to test, and how many characters there are."""
    text = "".join(topics[name] for name in sorted(topics))
    characters = sorted(set(text))
    tokens = torch.tensor([characters.index(character) for character in text])
    border = len(tokens) * 9 // 10
    return tokens[:border], tokens[border:], len(characters)


def samples(tokens: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """[count, LENGTH + 1] from anywhere in the text."""
    starts = torch.randint(len(tokens) - LENGTH, (count, 1), generator=generator)
    return tokens[starts + torch.arange(LENGTH + 1)]


def train_gpt(steps: int) -> None:
    train, test, characters = load()
    model = models.GPT(lambda: gnn.GEM(1), vocabulary=characters, longest=LENGTH, width=64, layers=2, heads=4)

    def loss() -> Tensor:
        drawn = samples(train, 32)
        return functional.cross_entropy(model(drawn[:, :-1]).flatten(0, 1), drawn[:, 1:].flatten())

    held_out = samples(test, TEST, torch.Generator().manual_seed(1))

    def accuracy(outputs: np.ndarray) -> float:
        return float((outputs.argmax(2) == held_out[:, 1:].numpy()).mean())

    fit(model, loss, steps=steps, rate=4e-3)
    deploy("gpt", model, samples(train, 100)[:, :-1], held_out[:, :-1], accuracy, "accuracy")


def train_bert(steps: int) -> None:
    train, test, characters = load()
    mask = characters  # a token of its own
    model = models.BERT(lambda: gnn.GEM(1), vocabulary=characters + 1, longest=LENGTH, width=64, layers=4, heads=4)

    def masked(drawn: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        hidden = torch.rand(drawn.shape, generator=generator) < 0.15
        return torch.where(hidden, mask, drawn), hidden

    def loss() -> Tensor:
        drawn = samples(train, 32)[:, 1:]
        given, hidden = masked(drawn)
        return functional.cross_entropy(model(given)[hidden], drawn[hidden])

    generator = torch.Generator().manual_seed(1)
    held_out = samples(test, TEST, generator)[:, 1:]
    given, hidden = masked(held_out, generator)

    def accuracy(outputs: np.ndarray) -> float:
        right = outputs.argmax(2) == held_out.numpy()
        return float(right[hidden.numpy()].mean())

    fit(model, loss, steps=steps, rate=2e-3)
    deploy("bert", model, masked(samples(train, 100)[:, 1:])[0], given, accuracy, "accuracy")


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
        (train_gpt if name == "gpt" else train_bert)(given.steps or STEPS[name])
        print(f"{name}: {time.process_time() - start:.0f} s of processor time in all\n")


if __name__ == "__main__":
    main()

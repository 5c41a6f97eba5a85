"""The search for formats within a budget: gemedge quantize --budget."""

import json

import numpy as np
import pytest
import torch
from float_runs import decibels, float_tensors, ranges_of
from torch import nn

import gemedge.nn as gnn
from gemedge import model_file
from gemedge.capture import capture_module
from gemedge.cli import _status
from gemedge.errors import PromiseError, UsageError
from gemedge.fixed import Rounding
from gemedge.quant.config import Config, Rule
from gemedge.quant.prepare import prepare
from gemedge.quant.quantize import quantize
from gemedge.quant.search import Budget, Score, Search, to_toml
from gemedge.quant.simulate import simulate
from gemedge.targets import estimate, target_named

M4 = target_named("cortex-m4")


class OneLayer(nn.Module):
    """`fine` makes large numbers of which `more` takes the small differences: 8 bits lose them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(12, 24), gnn.GEM(1)
        self.fine, self.relu = nn.Linear(24, 24), nn.ReLU()
        self.more, self.act2 = nn.Linear(24, 24), gnn.GEM(1)
        self.head = nn.Linear(24, 4)
        with torch.no_grad():
            self.fine.bias += 40.0
            signs = torch.tensor([1.0, -1.0]).repeat(12)  # weights that 8 bits hold exactly
            self.more.weight.copy_(torch.stack([signs[torch.randperm(24)] for _ in range(24)]) / 4)
            self.more.bias.zero_()
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act2(self.more(self.relu(self.fine(self.act(self.first(x)))))))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    x = torch.randn(96, 12)
    graph = prepare(capture_module(OneLayer().eval(), (x[:1],)).model).model
    return graph, x.numpy()


def search(network, budget: Budget, scheme: str = "int8") -> Search:
    graph, x = network
    name, output = graph.graph.inputs[0].name, graph.graph.outputs[0].name
    tensors = float_tensors(graph, {name: x})

    def measure(model):
        return Score(decibels(tensors[output], simulate(model, {name: x})[output]))

    return Search(graph, ranges_of(tensors), scheme, Rounding.SINGLE, M4, budget, {name: x[:16]}, measure)


def cost(network, wide: set[str], scheme: str = "int8") -> tuple[object, Score]:
    made = search(network, Budget(1, 1), scheme)
    wider = {"int8": "int16x8", "q7": "q15"}[scheme]
    model = quantize(
        made.graph,
        made.ranges,
        scheme=scheme,
        rounding=Rounding.SINGLE,
        scheme_of=lambda n: wider if n in wide else None,
    )
    return estimate(model, M4), made.measure(model)


@pytest.mark.parametrize("scheme", ["int8", "q7"])
def test_the_front_rises_and_every_choice_keeps_the_budget(network, scheme):
    narrow, _ = cost(network, set(), scheme)
    budget = Budget(narrow.flash.value + 8000, narrow.ram.value + 300)
    front = search(network, budget, scheme).run("sqnr")
    shares = [budget.share(candidate.cost) for candidate in front.candidates]
    scores = [candidate.score.sqnr for candidate in front.candidates]
    assert len(front.candidates) >= 3
    assert shares == sorted(shares)
    assert (np.diff(scores) > 0).all()
    for candidate in front.candidates:
        counted, measured = cost(network, set(candidate.wide), scheme)
        assert (counted.flash, counted.ram) == (candidate.cost.flash, candidate.cost.ram)
        assert counted.flash.value <= budget.flash
        assert counted.ram.value <= budget.ram
        assert measured == candidate.score
    assert front.chosen is front.candidates[-1]
    assert front.measured <= 12


def test_the_layer_that_needs_16_bits_is_found_and_beats_what_costs_as_much(network):
    _, base = cost(network, set())
    needed, best = cost(network, {"fine", "relu"})
    assert best.sqnr > base.sqnr + 6  # so was the network made
    budget = Budget(needed.flash.value, needed.ram.value)
    front = search(network, budget).run("sqnr")
    assert "fine" in front.chosen.wide
    assert all(candidate.cost.flash.value <= budget.flash for candidate in front.candidates)
    assert all(candidate.cost.ram.value <= budget.ram for candidate in front.candidates)
    others = [{"first"}, {"act"}, {"more"}, {"act2"}, {"head"}, {"x"}]
    affordable = [score.sqnr for found, score in (cost(network, wide) for wide in others)
                  if found.flash.value <= budget.flash and found.ram.value <= budget.ram]  # fmt: skip
    assert affordable
    assert front.chosen.score.sqnr > max(affordable) + 5
    assert front.chosen.score.sqnr >= best.sqnr - 0.5


def test_a_wide_budget_reaches_what_16_bits_everywhere_reach(network):
    front = search(network, Budget(1 << 20, None)).run("sqnr")
    everything = {"x", "first", "act", "fine", "relu", "more", "act2", "head"}
    assert front.chosen.score.sqnr >= cost(network, everything)[1].sqnr


def test_no_choice_fits_says_the_least_and_what_weighs_most(network):
    with pytest.raises(
        PromiseError, match="no choice of formats fits the budget; the smallest needs flash: "
    ) as caught:
        search(network, Budget(1000, None)).run("sqnr")
    assert "'fine' " in str(caught.value)
    assert "too many" in str(caught.value)
    with pytest.raises(PromiseError, match="RAM: "):
        search(network, Budget(None, 100)).run("sqnr")


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("flash=64k", Budget(65536, None)),
        ("ram=1000", Budget(None, 1000)),
        ("flash=1M, ram=32K", Budget(1 << 20, 32768)),
    ],
)
def test_budgets_as_they_are_written(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "64k", "flash", "rom=1k", "flash=1k,flash=2k", "flash=64k,"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UsageError, match="it must be flash=SIZE, ram=SIZE or flash=SIZE,ram=SIZE"):
        Budget.parse(text)


@pytest.mark.parametrize("name", ["plain", 'a"b', "a[0]*?", "tab\tline\n", "ü\x7f\\", "/blocks.0/fc"])
def test_rules_survive_the_file(name):
    import glob

    config = Config((Rule(glob.escape(name), "int16x8"),), "int8", Rounding.DOUBLE)
    again = Config.from_toml(to_toml(config).encode())
    assert again == config
    assert again.scheme_of(name) == "int16x8"
    assert again.scheme_of("a0xy") is None


# The command


def gemedge(*arguments: object) -> int:
    return _status([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    torch.manual_seed(1)
    net, x = OneLayer().eval(), torch.randn(96, 12)
    gnn.save(net, folder / "net.pt", x[:1])
    np.savez(folder / "data.npz", x=x.numpy())
    with torch.no_grad():
        np.save(folder / "labels.npy", net(x).argmax(1).numpy())
    return folder


@pytest.mark.long
def test_the_file_of_layers_gives_the_same_bytes_again(files, tmp_path, capsys):
    made, again, plot = tmp_path / "m.gemq", tmp_path / "n.gemq", tmp_path / "front.svg"
    given = ("quantize", files / "net.pt", "--data", files / "data.npz")
    assert gemedge(*given, "--budget", "flash=10k,ram=1k", "-o", made, "--plot", plot, "--json") == 0
    front = json.loads(capsys.readouterr().out)["front"]
    assert front[-1]["wide"]
    assert gemedge(*given, "--config", tmp_path / "m.layers.toml", "-o", again, "--quiet") == 0
    assert made.read_bytes() == again.read_bytes()
    found = estimate(model_file.load(made.read_bytes()), M4)
    assert (found.flash.value, found.ram.value) == (front[-1]["flash"], front[-1]["ram"])
    assert found.flash.value <= 10240
    assert found.ram.value <= 1024
    assert plot.read_text().startswith("<?xml")


@pytest.mark.long
def test_accuracy_is_sought_with_labels(files, tmp_path, capsys):
    given = ("quantize", files / "net.pt", "--data", files / "data.npz", "-o", tmp_path / "m.gemq", "--json")
    options = ("--budget", "flash=20k", "--metric", "accuracy", "--labels", files / "labels.npy", "--target", "avr")
    assert gemedge(*given, *options) == 0
    front = json.loads(capsys.readouterr().out)["front"]
    accuracies = [row["accuracy"] for row in front]
    assert accuracies == sorted(set(accuracies))
    assert accuracies[-1] > 0.95


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--budget", "flash=1k"), 1, "no choice of formats fits the budget; the smallest needs flash: "),
        (("--budget", "64k"), 2, "budget '64k': it must be flash=SIZE"),
        (("--budget", "flash=64k", "--metric", "accuracy"), 2, "--metric accuracy needs --labels"),
        (("--budget", "flash=64k", "--equalise"), 2, "exclude it"),
        (("--budget", "flash=64k", "--plot", "front.txt"), 2, "it must end in .png, .svg or .pdf"),
        (("--budget", "flash=64k", "--target", "z80"), 2, "target 'z80' is not one of"),
        (("--plot", "front.png"), 2, "--target and --plot belong to --budget"),
        (("--target", "avr"), 2, "--target and --plot belong to --budget"),
        (("--budget", "flash=64k", "--scheme", "int16x8"), 2, "begins with 8 bits"),
    ],
)
def test_what_cannot_be_is_one_line(files, tmp_path, options, status, message, capsys):
    made = tmp_path / "m.gemq"
    assert gemedge("quantize", files / "net.pt", "--data", files / "data.npz", "-o", made, *options) == status
    (line,) = [line for line in capsys.readouterr().err.splitlines() if message in line]
    assert line.startswith("gemedge: ")
    assert not list(tmp_path.iterdir())

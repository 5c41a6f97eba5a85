"""A learned epsilon in the exported graph: folded into the weights around it, or kept in the activation."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import gemedge.nn as gnn
from gemedge.capture import capture_module
from gemedge.export import export

FOLDED, KEPT = "folded into the weights around it", "kept in the activation, where it costs nothing"
IMAGE = (3, 1, 8, 8)


def egem(epsilon: float = 0.3) -> nn.Module:
    return gnn.EGEM(1, epsilon, learnable=True)


def segem() -> nn.Module:
    return gnn.SEGEM(2, 0.3, learnable=True)


def norm(channels: int) -> nn.Module:
    """BatchNorm with statistics of its own."""
    made = nn.BatchNorm2d(channels)
    for values in (made.weight, made.bias, made.running_mean, made.running_var):
        nn.init.uniform_(values, 0.5, 2.0)
    return made


class Tied(nn.Module):
    """One Linear before and after the activation."""

    def __init__(self):
        super().__init__()
        self.linear, self.act = nn.Linear(4, 4), egem()

    def forward(self, x):
        return self.linear(self.act(self.linear(x)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.second = nn.Linear(4, 4), egem(), nn.Linear(4, 4)

    def forward(self, x):
        made = self.act(self.first(x))
        return made + self.second(made)


class Branches(Residual):
    """Two layers read the activation."""

    def forward(self, x):
        made = self.act(self.first(x))
        return self.second(made) + nn.functional.linear(made, torch.ones(4, 4))


ROWS = [
    ("dense", lambda: nn.Sequential(nn.Linear(4, 8), egem(), nn.Linear(8, 2)), (3, 4), FOLDED),
    ("sequence", lambda: nn.Sequential(nn.Linear(4, 8), egem(), nn.Linear(8, 2)), (3, 5, 4), FOLDED),
    ("segem", lambda: nn.Sequential(nn.Linear(4, 8), segem(), nn.Linear(8, 2)), (3, 4), FOLDED),
    ("no bias", lambda: nn.Sequential(nn.Linear(4, 8, bias=False), egem(), nn.Linear(8, 2)), (3, 4), FOLDED),
    ("conv", lambda: nn.Sequential(nn.Conv2d(1, 4, 3), egem(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1)), IMAGE, FOLDED),
    ("norm", lambda: nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), egem(), nn.Conv2d(4, 2, 1)), IMAGE, FOLDED),
    ("two readers", Branches, (3, 4), FOLDED),
    ("last", lambda: nn.Sequential(nn.Linear(4, 8), egem()), (3, 4), KEPT),
    ("first", lambda: nn.Sequential(egem(), nn.Linear(4, 8)), (3, 4), KEPT),
    ("tied", Tied, (3, 4), KEPT),
    ("residual", Residual, (3, 4), KEPT),
    ("softmax", lambda: nn.Sequential(nn.Linear(4, 8), egem(), nn.Softmax(-1), nn.Linear(8, 2)), (3, 4), KEPT),
]  # fmt: skip


@pytest.mark.parametrize(("make", "shape", "where"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_learned_epsilon_costs_no_operator(make, shape, where):
    torch.manual_seed(2)
    model, x = make().eval(), torch.randn(shape)
    captured = capture_module(model, x)
    assert [note for note in captured.notes if "epsilon" in note] == [
        f"epsilon 0.3 of {next(n.name for n in captured.model.graph if n.domain)!r}, learned, {where}"
    ]
    assert not {"Div", "Mul", "Exp"} & {node.op_type for node in captured.model.graph}
    (node,) = [node for node in captured.model.graph if node.domain]
    assert node.attributes["epsilon"].as_float() == pytest.approx(1.0 if where == FOLDED else 0.3)
    files = export(model, example=x)  # compared with the original
    session = onnxruntime.InferenceSession(files["model.onnx"], providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_division_and_a_product_by_other_numbers_stay():
    class Scaled(nn.Module):
        def forward(self, x):
            return gnn.gem(x / 0.5) * 0.25

    captured = capture_module(nn.Sequential(nn.Linear(4, 4), Scaled(), nn.Linear(4, 4)), torch.randn(2, 4))
    assert [node.op_type for node in captured.model.graph].count("Mul") == 1
    assert not captured.notes

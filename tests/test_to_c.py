"""Exported C gives simulate's integers at every layer, and refuses what it cannot run in."""

from collections import Counter

import numpy as np
import pytest
import torch
from c_builds import STRICT, Built, compiled, written
from float_runs import float_tensors, ranges_of
from networks import NETWORKS
from test_simulate import MAKERS
from torch import nn

import gemedge.nn as gnn
from gemedge.capture import capture_module
from gemedge.errors import DataError
from gemedge.export.to_c import Vectors, escaped, symbol, to_c
from gemedge.fixed import Rounding
from gemedge.model import SCHEMES, QuantizedModel
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import border, entered, simulate

CASES = [(scheme, Rounding.SINGLE) for scheme in SCHEMES] + [("int8", Rounding.DOUBLE)]
SMALL = ("mlp", "cnn", "mobilenet", "conv1d", "two inputs", "vit", "gpt")


def captured_of(name: str):
    """A network's float graph, its ranges, and inputs by name."""
    if name in MAKERS:
        torch.manual_seed(3)
        model, x = MAKERS[name]()
        given = {"x": x}
        found = capture_module(model.eval(), x[:1], opset=20)
        given = {found.model.graph.inputs[0].name: x.numpy()}
    else:
        network = NETWORKS[name]
        model = network.model(lambda: gnn.GEM(1) if name != "mobilenet" else gnn.SEGEM(1, 0.1))
        inputs = network.inputs(batch=2)
        found = capture_module(model, {k: v[:1] for k, v in inputs.items()}, opset=20)
        given = {k: v.numpy() for k, v in inputs.items()}
    return found.model, ranges_of(float_tensors(found.model, given)), given


@pytest.fixture(scope="module", params=[f"simulated {name}" for name in MAKERS] + list(SMALL))
def network(request):
    return captured_of(request.param.removeprefix("simulated "))


def compare(model: QuantizedModel, given: dict[str, np.ndarray], built: Built, samples: int) -> int:
    """Every layer of each sample; how many layers were seen."""
    names = [layer.name for layer in model.layers]
    few = {name: array[:samples] for name, array in given.items()}
    wanted = simulate(model, few, layers=names, raw=True)
    integers = entered(model, border(model, few), Counter())
    seen = 0
    for sample in range(samples):
        result = built.run({name: array[sample] for name, array in integers.items()})
        assert result.status == 0
        for name, array in (*result.layers.items(), *result.outputs.items()):
            np.testing.assert_array_equal(array, wanted[name][sample], name)
        seen = len(result.layers)
    return seen


@pytest.mark.parametrize(("scheme", "rounding"), CASES)
def test_every_layer_has_the_simulators_integers(network, scheme, rounding, tmp_path):
    graph, ranges, given = network
    model = quantize(graph, ranges, scheme=scheme, rounding=rounding)
    assert compare(model, given, Built(model, tmp_path), samples=2) >= 3

"""Weights of large models: the same integers and bounds as ever, in little memory beside them."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from gemedge.fixed import QuantParams
from gemedge.operators import Dense, Tensor
from gemedge.quant.formats import Formats

SHAPE = 500, 2000
INPUT = Tensor("x", (2000,), QuantParams(0.1, 3, 8))


def dense(weight):
    numbers = np.zeros(len(weight), np.int64)
    return Dense("layer", ("x",), "y", weight, numbers, numbers, numbers)


def bytes_beside(call, *arguments):
    """What the call holds at its peak, its result included."""
    tracemalloc.start()
    try:
        call(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "lowest"), [(np.int8, -128), (np.int16, -32768)])
def test_the_bound_of_an_accumulator_counts_the_lowest_integer_in_full(kind, lowest):
    weight = np.full((2, 2000), lowest, kind)
    weight[1] = -lowest - 1
    assert dense(weight).accumulator_bound([INPUT]) == 2000 * -lowest * (128 + 3)


def test_the_bound_of_an_accumulator_takes_at_most_five_bytes_a_weight():
    layer = dense(np.ones(SHAPE, np.int8))
    assert bytes_beside(layer.accumulator_bound, [INPUT]) < 5 * layer.weight.size


@pytest.mark.parametrize("scheme", ["int8", "q15"])
def test_weights_become_the_nearest_integers(scheme):
    weight = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    codes, scales = Formats(scheme).weights(weight)
    for row, found, scale in zip(weight, codes, scales, strict=True):
        exact = [round(Fraction(float(number)) / Fraction(float(scale))) for number in row]
        assert found.tolist() == exact


def test_weights_become_integers_in_at_most_ten_bytes_a_weight():
    weight = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    assert bytes_beside(Formats("int8").weights, weight) < 10 * weight.size

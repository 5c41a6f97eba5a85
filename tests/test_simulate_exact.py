"""Where simulate rounds in float64 or adds in 32 bits: the integers of Python's own arithmetic, at the worst places."""

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from gemedge.fixed import QuantParams, Rounding
from gemedge.operators import Combine, Dense, Tensor
from gemedge.quant import evaluate as module


class Model(SimpleNamespace):
    __hash__ = object.__hash__


def evaluate_run(rounding=Rounding.SINGLE):
    return module.Run(Model(rounding=rounding), 1)


def tensor(bits, zero_point=0):
    return Tensor("t", (1,), QuantParams(1.0, zero_point, bits))


def stored(accumulator, mantissa, shift, made):
    value = (accumulator * mantissa + (1 << shift >> 1) >> shift) + made.zero_point
    return max(made.raw_min, min(made.raw_max, value))


def beside_a_half(bits, shift, tries):
    """Pairs (accumulator, mantissa) whose product is one unit from a half-integer, times 2**shift."""
    random.seed(shift)
    low = 1 << bits + shift - 32
    divisors = np.arange(low, 2 * low, dtype=np.int64)
    for _ in range(tries):
        near = (random.randrange(1 << bits - 2, 1 << bits - 1) << shift) + (1 << shift - 1) + random.choice([-1, 1])
        for divisor in divisors[near % divisors == 0]:
            if near // int(divisor) < 1 << 31:
                yield int(divisor), near // int(divisor)


def rows(bits, shift):
    """(accumulator, mantissa) at halves, beside them, and at the ends of what a sum and a mantissa can be."""
    random.seed(0)
    pairs = list(beside_a_half(bits, shift, 40)) if shift > 30 else []
    for _ in range(300):
        mantissa = random.randrange(1 << 30, 1 << 31)
        target = (random.randrange(-(1 << bits), 1 << bits) << shift) + (1 << shift >> 1)
        pairs += [(target // mantissa + step, mantissa) for step in (-1, 0, 1)]
        pairs.append((random.randrange(-(1 << bits + 1), 1 << bits + 1) << max(shift - 31, 0), 1 << min(30, shift)))
        pairs.append((random.choice([-1, 1]) * ((1 << 52) - 1), mantissa))
    return [(accumulator, mantissa) for accumulator, mantissa in pairs if abs(accumulator) * mantissa < 1 << 62]


@pytest.mark.parametrize("zero_point", [0, -128, 127])
@pytest.mark.parametrize(("bits", "shift"), [(8, 44), (8, 41), (8, 31), (8, 16), (8, 1), (16, 36), (16, 31), (16, 0)])
def test_float64_rounds_as_the_integers_do(bits, shift, zero_point):
    made = tensor(bits, zero_point if bits == 8 else 0)
    pairs = rows(bits, shift)
    mantissa, bias = np.array([m for _, m in pairs]), np.arange(len(pairs)) % 7 - 3
    op = Dense("d", ("t",), "t", np.zeros((len(pairs), 1), np.int8), bias, mantissa, np.full(len(pairs), shift))
    given, run = tensor(bits), evaluate_run()
    assert module._floats_round_exactly(op, [given], made, run)
    sums = np.array([[accumulator - int(b) for (accumulator, _), b in zip(pairs, bias, strict=True)]], np.float64)
    found = module._weighted(sums.repeat(3, axis=0), op, [given], made, run)
    expected = [stored(accumulator, m, shift, made.quantized) for accumulator, m in pairs]
    np.testing.assert_array_equal(found, [expected] * 3)
    assert len(set(expected)) > 20


@pytest.mark.parametrize(("bits", "shift"), [(8, 45), (16, 37)])
def test_floats_are_not_used_where_they_are_not_proven(bits, shift):
    op = Dense("d", ("t",), "t", np.zeros((1, 1), np.int8), np.array([0]), np.array([1]), np.array([shift]))
    given = [tensor(bits)]
    assert not module._floats_round_exactly(op, given, tensor(bits), evaluate_run())
    twice, given = replace(op, shift=np.array([8])), [tensor(8)]
    assert not module._floats_round_exactly(twice, given, tensor(8), evaluate_run(Rounding.DOUBLE))


@pytest.mark.parametrize(
    ("bits", "mantissa", "shift"),
    [(8, (4_194_303, -4_194_303), 22), (8, (4_210_752, 4_194_303), 22), (8, (1 << 23, 1), 30), (16, (1 << 30, -7), 40)],
)
def test_sums_are_those_of_long_integers(bits, mantissa, shift):
    given = [tensor(bits, -128 if bits == 8 else 0), tensor(bits, 127 if bits == 8 else 0)]
    op = Combine("c", ("a", "b"), "t", np.array(mantissa), np.array(shift))
    ends = [given[0].quantized.raw_min, -1, 0, 5, given[0].quantized.raw_max]
    x, y = (part.astype(f"i{bits // 8}") for part in np.meshgrid(ends, ends))
    found = module._combine(op, [x, y], given, tensor(bits, 3 if bits == 8 else 0), evaluate_run())
    made = tensor(bits, 3 if bits == 8 else 0).quantized
    for row, column in np.ndindex(x.shape):
        pair = [int(v[row, column]) - t.quantized.zero_point for v, t in zip((x, y), given, strict=True)]
        total = sum(v * m for v, m in zip(pair, mantissa, strict=True))
        assert found[row, column] == stored(total, 1, shift, made)

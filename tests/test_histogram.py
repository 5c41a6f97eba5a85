"""Histograms, the ranges chosen from them and their JSON, held to NumPy on the full data."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemedge.errors import DataError, UsageError
from gemedge.quant.choose import Choice, squared_error
from gemedge.quant.histogram import Histogram
from gemedge.quant.ranges import Range, Ranges

RNG = np.random.default_rng(20261123)
COUNT = 200_000
FULL = {
    "normal": RNG.standard_normal(COUNT),
    "relu": np.maximum(RNG.standard_normal(COUNT), 0),
    "laplace": RNG.laplace(size=COUNT),
    "heavy tails": RNG.standard_t(3, COUNT),
    "uniform": RNG.uniform(-1, 3, COUNT),
    "positive": RNG.exponential(size=COUNT) + 0.5,
    "negative": -RNG.gamma(2.0, size=COUNT),
    "tiny": RNG.standard_normal(COUNT) * 1e-30,
    "huge": RNG.standard_normal(COUNT) * 1e30,
}
FULL = {name: values.astype(np.float32) for name, values in FULL.items()}


def histogram(*parts):
    made = Histogram()
    for part in parts:
        made.add(np.asarray(part))
    return made


def same(one, other):
    state = (one.lowest, one.highest, one.infinities, str(one.lowest)) == (
        other.lowest,
        other.highest,
        other.infinities,
        str(other.lowest),
    )
    return state and (one.counts == other.counts).all()


floats = st.floats(width=32, allow_nan=False)


@given(st.lists(st.lists(floats, min_size=1, max_size=5), min_size=1, max_size=5), st.randoms())
def test_merging_is_exact_in_any_order_and_grouping(parts, random):
    arrays = [np.array(part, np.float32) for part in parts]
    whole = histogram(np.concatenate(arrays))
    random.shuffle(arrays)
    merged = Histogram()
    for array in arrays:
        merged.merge(pickle.loads(pickle.dumps(histogram(array))))
    assert same(merged, whole)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_every_number_lies_in_a_bin_of_its_own_place(values):
    array = np.array(values, np.float32)
    made = histogram(array)
    bins = made.bins()
    assert (bins.lower <= bins.upper).all()
    assert (bins.upper[:-1] <= bins.lower[1:]).all()
    wide = bins.upper - bins.lower > 2.0**-7 * np.maximum(np.abs(bins.lower), np.abs(bins.upper)) + 2.0**-133
    assert not wide.any()
    assert bins.counts.sum() == made.total == len(values)
    slack = 2.0**-133
    for value in values:
        assert ((bins.lower - slack <= value) & (value <= bins.upper + slack)).any()
    assert (made.lowest, made.highest) == (min(values), max(values))


def test_negative_zero_is_zero_whatever_came_first():
    for parts in ([-0.0], [0.0]), ([0.0], [-0.0]):
        made = histogram(*map(np.float32, parts))
        assert str(made.lowest) == str(made.highest) == "0.0"


def test_infinities_are_counted_apart():
    made = histogram(np.array([np.inf, 1.0, -np.inf, 2.0], np.float32), np.array([np.inf], np.float32))
    assert (made.lowest, made.highest, made.infinities, made.total) == (1.0, 2.0, 3, 2)


def test_float64_beyond_float32_keeps_its_minimum_and_maximum():
    made = histogram(np.array([-1e300, 1e300]))
    assert Choice().range_of(made) == Range(-1e300, 1e300)
    assert made.total == 2


@pytest.mark.parametrize("name", FULL)
def test_minmax_is_exact(name):
    values = FULL[name]
    assert Choice().range_of(histogram(values)) == Range(float(values.min()), float(values.max()))
    most = float(np.abs(values).max())
    assert Choice(symmetric=True).range_of(histogram(values)) == Range(-most, most)


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("percentile", [90, 99.9])
def test_percentile_is_numpys_within_a_bin(name, percentile):
    values = FULL[name].astype(np.float64)
    found = Choice("percentile", percentile).range_of(histogram(FULL[name]))
    cut = (100 - percentile) / 2
    for got, wanted in zip((found.min, found.max), np.percentile(values, [cut, 100 - cut]), strict=True):
        assert abs(got - wanted) <= 2.0**-7 * abs(wanted)
    symmetric = Choice("percentile", percentile, symmetric=True).range_of(histogram(FULL[name]))
    wanted = np.percentile(np.abs(values), percentile)
    assert abs(symmetric.max - wanted) <= 2.0**-7 * wanted
    assert symmetric.min == -symmetric.max


def test_percentile_100_is_minmax():
    values = FULL["normal"]
    assert Choice("percentile", 100).range_of(histogram(values)) == Choice().range_of(histogram(values))


def rounding_error(values, low, high, steps):
    scale = (high - low) / steps
    return float(((np.clip(np.rint((values - low) / scale), 0, steps) * scale + low - values) ** 2).sum())


@pytest.mark.parametrize("name", FULL)
def test_the_expected_squared_error_is_the_real_one(name):
    values = FULL[name].astype(np.float64)
    low, high = min(values.min(), 0.0) * 0.7, max(values.max(), 0.0) * 0.6
    assert squared_error(histogram(FULL[name]).bins(), low, high, 255) == pytest.approx(
        rounding_error(values, low, high, 255), rel=0.02
    )


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("bits", [4, 8])
def test_mse_is_as_good_as_the_best_of_a_search_on_the_full_data(name, bits):
    values = FULL[name][:50_000].astype(np.float64)
    made = histogram(FULL[name][:50_000])
    found = Choice("mse", bits=bits).range_of(made)
    assert found.min <= 0 <= found.max
    low, high, steps = min(values.min(), 0.0), max(values.max(), 0.0), 2**bits - 1
    shares = np.geomspace(0.02, 1, 60)
    best = min(rounding_error(values, low * share, high * share, steps) for share in shares)
    assert rounding_error(values, found.min, found.max, steps) <= best * 1.02
    most, steps = float(np.abs(values).max()), 2**bits - 2
    best = min(rounding_error(values, -most * share, most * share, steps) for share in shares)
    symmetric = Choice("mse", bits=bits, symmetric=True).range_of(made)
    assert symmetric.min == -symmetric.max
    assert rounding_error(values, symmetric.min, symmetric.max, steps) <= best * 1.02


def entropy_on_full_data(values):
    """TensorRT's search, written plainly on the numbers themselves."""
    counts, edges = np.histogram(np.abs(values), 2048, (0, np.abs(values).max()))
    counts[0] = counts[1]
    best = (np.inf, 0.0)
    for end in range(2048, 127, -8):
        p = counts[:end].astype(float)
        p[-1] += counts[end:].sum()
        q = np.zeros(end)
        groups = [np.flatnonzero(np.arange(end) * 128 // end == level) for level in range(128)]
        for group in groups:
            used = group[p[group] > 0]
            if len(used):
                q[used] = counts[group].sum() / len(used)
        p, q = p / p.sum(), q / q.sum()
        if not (q[p > 0] == 0).any():
            divergence = (p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum()
            best = min(best, (divergence, edges[end]))
    return best[1]


@pytest.mark.parametrize("name", ["uniform", "relu", "normal", "laplace"])
def test_entropy_is_near_tensorrts_on_the_full_data(name):
    values = FULL[name].astype(np.float64)
    wanted = entropy_on_full_data(values)
    found = Choice("entropy", symmetric=True).range_of(histogram(FULL[name]))
    assert found.max == pytest.approx(wanted, rel=0.15)
    affine = Choice("entropy").range_of(histogram(FULL[name]))
    assert affine.max == min(found.max, max(float(FULL[name].max()), 0.0))


METHODS = [Choice(m, symmetric=s) for m in ("minmax", "percentile", "mse", "entropy") for s in (False, True)]


@pytest.mark.parametrize("choice", METHODS, ids=str)
@pytest.mark.parametrize("value", [0.0, 3.25, -0.1, 1e-40, 3.4e38])
def test_a_constant_tensor_has_a_range_that_holds_it(choice, value):
    value = float(np.float32(value))
    found = choice.range_of(histogram(np.full(1000, value, np.float32)))
    assert found.min <= value * (1 + 1e-6) or found.min <= value * (1 - 1e-6)
    assert found.min - 1e-6 * abs(value) <= value <= found.max + 1e-6 * abs(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("best",), "method 'best' is not one of minmax, percentile, mse, entropy"),
        (("percentile", 101), "percentile 101 is not between 50 and 100"),
        (("percentile", float("nan")), "percentile nan is not between"),
        (("mse", 99, 1), "bits=1 is not between 2 and 32"),
        (("entropy", 99, 16), "entropy is defined for 8 bits, not 16; mse serves any width"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        Choice(*arguments)


@given(st.dictionaries(st.text(), st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2)))
def test_ranges_survive_json_exactly(ends):
    ranges = Ranges({name: Range(min(pair), max(pair)) for name, pair in ends.items()}, "mse(bits=8)", 7)
    again = Ranges.from_json(ranges.to_json())
    assert again.to_json() == ranges.to_json()
    assert dict(again.ranges) == dict(ranges.ranges)
    assert (again.method, again.samples, list(again)) == ("mse(bits=8)", 7, list(ends))


GOOD = {"format": "gemedge ranges 1", "method": "minmax", "samples": 3, "ranges": {"x": [0, 1.5]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is not JSON"),
        (b"\xff\xfe{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("3", "it holds no ranges"),
        (json.dumps(GOOD | {"format": "gemedge ranges 2"}), "'gemedge ranges 2'; this gemedge reads gemedge ranges 1"),
        (json.dumps(GOOD | {"more": 1}), "it must have format, method, samples, ranges"),
        (json.dumps(GOOD | {"method": 3}), "method 3 is not a text"),
        (json.dumps(GOOD | {"samples": True}), "samples True is not a count"),
        (json.dumps(GOOD | {"samples": -1}), "samples -1 is not a count"),
        (json.dumps(GOOD | {"ranges": []}), "ranges is not an object"),
        (json.dumps(GOOD | {"ranges": {"x": [1]}}), r"tensor 'x': \[1\] is not \[min, max\]"),
        (json.dumps(GOOD | {"ranges": {"x": [0, True]}}), r"tensor 'x': \[0, True\] is not"),
        (json.dumps(GOOD | {"ranges": {"x": [2, 1]}}), r"tensor 'x': range \[2.0, 1.0\] must be two finite numbers"),
        (json.dumps(GOOD | {"ranges": {"x": [0, 10**400]}}), "tensor 'x': an end of its range is beyond every float"),
        (json.dumps(GOOD).replace("1.5", "1e999"), r"tensor 'x': range \[0.0, inf\] must be"),
        (json.dumps(GOOD).replace("1.5", "NaN"), "NaN is not a finite number"),
        (json.dumps(GOOD).replace("1.5]", '1.5], "x": [0, 1]'), "'x' appears twice"),
    ],
)
def test_an_edited_file_is_refused_by_what_is_wrong(text, message):
    with pytest.raises(DataError, match=message):
        Ranges.from_json(text)


def test_an_edited_range_is_taken():
    assert Ranges.from_json(json.dumps(GOOD))["x"] == Range(0.0, 1.5)


def test_a_tensor_without_a_range_is_named():
    with pytest.raises(DataError, match="tensor 'h' has no range"):
        Ranges({}, "minmax", 1)["h"]


def test_entropy_does_not_let_numbers_near_zero_cut_its_range():
    values = RNG.standard_normal(1_000_000).astype(np.float32)
    without, with_spike = (
        histogram(np.abs(values)),
        histogram(np.maximum(values, 1e-6), np.full(9_000_000, 1e-6, np.float32)),
    )
    wanted = Choice("entropy").range_of(without).max
    assert Choice("entropy").range_of(with_spike).max == pytest.approx(wanted, rel=0.2)

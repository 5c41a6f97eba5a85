"""Integer arithmetic against exact rationals: on every input where there are few, at the edges always."""

from dataclasses import FrozenInstanceError
from fractions import Fraction
from math import floor

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemedge import FormatError, QFormat, QuantizationError, QuantParams, Rounding
from gemedge.fixed import Multiplier, dequantize, quantize, requantize, rescale, saturate, scaling, shift_right

FORMATS = [QFormat(m, bits - 1 - m) for bits in (8, 16, 32) for m in range(bits)]
ALL_8 = np.arange(-128, 128)
ALL_16 = np.arange(-32768, 32768)
MULTIPLIERS = [
    ((1 << 30), 0),
    ((1 << 31) - 1, 0),
    ((1 << 30), -1),
    ((1 << 30) + 12345, -7),
    (1_518_500_250, -15),
    ((1 << 31) - 1, -31),
    ((1 << 30) + 1, 7),
    (0, 0),
]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_format_text_survives_a_round_trip(fmt):
    assert QFormat.parse(str(fmt)) == fmt
    assert str(fmt) == f"Q{fmt.int_bits}.{fmt.frac_bits}"


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_format_range_is_that_of_twos_complement(fmt):
    assert fmt.lsb == Fraction(1, 2**fmt.frac_bits)
    assert (fmt.raw_min, fmt.raw_max) == (-(2 ** (fmt.total_bits - 1)), 2 ** (fmt.total_bits - 1) - 1)
    assert (fmt.min, fmt.max) == (-(Fraction(2) ** fmt.int_bits), Fraction(2) ** fmt.int_bits - fmt.lsb)
    assert fmt.params == QuantParams(2.0**-fmt.frac_bits, 0, fmt.total_bits)
    assert fmt.params.exact_scale == fmt.lsb
    assert (fmt.params.raw_min, fmt.params.raw_max) == (fmt.raw_min, fmt.raw_max)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_affine_scale_of_a_format_is_recognised(fmt):
    assert fmt.params.format == fmt
    assert str(fmt.params) == str(fmt)


@pytest.mark.parametrize(
    "params",
    [QuantParams(0.1, 0, 16), QuantParams(2.0**-7, 3, 8), QuantParams(2.0, 0, 8), QuantParams(2.0**-16, 0, 16)],
)
def test_affine_scale_that_is_no_format_is_not_taken_for_one(params):
    assert params.format is None


def test_affine_text_names_scale_and_zero_point():
    assert str(QuantParams(0.1, -3, 8)) == "int8(scale=0.1, zero_point=-3)"
    assert QuantParams(0.1, 0, 16).scale == float(np.float32(0.1))


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: QFormat(3, 13), r"Q3.13 is 17 bits wide with its sign; it must be 8, 16 or 32"),
        (lambda: QFormat(0, 0), r"Q0.0 is 1 bits wide"),
        (lambda: QFormat(-1, 16), r"both bit counts must be 0 or more"),
        (lambda: QFormat(16, -1), r"both bit counts must be 0 or more"),
        (lambda: QFormat(1.5, 2), r"int_bits=1.5 must be a whole number"),
        (lambda: QFormat(1, "a"), r"frac_bits='a' must be a whole number"),
        (lambda: QFormat.parse("3.12"), r"format '3.12' cannot be read; write for example Q3.12"),
        (lambda: QFormat.parse("Q3.12.1"), r"cannot be read"),
        (lambda: QFormat.parse("Q-1.16"), r"cannot be read"),
        (lambda: QFormat.parse("Q" + "9" * 5000 + ".1"), r"format 'Q9{39}' cannot be read"),
        (lambda: QuantParams(0.0, 0, 8), r"scale=0.0 must be positive and finite in float32"),
        (lambda: QuantParams(float("nan"), 0, 8), r"scale=nan must be"),
        (lambda: QuantParams(1e39, 0, 8), r"scale=1e\+39 must be"),
        (lambda: QuantParams("x", 0, 8), r"scale='x' must be"),
        (lambda: QuantParams(1.0, 0, 12), r"bits=12 must be 8, 16 or 32"),
        (lambda: QuantParams(1.0, 1, 16), r"zero_point=1 at 16 bits; only 8-bit integers may have one"),
        (lambda: QuantParams(1.0, -1, 32), r"zero_point=-1 at 32 bits"),
        (lambda: QuantParams(1.0, 128, 8), r"zero_point=128 must be from -128 to 127"),
        (lambda: QuantParams(1.0, -129, 8), r"zero_point=-129 must be from -128 to 127"),
        (lambda: QuantParams(1.0, 0.5, 8), r"zero_point=0.5 must be a whole number"),
        (lambda: Multiplier(5, 0), r"multiplier 5 \* 2\^\(0 - 31\): the mantissa must be 0 or from 2\^30 to 2\^31 - 1"),
        (lambda: Multiplier(1 << 31, 0), r"the mantissa must be"),
        (lambda: Multiplier((1 << 30) - 1, 0), r"multiplier 1073741823 \* 2\^\(0 - 31\): the mantissa must be"),
        (lambda: Multiplier(1 << 30, 31), r"the shift from -31 to 30"),
        (lambda: Multiplier(1 << 30, -32), r"the shift from -31 to 30"),
        (lambda: Multiplier.from_real(-1.0), r"multiplier -1.0 must be a finite number, 0 or more"),
        (lambda: Multiplier.from_real(float("nan")), r"multiplier nan must be"),
        (lambda: Multiplier.from_real(float("inf")), r"multiplier inf must be"),
        (lambda: Multiplier.from_real("x"), r"multiplier 'x' must be"),
        (lambda: Multiplier.from_real(2.0**30), r"is too large; it must be below 2\^30"),
        (lambda: Multiplier.from_real(Fraction(2**33 - 1, 8)), r"is too large"),
        (lambda: saturate(ALL_8, 0), r"bits=0 must be from 1 to 64"),
        (lambda: saturate(ALL_8, 65), r"bits=65 must be from 1 to 64"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(make_it, message):
    with pytest.raises(FormatError, match=message):
        make_it()


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: quantize([1.0, float("nan")], QuantParams(1.0, 0, 8)), r"the value at index \[1\] is NaN"),
        (lambda: quantize(np.full((2, 2), np.nan), QuantParams(1.0, 0, 8)), r"index \[0, 0\] is NaN"),
        (lambda: dequantize([128], QuantParams(1.0, 0, 8)), r"raw holds 128; it must be from -128 to 127"),
        (lambda: dequantize([0, -129], QuantParams(1.0, 0, 8)), r"raw holds -129; it must be from -128 to 127"),
        (lambda: dequantize([0.5], QuantParams(1.0, 0, 8)), r"raw must be integers, not float64"),
        (lambda: saturate(np.array([2**63], np.uint64), 8), r"values holds 9223372036854775808; it must be from"),
        (lambda: shift_right([1 << 62], 1, Rounding.SINGLE), r"values holds 4611686018427387904; it must be from"),
        (lambda: shift_right([-(1 << 62)], 1, Rounding.SINGLE), r"values holds -4611686018427387904"),
        (lambda: shift_right([1], 63, Rounding.SINGLE), r"shift holds 63; it must be from 0 to 62"),
        (lambda: shift_right([1], -1, Rounding.DOUBLE), r"shift holds -1; it must be from 0 to 62"),
        (lambda: requantize([1 << 31], 1 << 30, 0, Rounding.SINGLE), r"accumulator holds 2147483648"),
        (lambda: requantize([-(1 << 31) - 1], 1 << 30, 0, Rounding.SINGLE), r"accumulator holds -2147483649"),
        (lambda: requantize([1], 1 << 31, 0, Rounding.SINGLE), r"multiplier holds 2147483648; it must be from 0 to"),
        (lambda: requantize([1], -1, 0, Rounding.SINGLE), r"multiplier holds -1"),
        (lambda: requantize([1], 1, 31, Rounding.SINGLE), r"shift holds 31; it must be from -31 to 30"),
        (lambda: requantize([1], 1, -32, Rounding.SINGLE), r"shift holds -32"),
        (lambda: requantize([1 << 30], 1 << 30, 1, Rounding.DOUBLE), r"accumulator \* 2\^shift holds 2147483648"),
    ],
)
def test_a_value_outside_the_domain_is_refused_and_never_wraps(make_it, message):
    with pytest.raises(QuantizationError, match=message):
        make_it()


@pytest.mark.parametrize(
    ("made", "name"),
    [(QFormat(3, 12), "int_bits"), (QuantParams(1.0, 0, 8), "bits"), (Multiplier(1 << 30, 0), "shift")],
)
def test_a_checked_value_cannot_be_changed_afterwards(made, name):
    with pytest.raises(FrozenInstanceError):
        setattr(made, name, 99)


@pytest.mark.parametrize("fmt", [QFormat(3, 4), QFormat(0, 7), QFormat(3, 12), QFormat(15, 0)], ids=str)
def test_every_raw_integer_survives_real_and_back(fmt):
    raw = np.arange(fmt.raw_min, fmt.raw_max + 1)
    real = fmt.to_real(raw)
    assert [Fraction(x) for x in real[::97]] == [int(r) * fmt.lsb for r in raw[::97]]
    np.testing.assert_array_equal(fmt.to_raw(real), raw)


def test_quantize_rounds_ties_to_even_and_saturates():
    params = QuantParams(0.5, 10, 8)
    x = [0.25, 0.75, -0.25, -0.75, 0.3, 1e30, -1e30, np.inf, -np.inf, 58.5, -69.0]
    assert quantize(x, params).tolist() == [10, 12, 10, 8, 11, 127, -128, 127, -128, 127, -128]
    assert quantize(x, params).dtype == np.int64
    np.testing.assert_array_equal(dequantize([10, 12, -128], params), [0.0, 1.0, -69.0])


@given(st.floats(-300, 300), st.floats(1e-3, 10), st.integers(-128, 127))
@settings(deadline=None)
def test_quantize_is_the_nearest_integer(x, scale, zero_point):
    params = QuantParams(scale, zero_point, 8)
    quotient = Fraction(x / params.scale)  # float64, as stated
    expected = oracle.saturated(oracle.round_half_even(quotient) + zero_point, 8)
    assert quantize(x, params) == expected


@pytest.mark.parametrize("bits", [1, 7, 8, 15, 16, 32, 63, 64])
def test_saturate_is_the_nearest_that_fits(bits):
    edges = [-(2**63), 2**63 - 1, -(2**31), 2**31, *ALL_16.tolist()]
    assert saturate(np.array(edges), bits).tolist() == [oracle.saturated(v, bits) for v in edges]


@pytest.mark.parametrize("shift", range(21))
def test_shift_right_is_right_for_every_8_bit_value(shift):
    exact = [Fraction(int(v), 2**shift) for v in ALL_8]
    assert shift_right(ALL_8, shift, Rounding.SINGLE).tolist() == list(map(oracle.round_half_up, exact))
    assert shift_right(ALL_8, shift, Rounding.DOUBLE).tolist() == list(map(oracle.round_half_away, exact))


@pytest.mark.parametrize("shift", [1, 5, 15, 16])
def test_shift_right_is_right_for_every_16_bit_value(shift):
    exact = [Fraction(int(v), 2**shift) for v in ALL_16]
    assert shift_right(ALL_16, shift, Rounding.SINGLE).tolist() == list(map(oracle.round_half_up, exact))
    assert shift_right(ALL_16, shift, Rounding.DOUBLE).tolist() == list(map(oracle.round_half_away, exact))


@pytest.mark.parametrize("rounding", Rounding)
def test_shift_right_holds_at_the_edges_of_its_domain(rounding):
    judge = oracle.round_half_up if rounding is Rounding.SINGLE else oracle.round_half_away
    values = [(1 << 62) - 1, -(1 << 62) + 1, 1, -1, 0, (1 << 61), -(1 << 61)]
    for shift in (0, 1, 61, 62):
        assert shift_right(values, shift, rounding).tolist() == [judge(Fraction(v, 2**shift)) for v in values]
    each = shift_right(values, [0, 1, 2, 60, 61, 62, 62], rounding)
    assert each.tolist() == [judge(Fraction(v, 2**s)) for v, s in zip(values, [0, 1, 2, 60, 61, 62, 62], strict=True)]


@pytest.mark.parametrize(("mantissa", "shift"), MULTIPLIERS)
def test_requantize_is_right_for_every_16_bit_accumulator(mantissa, shift):
    single = requantize(ALL_16, mantissa, shift, Rounding.SINGLE)
    double = requantize(ALL_16, mantissa, shift, Rounding.DOUBLE)
    exact = Fraction(mantissa) * Fraction(2) ** (shift - 31)
    assert single.tolist() == [oracle.round_half_up(int(v) * exact) for v in ALL_16]
    assert single.tolist() == [oracle.tflite_requantize(int(v), mantissa, shift) for v in ALL_16]
    assert double.tolist() == [oracle.gemmlowp_requantize(int(v), mantissa, shift) for v in ALL_16]


EDGE_ACCUMULATORS = [-(2**31), 2**31 - 1, -1, 0, 1, 2**30, -(2**30), 3]


@pytest.mark.parametrize("shift", [-31, -30, -1, 0, 1, 30])
@pytest.mark.parametrize("mantissa", [0, 1, 2**30, 2**31 - 1])
def test_requantize_holds_at_the_edges_of_its_domain(mantissa, shift):
    exact = Fraction(mantissa) * Fraction(2) ** (shift - 31)
    single = requantize(EDGE_ACCUMULATORS, mantissa, shift, Rounding.SINGLE)
    assert single.tolist() == [oracle.round_half_up(v * exact) for v in EDGE_ACCUMULATORS]
    fits = [v for v in EDGE_ACCUMULATORS if -(2**31) <= v << max(shift, 0) < 2**31]
    double = requantize(fits, mantissa, shift, Rounding.DOUBLE)
    assert double.tolist() == [oracle.gemmlowp_requantize(v, mantissa, shift) for v in fits]


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40),
    st.integers(2**30, 2**31 - 1),
    st.integers(-31, 0),
)
@settings(deadline=None)
def test_requantize_is_right_for_any_accumulator(accumulators, mantissa, shift):
    for rounding, judge in (
        (Rounding.SINGLE, oracle.tflite_requantize),
        (Rounding.DOUBLE, oracle.gemmlowp_requantize),
    ):
        got = requantize(accumulators, mantissa, shift, rounding)
        assert got.tolist() == [judge(v, mantissa, shift) for v in accumulators]


def test_requantize_takes_a_multiplier_for_each_channel():
    channels = [Multiplier.from_real(x) for x in (0.7, 0.003, 1e-4)]
    acc = np.array([[1000, -200_000, 7_000_000], [-31, 5_000_001, -2_000_000_000]])
    got = requantize(acc, [m.mantissa for m in channels], [m.shift for m in channels], Rounding.SINGLE)
    expected = [[oracle.round_half_up(int(v) * m.exact) for v, m in zip(row, channels, strict=True)] for row in acc]
    assert got.tolist() == expected


def test_the_two_roundings_differ():
    got = [requantize(v, 1 << 30, -1, r).item() for v in (-2, 1, 3) for r in Rounding]
    assert got == [0, -1, 0, 1, 1, 1]


@given(st.fractions(Fraction(1, 2**32), 2**29))
@settings(deadline=None)
def test_multiplier_is_the_nearest_with_31_bits(real):
    made = Multiplier.from_real(real)
    assert 2**30 <= made.mantissa < 2**31
    assert abs(made.exact - real) <= Fraction(2) ** (made.shift - 32)


@pytest.mark.parametrize(
    ("real", "mantissa", "shift"),
    [
        (0.0, 0, 0),
        (1.0, 1 << 30, 1),
        (0.5, 1 << 30, 0),
        (Fraction(1, 2**32), 1 << 30, -31),
        (Fraction(1, 2**32) - Fraction(1, 2**70), 0, 0),
        (1 - 2.0**-40, 1 << 30, 1),
        (2.0**29, 1 << 30, 30),
        (Fraction(2**31 - 1, 2), (1 << 31) - 1, 30),
        (0.75, 3 << 29, 0),
        (Fraction(2**32 + 2, 2**33), (1 << 30) + 1, 0),
    ],
)
def test_multiplier_of_a_few_numbers(real, mantissa, shift):
    assert Multiplier.from_real(real) == Multiplier(mantissa, shift)


# Rescaling an accumulator of any width


@pytest.mark.parametrize("mantissa", [0, 1, 3, 1 << 20, (1 << 31) - 1])
@pytest.mark.parametrize("shift", [0, 1, 7, 31, 40, 62])
def test_rescale_is_the_rounded_product(mantissa, shift):
    reach = ((1 << 62) - 1) // max(mantissa, 1)
    rng = np.random.default_rng(shift)
    values = np.concatenate([np.arange(-300, 301), rng.integers(-reach, reach, 300), [reach, -reach]])
    values = np.clip(values, -reach, reach)
    wanted = [floor(Fraction(int(v) * mantissa, 1 << shift) + Fraction(1, 2)) for v in values]
    assert rescale(values, mantissa, shift).tolist() == wanted


def test_rescale_takes_a_mantissa_for_each_channel():
    accumulator = np.array([[10, 10], [-10, -10]])
    assert rescale(accumulator, np.array([1, 3]), np.array([2, 2])).tolist() == [[3, 8], [-2, -7]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1 << 40, (1 << 31) - 1, 3), r"accumulator 1099511627776 times mantissa 2147483647 must be below 2\^62"),
        ((1 << 31, 1 << 31, 3), r"mantissa holds 2147483648; it must be from 0 to 2147483647"),
        ((1, -1, 3), r"mantissa holds -1"),
        ((1, 1, 63), r"shift holds 63; it must be from 0 to 62"),
        ((0.5, 1, 1), r"accumulator must be integers, not float64"),
    ],
)
def test_rescale_refuses_what_would_overflow(arguments, message):
    with pytest.raises(QuantizationError, match=message):
        rescale(*arguments)


@pytest.mark.parametrize("bound", [1, 1000, (1 << 31) - 1, 1 << 38, (1 << 47) - 1])
@pytest.mark.parametrize(
    "real", [Fraction(1, 3), Fraction(1), Fraction(7, 5), Fraction(123, 10**6), Fraction(1, 1 << 20)]
)
def test_scaling_is_as_near_as_the_bound_permits(real, bound):
    mantissa, shift = scaling(real, bound)
    bits = min(31, 62 - bound.bit_length())
    assert mantissa * bound < 1 << 62
    assert 0 <= shift <= 62
    if real * bound >= Fraction(1, 2):
        assert abs(Fraction(mantissa, 1 << shift) - real) <= real / (1 << (bits - 1))


@pytest.mark.parametrize("power_of_two", [False, True])
def test_scaling_that_rounds_every_accumulator_to_zero_is_zero(power_of_two):
    assert scaling(Fraction(1, 1 << 70), (1 << 47) - 1, power_of_two=power_of_two) == (0, 0)
    assert scaling(Fraction(1, 16), 7, power_of_two=power_of_two) == (0, 0)
    assert scaling(Fraction(1, 16), 8, power_of_two=power_of_two) != (0, 0)


@pytest.mark.parametrize("exponent", [-31, -13, -1, 0, 1, 9])
def test_scaling_by_a_power_of_two_is_exact(exponent):
    mantissa, shift = scaling(Fraction(2) ** exponent, 1 << 31, power_of_two=True)
    assert Fraction(mantissa, 1 << shift) == Fraction(2) ** exponent
    assert mantissa & (mantissa - 1) == 0


@pytest.mark.parametrize(
    ("real", "bound", "power_of_two", "message"),
    [
        (Fraction(0), 10, False, "scaling factor 0 must be positive"),
        (Fraction(-1), 10, False, "scaling factor -1 must be positive"),
        (Fraction(1, 3), 10, True, "scaling factor 1/3 must be a power of two"),
        (Fraction(1 << 40), 10, False, r"scaling factor 1.09951e\+12 does not fit accumulators up to 10"),
        (Fraction(1), 1 << 50, False, "scaling factor 1 does not fit accumulators up to 1125899906842624"),
    ],
)
def test_scaling_out_of_reach_is_refused(real, bound, power_of_two, message):
    with pytest.raises(QuantizationError, match=message):
        scaling(real, bound, power_of_two=power_of_two)

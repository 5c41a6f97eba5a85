"""The integer kernels: every code of 16-bit input against whole-number arithmetic of the definitions."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gemedge import (
    Activation,
    Branch,
    FixedActivation,
    FormatError,
    PromiseError,
    QFormat,
    QuantizationError,
    QuantParams,
    UnsupportedError,
    intervals,
    rational,
)
from gemedge import polynomial as poly
from gemedge.kernel import derivative_of
from gemedge.rational import Arithmetic, reciprocal
from gemedge.table import Table

CHECKED, NARROW = Arithmetic(checked=True), Arithmetic(long_multiply=False)
ALL_16 = np.arange(-32768, 32768, dtype=np.int16)
EPSILONS = (1e-6, 1e-4, 1e-3, 0.01, 0.1, 0.5, 1.0, 3.0, 10.0, 300.0, 1e3)
FAMILIES = [(family, n) for family in ("gem", "segem") for n in (1, 2, 3, 4)]
# 27 of the 256 pairs for each activation, so that every input and every output format appears with each
PAIRS = [(i, o) for i in range(16) for o in range(16)]
ROWS = [
    (family, n, EPSILONS[(3 * row + 5 * index) % len(EPSILONS)], *PAIRS[(37 * row + 11 * index) % 256])
    for index, (family, n) in enumerate(FAMILIES)
    for row in range(27)
]


def make(family: str, n: int, epsilon: float) -> Activation:
    return Activation.egem(n, epsilon) if family == "gem" else Activation.segem(n, epsilon)


def expected(family, n, epsilon, in_params, out_params, raws=range(-32768, 32768)):
    exact_epsilon = Fraction(float(np.float32(epsilon)))
    return oracle.codes(family, n, exact_epsilon, in_params.exact_scale, out_params.exact_scale, out_params.bits, raws)


def test_the_rows_are_more_than_two_hundred_combinations():
    assert len(set(ROWS)) >= 200
    assert {row[3] for row in ROWS} == {row[4] for row in ROWS} == set(range(16))


@pytest.mark.parametrize(("family", "n", "epsilon", "int_in", "int_out"), ROWS)
def test_every_code_is_correctly_rounded(family, n, epsilon, int_in, int_out):
    in_format, out_format = QFormat(int_in, 15 - int_in), QFormat(int_out, 15 - int_out)
    kernel = FixedActivation(make(family, n, epsilon), in_format, out_format)
    outputs = kernel(ALL_16)
    assert outputs.tolist() == expected(family, n, epsilon, in_format.params, out_format.params)
    np.testing.assert_array_equal(kernel.evaluate(ALL_16, CHECKED), outputs)
    some = ALL_16[int_in::16]
    np.testing.assert_array_equal(kernel.evaluate(some, NARROW), outputs[int_in::16])


REAL_SCALES = [
    ("gem", 1, 1.0, 0.00013, 0.00021),
    ("gem", 2, 0.3, 0.01, 0.0003),
    ("gem", 4, 7.0, 0.0002, 0.004),
    ("segem", 1, 0.01, 0.0003, 0.0001),
    ("segem", 3, 2.0, 0.00017, 0.00033),
    ("gem", 1, 1e-6, 3 * 2.0**-14, 10 * 2.0**-14),  # affine ties that no power of two divides
    ("gem", 4, 1e-3, 3 * 2.0**-14, 10 * 2.0**-14),
    ("segem", 4, 1e3, 7 * 2.0**-14, 30 * 2.0**-14),
    ("gem", 1, 100 * 3 * 2.0**-14, 3 * 2.0**-14, 3 * 2.0**-14),  # a tie where t = 1
    ("segem", 1, 1e3, 2.0**-15, 2.0**-14),
]


@pytest.mark.parametrize(("family", "n", "epsilon", "in_scale", "out_scale"), REAL_SCALES)
def test_every_code_is_correctly_rounded_at_real_scales(family, n, epsilon, in_scale, out_scale):
    in_params, out_params = QuantParams(in_scale, 0, 16), QuantParams(out_scale, 0, 16)
    outputs = FixedActivation(make(family, n, epsilon), in_params, out_params)(ALL_16)
    assert outputs.tolist() == expected(family, n, epsilon, in_params, out_params)


BYTES = [
    ("gem", 1, 1.0, QuantParams(0.03, -5, 8), QuantParams(0.02, -128, 8)),
    ("gem", 3, 0.5, QuantParams(0.03, 127, 8), QuantParams(0.02, 100, 8)),
    ("segem", 2, 0.1, QuantParams(0.01, -128, 8), QuantParams(0.01, 3, 8)),
    ("segem", 1, 1.0, QFormat(3, 4).params, QFormat(3, 4).params),
    ("gem", 2, 1.0, QFormat(3, 4).params, QFormat(3, 12).params),
    ("segem", 2, 1.0, QFormat(3, 4).params, QFormat(3, 28).params),
]


def one_code(activation: Activation, in_params: QuantParams, out_params: QuantParams, raw: int) -> int:
    x = (raw - in_params.zero_point) * in_params.exact_scale
    branch = activation.positive if x > 0 else activation.negative
    t = abs(x) / activation.exact_epsilon
    affine = branch.slope * t + branch.offset
    top = sum((c * t**i for i, c in enumerate(branch.numerator)), Fraction(0))
    bottom = sum((c * t**i for i, c in enumerate(branch.denominator)), Fraction(0))
    v = activation.exact_epsilon * (affine + top / bottom) / out_params.exact_scale + out_params.zero_point
    return oracle.saturated(oracle.round_half_up(v), out_params.bits)


@pytest.mark.parametrize(("family", "n", "epsilon", "in_params", "out_params"), BYTES)
def test_8_bit_input_is_a_table_of_256_rounded_outputs(family, n, epsilon, in_params, out_params):
    activation = make(family, n, epsilon)
    kernel = FixedActivation(activation, in_params, out_params)
    raw = np.arange(-128, 128, dtype=np.int8)
    assert kernel(raw).tolist() == [one_code(activation, in_params, out_params, int(r)) for r in raw]
    assert kernel(raw).tolist() == list(kernel.constants.table)
    assert kernel(raw).dtype == np.dtype(f"i{out_params.bits // 8}")


def test_16_bit_input_to_8_bits_has_a_zero_point():
    activation = Activation.segem(2, 0.3)
    in_params, out_params = QuantParams(0.0002, 0, 16), QuantParams(0.031, -20, 8)
    outputs = FixedActivation(activation, in_params, out_params)(ALL_16)
    assert outputs[::7].tolist() == [one_code(activation, in_params, out_params, int(r)) for r in ALL_16[::7]]
    assert (outputs.min(), outputs.max(), outputs.dtype) == (-30, 127, np.int8)


WIDE = [
    ("gem", 1, 1.0, "Q3.28", "Q3.28"),
    ("gem", 4, 1.0, "Q0.31", "Q1.30"),
    ("gem", 2, 0.01, "Q15.16", "Q0.31"),
    ("gem", 1, 1e3, "Q31.0", "Q15.16"),
    ("segem", 1, 1.0, "Q3.28", "Q3.28"),
    ("segem", 4, 1e3, "Q15.16", "Q0.31"),
    ("segem", 2, 1e-6, "Q0.31", "Q0.31"),
    ("gem", 3, 1.0, "Q3.28", "Q3.12"),
    ("segem", 2, 0.1, "Q3.28", "Q3.4"),
    ("gem", 1, 0.1, "Q3.12", "Q3.28"),
    ("segem", 3, 0.1, "Q3.12", "Q1.30"),
    ("gem", 2, 1.0, "Q15.0", "Q0.31"),
]


@pytest.mark.parametrize(("family", "n", "epsilon", "source", "target"), WIDE)
def test_32_bits_are_within_one_lsb_at_the_edges(family, n, epsilon, source, target):
    activation = make(family, n, epsilon)
    in_params, out_params = QFormat.parse(source).params, QFormat.parse(target).params
    kernel = FixedActivation(activation, in_params, out_params)
    last = in_params.raw_max
    powers = [2**k + d for k in range(in_params.bits - 1) for d in (-1, 0, 1)]
    seams = [
        s + d for side in kernel.constants.sides for p in side.pieces for s in (p.start, p.stop) for d in (-1, 0, 1)
    ]
    raw = sorted({r for m in (*powers, *seams, last) for r in (m, -m) if abs(r) <= last} | {in_params.raw_min})
    outputs = kernel.evaluate(raw, CHECKED)
    for r, y in zip(raw, outputs.tolist(), strict=True):
        exact = activation.exact(r * in_params.exact_scale) / out_params.exact_scale
        clamped = min(max(exact, Fraction(out_params.raw_min)), Fraction(out_params.raw_max))
        assert abs(y - clamped) < Fraction(5, 8), r
    np.testing.assert_array_equal(kernel.evaluate(raw, NARROW), outputs)


@pytest.mark.parametrize(
    ("family", "n", "epsilon", "source", "target"),
    [("gem", 1, 1.0, "Q3.28", "Q3.28"), ("segem", 2, 0.7, "Q3.28", "Q1.30"), ("gem", 3, 20.0, "Q7.24", "Q7.24")],
)
def test_32_bits_are_within_one_lsb_on_ten_million_random_inputs(family, n, epsilon, source, target):
    in_params, out_params = QFormat.parse(source).params, QFormat.parse(target).params
    kernel = FixedActivation(make(family, n, epsilon), in_params, out_params)
    rng = np.random.default_rng(7)
    scale, lsb = np.longdouble(in_params.scale), np.longdouble(out_params.scale)
    wide_epsilon = np.longdouble(kernel.activation.epsilon)
    worst = 0.0
    for _ in range(10):  # 1 million at a time; a third of them near 0
        raw = rng.integers(-(2**31), 2**31, 1_000_000) >> rng.choice([0, 0, 8], 1_000_000)
        x = raw * scale
        t = abs(x) / wide_epsilon
        if family == "gem":
            v = np.maximum(x, 0) * (1 - 1 / (1 + t ** (2 * n)))
        else:
            v = np.where(x > 0, x, -wide_epsilon * (1 - 1 / sum(t**k for k in range(2 * n + 1))))
        clamped = np.clip(v / lsb, out_params.raw_min, out_params.raw_max)
        worst = max(worst, float(np.max(np.abs(kernel(raw) - clamped))))
    assert worst < 0.626


coefficients = st.lists(st.fractions(0, 3, max_denominator=60), min_size=1, max_size=4)


@st.composite
def branches(draw):
    denominator = (1, *draw(coefficients), draw(st.fractions(Fraction(1, 60), 2, max_denominator=60)))
    numerator = draw(st.lists(st.fractions(-3, 3, max_denominator=60), max_size=len(denominator) - 1))
    return Branch(
        slope=draw(st.fractions(-2, 2, max_denominator=8)),
        offset=draw(st.fractions(-2, 2, max_denominator=8)),
        numerator=numerator,
        denominator=denominator,
    )


def params(bits=16):
    real = st.floats(2.0**-15, 1.0, width=32).map(lambda scale: QuantParams(scale, 0, bits))
    return real | st.integers(0, bits - 1).map(lambda m: QFormat(m, bits - 1 - m).params)


@given(branches(), branches(), st.floats(1e-6, 1e3), params(), params(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_random_branches_are_correctly_rounded_or_refused(negative, positive, epsilon, in_params, out_params, rng):
    activation = Activation.rational(negative=negative, positive=positive, epsilon=epsilon)
    try:
        kernel = FixedActivation(activation, in_params, out_params)
    except UnsupportedError:
        assume(False)
    seams = [
        sign * s for sign, side in zip((-1, 1), kernel.constants.sides, strict=True) for s in (side.start, side.stop)
    ]
    raw = [r for s in seams for r in (s - 1, s, s + 1) if abs(r) < 32768]
    raw += [rng.randint(-32768, 32767) for _ in range(150)] + list(range(-20, 20)) + [-32768, 32767]
    outputs = kernel.evaluate(raw, CHECKED)
    assert outputs.tolist() == [one_code(activation, in_params, out_params, r) for r in raw]


@given(st.sampled_from(FAMILIES), st.floats(1e-6, 1e3), params(), params(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=150)
def test_random_epsilons_and_scales_are_correctly_rounded(family, epsilon, in_params, out_params, rng):
    kernel = FixedActivation(make(*family, epsilon), in_params, out_params)
    raws = sorted(rng.sample(range(-32768, 32768), 300))
    assert kernel(np.array(raws)).tolist() == expected(*family, epsilon, in_params, out_params, raws)


@given(params(32), params(32), st.sampled_from(FAMILIES), st.floats(1e-3, 1e3), st.integers(-(2**31), 2**31 - 1))
@settings(deadline=None, max_examples=150)
def test_random_32_bit_kernels_are_within_one_lsb(in_params, out_params, family, epsilon, raw):
    activation = make(*family, epsilon)
    kernel = FixedActivation(activation, in_params, out_params)
    for r in (raw, raw >> 7, raw >> 15, raw >> 24):
        exact = activation.exact(r * in_params.exact_scale) / out_params.exact_scale
        clamped = min(max(exact, Fraction(out_params.raw_min)), Fraction(out_params.raw_max))
        assert abs(int(kernel([r])[0]) - clamped) < Fraction(5, 8)


@pytest.mark.parametrize("epsilon", [1e-6, 0.01, 1.0, 1e3])
@pytest.mark.parametrize(("family", "n"), [*FAMILIES, ("gem", 16), ("segem", 16)])
def test_float_values_that_the_build_relies_on_are_a_hundred_times_better_than_it_assumes(family, n, epsilon):
    activation = make(family, n, epsilon)
    for x in (sign * epsilon * 1.37**k for k in range(-40, 40) for sign in (-1, 1)):
        exact = activation.exact(Fraction(x))
        assert abs(Fraction(float(activation(x))) - exact) <= abs(exact) * Fraction(1, 10**13)


# What a format makes of a branch


def forms(kernel: FixedActivation) -> list[list[str]]:
    return [[piece.form for piece in side.pieces] for side in kernel.constants.sides]


def test_egem_below_one_lsb_is_relu_and_the_kernel_sees_it():
    kernel = FixedActivation(Activation.egem(1, 1e-6), QFormat(3, 12), QFormat(3, 12))
    np.testing.assert_array_equal(kernel(ALL_16), np.maximum(ALL_16, 0))
    assert forms(kernel) == [[], ["affine"]]


def test_an_identity_that_would_round_wrongly_is_not_taken_for_one():
    kernel = FixedActivation(Activation.egem(1, 1e-6), QFormat(3, 12), QFormat(4, 11))
    identity = (np.maximum(ALL_16, 0).astype(int) + 1) >> 1
    outputs = kernel(ALL_16)
    assert np.count_nonzero(outputs != identity) > 15_000  # every tie goes down, not up
    assert outputs.tolist() == expected("gem", 1, 1e-6, QFormat(3, 12).params, QFormat(4, 11).params)


def test_a_branch_that_is_constant_for_every_code_has_no_piece():
    kernel = FixedActivation(Activation.egem(1, 1e3), QFormat(0, 15), QFormat(3, 12))
    assert forms(kernel) == [[], []]
    assert not kernel(ALL_16).any()


def test_segem_is_a_fraction_for_negative_and_an_identity_for_positive_input():
    kernel = FixedActivation(Activation.segem(1, 1.0), QFormat(3, 12), QFormat(3, 12))
    assert forms(kernel) == [["far"], ["affine"]]


def test_two_forms_are_used_where_one_is_too_large():
    kernel = FixedActivation(Activation.egem(1, 0.006), QuantParams(2e-5, 0, 16), QuantParams(2e-7, 0, 16))
    assert kernel.certify().misrounded == 0
    found = [Activation.egem(n, 1e3) for n in (1, 2)]
    both = [FixedActivation(a, QFormat(15, 0), QFormat(0, 15)) for a in found]
    assert all(k.certify().misrounded == 0 for k in both)


def reducible(numerator: Fraction, root: int, common_root: int) -> Branch:
    """numerator / (1 + t / root) times (1 + t / common_root) above and below: coefficients of too many bits."""
    common = (Fraction(1), Fraction(1, common_root))
    return Branch(
        numerator=poly.scale(common, numerator), denominator=poly.multiply((Fraction(1), Fraction(1, root)), common)
    )


TIES = reducible(Fraction(2001, 2), 1024, (1 << 47) + 5)  # ties at 2048, 22528 and 28672
MORE_TIES = reducible(Fraction(31185, 2), 1024, (1 << 47) + 5)


def test_ties_that_the_constants_miss_are_stored():
    activation = Activation.rational(negative=Branch(), positive=TIES)
    kernel = FixedActivation(activation, QFormat(15, 0), QFormat(15, 0))
    assert kernel.constants.exceptions == ((2048, 334), (22528, 44), (28672, 35))
    assert kernel.certify().misrounded == 0
    raw = [2047, 2048, 2049, 22528, 28672]
    assert kernel(raw).tolist() == [one_code(activation, kernel.in_params, kernel.out_params, r) for r in raw]
    without = FixedActivation(activation, QFormat(15, 0), QFormat(15, 0), replace(kernel.constants, exceptions=()))
    assert without.certify().misrounded == 3


def test_eight_exceptions_are_stored_and_sixteen_refused():
    one = Activation.rational(negative=Branch(), positive=MORE_TIES)
    assert len(FixedActivation(one, QFormat(15, 0), QFormat(15, 0)).constants.exceptions) == 8
    both = Activation.rational(negative=MORE_TIES, positive=MORE_TIES)
    with pytest.raises(UnsupportedError, match=r"from Q15.0 to Q15.0: 16 codes would be rounded wrongly, -2048 first;"):
        FixedActivation(both, QFormat(15, 0), QFormat(15, 0))


CANCELLING = Branch(numerator=(0, 0, 10**9, -2 * 10**9, 10**9 + 1), denominator=(1, 0, 0, 0, 0, 0, 0, 1))
_HUMP = poly.polynomial([1, 0, 0, 0, 0, 0, 0, 0, Fraction(1, 7000**8)])  # 1 + (t / 7000)^8
COMES_BACK = Branch(
    slope=Fraction(1, 100),
    numerator=[0] * 8 + [Fraction(600, 7000**8)],
    denominator=poly.multiply(_HUMP, _HUMP),
)


def test_a_slope_and_an_offset_too_large_before_they_cancel_are_refused_and_do_not_overflow():
    steep = Branch(slope=10**15, offset=5 - 2 * 10**15, numerator=(Fraction(7, 2),), denominator=(1, 1))
    activation = Activation.rational(negative=Branch(), positive=steep)
    with pytest.raises(UnsupportedError, match=r"no integer form of it fits; the affine part reaches 2e\+15 LSB"):
        FixedActivation(activation, QFormat(15, 0), QFormat(15, 0))


@pytest.mark.parametrize(
    ("branch", "source", "target", "message"),
    [
        (CANCELLING, "Q3.12", "Q3.12", r"no integer form of it fits; the exponent of the fraction is from .* outside"),
        (CANCELLING, "Q0.31", "Q3.28", r"the error before rounding is bounded by 3.58e\+06 LSB, not by 0.375"),
        (COMES_BACK, "Q15.16", "Q7.8", r"it leaves the output's range at raw \d+ and comes back"),
    ],
)
def test_what_no_form_holds_is_refused_with_its_reason(branch, source, target, message):
    activation = Activation.rational(negative=Branch(), positive=branch)
    with pytest.raises(UnsupportedError, match=f"from {source} to {target}: {message}"):
        FixedActivation(activation, QFormat.parse(source), QFormat.parse(target))


def test_a_mixed_sign_denominator_is_correctly_rounded():
    bump = Branch(numerator=(0, 1), denominator=(1, Fraction(-19, 10), 1))
    activation = Activation.rational(negative=Branch(slope=Fraction(1, 3)), positive=bump)
    in_params, out_params = QFormat(3, 12).params, QFormat(4, 11).params
    raw = ALL_16[::5].astype(int)
    outputs = FixedActivation(activation, in_params, out_params).evaluate(raw, CHECKED)
    assert outputs.tolist() == [one_code(activation, in_params, out_params, int(r)) for r in raw]


# Calls


@pytest.mark.parametrize(("source", "target"), [("Q3.4", "Q3.4"), ("Q3.12", "Q3.12"), ("Q3.28", "Q3.12")])
def test_any_shape_and_integer_type_gives_the_same_integers(source, target):
    kernel = FixedActivation(Activation.gem(1), QFormat.parse(source), QFormat.parse(target))
    raw = np.arange(-100, 100).reshape(10, 20)
    outputs = kernel(raw)
    assert (outputs.shape, outputs.dtype) == ((10, 20), np.dtype(f"i{kernel.out_params.bits // 8}"))
    for other in (raw.astype(np.int8), raw.astype(np.int64)[::1], np.asfortranarray(raw), raw.tolist()):
        np.testing.assert_array_equal(kernel(other), outputs)
    np.testing.assert_array_equal(kernel(raw.T), outputs.T)
    np.testing.assert_array_equal(kernel(raw[::2, ::3]), outputs[::2, ::3])
    np.testing.assert_array_equal(kernel(raw.astype(">i8")), outputs)
    assert kernel(raw[3, 4]) == outputs[3, 4]
    assert kernel(np.zeros((0, 3), np.int16)).shape == (0, 3)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([0.5], r"raw input must be integers, not float64"),
        ([True], r"raw input must be integers, not bool"),
        ([1, 32768], r"raw input holds 32768; Q3.12 is from -32768 to 32767"),
        ([-32769, 5], r"raw input holds -32769; Q3.12 is from -32768 to 32767"),
        (np.array([2**63], np.uint64), r"raw input holds 9223372036854775808"),
    ],
)
def test_raw_input_that_the_format_does_not_hold_is_refused(raw, message):
    with pytest.raises(QuantizationError, match=message):
        FixedActivation(Activation.gem(1), QFormat(3, 12), QFormat(3, 12))(raw)
    with pytest.raises(QuantizationError, match=message):
        Table(Activation.gem(1), QFormat(3, 12), QFormat(3, 12), entries=513, interpolation="linear")(raw)


@pytest.mark.parametrize(("left", "right"), [(-1, 1), (1, -1), (2, 2)])
def test_the_two_sides_need_not_meet(left, right):
    apart = Activation.rational(negative=Branch(offset=left), positive=Branch(offset=right))
    kernel = FixedActivation(apart, QFormat(3, 12), QFormat(3, 12))
    assert kernel([-32768, -1, 0, 1, 32767]).tolist() == [4096 * y for y in (left, left, left, right, right)]


def test_the_last_negative_code_has_an_output_of_its_own():
    kernel = FixedActivation(Activation.segem(4, 1e3), QFormat(0, 15), QFormat(0, 15))
    assert kernel.constants.sides[0].stop == 32768
    assert kernel([-32768, -32767]).tolist() == [-32768, -32767]
    assert kernel.certify().misrounded == 0


def test_a_large_array_is_the_same_as_its_parts():
    kernel = FixedActivation(Activation.segem(2, 0.5), QFormat(3, 12), QFormat(3, 12))
    raw = np.random.default_rng(0).integers(-32768, 32768, 100_003).astype(np.int16)
    np.testing.assert_array_equal(kernel(raw), kernel(ALL_16)[raw.astype(int) + 32768])


# The derivative


@pytest.mark.parametrize(("family", "n"), FAMILIES)
def test_derivative_is_correctly_rounded_for_every_code(family, n):
    kernel = FixedActivation(make(family, n, 0.3), QFormat(3, 12), QFormat(2, 13)).derivative
    outputs = kernel.evaluate(ALL_16, CHECKED)
    assert kernel.certify().misrounded == 0
    for raw in range(-4000, 4000, 61):
        x = Fraction(raw, 4096)
        slope = oracle.derivatives(family, n, kernel.activation.exact_epsilon, x, 1, right=x > 0)[1]
        assert outputs[raw + 32768] == oracle.saturated(oracle.round_half_up(slope * 2**13), 16)


def test_derivative_of_8_and_32_bits_is_within_one_lsb():
    for source in (QFormat(3, 4), QFormat(3, 28)):
        kernel = FixedActivation(Activation.segem(2, 1.0), source, source).derivative
        certificate = kernel.certify()
        assert certificate.max_error < 0.626
        assert kernel.derivative is not kernel


def test_derivative_of_a_branch_without_fraction_stays_simple():
    slope = derivative_of(Activation.segem(1, 0.5))
    assert slope.positive == Branch(offset=2)
    assert slope.exact(Fraction(3)) == 1


# The debug mode: widths, constants and their intervals


KERNEL = FixedActivation(Activation.segem(1, 0.7), QuantParams(0.00021, 0, 16), QuantParams(0.00017, 0, 16))


def moved(side: int, change) -> FixedActivation:
    """KERNEL with one side's first piece, or the side itself, replaced."""
    sides = list(KERNEL.constants.sides)
    sides[side] = change(sides[side])
    constants = replace(KERNEL.constants, sides=tuple(sides))
    return FixedActivation(KERNEL.activation, KERNEL.in_params, KERNEL.out_params, constants)


def in_piece(**changes):
    return lambda side: replace(side, pieces=(replace(side.pieces[0], **changes(side.pieces[0])),))


def mantissa(name: str, power: int, by: int):
    def change(piece):
        polynomial = getattr(piece, name)
        mantissas = list(polynomial.mantissas)
        mantissas[power] += by
        return {name: replace(polynomial, mantissas=tuple(mantissas))}

    return lambda side: replace(side, pieces=(replace(side.pieces[0], **change(side.pieces[0])),))


def number(name: str, by: int):
    return lambda side: replace(side, pieces=(replace(side.pieces[0], **{name: getattr(side.pieces[0], name) + by}),))


def edge(name: str, by: int):
    return lambda side: replace(side, **{name: getattr(side, name) + by})


INSIDE = [
    (0, mantissa("above", 0, 1)),
    (0, mantissa("above", 1, -1)),
    (0, mantissa("above", 2, 1)),
    (0, mantissa("plus", 0, 1)),
    (0, number("offset", 1)),
    (1, number("slope", 1)),
]


@pytest.mark.parametrize(("side", "change"), INSIDE)
def test_a_constant_moved_inside_its_interval_is_harmless_and_has_another_digest(side, change):
    kernel = moved(side, change)
    np.testing.assert_array_equal(kernel.evaluate(ALL_16, CHECKED), KERNEL(ALL_16))
    assert kernel.digest != KERNEL.digest
    assert kernel.certify().outputs == KERNEL.certify().outputs
    assert kernel.certify().constants != KERNEL.certify().constants


OUTSIDE = [
    (0, mantissa("above", 0, 2), r"the negative side's piece 0: above mantissa 0 is \d+, outside its proven interval"),
    (0, mantissa("above", 1, -2), r"above mantissa 1 is"),
    (0, mantissa("above", 2, 1 << 43), r"above mantissa 2 is"),
    (0, mantissa("plus", 0, -2), r"plus mantissa 0 is"),
    (0, number("offset", 2), r"offset is -?\d+, outside its proven interval"),
    (0, number("offset", -2), r"offset is"),
    (1, number("slope", 2), r"the positive side's piece 0: slope is \d+, outside its proven interval"),
    (1, number("slope", -2), r"slope is"),
    (0, number("affine_bits", 1), r"affine_bits is 44; proven is 43 alone"),
    (0, number("start", 1), r"piece 0: start is 2; proven is 1 alone"),
    (0, number("stop", -1), r"piece 0: stop is \d+; proven is \d+ alone"),
    (0, edge("start", 1), r"the negative side's start is 2, outside its proven interval 1 to 1"),
    (0, edge("stop", -1), r"the negative side's stop is"),
    (0, edge("head", 1), r"head is 1; proven is 0 alone"),
    (1, edge("tail", -1), r"tail is \d+; proven is 32767 alone"),
    (1, lambda side: replace(side, pieces=()), r"forms is \[\]; proven is \['affine'\] alone"),
]


@pytest.mark.parametrize(("side", "change", "message"), OUTSIDE)
def test_a_constant_moved_outside_its_interval_fails_in_the_debug_mode(side, change, message):
    kernel = moved(side, change)
    assert kernel.digest != KERNEL.digest
    with pytest.raises(PromiseError, match=message):
        kernel.evaluate(ALL_16[:10], CHECKED)


def with_reciprocal(monkeypatch, index: int, by: int) -> None:
    table = list(rational.RECIPROCALS)
    table[index] += by
    monkeypatch.setattr(rational, "RECIPROCALS", tuple(table))
    monkeypatch.setattr(rational, "RECIPROCAL_ARRAY", np.array(table))


@pytest.mark.parametrize(("index", "by"), [(0, 30), (0, -30), (31, 20), (63, -10), (63, 10)])
def test_a_reciprocal_moved_inside_its_interval_is_harmless_and_has_another_digest(monkeypatch, index, by):
    before, digest = KERNEL(ALL_16), KERNEL.digest
    with_reciprocal(monkeypatch, index, by)
    np.testing.assert_array_equal(KERNEL.evaluate(ALL_16, CHECKED), before)
    assert KERNEL.digest != digest


@pytest.mark.parametrize(("index", "by"), [(0, 60), (0, -60), (31, 150), (63, -160), (63, 160)])
def test_a_reciprocal_moved_outside_its_interval_fails_in_the_debug_mode(monkeypatch, index, by):
    with_reciprocal(monkeypatch, index, by)
    with pytest.raises(PromiseError, match=rf"reciprocal {index} is \d+, outside its proven interval"):
        KERNEL.evaluate([1], CHECKED)


def test_the_bias_has_an_interval_and_counts_in_the_digest(monkeypatch):
    before, digest = KERNEL(ALL_16), KERNEL.digest
    monkeypatch.setattr(rational, "BIAS", 20_000)
    np.testing.assert_array_equal(KERNEL.evaluate(ALL_16, CHECKED), before)
    assert KERNEL.digest != digest
    monkeypatch.setattr(rational, "BIAS", 5_000)
    with pytest.raises(PromiseError, match=r"the bias is 5000, outside its proven interval 10600 to 54935"):
        KERNEL.evaluate([1], CHECKED)


def test_a_table_in_use_that_is_not_the_table_fails_in_the_debug_mode(monkeypatch):
    monkeypatch.setattr(rational, "RECIPROCAL_ARRAY", np.array(rational.RECIPROCALS[::-1]))
    with pytest.raises(PromiseError, match="the reciprocals in use are not the table"):
        KERNEL.evaluate([1], CHECKED)


def test_a_byte_table_and_the_exceptions_have_one_value_each():
    table = FixedActivation(Activation.gem(1), QFormat(3, 4), QFormat(3, 4))
    changed = replace(table.constants, table=(1, *table.constants.table[1:]))
    with pytest.raises(PromiseError, match=r"the table is \(1, 0, .*; proven is \(0, 0, .* alone"):
        intervals.check(table.activation, table.in_params, table.out_params, changed)
    more = replace(KERNEL.constants, exceptions=((5, 6),))
    with pytest.raises(PromiseError, match=r"the stored exceptions is \(\(5, 6\),\); proven is \(\) alone"):
        intervals.check(KERNEL.activation, KERNEL.in_params, KERNEL.out_params, more)


def test_a_width_that_is_left_is_named_with_its_bound():
    with pytest.raises(PromiseError, match=r"sum is from 3 to 9, outside its proven 0 to 8"):
        CHECKED.watch("sum", np.array([3, 9]), 0, 9)
    assert Arithmetic().watch("sum", np.array([9]), 0, 9) is None
    assert CHECKED.watch("sum", np.array([8]), 0, 9) is None


def test_reciprocals_fill_128_bytes_and_are_good_to_2_to_the_minus_20_7():
    assert len(rational.RECIPROCALS) == 64
    assert all(1 << 15 <= r < 1 << 16 for r in rational.RECIPROCALS)
    edges = [(128 + 2 * i + d) * (1 << 36) - (d == 2) for i in range(64) for d in (0, 1, 2)]
    den = np.concatenate([edges, np.random.default_rng(0).integers(1 << 43, 1 << 44, 20_000)])
    for d, inverse in zip(den.tolist(), reciprocal(den, CHECKED).tolist(), strict=True):
        error = Fraction(inverse * (d >> 12), 1 << 63) - 1
        assert abs(error) <= Fraction(1, 2**20) * Fraction(62, 100)  # 2^-20.69


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
@settings(deadline=None)
def test_a_product_without_long_multiply_has_the_same_bits(a, b):
    got = NARROW.times(np.array([a]), np.array([b]))
    assert int(got[0]) % 2**64 == a * b % 2**64


# Tables, to compare with


def test_the_513_entry_table_misrounds_7092_codes_of_gem():
    table = Table(Activation.gem(1), QFormat(3, 12), QFormat(3, 12), entries=513, interpolation="linear")
    assert (
        np.count_nonzero(table(ALL_16) != FixedActivation(Activation.gem(1), QFormat(3, 12), QFormat(3, 12))(ALL_16))
        == 7092
    )
    assert table.flash_bytes == 1026


@pytest.mark.parametrize(
    ("entries", "interpolation"), [(513, "linear"), (513, "nearest"), (256, "nearest"), (65537, "linear")]
)
def test_a_table_reads_and_interpolates_as_its_definition_says(entries, interpolation):
    in_params = out_params = QFormat(3, 12).params
    activation = Activation.segem(1, 1.0)
    table = Table(activation, in_params, out_params, entries=entries, interpolation=interpolation)
    step = 65536 // (entries - entries % 2)
    for raw, got in zip(ALL_16[::331].tolist(), table(ALL_16[::331]).tolist(), strict=True):
        left = (raw + 32768) // step * step - 32768
        a, b = (one_code(activation, in_params, out_params, r) for r in (left, left + step))
        f = Fraction(raw - left, step)
        if interpolation == "linear":
            assert got == a + oracle.round_half_up((b - a) * f)
        else:
            right_exists = (left + step + 32768) // step < entries
            assert got == (b if f >= Fraction(1, 2) and right_exists else a)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entries": 500}, r"entries=500 must be 2\^k or 2\^k \+ 1, k from 1 to 16"),
        ({"entries": 1}, r"entries=1 must be"),
        ({"entries": 2**17}, r"entries=131072 must be"),
        ({"entries": 512}, r"entries=512: linear interpolation needs the right end, 513 entries"),
        ({"interpolation": "cubic"}, r"interpolation='cubic' must be 'linear' or 'nearest'"),
        ({"in_params": QFormat(3, 28)}, r"a table from Q3.28 to Q3.12; it is for 8 and 16 bits"),
    ],
)
def test_a_table_that_cannot_be_is_refused(changes, message):
    given_ = {"in_params": QFormat(3, 12), "out_params": QFormat(3, 12), "entries": 513, "interpolation": "linear"}
    with pytest.raises(FormatError, match=message):
        Table(Activation.gem(1), **(given_ | changes))

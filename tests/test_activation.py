"""The functions: their facts in exact arithmetic, their float values, their text."""

from fractions import Fraction

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemedge import Activation, ActivationError, Branch, epsilon_from_denominator

FAMILIES = [("gem", n, epsilon) for n in (1, 2, 3, 4) for epsilon in (1.0, 1e-4, 0.01, 10.0)] + [
    ("segem", n, epsilon) for n in (1, 2, 3, 4) for epsilon in (1.0, 1e-4, 0.01, 10.0)
]
POINTS = [Fraction(k, 7) * scale for k in (1, 3, 7, 20, 700) for scale in (Fraction(1, 10**5), Fraction(1, 50), 1, 9)]


def make(family: str, n: int, epsilon: float) -> Activation:
    return Activation.egem(n, epsilon) if family == "gem" else Activation.segem(n, epsilon)


def exact(family: str, n: int, epsilon: float, x: Fraction) -> Fraction:
    function = oracle.gem if family == "gem" else oracle.segem
    return function(n, Fraction(float(np.float32(epsilon))), x)


@pytest.mark.parametrize(("family", "n", "epsilon"), FAMILIES)
def test_exact_value_is_the_definition(family, n, epsilon):
    activation = make(family, n, epsilon)
    for x in [*POINTS, Fraction(0), *(-x for x in POINTS)]:
        assert activation.exact(x) == exact(family, n, epsilon, x)


@pytest.mark.parametrize(("family", "n", "epsilon"), FAMILIES)
def test_smoothness_at_zero_is_two_n_and_no_more(family, n, epsilon):
    scale = Fraction(float(np.float32(epsilon)))
    left = oracle.derivatives(family, n, scale, Fraction(0), 2 * n + 1, right=False)
    right = oracle.derivatives(family, n, scale, Fraction(0), 2 * n + 1, right=True)
    assert left[: 2 * n + 1] == right[: 2 * n + 1]
    assert left[2 * n + 1] != right[2 * n + 1]
    activation = make(family, n, epsilon)
    for order in range(2 * n + 1):
        assert activation.derivative(0.0, order) == pytest.approx(float(right[order]), rel=1e-12)
    with pytest.raises(ActivationError, match=f"different derivatives of order {2 * n + 1} .* side='left' or 'right'"):
        activation.derivative(np.array([1.0, 0.0]), 2 * n + 1)
    assert activation.derivative(0.0, 2 * n + 1, side="left") == pytest.approx(float(left[2 * n + 1]), rel=1e-12)
    assert activation.derivative(0.0, 2 * n + 1, side="right") == pytest.approx(float(right[2 * n + 1]), rel=1e-12)


@pytest.mark.parametrize(("family", "n", "epsilon"), FAMILIES)
def test_distance_to_relu_is_below_epsilon(family, n, epsilon):
    activation = make(family, n, epsilon)
    for x in [*POINTS, Fraction(0), *(-x for x in POINTS)]:
        assert abs(activation.exact(x) - max(x, 0)) < activation.exact_epsilon


@pytest.mark.parametrize(("family", "n", "epsilon"), FAMILIES)
def test_slope_is_that_of_the_definition_and_within_its_bounds(family, n, epsilon):
    activation = make(family, n, epsilon)
    for x in [*POINTS, *(-x for x in POINTS)]:
        exact_x = Fraction(float(x))
        slope = oracle.derivatives(family, n, activation.exact_epsilon, exact_x, 1, right=x > 0)[1]
        assert activation.derivative(float(x)) == pytest.approx(float(slope), rel=1e-12, abs=1e-300)
        if family == "segem":
            assert 0 < slope <= 1
        else:
            assert 0 <= slope <= Fraction((2 * n + 1) ** 2, 8 * n)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_egem_is_gem_at_another_scale(n):
    gem = Activation.gem(n)
    for epsilon in (1e-6, 0.01, 0.7, 30.0):
        egem = Activation.egem(n, epsilon)
        for x in POINTS:
            assert egem.exact(x) == egem.exact_epsilon * gem.exact(x / egem.exact_epsilon)


@pytest.mark.parametrize(("family", "n", "epsilon"), FAMILIES)
def test_higher_derivatives_match_the_definition(family, n, epsilon):
    activation = make(family, n, epsilon)
    for x in (-3.5 * epsilon, -0.2 * epsilon, 0.3 * epsilon, 1.7 * epsilon, 40 * epsilon):
        expected = oracle.derivatives(family, n, activation.exact_epsilon, Fraction(x), 2 * n + 1, right=x > 0)
        for order, slope in enumerate(expected):
            assert activation.derivative(x, order) == pytest.approx(float(slope), rel=1e-6, abs=1e-300)


@pytest.mark.parametrize("family", ["gem", "segem"])
def test_derivatives_of_the_highest_order_are_right_at_a_tiny_epsilon(family):
    activation = make(family, 16, 1e-38)
    for x in (-0.5, -1e-20, -1e-38, 0.0, 1e-39, 1e-38, 1e-37, 3.0):
        expected = oracle.derivatives(family, 16, activation.exact_epsilon, Fraction(x), 33, right=x >= 0)
        for order in (1, 9, 10, 33):
            wanted = expected[order]
            if abs(wanted) > np.finfo(np.float64).max:
                wanted = np.inf if wanted > 0 else -np.inf
            got = activation.derivative(x, order, side="right")
            assert got == pytest.approx(float(wanted), rel=1e-6, abs=1e-300), (x, order)


@pytest.mark.parametrize(("dtype", "ulps"), [(np.float16, 1), (np.float32, 4), (np.float64, 4)])
@pytest.mark.parametrize(("family", "n", "epsilon"), FAMILIES)
def test_float_value_is_within_a_few_ulp(family, n, epsilon, dtype, ulps):
    x = np.concatenate([np.linspace(-4, 4, 41), np.geomspace(1e-4, 60, 30), -np.geomspace(1e-4, 60, 30)]).astype(dtype)
    y = make(family, n, epsilon)(x)
    assert y.dtype == dtype
    for given_x, got in zip(x, y, strict=True):
        wanted = exact(family, n, epsilon, Fraction(float(given_x)))
        limit = ulps * float(np.spacing(dtype(max(abs(float(wanted)), float(np.finfo(dtype).tiny)))))
        assert abs(Fraction(float(got)) - wanted) <= limit * (2 * n + 2), (given_x, got)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 16])
def test_float_edges_are_the_limits(n, dtype):
    largest, denormal = np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal
    x = np.array([0.0, -0.0, denormal, -denormal, largest, -largest, np.inf, -np.inf, np.nan], dtype)
    gem = Activation.gem(n)(x)
    np.testing.assert_array_equal(gem, np.array([0, 0, 0, 0, largest, 0, np.inf, 0, np.nan], dtype))
    segem = Activation.segem(n, 1.0)(x)
    near_zero = -denormal
    np.testing.assert_array_equal(segem, np.array([0, 0, denormal, near_zero, largest, -1, np.inf, -1, np.nan], dtype))


SOFTSIGN = Activation.rational(
    negative=Branch(offset=-1, numerator=(1,), denominator=(1, 1)),
    positive=Branch(offset=1, numerator=(-1,), denominator=(1, 1)),
)


def test_another_rational_function_needs_no_new_code():
    x = np.array([-1e300, -3.0, -1e-20, 0.0, 0.5, 1.0, 7.0, np.inf, -np.inf, np.nan])
    expected = np.array([-1, -0.75, -1e-20, 0, 1 / 3, 0.5, 0.875, 1, -1, np.nan])
    np.testing.assert_allclose(SOFTSIGN(x), expected, rtol=1e-15)
    np.testing.assert_allclose(SOFTSIGN.derivative(x[1:7]), 1 / (1 + np.abs(x[1:7])) ** 2, rtol=1e-14)
    assert (SOFTSIGN.family, SOFTSIGN.n) == ("rational", None)


def test_zero_belongs_to_the_negative_branch_where_the_two_do_not_meet():
    step = Activation.rational(negative=Branch(offset=-1), positive=Branch(offset=1))
    np.testing.assert_array_equal(step(np.array([-2.0, -0.0, 0.0, 5e-324])), [-1, -1, -1, 1])
    assert step.exact(Fraction(0)) == -1


def test_identity_does_not_overflow_at_a_small_epsilon():
    identity = Activation.rational(negative=Branch(slope=-1), positive=Branch(slope=1), epsilon=1e-30)
    x = np.array([1e300, -1e300, 5e-324, 2.0])
    np.testing.assert_array_equal(identity(x), x)


@pytest.mark.parametrize(
    "text",
    ["gem(n=1)", "gem(n=16)", "egem(n=1, epsilon=0.01)", "egem(n=3, epsilon=1e-06)", "segem(n=2, epsilon=1.0)"],
)
def test_text_form_survives_a_round_trip(text):
    activation = Activation.parse(text)
    assert str(activation) == text
    assert Activation.parse(str(activation)) == activation


def test_rational_text_form_survives_a_round_trip():
    odd = Activation.rational(
        negative=Branch(slope=Fraction(-1, 3), numerator=(0, -2.5), denominator=(1, 0, 1)), positive=Branch(slope=1)
    )
    for activation in (SOFTSIGN, odd):
        assert Activation.parse(str(activation)) == activation


def test_recognises_the_family_from_branches():
    assert Activation.parse("egem(2, 1)") == Activation.gem(2)
    assert Activation.parse("gem(2)").family == "gem"
    assert (Activation.segem(3, 0.5).family, Activation.segem(3, 0.5).n) == ("segem", 3)


@given(st.floats(1e-30, 1e30), st.integers(1, 16))
def test_epsilon_is_rounded_once_to_float32(epsilon, n):
    activation = Activation.egem(n, epsilon)
    assert activation.epsilon == float(np.float32(epsilon))
    assert Activation.parse(str(activation)) == activation


def test_epsilon_from_denominator_inverts_the_power():
    assert epsilon_from_denominator(1e-4, 1) == float(np.float32(1e-2))
    assert epsilon_from_denominator(16.0, 2) == 2.0


ONE, POLE = "Branch()", "Branch(denominator=(1, -3, 1))"


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Activation.gem(0), r"n=0 must be a whole number from 1 to 16"),
        (lambda: Activation.gem(-1), r"n=-1 must be"),
        (lambda: Activation.gem(10**6), r"n=1000000 must be"),
        (lambda: Activation.gem(1.5), r"n=1.5 must be"),
        (lambda: Activation.gem(True), r"n=True must be"),
        (lambda: Activation.egem(1, 0.0), r"epsilon=0.0 must be positive and finite in float32"),
        (lambda: Activation.egem(1, -1.0), r"epsilon=-1.0 must be"),
        (lambda: Activation.egem(1, float("nan")), r"epsilon=nan must be"),
        (lambda: Activation.egem(1, float("inf")), r"epsilon=inf must be"),
        (lambda: Activation.egem(1, 1e-60), r"epsilon=1e-60 must be"),
        (lambda: Activation.egem(1, 1e60), r"epsilon=1e\+60 must be"),
        (lambda: Activation.egem(1, "big"), r"epsilon='big' must be"),
        (lambda: Branch(denominator=(1, -3, 1)), r"denominator \[1, -3, 1\] is not positive .* no pole"),
        (lambda: Branch(denominator=(1, -2, 1)), r"is not positive"),
        (lambda: Branch(denominator=(0, 1)), r"is not positive"),
        (lambda: Branch(denominator=(1, 0, -1)), r"is not positive"),
        (lambda: Branch(denominator=()), r"is not positive"),
        (lambda: Branch(numerator=(1, 1), denominator=(1, 1)), r"must have a lower degree"),
        (lambda: Branch(numerator=(1,)), r"must have a lower degree"),
        (lambda: Branch(slope=float("nan")), r"slope=nan is not made of finite numbers"),
        (lambda: Branch(numerator=(float("inf"),), denominator=(1, 1)), r"numerator=\(inf,\) is not made of finite"),
        (lambda: Branch(denominator=[1] * 99), r"degree 64 at most"),
        (lambda: Activation.gem(1).derivative(1.0, -1), r"order=-1 must be a whole number from 0 to 33"),
        (lambda: Activation.gem(1).derivative(1.0, 34), r"order=34 must be"),
        (lambda: Activation.gem(1).derivative(1.0, 1.5), r"order=1.5 must be"),
        (lambda: Activation.gem(1).derivative(1.0, side="up"), r"side='up' must be"),
        (lambda: epsilon_from_denominator(0.0, 1), r"c=0.0 must be positive"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(make_it, message):
    with pytest.raises(ActivationError, match=message):
        make_it()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"activation '': it cannot be read; write for example 'gem\(n=1\)'"),
        ("gelu()", r"'gelu\(\)' is not a number, a list or one of gem, egem"),
        ("gem(n=0)", r"n=0 must be a whole number"),
        ("gem()", r"missing 1 required positional argument"),
        ("gem(n=1) + 1", r"is not a number"),
        ("__import__('os').system('true')", r"is not a number"),
        ("branch()", r"it is no activation"),
        ("gem(" * 400, r"cannot be read"),
        ("gem(n=" + "-" * 1501 + "1)", r"cannot be read|must be"),
        ("g" * 5000, r"5000 characters long"),
        ("gem(n=1, **more)", r"'\*\*more' is no argument"),
        ("gem(n=1, n=2)", r"'n=2' is no argument, or is given twice"),
        ("gem(n=1if 1 else 2)", r"cannot be read|is not a number"),
        ("egem(n=1, epsilon=1/0)", r"it divides by 0; write"),
    ],
)
def test_text_that_is_no_activation_is_refused(text, message):
    with pytest.raises(ActivationError, match=message):
        Activation.parse(text)

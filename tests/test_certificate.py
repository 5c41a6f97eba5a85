"""The certificate: it counts what is wrong, and a stored kernel is checked again from its file alone."""

import json
from fractions import Fraction

import numpy as np
import oracle
import pytest

from gemedge import Activation, Branch, FixedActivation, ModelError, QFormat, QuantParams
from gemedge.certificate import Certificate, certify, inputs_to_check
from gemedge.stored import from_json, to_json
from gemedge.table import Table

Q = QFormat(3, 12)
GEM = Activation.gem(1)
RAW = np.arange(-32768, 32768)
RIGHT = np.array(oracle.codes("gem", 1, Fraction(1), Q.lsb, Q.lsb, 16, range(-32768, 32768)))


def judged(outputs: np.ndarray) -> Certificate:
    return certify(lambda raw: outputs[raw.astype(int) + 32768], GEM, Q.params, Q.params, "made by hand")


def test_right_outputs_are_certified_without_a_fault():
    certificate = judged(RIGHT)
    assert (certificate.checked, certificate.exhaustive, certificate.misrounded) == (65536, True, 0)
    assert certificate.monotonicity_violations == 0
    exact = [GEM.exact(Fraction(r, 4096)) * 4096 for r in range(-32768, 32768)]
    errors = [abs(min(v, 32767) - int(y)) for v, y in zip(exact, RIGHT, strict=True)]
    assert certificate.max_error == float(max(errors))
    assert certificate.worst_raw == errors.index(max(errors)) - 32768
    ideal = np.array([float(v) for v in exact])
    assert certificate.rms_error == pytest.approx(np.sqrt(np.mean((RIGHT - ideal) ** 2)), rel=1e-9)


@pytest.mark.parametrize("raw", [-32768, -1, 0, 1, 4096, 32767])
@pytest.mark.parametrize("by", [-1, 1, 3])
def test_one_wrong_code_is_found_wherever_it_is(raw, by):
    wrong = RIGHT.copy()
    wrong[raw + 32768] += by
    certificate = judged(wrong)
    assert certificate.misrounded == 1
    assert certificate.worst_raw == raw
    assert abs(by) - 0.5 <= certificate.max_error <= abs(by) + 0.5
    assert certificate.outputs != judged(RIGHT).outputs


def test_a_step_down_is_a_monotonicity_violation():
    wrong = RIGHT.copy()
    wrong[32768 + 20_000] = wrong[32768 + 19_999] - 1
    assert judged(wrong).monotonicity_violations == 1


def test_a_table_is_certified_as_a_kernel_is():
    table = Table(GEM, Q, Q, entries=513, interpolation="linear")
    certificate = certify(table, GEM, Q.params, Q.params, "")
    assert certificate.misrounded == 7092
    assert certificate.max_error == pytest.approx(1.47967, abs=1e-5)


@pytest.mark.parametrize("zero_point", [-128, -3, 0, 127])
def test_zero_points_are_part_of_the_exact_side(zero_point):
    params = QuantParams(0.02, zero_point, 8)
    kernel = FixedActivation(Activation.segem(1, 0.3), params, params)
    certificate = kernel.certify()
    assert (certificate.checked, certificate.misrounded) == (256, 0)
    assert certificate.max_error <= 0.5


def test_branches_that_do_not_meet_are_certified():
    kernel = FixedActivation(Activation.rational(negative=Branch(offset=-1), positive=Branch(offset=1)), Q, Q)
    certificate = kernel.certify()
    assert (certificate.misrounded, certificate.max_error, certificate.rms_error) == (0, 0.0, 0.0)
    assert kernel([-5, 0, 5]).tolist() == [-4096, -4096, 4096]


def test_32_bit_input_is_sampled_and_says_so():
    certificate = FixedActivation(GEM, QFormat(3, 28), QFormat(3, 28)).certify()
    assert not certificate.exhaustive
    assert certificate.checked > 50_000
    assert certificate.max_error < 0.626
    assert str(certificate).startswith(f"{certificate.checked:,} inputs of 2^32: ")
    raw = inputs_to_check(QFormat(3, 28).params)
    assert {-(2**31), 2**31 - 1, 0, 1, -1, 2**30, -(2**30) + 1} <= set(raw.tolist())


def test_certificate_reads_as_one_line():
    text = str(FixedActivation(GEM, Q, Q).certify())
    assert text.startswith("all 65,536 inputs: 0 misrounded, largest error 0.499998 LSB at raw 10565, RMS error 0.2036")
    assert "\n" not in text


def test_digest_is_that_of_the_little_endian_outputs():
    import hashlib

    kernel = FixedActivation(GEM, Q, Q)
    assert kernel.certify().outputs == hashlib.sha256(RIGHT.astype("<i2").tobytes()).hexdigest()
    assert kernel.certify().constants == kernel.digest


KERNELS = [
    FixedActivation(GEM, Q, Q),
    FixedActivation(Activation.segem(4, 1e3), QuantParams(3e-5, 0, 16), QuantParams(7e-5, 0, 16)),
    FixedActivation(Activation.segem(2, 0.3), QuantParams(0.03, 5, 8), QuantParams(0.02, -100, 8)),
    FixedActivation(Activation.egem(2, 0.3), QFormat(7, 24), QFormat(3, 12)),
    FixedActivation(GEM, Q, Q).derivative,
]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{str(k.activation)[:20]}-{k.in_params}")
def test_a_stored_kernel_and_its_certificate_come_back_the_same(kernel):
    text = json.dumps(to_json(kernel, kernel.certify()))
    back, certificate = from_json(json.loads(text))
    assert back == kernel
    assert back.certify() == certificate == kernel.certify()


def changed(path: str, value: object) -> dict:
    stored = json.loads(json.dumps(to_json(KERNELS[0], KERNELS[0].certify())))
    *parents, last = path.split(".")
    inner = stored
    for key in parents:
        inner = inner[int(key) if key.isdigit() else key]
    if value is KeyError:
        del inner[last]
    else:
        inner[int(last) if last.isdigit() else last] = value
    return stored


PIECE = "constants.sides.1.pieces.0"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", r"format 'other' version 1 is not a kernel of ours"),
        ("version", 2, r"version 2 is not a kernel of ours"),
        ("activation", KeyError, r"the kernel has no 'activation'"),
        ("activation", 5, r"5 must be text"),
        ("activation", "gem(n=0)", r"n=0 must be a whole number from 1 to 16"),
        ("in", {"scale": 1.0}, r"the kernel is not well formed: .*missing"),
        ("in.bits", 12, r"bits=12 must be 8, 16 or 32"),
        ("in", 5, r"the kernel is not well formed"),
        ("constants", [], r"the kernel is not well formed"),
        ("constants.table", [1, 2], r"a kernel has a table of 256 or two sides, not 2 and 2"),
        ("constants.table", [0] * 300, r"table must be a list of 256 values at most"),
        ("constants.table", [0] * 256, r"not 256 and 2"),
        ("constants.table", "x" * 256, r"table must be a list"),
        ("constants.sides", [], r"not 0 and 0"),
        ("constants.sides.0", 3, r"the kernel is not well formed"),
        ("constants.exceptions", [[1, 2, 3]], r"exception must be a list of 2 values at most"),
        ("constants.exceptions", [[1]], r"an exception is a pair of an input and an output"),
        ("constants.exceptions", [[1, 2]] * 9, r"exceptions must be a list of 8 values at most"),
        ("constants.exceptions", [[1, 2.5]], r"exception=2.5 must be a whole number of 33 bits"),
        (f"{PIECE}.slope", 1 << 62, r"slope=4611686018427387904 must be a whole number of 63 bits"),
        (f"{PIECE}.slope", -(1 << 62) - 1, r"slope=-4611686018427387905 must be"),
        (f"{PIECE}.slope", True, r"slope=True must be a whole number"),
        (f"{PIECE}.wide", 1, r"wide=1 must be true or false"),
        (f"{PIECE}.form", 1, r"1 must be text"),
        (f"{PIECE}.above", 1, r"the kernel is not well formed"),
        (f"{PIECE}.above.mantissas", [1 << 50], r"above=1125899906842624 must be a whole number of 45 bits"),
        (f"{PIECE}.above.exponents", [0] * 201, r"above must be a list of 200 values at most"),
        (f"{PIECE}.above.exponents.0", 1 << 20, r"above=1048576 must be a whole number of 20 bits"),
        ("certificate", {}, r"the kernel is not well formed: .*missing"),
        ("certificate.checked", "many", r"certificate checked='many' must be int"),
        ("certificate.max_error", 1, r"certificate max_error=1 must be float"),
        ("certificate.extra", 1, r"the kernel is not well formed: .*extra"),
    ],
)
def test_a_stored_kernel_that_is_not_well_formed_is_refused(path, value, message):
    with pytest.raises(ModelError, match=message):
        from_json(changed(path, value))

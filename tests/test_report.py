"""What the report finds: shares that sum up, an emulation that is both models, and the spoiled place named first."""

import math
from dataclasses import replace
from functools import cache, partial

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import spoiled
from spoiled import Float, Range
from torch import nn

from gemedge.errors import DataError, ModelError
from gemedge.fixed import Rounding, dequantize
from gemedge.nn import EGEM, GEM
from gemedge.operators import Tensor
from gemedge.quant.attribution import Probe, attribute
from gemedge.quant.calibrate import runner
from gemedge.quant.compare import compare
from gemedge.quant.emulate import ALL, CAUSES, NONE, emulate
from gemedge.quant.quantize import quantize, reals_of
from gemedge.quant.simulate import simulate

GEM_1 = partial(GEM, 1)
SCHEMES = ("int8", "int16x8", "q7", "q15")
BUILD = {"cnn": spoiled.demo_cnn, "resnet20": spoiled.resnet20}
CONV = {"cnn": "4", "resnet20": "0.0"}  # a convolution before an activation
ACTIVATION = {"cnn": "6", "resnet20": "0.2"}
COMPARED = {"cnn": 8, "resnet20": 2}
LOUD = {"cnn": "0", "resnet20": "1.1.conv1"}


@cache
def plain(network, make=GEM_1):
    return Float.of(*BUILD[network](make), COMPARED[network])


@cache
def loud(network):
    """One channel's weights times 100 and the next layer's divided by it, in a ReLU network."""
    module, samples = BUILD[network](nn.ReLU)
    norm, behind = (module[1], module[4]) if network == "cnn" else (module[1][1].norm1, module[1][1].conv2)
    spoiled.louder(norm, behind, 3, 100.0)
    return Float.of(module, samples, COMPARED[network])


each_network = pytest.mark.parametrize("network", ["cnn", pytest.param("resnet20", marks=pytest.mark.long)])
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@each_network
@each_scheme
def test_a_range_cut_to_a_quarter_is_named_first(network, scheme):
    cut = plain(network).ranged(CONV[network], lambda r: Range(r.min / 4, r.max / 4))
    first, *_ = cut.report(cut.quantized(scheme)).advice
    assert (first.layer, first.cause, first.change) == (CONV[network], "saturation", "range")
    low, high = first.range
    whole = plain(network).ranges[cut.tensor(CONV[network])]
    assert low <= whole.min * 0.7
    assert high >= whole.max * 0.7
    assert first.gain > 3


@each_network
@each_scheme
def test_a_channel_100_times_as_loud_is_named_first(network, scheme):
    model = loud(network)
    first, *_ = model.report(model.quantized(scheme)).advice
    assert (first.layer, first.cause, first.change) == (LOUD[network], "rounding", "equalise")
    assert first.text.startswith(f"channel 3 of `{LOUD[network]}` reaches ")


@each_network
@each_scheme
def test_an_epsilon_below_one_lsb_is_named_first(network, scheme):
    half = 128 if scheme in ("int8", "q7") else 32768
    wide = plain(network).ranged(CONV[network], lambda _: Range(-2.0 * half, 2.0 * half - 2))
    first, *_ = wide.report(wide.quantized(scheme)).advice
    assert (first.layer, first.cause, first.change) == (CONV[network], "rounding", "range")
    assert f"epsilon 1 of `{ACTIVATION[network]}` is below one LSB" in first.text


@each_network
def test_a_table_in_place_of_the_kernel_is_named_first(network):
    model = plain(network, partial(EGEM, 1, 0.01))
    table = spoiled.with_table(model.quantized("q15"), ACTIVATION[network])
    first, *_ = model.report(table).advice
    assert (first.layer, first.cause, first.change) == (ACTIVATION[network], "kernel", "kernel")
    assert "from a table of 513 entries: an exact kernel gains" in first.text


def test_a_table_is_not_blamed_where_8_bit_weights_lose_more():
    model = plain("cnn", partial(EGEM, 1, 0.01))
    exact = model.quantized("int16x8")
    reports = [model.report(each) for each in (exact, spoiled.with_table(exact, "6"))]
    assert 0 < reports[0].sqnr - reports[1].sqnr < 0.3
    assert reports[1].advice[0].change == "16-bit weights"


@each_network
@each_scheme
def test_shares_sum_to_the_total_in_both_orders(network, scheme):
    model = plain(network)
    quantized = model.quantized(scheme)
    probe = Probe.of(quantized, reals_of(model.model, quantized), model.inputs)
    raw = simulate(quantized, model.inputs, raw=True)
    integers = {t: dequantize(raw[name], quantized.tensors[t].quantized) for name, t in quantized.outputs.items()}
    found = attribute(probe, integers)
    total = probe.error(lambda _: ALL)
    for shares in (
        [forward for forward, _ in found.causes.values()],
        [reverse for _, reverse in found.causes.values()],
        [share.forward for share in found.layers],
        [share.reverse for share in found.layers],
    ):
        assert sum(shares) == pytest.approx(total, rel=1e-9)
    for share in found.layers:
        if share.causes:
            assert sum(share.causes.values()) == pytest.approx(share.forward, abs=1e-9 * total)
    assert found.noise - found.rescaling == pytest.approx(total)
    # noise is what simulate gives against the float model, by another way
    (name,) = quantized.outputs
    exact = dict(runner(model.model)(model.inputs, 0))[name]
    error = simulate(quantized, model.inputs)[name] - exact
    assert found.noise == pytest.approx(np.square(error).sum() / np.square(exact).sum(), rel=0.01)


@each_network
@each_scheme
def test_emulation_is_the_float_model_and_the_integers(network, scheme):
    model = plain(network)
    quantized = model.quantized(scheme)
    reals = reals_of(model.model, quantized)
    exact = dict(runner(model.model)(model.inputs, 0))
    off = emulate(quantized, reals, model.inputs, lambda _: NONE, keep=list(quantized.tensors))
    for name in set(off) & set(exact):
        scale = np.abs(exact[name]).max()
        np.testing.assert_allclose(off[name], exact[name].reshape(off[name].shape), atol=2e-5 * scale)
    on = emulate(quantized, reals, model.inputs, lambda _: ALL)
    raw = simulate(quantized, model.inputs, raw=True)
    for name, tensor in quantized.outputs.items():
        params = quantized.tensors[tensor].quantized
        steps = np.abs(on[tensor] - dequantize(raw[name], params)) / params.scale
        assert steps.max() <= (2 if params.bits == 8 else 40)
        assert np.median(steps) < (0.01 if params.bits == 8 else 2)


def test_a_relu_is_not_blamed_for_what_it_cuts_on_purpose():
    model = plain("cnn", nn.ReLU)
    quantized = model.quantized("int8")
    relu = quantized.tensors[quantized.layer("0").output]
    assert relu.bounded == "low"
    errors = {error.layer: error for error in compare(model.model, quantized, [model.inputs]).errors}
    values = dict(runner(model.model)(model.inputs, 0))[relu.name]
    assert (values == 0).mean() > 0.1
    assert errors["0"].saturated < 0.001
    unmeant = Tensor(relu.name, relu.shape, relu.params, "none")
    blamed = replace(quantized, tensors={**quantized.tensors, relu.name: unmeant})
    assert {e.layer: e for e in compare(model.model, blamed, [model.inputs]).errors}["0"].saturated > 0.1


def test_an_activation_at_its_lowest_code_is_not_saturated_where_no_float_lies_beyond():
    model = plain("cnn")  # compared on samples that it was calibrated on
    quantized = model.quantized("int8")
    errors = {error.layer: error for error in compare(model.model, quantized, [model.inputs]).errors}
    raw = simulate(quantized, model.inputs, layers=["6"], raw=True)["6"]
    assert (raw == -128).mean() > 0.01
    assert [errors[name].saturated for name in ("2", "6")] == [0.0, 0.0]


def test_the_headline_where_nothing_stands_out_says_so():
    model = plain("cnn")
    found = model.report(model.quantized("q15"))
    assert found.advice == ()
    assert found.headline == "no single change gains 0.1 dB: the error is spread over the network"


def test_labels_count_what_is_right_and_the_worst_sample_is_shown():
    model = plain("cnn")
    quantized = model.quantized("int8")
    (exact,) = [dict(runner(model.model)(model.inputs, 0))[name] for name in quantized.outputs]
    labels = exact.argmax(1).copy()
    labels[:2] = (labels[:2] + 1) % 10
    found = model.report(quantized, labels)
    (ours,) = simulate(quantized, model.inputs).values()
    assert found.classes.float_accuracy == 0.75
    assert found.classes.agreement == (ours.argmax(1) == exact.argmax(1)).mean()
    assert found.classes.accuracy == (ours.argmax(1) == labels).mean()
    ratios = np.square(ours - exact).sum(1) / np.square(exact).sum(1)
    assert found.worst.sample == ratios.argmax()
    assert found.worst.sqnr == pytest.approx(-10 * math.log10(ratios.max()), abs=0.01)
    np.testing.assert_allclose(found.worst.exact, exact[found.worst.sample], rtol=1e-6)
    np.testing.assert_allclose(found.worst.found, ours[found.worst.sample], rtol=1e-6)


@pytest.mark.parametrize("labels", [np.zeros(7, int), np.zeros((8, 1), int), np.zeros((), int)])
def test_labels_of_another_count_are_refused(labels):
    model = plain("cnn")
    with pytest.raises(DataError, match=r"labels of shape .* for 8 samples"):
        model.report(model.quantized("int8"), labels)


def test_labels_that_are_no_whole_numbers_are_refused():
    model = plain("cnn")
    with pytest.raises(DataError, match="labels of type float64; they must be whole numbers"):
        model.report(model.quantized("int8"), np.zeros(8))


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_of_no_class_are_refused(label):
    model = plain("cnn")
    with pytest.raises(DataError, match=rf"label {label} of sample 3; the classes are 0 to 9"):
        model.report(model.quantized("int8"), np.array([0, 1, 2, label, 4, 5, 6, 7]))


@each_scheme
def test_the_integers_of_another_training_are_refused(scheme):
    ours, theirs = plain("cnn"), plain("cnn", partial(EGEM, 1, 1.0))
    quantized = ours.quantized(scheme)
    noted = replace(quantized, notes=("equalised",))
    other = plain("cnn", partial(GEM, 2))
    with pytest.raises(ModelError, match=r"of another network: weights of layer '0'"):
        reals_of(other.model, quantized)
    assert set(reals_of(theirs.model, noted)) == set(reals_of(ours.model, quantized))


def test_causes_are_listed_in_the_order_they_are_switched_off():
    model = plain("cnn")
    assert tuple(model.report(model.quantized("int8")).attribution.causes) == CAUSES


@pytest.mark.parametrize("scheme", ["int8", "q7", "q15"])
def test_a_product_with_a_number_is_emulated_by_that_number(scheme):
    text = """<ir_version: 8, opset_import: ["": 18]>
g (float[batch, 4] x) => (float[batch, 4] z) <float c = {3}, float d = {0.3}> { a = Div(x, c) z = Mul(a, d) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    x = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    ranges = {name: Range(-scale, scale) for name, scale in {"x": 4.0, "a": 4 / 3, "z": 0.4}.items()}
    quantized = quantize(model, ranges, scheme=scheme, rounding=Rounding.SINGLE)
    probe = Probe.of(quantized, reals_of(model, quantized), {"x": x})
    np.testing.assert_allclose(probe.exact["z"], 0.1 * x, rtol=1e-4)

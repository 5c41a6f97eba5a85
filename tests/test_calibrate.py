"""Ranges of a model's tensors, against onnxruntime run by hand; the same whatever runs where and in which order."""

import re
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from gemedge.errors import DataError, GemedgeWarning, ModelError, UnsupportedError, UsageError
from gemedge.quant.batches import inputs_of, open_data
from gemedge.quant.calibrate import calibrate, check_scheduler
from gemedge.quant.choose import Choice
from gemedge.quant.job import Request, calibrate_confined
from gemedge.quant.ranges import Range

RNG = np.random.default_rng(4)
X = RNG.standard_normal((500, 4)).astype(np.float32)


def model(body, inputs="float[batch, 4] x", outputs="float[batch, 2] z", weights="float[4,2] w = {1,2,3,4,5,6,7,8}"):
    text = (
        f'<ir_version: 8, opset_import: ["": 18, "ai.gemedge": 1]>g ({inputs}) => ({outputs}) <{weights}> {{ {body} }}'
    )
    return ir.from_proto(onnx.parser.parse_model(text))


NETWORK = model("h = MatMul(x, w) z = ai.gemedge.GEM<n=2, epsilon=0.5>(h)")


def gem(h):
    r = np.maximum(h, 0)
    with np.errstate(divide="ignore", over="ignore"):
        return r / (1 + (0.5 / r) ** 4)


def batches(size, x=X):
    return [{"x": x[first : first + size]} for first in range(0, len(x), size)]


def test_every_input_and_computed_float_tensor_has_its_range_in_order():
    ranges = calibrate(NETWORK, batches(64))
    assert list(ranges) == ["x", "h", "z"]
    assert (ranges.method, ranges.samples) == ("minmax", 500)
    h = X @ np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float32)
    for name, values in {"x": X, "h": h, "z": gem(h)}.items():
        assert ranges[name].min == pytest.approx(values.min(), rel=1e-6)
        assert ranges[name].max == pytest.approx(values.max(), rel=1e-6)


def test_large_weights_lie_outside_the_graph():
    weights = RNG.standard_normal((4, 300)).astype(np.float32)
    wide = model("z = MatMul(x, w)", outputs="float[batch, 300] z", weights="float[1] unused = {0}")
    value = ir.Value(name="w", const_value=ir.tensor(weights, name="w"))
    wide.graph.node(0).replace_input_with(1, value)
    wide.graph.initializers.add(value)
    assert calibrate(wide, batches(64))["z"].max == pytest.approx((X @ weights).max(), rel=1e-6)


CHOICES = [Choice("minmax"), Choice("percentile", 99), Choice("mse"), Choice("entropy"), Choice("mse", bits=16)]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_ranges_do_not_depend_on_workers_or_the_order_of_batches(choice):
    def made(parts, workers):
        options = {"method": choice.method, "percentile": choice.percentile, "bits": choice.bits}
        return calibrate(NETWORK, parts, workers=workers, **options).to_json()

    reference = made(batches(50), 1)
    shuffled = batches(50)
    RNG.shuffle(shuffled)
    assert all(made(parts, workers) == reference for parts in (shuffled, batches(50)[::-1]) for workers in (1, 2, 7))


SPECIAL = {
    "a constant": ("c = Constant<value_floats=[3.0, -2.0]>() z = Add(x, c)", {"c": Range(-2.0, 3.0)}),
    "integers are skipped": ("s = Shape(x) f = Cast<to=1>(s) g = ReduceMax(f) z = Add(x, g)", {"s": None}),
    "infinity is left out": ("m = Log(a) e = Exp(m) z = Add(x, e)", {"m": Range(0.0, 0.0)}),
    "only infinity": ("o = Sub(a, a) l = Log(o) e = Exp(l) z = Add(x, e)", {"l": None, "e": Range(0.0, 0.0)}),
    "nothing in it": ("n = Compress<axis=0>(x, none) s = ReduceSum<keepdims=0>(n) z = Add(x, s)", {"n": None}),
    "unused output": ("u, v = Split<axis=1, num_outputs=2>(x) z = Concat<axis=1>(v, v)", {"u": Range(1.0, 7.0)}),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_tensors_of_every_kind(kind):
    body, wanted = SPECIAL[kind]
    weights = "float[2] a = {0.0, 1.0}, bool[1] none = {0}"
    given = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
    ranges = calibrate(model(body, "float[batch, 2] x", weights=weights), [given])
    for name, found in wanted.items():
        assert ranges.ranges.get(name) == found


@pytest.mark.parametrize(("onnx_type", "dtype"), [("double", np.float64), ("float16", np.float16)])
def test_other_float_types_have_ranges(onnx_type, dtype):
    square = model("z = Mul(x, x)", f"{onnx_type}[batch, 2] x", f"{onnx_type}[batch, 2] z", "float[1] unused = {0}")
    ranges = calibrate(square, [np.array([[1, -3], [2, 0.5]], dtype)])
    assert dict(ranges.ranges) == {"x": Range(-3.0, 2.0), "z": Range(0.25, 9.0)}


def test_nan_within_the_model_is_named():
    root = model("h = Sqrt(x) z = Relu(h)", outputs="float[batch, 4] z")
    x = np.abs(X)
    x[130, 2] = -1
    with pytest.raises(DataError, match=re.escape("tensor 'h', element [2, 2], is NaN on samples 128 to 191")):
        calibrate(root, batches(64, x), workers=2)


def test_infinity_made_of_finite_numbers_is_named_where_it_first_appears():
    large = model("h = Mul(x, x) g = Neg(h) z = Relu(g)", outputs="float[batch, 4] z")
    x = np.abs(X)
    x[130, 2] = 1e30
    with pytest.raises(DataError, match=re.escape("tensor 'h', element [2, 2], is inf, beyond every float32, on samp")):
        calibrate(large, batches(64, x), workers=2)


MASK = "float[1] low = {-inf}, float[1] zero = {0}, bool[4] hidden = {0, 1, 0, 1}, float[1] one = {1}"


def test_minus_infinity_that_a_mask_brings_is_left_out():
    body = "m = Where(hidden, low, zero) s = Add(x, m) t = Mul(s, one) z = Softmax(t)"
    ranges = calibrate(model(body, outputs="float[batch, 4] z", weights=MASK), batches(64))
    assert ranges["s"] == ranges["t"] == Range(float(X[:, ::2].min()), float(X[:, ::2].max()))


def test_a_mask_that_hides_all_is_named():
    body = "s = Add(x, low) z = Softmax(s)"
    with pytest.raises(DataError, match=re.escape("tensor 'z', element [0, 0], is NaN on samples 0 to 63")):
        calibrate(model(body, outputs="float[batch, 4] z", weights=MASK), batches(64))


def test_another_choice_for_one_tensor():
    whole = calibrate(NETWORK, batches(64))
    name = list(whole)[1]
    cut = calibrate(NETWORK, batches(64), choices={name: Choice("percentile", 90)})
    assert cut[name].width < 0.9 * whole[name].width
    assert {other: cut[other] for other in cut if other != name} == {o: whole[o] for o in whole if o != name}
    assert cut.method == "minmax; another for 1 tensors"


def test_an_index_beyond_a_table_is_named():
    table = model("z = Gather(w, x)", "int64[batch] x", "float[batch, 2] z")
    with pytest.raises(
        DataError, match=r"the model does not run on samples 2 to 3: .*indices element out of data bounds"
    ):
        calibrate(table, [{"x": np.array([0, 3])}, {"x": np.array([0, 4])}])


def test_the_first_bad_batch_is_named_whoever_was_faster():
    x = np.array(X)
    x[[70, 400]] = np.nan
    with pytest.raises(DataError, match="the data: array 'x', sample 70"):
        calibrate(NETWORK, batches(50, x), workers=4)


@pytest.mark.parametrize("given", [[], [X[:0]]], ids=["no batches", "an empty batch"])
def test_no_samples_are_refused(given):
    with pytest.raises(DataError, match=r"no samples|empty"):
        calibrate(NETWORK, given)


def test_one_sample_is_enough():
    assert calibrate(NETWORK, [X[:1]])["x"] == Range(float(X[0].min()), float(X[0].max()))


def test_progress_tells_samples_in_order():
    told = []
    calibrate(NETWORK, batches(200), workers=3, on_progress=told.append)
    assert told == [200, 400, 500]


def test_memory_does_not_grow_with_samples(tmp_path):
    def peak(count):
        np.save(tmp_path / f"{count}.npy", RNG.standard_normal((count, 4)).astype(np.float32))
        data = open_data(tmp_path / f"{count}.npy", inputs_of(NETWORK), batch=512)
        tracemalloc.start()
        assert calibrate(NETWORK, data, workers=2).samples == count
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(5_000)
    assert peak(300_000) < peak(5_000) + 1_500_000  # the data itself is 4,800,000 bytes


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost:8786", "scheduler 'localhost:8786' is not of the form tls://host:port"),
        ("http://x", "is not of the form tls://"),
        ("tls://", "is not of the form tls://"),
    ],
)
def test_an_address_that_is_none_is_refused(address, message):
    with pytest.raises(UsageError, match=message):
        check_scheduler(address)


def test_without_dask_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(UsageError, match=r"a scheduler needs Dask: pip install 'gemedge\[dask\]'"):
        check_scheduler("tls://host:1")


def test_plain_tcp_is_warned_of_and_tls_is_not():
    assert "neither encrypted nor authenticated" in check_scheduler("tcp://host:1")
    assert check_scheduler("tls://host:1") == ""


def tls(folder):
    """A certificate of its own authority, for both sides."""
    from dask.distributed import Security

    if not shutil.which("openssl"):
        pytest.skip("no openssl")
    key, certificate = str(folder / "key.pem"), str(folder / "cert.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    roles = {f"tls_{role}_{part}": path for role in ("client", "scheduler", "worker")
             for part, path in (("cert", certificate), ("key", key))}  # fmt: skip
    return Security(tls_ca_file=certificate, require_encryption=True, **roles)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore:.*neither encrypted")
@pytest.mark.parametrize("protocol", ["tcp", "tls"])
def test_a_dask_cluster_gives_the_same_ranges(tmp_path, protocol):
    import dask
    from dask.distributed import LocalCluster

    security = tls(tmp_path) if protocol == "tls" else None
    names = {f"distributed.comm.tls.{side}.{part}": str(tmp_path / f"{part}.pem")
             for side in ("client",) for part in ("cert", "key")}  # fmt: skip
    config = names | {"distributed.comm.tls.ca-file": str(tmp_path / "cert.pem")} if security else {}
    local = {choice: calibrate(NETWORK, batches(50), method=choice).to_json() for choice in ("minmax", "mse")}
    cluster = LocalCluster(
        n_workers=2, processes=False, protocol=f"{protocol}://", security=security, dashboard_address=None
    )
    with cluster, dask.config.set(config):
        address = cluster.scheduler_address
        assert address.startswith(f"{protocol}://")
        for choice, wanted in local.items():
            assert calibrate(NETWORK, batches(50)[::-1], method=choice, scheduler=address).to_json() == wanted
        with pytest.raises(DataError, match="is NaN on samples 0 to 49"):
            calibrate(model("z = Sqrt(x)", outputs="float[batch, 4] z"), batches(50), scheduler=address)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("gemedge.quant.calibrate._SECONDS_TO_CONNECT", 1)
    with (
        pytest.warns(GemedgeWarning, match="neither encrypted"),
        pytest.raises(UsageError, match=r"scheduler tcp://127\.0\.0\.1:9 does not answer: "),
    ):
        calibrate(NETWORK, batches(50), scheduler="tcp://127.0.0.1:9")


# In a child process


def test_the_child_process_gives_the_same_ranges(tmp_path):
    np.savez(tmp_path / "d.npz", x=X)
    told = []
    request = Request(tmp_path / "d.npz", Choice("mse"), batch=50, workers=2)
    ranges = calibrate_confined(NETWORK, request, told.append)
    assert ranges.to_json() == calibrate(NETWORK, batches(50), method="mse").to_json()
    assert told == list(range(0, 501, 50))


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("z = Sqrt(x)", DataError, "tensor 'z', element .* is NaN on samples 0 to 63"),
        ("z = ai.gemedge.Unknown(x)", UnsupportedError, "onnxruntime cannot load the model"),
    ],
)
def test_errors_come_back_from_the_child(tmp_path, body, kind, message):
    np.save(tmp_path / "d.npy", X)
    with pytest.raises(kind, match=message):
        calibrate_confined(
            model(body, outputs="float[batch, 4] z"), Request(tmp_path / "d.npy", Choice()), lambda _: None
        )


def test_code_that_ends_the_process_is_one_error(tmp_path, monkeypatch):
    name = f"ends_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("import os, signal\ndef data(): os.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="after 0 samples it ended the reading process with SIGSEGV"):
        calibrate_confined(NETWORK, Request(f"{name}:data", Choice()), lambda _: None)

"""The fused onnxruntime kernels: their values bit for bit, their errors, and where the library is kept."""

import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from gemedge import Activation
from gemedge.capture import forms
from gemedge.errors import GemedgeWarning, OutputError
from gemedge.export import run

ONNX_TYPES = {np.float32: "float", np.float16: "float16", np.float64: "double"}
EPSILONS = (1.0, 0.01, 1e-30, 3e5)
BODY_OF_TWICE = """
<domain: "ai.gemedge", opset_import: ["": 18]>
GEM <n, epsilon> (X) => (Y) { Y = Add(X, X) }
"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of these tests' own, so that the kernels are built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Path(os.environ["XDG_CACHE_HOME"], "gemedge")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gemedge"


def model(node: str, onnx_type: str = "float", shape: str = "", functions: str = "") -> bytes:
    header = '<ir_version: 9, opset_import: ["": 18, "ai.gemedge": 1]>'
    text = f"{header} g ({onnx_type}{shape} X) => ({onnx_type}{shape} Y) {{ {node} }} {functions}"
    return onnx.parser.parse_model(text).SerializeToString()


def session(serialized: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options = run.onnxruntime_options(options)
    return onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


def node(activation: Activation) -> str:
    name = {"gem": "GEM", "segem": "SEGEM"}[activation.family]
    return f"Y = ai.gemedge.{name} <n={activation.n}, epsilon={activation.epsilon:.17e}> (X)"


def fused(activation: Activation, x: np.ndarray, threads: int = 1) -> np.ndarray:
    shape = "" if x.ndim == 0 else "[" + ", ".join("abcdef"[: x.ndim]) + "]"
    runner = session(model(node(activation), ONNX_TYPES[x.dtype.type], shape), threads)
    return runner.run(None, {"X": x})[0]


def assert_same_bits(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    unsigned = f"u{got.dtype.itemsize}"
    np.testing.assert_array_equal(np.asarray(got).view(unsigned), np.asarray(wanted).view(unsigned))


def inputs(dtype: type) -> np.ndarray:
    """Edges, the numbers next to them, and random bit patterns, so that every exponent and NaN occurs."""
    info = np.finfo(dtype)
    positive = np.array([0, info.smallest_subnormal, info.tiny, info.eps, 0.5, 1, 2, 1e4, info.max, np.inf], dtype)
    with np.errstate(all="ignore"):
        near = [np.nextafter(positive, dtype(limit)) for limit in (0, np.inf)]
    edges = np.concatenate([positive, *near])
    random = np.random.default_rng(7)
    codes = random.integers(0, 2 ** (8 * info.dtype.itemsize), 20_000, dtype=f"u{info.dtype.itemsize}")
    usual = random.standard_normal(20_001).astype(dtype)
    return np.concatenate([edges, -edges, [dtype(np.nan)], codes.view(dtype), usual]).astype(dtype)


def activations(n: int) -> list[Activation]:
    return [make(n, epsilon) for make in (Activation.egem, Activation.segem) for epsilon in EPSILONS]


# The values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", range(1, 17))
def test_bits_are_those_of_numpy(n, dtype):
    x = inputs(dtype)
    for activation in activations(n):
        assert_same_bits(fused(activation, x), activation(x))


@pytest.mark.parametrize("n", range(1, 17))
def test_bits_are_those_of_numpy_for_every_float16(n):
    x = np.arange(65536, dtype=np.uint16).view(np.float16)
    for activation in activations(n):
        with np.errstate(over="ignore"):
            wanted = activation(x)
        assert_same_bits(fused(activation, x), wanted)


def test_zero_of_either_sign_gives_positive_zero():
    for activation in (Activation.gem(1), Activation.segem(2, 0.5)):
        y = fused(activation, np.array([0.0, -0.0], np.float32))
        np.testing.assert_array_equal(y.view(np.uint32), [0, 0])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_large_tensors_are_whole_with_any_number_of_threads(dtype, threads):
    x = np.random.default_rng(1).standard_normal(3 * 2**15 + 5).astype(dtype)
    for activation in (Activation.gem(2), Activation.segem(1, 0.1)):
        assert_same_bits(fused(activation, x, threads), activation(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize(
    "shape", [(), (1,), (0,), (7,), (3, 5), (2, 0, 4), (2, 3, 4), (2, 3, 1, 5), (1, 2, 3, 2, 2), (2, 1, 3, 2, 1, 17)]
)
def test_any_rank_and_empty_tensors(shape, dtype):
    x = np.random.default_rng(2).standard_normal(shape).astype(dtype).reshape(shape)
    for activation in (Activation.gem(1), Activation.segem(3, 2.0)):
        assert_same_bits(fused(activation, x), activation(x))


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 2**15 - 1, 2**15, 2**15 + 1])
def test_the_ends_of_vectors_blocks_and_chunks_are_computed(size):
    x = np.random.default_rng(size).standard_normal(size)
    for dtype in ONNX_TYPES:
        assert_same_bits(fused(Activation.segem(2, 1.0), x.astype(dtype)), Activation.segem(2, 1.0)(x.astype(dtype)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_types_and_shapes_are_known_behind_the_node_and_its_memory_is_reused(dtype):
    gem, segem = Activation.gem(1), Activation.segem(1, 0.5)
    chain = f"A = Neg(X) {node(gem).replace('(X)', '(A)').replace('Y =', 'B =')} C = Abs(B) D = Neg(C) "
    chain += node(segem).replace("(X)", "(D)")
    x = np.random.default_rng(3).standard_normal((2, 5)).astype(dtype)
    for shape in ("[2, 5]", "[N, 5]", "[N, M]"):
        got = session(model(chain, ONNX_TYPES[dtype], shape)).run(None, {"X": x})[0]
        assert_same_bits(got, segem(-np.abs(gem(-x))))


@pytest.mark.parametrize("shape", ["[2, 5]", "[N, 5]", "[3]"])
def test_output_shape_is_inferred(shape):
    proto = onnx.ModelProto.FromString(model(node(Activation.gem(1)), shape=shape))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    runner = session(proto.SerializeToString())
    assert runner.get_outputs()[0].shape == runner.get_inputs()[0].shape


def test_a_tensor_of_unknown_rank_is_computed():
    proto = onnx.ModelProto.FromString(model(node(Activation.gem(1)), shape="[N]"))
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    x = np.ones((2, 3), np.float32)
    assert_same_bits(session(proto.SerializeToString()).run(None, {"X": x})[0], x / 2)


def test_kernel_wins_over_the_function_body_in_the_model():
    serialized = model(node(Activation.gem(1)), shape="[N]", functions=BODY_OF_TWICE)
    x = np.array([1.0, 3.0], np.float32)
    plain = onnxruntime.InferenceSession(serialized, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(plain.run(None, {"X": x})[0], [2.0, 6.0])
    assert_same_bits(session(serialized).run(None, {"X": x})[0], Activation.gem(1)(x))


@pytest.mark.parametrize("op", ["GEM", "SEGEM"])
@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"n": 0, "epsilon": 1.0}, r"EM: n=0 must be a whole number from 1 to 16"),
        ({"n": 17, "epsilon": 1.0}, r"EM: n=17 must be"),
        ({"n": -1, "epsilon": 1.0}, r"EM: n=-1 must be"),
        ({"n": 2**32 + 1, "epsilon": 1.0}, r"EM: n=4294967297 must be"),
        ({"n": 1, "epsilon": 0.0}, r"EM: epsilon=0 must be positive and finite"),
        ({"n": 1, "epsilon": -2.5}, r"EM: epsilon=-2.5 must be"),
        ({"n": 1, "epsilon": float("inf")}, r"EM: epsilon=inf must be"),
        ({"n": 1, "epsilon": float("nan")}, r"EM: epsilon=-?nan must be"),
        ({"n": 1}, r"EM: attribute epsilon is missing or not a float"),
        ({"epsilon": 1.0}, r"EM: attribute n is missing or not an int"),
        ({"n": 1.0, "epsilon": 1.0}, r"EM: attribute n is missing or not an int"),
        ({"n": 1, "epsilon": 1}, r"EM: attribute epsilon is missing or not a float"),
    ],
)
def test_bad_attributes_are_an_error_when_the_session_is_made(op, attributes, message):
    proto = onnx.ModelProto.FromString(model("Y = Relu(X)", shape="[N]"))
    proto.graph.node[0].CopyFrom(onnx.helper.make_node(op, ["X"], ["Y"], domain="ai.gemedge", **attributes))
    with pytest.raises(Exception, match=message):
        session(proto.SerializeToString())


def test_other_element_types_are_refused():
    with pytest.raises(Exception, match="int32"):
        session(model(node(Activation.gem(1)), "int32", "[N]"))


# The codes of quantized activations: scale and zero point of x, then of y

CODES = np.arange(256, dtype=np.uint8)
FORMATS = {
    "usual": (0.05, 128, 0.03, 3),
    "ties, odd zeros": (0.5, 7, 1.0, 5),
    "ties, even zeros": (0.5, 8, 1.0, 4),
    "fine to coarse": (1e-3, 0, 1.0, 255),
    "beyond both ends": (1.0, 128, 1e-3, 128),
    "only negative": (0.1, 255, 0.01, 255),
    "products that overflow": (3e38, 128, 3e38, 128),
    "subnormal scales": (1e-40, 100, 3e-41, 17),
}


def quantized(
    activation: Activation, numbers, *, body: bool = False, opset: int = 18, rank: int = 1, onnx_type: str = "uint8"
) -> bytes:
    """A model of one quantized activation with these scales and zero points, and its functions where asked for."""
    op = {"gem": "QuantizedGEM", "segem": "QuantizedSEGEM"}[activation.family]
    names = ("x_scale", "x_zero", "y_scale", "y_zero")
    call = f"Y = ai.gemedge.{op} <n={activation.n}, epsilon={activation.epsilon:.17e}> (X, {', '.join(names)})"
    shape = "[" + ", ".join("abcdef"[:rank]) + "]" if rank else ""
    proto = onnx.ModelProto.FromString(model(call, onnx_type, shape))
    for name, number in zip(names, numbers, strict=True):
        kind = np.float32 if name.endswith("scale") else np.dtype(onnx_type)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(number, kind), name))
    proto.opset_import[0].version = opset
    proto.functions.extend(forms.bodies({op}, opset) if body else [])
    return proto.SerializeToString()


def quantized_by_numpy(activation: Activation, x: np.ndarray, numbers) -> np.ndarray:
    x_scale, x_zero, y_scale, y_zero = numbers
    with np.errstate(all="ignore"):
        real = activation((x.astype(np.float32) - np.float32(x_zero)) * np.float32(x_scale))
        return np.clip(np.rint(real / np.float32(y_scale)) + y_zero, 0, 255).astype(np.uint8)


def without_kernel(serialized: bytes, x: np.ndarray, level: onnxruntime.GraphOptimizationLevel) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"]).run(None, {"X": x})[0]


@pytest.mark.parametrize(
    ("name", "opset"), [*((name, 18) for name in FORMATS), *(("ties, odd zeros", opset) for opset in (17, 19, 20, 21))]
)
def test_every_code_is_that_of_the_function_body_without_the_kernel(name, opset):
    numbers, levels = FORMATS[name], onnxruntime.GraphOptimizationLevel
    for n, epsilon in ((1, 1.0), (2, 0.3), (3, 0.01), (16, 2.0)):
        for activation in (Activation.egem(n, epsilon), Activation.segem(n, epsilon)):
            serialized = quantized(activation, numbers, body=True, opset=opset)
            got = session(serialized).run(None, {"X": CODES})[0]
            assert_same_bits(got, quantized_by_numpy(activation, CODES, numbers))
            for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL):
                assert_same_bits(got, without_kernel(serialized, CODES, level))


@pytest.mark.parametrize("name", [name for name in FORMATS if "overflow" not in name])  # of infinity it makes 0
def test_every_code_is_that_of_the_function_body_in_onnxs_own_reference(name):
    for activation in (Activation.egem(2, 0.3), Activation.segem(1, 0.1)):
        proto = onnx.ModelProto.FromString(quantized(activation, FORMATS[name], body=True, opset=21))
        with np.errstate(all="ignore"):
            (wanted,) = ReferenceEvaluator(proto).run(None, {"X": CODES})
        assert_same_bits(session(proto.SerializeToString()).run(None, {"X": CODES})[0], wanted)


@pytest.mark.parametrize("n", range(1, 17))
def test_every_code_is_that_of_numpy(n):
    random = np.random.default_rng(n)
    for activation in activations(n):
        for x_zero, y_zero in random.integers(0, 256, (4, 2)):
            x_scale, y_scale = activation.epsilon * 10 ** random.uniform(-4, 1, 2)
            numbers = (x_scale, x_zero, y_scale, y_zero)
            got = session(quantized(activation, numbers)).run(None, {"X": CODES})[0]
            assert_same_bits(got, quantized_by_numpy(activation, CODES, numbers))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (7,), (2, 0, 4), (2, 3, 1, 5), (3 * 2**15 + 5,), (2, 2**15)])
def test_codes_of_any_shape_are_whole_with_any_number_of_threads(shape, threads):
    x = np.random.default_rng(4).integers(0, 256, shape, np.uint8)
    activation, numbers = Activation.segem(2, 0.5), FORMATS["usual"]
    runner = session(quantized(activation, numbers, rank=len(shape)), threads)
    assert_same_bits(runner.run(None, {"X": x})[0], quantized_by_numpy(activation, x, numbers).reshape(shape))


def test_shape_and_type_are_known_behind_a_quantized_activation():
    proto = onnx.ModelProto.FromString(quantized(Activation.gem(1), FORMATS["usual"], rank=2))
    proto.graph.output[0].type.Clear()
    (output,) = session(proto.SerializeToString()).get_outputs()
    assert (output.type, output.shape) == ("tensor(uint8)", ["a", "b"])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0.0, 0, 1.0, 0), "QuantizedGEM: x_scale=0 must be positive and finite"),
        ((1.0, 0, -0.5, 0), "QuantizedGEM: y_scale=-0.5 must be"),
        ((float("inf"), 0, 1.0, 0), "QuantizedGEM: x_scale=inf must be"),
        ((1.0, 0, float("nan"), 0), "QuantizedGEM: y_scale=-?nan must be"),
        (([1.0, 2.0], 0, 1.0, 0), "QuantizedGEM: x_scale has 2 elements; it must have 1"),
        ((1.0, [], 1.0, 0), "QuantizedGEM: x_zero_point has 0 elements; it must have 1"),
        ((1.0, 0, [[1.0], [2.0], [3.0]], 0), "QuantizedGEM: y_scale has 3 elements; it must have 1"),
        ((1.0, 0, 1.0, [0, 1]), "QuantizedGEM: y_zero_point has 2 elements; it must have 1"),
    ],
)
def test_scales_and_zero_points_that_mean_nothing_are_refused(numbers, message):
    runner = session(quantized(Activation.gem(1), numbers))
    with pytest.raises(Exception, match=f"ai.gemedge::{message}"):
        runner.run(None, {"X": CODES})


def test_a_quantized_activation_takes_its_scales_with_or_without_an_axis():
    activation, numbers = Activation.gem(2), FORMATS["usual"]
    got = session(quantized(activation, [[number] for number in numbers])).run(None, {"X": CODES})[0]
    assert_same_bits(got, quantized_by_numpy(activation, CODES, numbers))


def test_a_quantized_activation_with_a_bad_attribute_is_refused():
    proto = onnx.ModelProto.FromString(quantized(Activation.segem(1, 1.0), FORMATS["usual"]))
    next(attribute for attribute in proto.graph.node[0].attribute if attribute.name == "n").i = 17
    with pytest.raises(Exception, match=r"ai\.gemedge::QuantizedSEGEM: n=17 must be a whole number from 1 to 16"):
        session(proto.SerializeToString())


def test_quantized_activations_of_other_types_are_refused():
    with pytest.raises(Exception, match=r"tensor\(int8\)"):
        session(quantized(Activation.gem(1), (0.05, 0, 1.0, 0), onnx_type="int8"))


# The C file

SOURCE = Path(run.__file__).parent / "onnxruntime_kernel.c"


@pytest.mark.parametrize("level", ["-O0", "-O3"])
def test_source_is_clean_c99(level, tmp_path):
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", level, "-fPIC", "-shared"]
    built = subprocess.run(["cc", *strict, SOURCE, "-o", "kernel.so"], cwd=tmp_path, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")


def test_source_has_no_undefined_behaviour(empty_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "cc -fsanitize=undefined,float-cast-overflow -fsanitize-undefined-trap-on-error")
    assert "undefined" in " ".join(run.compilers()[0].command)
    codes = np.arange(65536, dtype=np.uint16).view(np.float16)
    for x in (inputs(np.float32), inputs(np.float64), codes):
        for activation in (Activation.gem(5), Activation.segem(16, 1.0)):
            assert_same_bits(fused(activation, x), activation(x))
    for numbers in FORMATS.values():
        got = session(quantized(Activation.segem(3, 0.5), numbers)).run(None, {"X": CODES})[0]
        assert_same_bits(got, quantized_by_numpy(Activation.segem(3, 0.5), CODES, numbers))


# Where the library is kept


def compile_count(monkeypatch) -> list[tuple]:
    calls = []
    original = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **named: (calls.append(args), original(*args, **named))[1])
    return calls


def no_zig(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_second_use_does_not_call_the_compiler(empty_cache, monkeypatch):
    calls = compile_count(monkeypatch)
    run.onnxruntime_options()
    assert len(calls) == 1
    (library,) = empty_cache.iterdir()
    assert stat.S_IMODE(empty_cache.stat().st_mode) == 0o700
    run.onnxruntime_options()
    assert len(calls) == 1
    assert list(empty_cache.iterdir()) == [library]


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[:5000] + b"\xcc" * 99 + b[5099:]])
def test_damaged_library_is_built_again(damage, empty_cache, monkeypatch):
    run.onnxruntime_options()
    (library,) = empty_cache.iterdir()
    good = library.read_bytes()
    library.unlink()  # it is mapped: writing into it would change a running library
    library.write_bytes(damage(good))
    calls = compile_count(monkeypatch)
    x = np.ones(3, np.float32)
    assert_same_bits(fused(Activation.gem(1), x), x / 2)
    assert len(calls) == 1
    assert [path.read_bytes() for path in empty_cache.iterdir()] == [good]


def test_several_processes_may_build_at_once(empty_cache):
    script = "from gemedge.export.run import onnxruntime_options; onnxruntime_options()"
    running = [subprocess.Popen([sys.executable, "-W", "error", "-c", script]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    libraries = list(empty_cache.iterdir())
    assert run._find(empty_cache, libraries[0].name.split("-")[0]) in libraries


def kernel_runs() -> bool:
    serialized = model(node(Activation.gem(1)), shape="[N]", functions=BODY_OF_TWICE)
    y = session(serialized).run(None, {"X": np.array([1.0], np.float32)})[0]
    return {0.5: True, 2.0: False}[float(y[0])]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_folder_that_others_can_write_is_not_used(mode, empty_cache):
    empty_cache.mkdir()
    empty_cache.chmod(mode)
    with pytest.warns(GemedgeWarning, match=rf"gemedge can be written by others \(mode {mode:o}; 700 is needed\)"):
        assert kernel_runs()
    assert list(empty_cache.iterdir()) == []


def test_symbolic_link_to_a_folder_that_others_can_write_is_not_used(empty_cache, tmp_path):
    target = tmp_path / "open"
    target.mkdir()
    target.chmod(0o777)
    empty_cache.symlink_to(target)
    with pytest.warns(GemedgeWarning, match="can be written by others"):
        assert kernel_runs()
    assert list(target.iterdir()) == []


def test_folder_below_one_that_anybody_can_write_is_not_used(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.warns(GemedgeWarning, match=f"can be replaced by others, who can write {tmp_path}"):
        assert kernel_runs()
    assert list((tmp_path / "cache" / "gemedge").iterdir()) == []


def test_folder_of_another_user_is_not_used(empty_cache, monkeypatch):
    empty_cache.mkdir(mode=0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.warns(GemedgeWarning, match=f"gemedge belongs to user {owner}, not to {owner + 1}"):
        assert kernel_runs()
    assert list(empty_cache.iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/none", "/dev/null"])
def test_without_a_cache_folder_the_kernel_is_built_for_the_process(place, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    with pytest.warns(GemedgeWarning, match="there is no cache folder.*built for this process only"):
        assert kernel_runs()


def test_without_a_home_the_kernel_is_built_for_the_process(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory")))
    with pytest.warns(GemedgeWarning, match="no cache folder: Could not determine home"):
        assert kernel_runs()


def test_full_disk_is_said_and_the_kernel_is_built_for_the_process(empty_cache, monkeypatch):
    original = run.files.write

    def write(contents, *, force):
        if empty_cache in next(iter(contents)).parents:
            raise OutputError("cannot write kernel: No space left on device")
        original(contents, force=force)

    monkeypatch.setattr(run.files, "write", write)
    with pytest.warns(GemedgeWarning, match="No space left on device; the fused kernels are built for this process"):
        assert kernel_runs()


# Compilers


def one_warning(make) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not make()
    (warning,) = caught
    assert warning.category is GemedgeWarning
    assert "\n" not in str(warning.message)
    return str(warning.message)


def test_without_a_compiler_the_function_body_runs_and_one_line_says_so(empty_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    no_zig(monkeypatch)
    text = one_warning(kernel_runs)
    assert text.startswith("no C compiler: none of $CC, cc, gcc, clang, and no Python package ziglang; the function")


def test_ziglang_serves_where_there_is_no_other_compiler(empty_cache, monkeypatch):
    pytest.importorskip("ziglang")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    x = inputs(np.float32)
    assert_same_bits(fused(Activation.segem(3, 0.5), x), Activation.segem(3, 0.5)(x))
    assert len(list(empty_cache.iterdir())) == 1


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_failing_compiler_is_named_with_its_last_message(empty_cache, tmp_path, monkeypatch):
    failing = program(tmp_path / "oldcc", "echo 'kernel.c:1: error: flux capacitor missing' >&2; exit 7")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CC", f"{failing} -m64")
    no_zig(monkeypatch)
    text = one_warning(kernel_runs)
    assert f"{failing} -m64 failed with status 7: kernel.c:1: error: flux capacitor missing; the function" in text


@pytest.mark.parametrize("script", ["true", "echo text > kernel.so"])
def test_compiler_for_another_machine_is_named(script, empty_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CC", str(program(tmp_path / "crosscc", script)))
    no_zig(monkeypatch)
    assert f"{tmp_path / 'crosscc'} made no library for this machine" in one_warning(kernel_runs)
    assert list(empty_cache.iterdir()) == []


def test_next_compiler_is_tried_after_one_that_fails(empty_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", str(program(tmp_path / "crosscc", "exit 1")))
    assert kernel_runs()


def test_library_that_onnxruntime_refuses_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_kernel_library", lambda: program(tmp_path / "kernel.so", "no library"))
    text = one_warning(kernel_runs)
    assert text.startswith("onnxruntime does not take the fused kernels, the function bodies run instead: ")
    assert "kernel.so" in text


def test_without_a_temporary_folder_the_function_body_runs(empty_cache, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert "No such file or directory: '/nowhere/gemedge-" in one_warning(kernel_runs)


def test_quoting_mistake_in_cc_is_passed_over(empty_cache, monkeypatch):
    monkeypatch.setenv("CC", "'gcc")
    assert kernel_runs()


def test_given_options_are_kept_and_may_be_given_twice():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 3
    assert run.onnxruntime_options(options) is options
    assert options.intra_op_num_threads == 3
    assert run.onnxruntime_options(options) is options
    serialized = model(node(Activation.gem(1)), shape="[N]")
    runner = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    assert_same_bits(runner.run(None, {"X": np.ones(2, np.float32)})[0], np.full(2, 0.5, np.float32))

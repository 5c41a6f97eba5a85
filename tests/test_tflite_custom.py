"""The operator of ours in TensorFlow Lite Micro: C++ that gives the kernel's integers, in stand-in headers of ours."""

import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gemedge.activation import Activation
from gemedge.export import tflite_custom
from gemedge.fixed import QFormat, QuantParams
from gemedge.kernel import FixedActivation

STAND_IN = Path(__file__).with_name("tflm_stand_in")
STRICT = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", "-fsanitize=undefined"]
BYTE, COARSE = QuantParams(0.037, -11, 8), QuantParams(0.05, 4, 8)
KERNELS = {
    "gem at 8 bits": FixedActivation(Activation.gem(1), BYTE, COARSE),
    "se-gem at 8 bits": FixedActivation(Activation.segem(2, 0.3), BYTE, BYTE),
    "8 bits to 16": FixedActivation(Activation.gem(1), BYTE, QuantParams(0.0003, 0, 16)),
    "e-gem at 16 bits": FixedActivation(Activation.egem(2, 0.7), QFormat(3, 12), QuantParams(0.00021, 0, 16)),
    "se-gem at 16 bits": FixedActivation(Activation.segem(1, 0.1), QuantParams(0.0004, 0, 16), QFormat(3, 12)),
    "16 bits to 8": FixedActivation(Activation.gem(1), QFormat(3, 12), COARSE),
}


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> Path:
    """The C++ of all the kernels, as one file's would be, compiled with a program that registers and runs it."""
    folder = tmp_path_factory.mktemp("tflm")
    for name, content in tflite_custom.sources(KERNELS).items():
        (folder / name).write_bytes(content)
    command = ["g++", *STRICT, "-I.", f"-I{STAND_IN}", "gemedge_tflm.cc", str(STAND_IN / "harness.cc"), "-o", "run"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def codes_of(params: QuantParams) -> np.ndarray:
    return np.arange(params.raw_min, params.raw_max + 1).astype(f"<i{params.bits // 8}")


def run(harness: Path, options: bytes, given: QuantParams, made: QuantParams) -> subprocess.CompletedProcess:
    file = harness.with_name("options")
    file.write_bytes(options)
    codes = codes_of(given)
    sides = [f"{x}" for p in (given, made) for x in (p.bits, repr(p.scale), p.zero_point)]
    command = [harness, file, *sides, str(codes.size)]
    return subprocess.run(command, input=codes.tobytes(), capture_output=True, timeout=60)


@pytest.mark.parametrize("name", KERNELS)
def test_the_operator_gives_the_kernels_integers_for_every_code(harness, name):
    kernel = KERNELS[name]
    done = run(harness, tflite_custom.options(kernel), kernel.in_params, kernel.out_params)
    assert done.returncode == 0, done.stderr
    found = np.frombuffer(done.stdout, f"<i{kernel.out_params.bits // 8}")
    np.testing.assert_array_equal(found, kernel(codes_of(kernel.in_params)))


@pytest.mark.parametrize("change", [lambda o: o[:-1], lambda o: o + b"\0", lambda o: o[:-1] + b"?", lambda o: b""])
def test_options_of_another_file_are_refused_when_prepared(harness, change):
    kernel = KERNELS["gem at 8 bits"]
    done = run(harness, change(tflite_custom.options(kernel)), kernel.in_params, kernel.out_params)
    assert done.returncode == 1
    assert b"was written beside another file" in done.stderr


@pytest.mark.parametrize(
    ("given", "made"),
    [(COARSE, COARSE), (BYTE, BYTE), (QuantParams(0.037, 0, 16), COARSE), (QuantParams(0.037, -12, 8), COARSE)],
)
def test_tensors_with_other_parameters_are_refused_when_prepared(harness, given, made):
    done = run(harness, tflite_custom.options(KERNELS["gem at 8 bits"]), given, made)
    assert done.returncode == 1
    assert b"its tensors are not those of its options" in done.stderr


def test_the_options_lie_as_documented():
    kernel = KERNELS["se-gem at 8 bits"]
    content = tflite_custom.options(kernel)
    fields = struct.unpack("<4sIIIffifi8s", content)
    scale = np.float32(0.037)
    assert fields == (b"GEMA", 1, 1, 2, np.float32(0.3), scale, -11, scale, -11, bytes.fromhex(kernel.digest)[:8])
    assert len(content) == 44


def test_equal_options_share_one_kernel():
    twice = {"a": KERNELS["gem at 8 bits"], "b": KERNELS["gem at 8 bits"]}
    assert tflite_custom.sources(twice) == tflite_custom.sources({"a": KERNELS["gem at 8 bits"]})

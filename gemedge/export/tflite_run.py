"""TensorFlow Lite files run by the runtimes that are installed, in a child process: their failures stay there.

LiteRT is that of ai-edge-litert, with XNNPACK where that takes an operator; where only the older tflite-runtime is
installed and works, that one. TensorFlow Lite Micro is the Python interpreter of tflite-micro, a sample at a time.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy as tensors

from gemedge import confined
from gemedge.confined import Blobs, Phase, enter
from gemedge.errors import ModelError, PromiseError, UnsupportedError, reason
from gemedge.export.tflite_writer import INSTALL, schema

Arrays = list[np.ndarray]
_MB = 1 << 20
_ARENAS = (1 << 20, 1 << 24, 1 << 28)
_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Runtime:
    """One that is installed: what it is called, its package and that one's version."""

    name: str
    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


LITERT, OLD, MICRO = "LiteRT", "tflite-runtime", "TensorFlow Lite Micro"
_INSTALLS = {LITERT: INSTALL, MICRO: "pip install tflite-micro"}
_PACKAGES = {LITERT: "ai_edge_litert", OLD: "tflite_runtime", MICRO: "tflite_micro"}


def runtimes() -> list[Runtime]:
    """Those that are installed: LiteRT or the older one, and TensorFlow Lite Micro."""
    found = [runtime for name in _PACKAGES if (runtime := _installed(name)) is not None]
    newer = any(runtime.name == LITERT for runtime in found)
    return [runtime for runtime in found if not (runtime.name == OLD and newer)]


def missing() -> list[tuple[str, str]]:
    """LiteRT and TensorFlow Lite Micro where they are not among `runtimes`, each with what installs it."""
    there = {LITERT if runtime.name == OLD else runtime.name for runtime in runtimes()}
    return [(name, install) for name, install in _INSTALLS.items() if name not in there]


def required() -> list[Runtime]:
    """`runtimes`; UnsupportedError where there is none."""
    found = runtimes()
    if not found:
        raise UnsupportedError(f"no TensorFlow Lite runtime is installed to check the file with: {INSTALL}")
    return found


def _installed(name: str) -> Runtime | None:
    package = _PACKAGES[name]
    if importlib.util.find_spec(package) is None or (name == OLD and int(np.__version__.split(".")[0]) > 1):
        return None  # the older one ends the process with NumPy 2
    try:
        return Runtime(name, package, importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Runtime(name, package, "of unknown version")


def run(runtime: Runtime, content: bytes, inputs: Sequence[np.ndarray], *, dynamic: bool) -> Arrays:
    """The outputs [batch, ...] in the file's order, from its inputs [batch, ...] in the file's order and types.

    dynamic: whether the file's batch may vary; otherwise it takes a sample at a time. UnsupportedError where the
    runtime refuses the file, PromiseError where it crashes or does not end.
    """
    blobs = {"file": content} | {f"input {i}": tensors.save({"x": array}) for i, array in enumerate(inputs)}
    asked = {"runtime": runtime.name, "inputs": len(inputs), "dynamic": dynamic}
    try:
        reply, parts = confined.call("gemedge.export.tflite_run:serve", asked, blobs)
    except ModelError as error:  # what confined makes of a child's death; the model is ours
        raise PromiseError(f"{runtime}: {error}") from error
    return [tensors.load(bytes(parts[f"output {i}"]))["x"] for i in range(reply["outputs"])]


def serve(asked: dict[str, Any], parts: Mapping[str, memoryview]) -> tuple[dict[str, Any], Blobs]:
    """The child's side of run."""
    content = bytes(parts["file"])
    enter(Phase("running", _SECONDS, 4096 * _MB + 8 * len(content)))
    inputs = [tensors.load(bytes(parts[f"input {i}"]))["x"] for i in range(asked["inputs"])]
    outputs = run_here(asked["runtime"], content, inputs, dynamic=asked["dynamic"])
    blobs = {f"output {i}": tensors.save({"x": np.ascontiguousarray(array)}) for i, array in enumerate(outputs)}
    return {"outputs": len(outputs)}, blobs


def run_here(name: str, content: bytes, inputs: Arrays, *, dynamic: bool) -> Arrays:
    """`run` in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    together = dynamic and name != MICRO
    try:
        one = _micro(content) if name == MICRO else _litert(name, content, inputs if together else _sample(inputs, 0))
        if together:
            return one(inputs)
        each = [one(_sample(inputs, sample)) for sample in range(len(inputs[0]))]
    except (RuntimeError, ValueError) as error:
        raise UnsupportedError(f"{name} does not take the file: {reason(error)}") from error
    return [np.concatenate(arrays) for arrays in zip(*each, strict=True)]


def _sample(inputs: Arrays, sample: int) -> Arrays:
    return [array[sample : sample + 1] for array in inputs]


def _litert(name: str, content: bytes, inputs: Arrays) -> Callable[[Arrays], Arrays]:
    made = importlib.import_module(f"{_PACKAGES[name]}.interpreter").Interpreter(model_content=content, num_threads=1)
    for detail, array in zip(made.get_input_details(), inputs, strict=True):
        made.resize_tensor_input(detail["index"], array.shape)
    made.allocate_tensors()

    def one(given: Arrays) -> Arrays:
        for detail, array in zip(made.get_input_details(), given, strict=True):
            made.set_tensor(detail["index"], array)
        made.invoke()
        return [made.get_tensor(detail["index"]) for detail in made.get_output_details()]

    return one


def _micro(content: bytes) -> Callable[[Arrays], Arrays]:
    from tflite_micro import runtime

    outputs = schema().Model.GetRootAs(content).Subgraphs(0).OutputsLength()

    def one(given: Arrays) -> Arrays:
        for index, array in enumerate(given):
            made.set_input(array, index)
        made.invoke()
        return [np.array(made.get_output(index)) for index in range(outputs)]

    for arena in _ARENAS:
        try:
            made = runtime.Interpreter.from_bytes(content, arena_size=arena)
            break
        except RuntimeError as error:
            if arena == _ARENAS[-1]:
                raise UnsupportedError(f"{MICRO} lacks an operator for one of the file's types") from error
    return one

"""The engines that gemedge verify knows: how each is found, and its integers at every layer."""

import importlib.metadata
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gemedge.errors import ToolError, UnsupportedError

if TYPE_CHECKING:
    from gemedge.export.tflite_run import Runtime
    from gemedge.model import QuantizedModel

TARGETS = ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "rv32imc", "avr")
Integers = dict[str, np.ndarray]
Run = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], Integers]


@dataclass(frozen=True, slots=True)
class Engine:
    """run gives the integers of layers by their tensors, from inputs as floats and as integers.

    exact: simulate's integers are promised. alone: a layer is judged by what the engine itself gave it. run raises
    UnsupportedError or ToolError where the engine does not take the model or is not there.
    """

    name: str
    version: str
    exact: bool
    run: Run
    alone: bool = False


def engines(model: "QuantizedModel", name: str, targets: Sequence[str]) -> list[Engine]:
    """All that gemedge can drive; one whose tools are missing says so when it runs."""
    from gemedge.cli.engines import has_our_law
    from gemedge.export.tflite_run import missing, runtimes

    onnxruntime = importlib.metadata.version("onnxruntime")
    found = [Engine("NumPy", f"numpy {np.__version__}", True, partial(_numpy, model))]
    found.append(Engine("C on this machine", _compiler(), True, partial(_host, model, name)))
    found += [
        Engine(f"C on {target}", _cross_compiler(target), True, partial(_emulated, model, name, target))
        for target in targets
    ]
    found.append(
        Engine("ONNX, integer operators", f"onnxruntime {onnxruntime}", True, partial(_onnx, model, "integer"))
    )
    found.append(Engine("ONNX, qdq", f"onnxruntime {onnxruntime}", False, partial(_onnx, model, "qdq"), True))
    for runtime in runtimes():
        exact = has_our_law(model, runtime)
        found.append(Engine(runtime.name, runtime.version, exact, partial(_tflite, model, runtime), True))
    return found + [Engine(name, "", False, partial(_missing, install)) for name, install in missing()]


def _missing(install: str, *_: Mapping[str, np.ndarray]) -> Integers:
    raise UnsupportedError(f"it is not installed: {install}")


def _numpy(model: "QuantizedModel", _: Mapping[str, np.ndarray], integers: Mapping[str, np.ndarray]) -> Integers:
    """simulate on a sample at a time, beside simulate on all of them: no sample may change another's integers."""
    from gemedge.quant.simulate import run

    outputs = [layer.output for layer in model.layers]
    samples = range(len(next(iter(integers.values()))))
    each = [run(model, {name: array[i : i + 1] for name, array in integers.items()}, keep=outputs) for i in samples]
    return {tensor: np.concatenate([sample[tensor] for sample in each]) for tensor in outputs}


def _host(
    model: "QuantizedModel", name: str, _: Mapping[str, np.ndarray], integers: Mapping[str, np.ndarray]
) -> Integers:
    from gemedge.export import folder, host, to_c

    exported = folder.of_model(model, name)
    running = host.Host(model, exported.arena, host.library(exported))
    outputs, layers = running.run(integers, layers=to_c.shown(model), workers=1)
    return {model.layers[layer].output: array for layer, array in layers.items()} | _by_tensor(model, outputs)


def _emulated(
    model: "QuantizedModel", name: str, target: str, _: Mapping[str, np.ndarray], integers: Mapping[str, np.ndarray]
) -> Integers:
    from gemedge.export import folder
    from gemedge.export.device import device
    from gemedge.export.emulated import TooLargeError

    samples = []
    try:
        running = device(folder.of_model(model, name), target)
        for number in range(len(next(iter(integers.values())))):
            one = running.run({name: array[number] for name, array in integers.items()})
            layers = {model.layers[layer].output: array for layer, array in one.layers.items()}
            samples.append(layers | _by_tensor(model, one.outputs))
    except TooLargeError as error:
        raise UnsupportedError(str(error)) from error
    return {tensor: np.stack([sample[tensor] for sample in samples]) for tensor in samples[0]}


def _onnx(
    model: "QuantizedModel", form: str, inputs: Mapping[str, np.ndarray], integers: Mapping[str, np.ndarray]
) -> Integers:
    from gemedge.export.onnx_check import Engine as Running
    from gemedge.export.to_integer_onnx import to_integer_onnx
    from gemedge.export.to_qdq import to_qdq

    content = to_integer_onnx(model) if form == "integer" else to_qdq(model)
    feeds = {name: integers[name] if model.tensors[name].params is None else array for name, array in inputs.items()}
    layers = {layer.name: layer.output for layer in model.layers}
    return {layers[name]: array for name, array in Running(content, model).integers(feeds).items()}


def _tflite(
    model: "QuantizedModel", runtime: "Runtime", _: Mapping[str, np.ndarray], integers: Mapping[str, np.ndarray]
) -> Integers:
    from gemedge.cli.engines import made_in_tflite
    from gemedge.export.to_tflite import to_tflite

    return made_in_tflite(runtime, to_tflite(model, observed=True), integers)


def _by_tensor(model: "QuantizedModel", outputs: Mapping[str, np.ndarray]) -> Integers:
    return {model.outputs[name]: array for name, array in outputs.items()}


def _compiler() -> str:
    """The first line that this machine's compiler says of itself."""
    from gemedge.export.run import compilers

    try:
        return _first_line(compilers()[0].command)
    except (IndexError, ToolError):
        return ""


def _cross_compiler(target: str) -> str:
    return _first_line(["avr-gcc"]) if target == "avr" else _version("ziglang", "zig")


def _first_line(command: Sequence[str]) -> str:
    """The first line that a compiler says of its version; nothing where it is not there."""
    try:
        said = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)  # noqa: S603
        return said.stdout.partition("\n")[0][:60]
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(package: str, shown: str) -> str:
    try:
        return f"{shown} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""

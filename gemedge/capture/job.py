"""What the child process does with a model file: read, trace, run on probes, and hand back data."""

import importlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy as tensors

from gemedge.capture import DEFAULT_OPSET, Captured, InputShape, Source, dynamic_of, packing
from gemedge.capture.inputs import Arrays, check_example, in_rows
from gemedge.confined import Blob, Blobs, Phase, enter, release
from gemedge.errors import DataError, ModelError, UnsupportedError, UsageError, reason

if TYPE_CHECKING:
    from torch import nn

_MB = 1 << 20
_SECONDS_TO_IMPORT = 60  # torch, on a slow machine
_ELEMENTS_A_SECOND = 1 << 14  # of an image in a large convolution, on several probes, not optimised
_UNSAFE = "--trust loads it by running the code it holds"


def request(source: Source, opset: int | None) -> tuple[dict[str, Any], Blobs]:
    """A source in JSON and raw bytes."""
    shapes = [[shape.name, list(shape.dims), shape.dtype] for shape in source.input_shapes]
    asked = {
        "path": os.fsencode(source.path).hex(),
        "arch": source.arch,
        "allow": list(source.allow),
        "trust": source.trust,
        "shapes": shapes,
        "opset": opset,
        "names": list(source.example),
    }
    return asked, {"example": tensors.save({str(i): np.array(a) for i, a in enumerate(source.example.values())})}


def captured(reply: Mapping[str, Any], parts: Mapping[str, memoryview]) -> Captured:
    """What the child's answer says."""
    return Captured(
        packing.unpack(parts["graph"], parts["data"]),
        {name: tensors.load(bytes(parts[f"probe {name}"])) for name in reply["probes"]},
        {name: tensors.load(bytes(parts[f"expected {name}"])) for name in reply["probes"]},
        tuple(reply["notes"]),
    )


def run(asked: dict[str, Any], parts: Mapping[str, memoryview]) -> tuple[dict[str, Any], Blobs]:
    """Capture the file that `asked` names."""
    example = tensors.load(bytes(parts["example"]))
    source = Source(
        Path(os.fsdecode(bytes.fromhex(asked["path"]))),
        asked["arch"],
        tuple(asked["allow"]),
        asked["trust"],
        tuple(InputShape(name, tuple(dims), dtype) for name, dims, dtype in asked["shapes"]),
        {name: example[str(index)] for index, name in enumerate(asked["names"])},
    )
    result = _capture(source, asked["opset"])
    model, probes, expected = result.model, dict(result.probes), dict(result.expected)
    reply = {"probes": list(probes), "notes": list(result.notes)}
    del result  # what is packed is let go: large models have large outputs
    blobs: dict[str, Blob] = {}
    for name in reply["probes"]:
        blobs[f"probe {name}"] = tensors.save(in_rows(probes.pop(name)))
        blobs[f"expected {name}"] = tensors.save(in_rows(expected.pop(name)))
    graph, pieces = packing.pack(model)
    return reply, blobs | {"graph": graph, "data": pieces}


def _capture(source: Source, opset: int | None) -> Captured:
    from gemedge.capture.archive import open_bytes
    from gemedge.capture.kind import kind_of

    data = open_bytes(source.path)
    kind = kind_of(data)
    _enter("reading", source, len(data), 8 + len(data) // (20 * _MB))
    if source.example:
        check_example(source.example, source.input_shapes)
    try:
        return _read(source, kind, data, opset)
    except DataError as error:
        if source.example:
            raise
        raise ModelError(f"{error}; the example was made up, --example gives a real one") from error


def _read(source: Source, kind: Any, data: memoryview, opset: int | None) -> Captured:
    from gemedge.capture.kind import Kind

    if kind is Kind.ONNX:
        return _onnx(source, data, opset)
    notes: list[str] = []
    result = _torch(source, kind, data, opset or DEFAULT_OPSET, notes)
    return Captured(result.model, result.probes, result.expected, (*notes, *result.notes))


def _enter(name: str, source: Source, size: int, seconds: int) -> None:
    """Limits that grow with the file; a file that the user trusts has none worth the name."""
    if source.trust:
        seconds, size = 86_400, 1 << 40
    enter(Phase(name, seconds, 1200 * _MB + 8 * size))


def _enter_torch(source: Source, data: memoryview) -> None:
    """Once our own checks are done: what was refused before took no time, and importing torch may take long."""
    _enter("building", source, len(data), _SECONDS_TO_IMPORT + len(data) // (20 * _MB))


def _onnx(source: Source, data: memoryview, opset: int | None) -> Captured:
    from gemedge.capture import onnx_input

    def enter_reading(size: int) -> None:
        _enter("reading", source, size, 8 + size // (20 * _MB))

    model, original = onnx_input.read(source.path, data, opset, on_size=enter_reading)
    size = original.ByteSize()

    def enter_running(elements: int) -> None:
        """Work grows with the weights and with the input; a loop without end grows with neither."""
        _enter("running", source, size, 8 + size // _MB + elements // _ELEMENTS_A_SECOND)

    return onnx_input.captured(model, original, source.input_shapes, dict(source.example), on_elements=enter_running)


def _torch(source: Source, kind: Any, data: memoryview, opset: int, notes: list[str]) -> Captured:
    from gemedge.capture import archive, pt2
    from gemedge.capture.kind import Kind

    seconds = 300 + len(data) // _MB
    if kind is Kind.PT2:
        program = pt2.load(archive.parse_archive(data), on_checked=lambda: _enter_torch(source, data))
        release(data)
        from gemedge.capture import live

        given = dict(source.example) or live.random_example(program, source.input_shapes)
        _enter("tracing", source, len(data), seconds)
        return live.captured(program, opset, None, given)
    if kind is Kind.TORCHSCRIPT:
        if not source.trust:
            raise ModelError(f"it is {kind.value}, which runs code of its own when it is loaded; {_UNSAFE}")
        notes.append(f"--trust: loaded {kind.value} by running the code it holds")
        arrays = _arrays(source, kind, "float32")
        arrays = {name.replace("#", "input_"): array for name, array in arrays.items()}
        from gemedge.capture import script

        return script.captured(data, arrays, dynamic_of(source.input_shapes, list(arrays)), opset)
    module = _module(source, kind, data, notes)
    from gemedge.capture import live, trace

    wanted = next((str(p.dtype) for p in module.parameters() if p.is_floating_point()), "torch.float32")
    arrays = _arrays(source, kind, wanted.removeprefix("torch."))
    named = all(name and not name.startswith("#") for name in arrays)
    example = live.example_of(module, arrays if named else tuple(arrays.values()))
    dynamic = dynamic_of(source.input_shapes, trace.input_names(module, example))
    _enter("tracing", source, len(data), seconds)
    return live.captured(live.program(module, example, dynamic), opset, dynamic, arrays)


def _arrays(source: Source, kind: Any, dtype: str) -> Arrays:
    """The example, or one of the shapes given; inputs without a name are called #0, #1 ..."""
    if source.example:
        return dict(source.example)
    if not source.input_shapes:
        raise UsageError(f"it is {kind.value}, which does not say its input's shape; give --input-shape or --example")
    names = [shape.name or f"#{index}" for index, shape in enumerate(source.input_shapes)]
    return dict(zip(names, _random(source.input_shapes, dtype), strict=True))


def _random(shapes: tuple[InputShape, ...], dtype: str) -> list[np.ndarray]:
    from gemedge.capture.inputs import random_input

    plain = "float32" if dtype == "bfloat16" else dtype
    return [random_input(shape.sizes(), shape.dtype or plain, seed) for seed, shape in enumerate(shapes)]


def _module(source: Source, kind: Any, data: memoryview, notes: list[str]) -> "nn.Module":
    from gemedge.capture import archive, pickled
    from gemedge.capture.kind import Kind
    from gemedge.capture.tree import ObjectRecord

    if kind not in (Kind.TORCH_ZIP, Kind.LEGACY_PICKLE, Kind.LEGACY_TAR):
        raise ModelError(f"it is {kind.value}; gemedge reads torch.export archives, torch.save files and ONNX models")
    if source.trust and not source.arch:
        return _trusted(data, kind, notes)
    if kind is not Kind.TORCH_ZIP:
        raise UnsupportedError(f"it is {kind.value}; save it again with a torch of today, or {_UNSAFE}")
    records = archive.parse_archive(data).records
    tree = pickled.read(records)
    _enter_torch(source, data)
    from gemedge.capture import rebuild

    if source.arch:
        return _with_state(source.arch, rebuild.state_dict(tree, records))
    if not isinstance(tree, ObjectRecord):
        rebuild.state_dict(tree, records)  # says what it is where it is nothing of use
        raise UsageError("it holds weights without a network; name one with --arch package.module:callable")
    return rebuild.module(tree, records, {name: _named(name, "--allow", ".") for name in source.allow})


def _trusted(data: memoryview, kind: Any, notes: list[str]) -> "nn.Module":
    import torch

    _let_user_modules_in()
    notes.append(f"--trust: loaded {kind.value} by running the code it holds")
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    except Exception as error:
        raise ModelError(f"torch cannot load it: {type(error).__name__}: {reason(error)}") from error
    if not isinstance(loaded, torch.nn.Module):
        raise ModelError(f"it holds a {type(loaded).__name__}, not a module; weights need --arch")
    return loaded


def _with_state(arch: str, state: Mapping[str, Any]) -> "nn.Module":
    from torch import nn
    from torch.nn.parameter import is_lazy

    made = _named(arch, "--arch", ":")
    with _code_of_the_user(f"--arch {arch}: calling it"):
        model = made() if not isinstance(made, nn.Module) else made
    if not isinstance(model, nn.Module):
        raise UsageError(f"--arch {arch} gives a {type(model).__name__}; it must give a torch.nn.Module")
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise UsageError(f"--arch {arch} gives a network with lazy layers; it must say every layer's size")
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise ModelError(f"its weights do not fit {arch}: missing {_some(missing)}; not in the network {_some(extra)}")
    wrong = [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        first = wrong[0]
        raise ModelError(f"weight {first!r} has shape {list(state[first].shape)}; {arch} has {list(own[first].shape)}")
    with _code_of_the_user(f"--arch {arch}: load_state_dict"):
        model.load_state_dict(dict(state))
    return model


def _some(names: list[str]) -> str:
    return (", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "nothing"


def _named(name: str, option: str, separator: str) -> Any:
    """What package.module:callable or package.module.Class names, in the user's own environment."""
    module, _, attribute = name.rpartition(separator)
    if not module or not attribute.isidentifier():
        raise UsageError(f"{option} {name!r} is not of the form package.module{separator}name")
    _let_user_modules_in()
    with _code_of_the_user(f"{option} {name}: importing {module!r}"):
        found = importlib.import_module(module)
    if not hasattr(found, attribute):
        raise UsageError(f"{option} {name}: module {module!r} has no {attribute!r}")
    return getattr(found, attribute)


@contextmanager
def _code_of_the_user(what: str) -> Iterator[None]:
    """Code that the user named and that fails is the user's to mend, not a bug of ours."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UsageError(f"{what} raises {type(error).__name__}: {reason(error)}") from error


def _let_user_modules_in() -> None:
    """The current folder last: what the user names may lie there, and nothing there may pose as a library."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())

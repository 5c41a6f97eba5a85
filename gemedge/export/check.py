"""An exported ONNX model against the original: onnxruntime's outputs beside the original's, on every probe."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import safetensors.numpy as tensors

from gemedge.capture import Captured, forms, packing, schema
from gemedge.capture.inputs import Arrays, in_rows
from gemedge.confined import Blob, Blobs, Phase, enter, release
from gemedge.errors import UnsupportedError, reason

_TOLERANCE = {"f2": 2.0**-6, "f4": 2.0**-13, "f8": 2.0**-40}
_MB = 1 << 20
_BLOCK = 1 << 20  # elements compared at a time, each in a hundred bytes


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one output is from the original's on one probe, at its worst element.

    max_abs: largest absolute error; allowed: the largest that passes, a fraction of the output's largest
    magnitude; max_ulp: largest error in units in the last place, 0 where both are equal or NaN.
    """

    probe: str
    output: str
    max_abs: float
    allowed: float
    max_ulp: int
    index: tuple[int, ...]
    expected: float
    got: float

    @property
    def passes(self) -> bool:
        return self.max_abs <= self.allowed

    def __str__(self) -> str:
        return (
            f"output {self.output!r} on {self.probe}, element {list(self.index)}: {self.got:.9g} instead of"
            f" {self.expected:.9g}, off by {self.max_abs:.3g} ({self.max_ulp} ulp); allowed is {self.allowed:.3g}"
        )


def compare(probe: str, output: str, expected: np.ndarray, got: np.ndarray) -> Difference:
    """The worst element of an output. A NaN or infinity must be the same; integers must be equal."""
    if expected.shape != got.shape:
        raise UnsupportedError(f"output {output!r} on {probe} has shape {got.shape} instead of {expected.shape}")
    tolerance = _TOLERANCE.get(expected.dtype.str[1:], 0.0)
    index, error, magnitude, ulps = 0, 0.0, 0.0, 0
    ours, theirs = expected.reshape(-1), got.reshape(-1)
    for start in range(0, expected.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        errors, largest, furthest = _compared(ours[block], theirs[block])
        if errors.max() > error:
            index, error = start + int(errors.argmax()), float(errors.max())
        magnitude, ulps = max(magnitude, largest), max(ulps, furthest)
    place = tuple(int(i) for i in np.unravel_index(index, expected.shape)) if expected.size else ()
    values = (float(expected[place]), float(got[place])) if expected.size else (0.0, 0.0)
    return Difference(probe, output, error, tolerance * magnitude, ulps, place, *values)


def _compared(expected: np.ndarray, got: np.ndarray) -> tuple[np.ndarray, float, int]:
    """Absolute errors, infinite where NaN or an infinity differs; the largest finite magnitude; the most ulp."""
    wide, other = expected.astype(np.float64), got.astype(np.float64)
    same = (wide == other) | (np.isnan(wide) & np.isnan(other))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(same, 0.0, np.abs(wide - other))
    finite = np.abs(wide[np.isfinite(wide)])
    return np.where(np.isnan(error), np.inf, error), float(finite.max(initial=0.0)), _max_ulp(expected, got, same)


def check(files: Mapping[str, bytes | memoryview], original: Captured) -> list[Difference]:
    """The worst element of every output on every probe, worst first, computed in this process."""
    return _differences(files, ((name, inputs, original.expected[name]) for name, inputs in original.probes.items()))


def _differences(
    files: Mapping[str, bytes | memoryview], probes: Iterable[tuple[str, Arrays, Arrays]]
) -> list[Difference]:
    """probes: for each its name, the inputs, and the outputs to find; taken one at a time, once the session stands."""
    session, _kept_alive = _session(files)
    for content in files.values():
        release(content)  # the session has its own copy
    differences = []
    for probe, inputs, expected in probes:
        for name, got in zip(expected, session.run(list(expected), inputs), strict=True):
            differences.append(compare(probe, name, expected[name], np.asarray(got)))
    return sorted(differences, key=badness, reverse=True)


def check_confined(
    files: Mapping[str, bytes | memoryview], original: Captured, *, trust: bool = False
) -> list[Difference]:
    """`check` in a child process with limits: for models that came from a file."""
    from gemedge import confined

    blobs: dict[str, Blob] = {f"file {name}": content for name, content in files.items()}
    for name in original.probes:
        blobs[f"probe {name}"] = tensors.save(in_rows(original.probes[name]))
        blobs[f"expected {name}"] = tensors.save(in_rows(original.expected[name]))
    asked = {
        "files": list(files),
        "probes": {name: list(outputs) for name, outputs in original.expected.items()},
        "trust": trust,
    }
    reply, _ = confined.call("gemedge.export.check:run", asked, blobs)
    return [Difference(**{**fields, "index": tuple(fields["index"])}) for fields in reply["differences"]]


def run(asked: dict[str, Any], parts: Mapping[str, memoryview]) -> tuple[dict[str, Any], Blobs]:
    """The child's side of check_confined."""
    files = {name: parts[f"file {name}"] for name in asked["files"]}
    size = sum(content.nbytes for content in files.values())
    seconds, memory = (86_400, 1 << 40) if asked["trust"] else (60 + size // _MB, 1200 * _MB + 8 * size)
    enter(Phase("running", seconds, memory))

    def probes() -> Iterator[tuple[str, Arrays, Arrays]]:
        for name, outputs in asked["probes"].items():
            loaded = tensors.load(bytes(parts[f"expected {name}"]))
            yield name, tensors.load(bytes(parts[f"probe {name}"])), {output: loaded[output] for output in outputs}

    differences = _differences(files, probes())
    return {"differences": [asdict(difference) for difference in differences]}, {}


def badness(difference: Difference) -> tuple[bool, float]:
    """By which the worst of differences is found."""
    scale = difference.allowed or 1.0
    return not difference.passes, difference.max_abs / scale


def _session(files: Mapping[str, bytes | memoryview]) -> Any:
    """A session on the files' bytes; nodes that the custom form left alone get their function bodies."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")  # it would keep the weights a second time
    name = list(files)[-1]  # the weights come first
    graph = _runnable(bytes(files[name]))
    kept = packing.runtime_values(graph, memoryview(files[f"{name}.data"])) if f"{name}.data" in files else {}
    options.add_external_initializers(list(kept), list(kept.values()))
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UnsupportedError(f"onnxruntime cannot load the exported model: {reason(error)}") from error
    return session, kept


def _runnable(content: bytes) -> bytes:
    proto = onnx.ModelProto.FromString(content)
    if any(function.domain == schema.DOMAIN for function in proto.functions):
        return content
    import onnx_ir as ir

    model = ir.from_proto(proto)
    if not forms.activation_nodes(model):
        return content
    return ir.to_proto(forms.to_form(model, "function")).SerializeToString()


def _max_ulp(expected: np.ndarray, got: np.ndarray, same: np.ndarray) -> int:
    """Distance in the ordered list of the type's numbers; 0 where `same`, integers by difference."""
    if expected.dtype.kind != "f":
        return int(np.abs(expected.astype(np.float64) - got.astype(np.float64)).max())
    comparable = ~same & np.isfinite(expected) & np.isfinite(got)
    one, two = (_ordered(values[comparable].astype(expected.dtype)) for values in (expected, got))
    return int((np.maximum(one, two).view(np.uint64) - np.minimum(one, two).view(np.uint64)).max(initial=0))


def _ordered(values: np.ndarray) -> np.ndarray:
    """For each float its place, int64, in the ordered list of its type's numbers; both zeros are at 0."""
    bits = values.view(f"i{values.dtype.itemsize}")
    return np.where(bits < 0, np.iinfo(bits.dtype).min - bits.astype(np.int64), bits)

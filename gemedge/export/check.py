"""An exported ONNX model against the original: onnxruntime's outputs beside the original's, on every probe."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import safetensors.numpy as tensors

from gemedge.capture import Captured, forms, packing, schema
from gemedge.capture.inputs import Arrays
from gemedge.confined import Blobs, Phase, enter
from gemedge.errors import UnsupportedError, reason

_TOLERANCE = {"f2": 2.0**-6, "f4": 2.0**-13, "f8": 2.0**-40}
_MB = 1 << 20


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
    if expected.size == 0:
        return Difference(probe, output, 0.0, 0.0, 0, (), 0.0, 0.0)
    wide, other = expected.astype(np.float64), got.astype(np.float64)
    same = (wide == other) | (np.isnan(wide) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(wide - other))
    error = np.where(np.isnan(error), np.inf, error)
    worst = int(np.argmax(error))
    finite = np.abs(wide[np.isfinite(wide)])
    return Difference(
        probe,
        output,
        float(error.flat[worst]),
        tolerance * float(finite.max(initial=0.0)),
        _max_ulp(expected, got, same),
        tuple(int(i) for i in np.unravel_index(worst, expected.shape)),
        float(wide.flat[worst]),
        float(other.flat[worst]),
    )


def check(files: Mapping[str, bytes | memoryview], original: Captured) -> list[Difference]:
    """The worst element of every output on every probe, worst first, computed in this process."""
    session, _kept_alive = _session(files)
    differences = []
    for probe, inputs in original.probes.items():
        names = list(original.expected[probe])
        for name, got in zip(names, session.run(names, inputs), strict=True):
            differences.append(compare(probe, name, original.expected[probe][name], np.asarray(got)))
    return sorted(differences, key=badness, reverse=True)


def check_confined(
    files: Mapping[str, bytes | memoryview], original: Captured, *, trust: bool = False
) -> list[Difference]:
    """`check` in a child process with limits: for models that came from a file."""
    from gemedge import confined

    blobs: dict[str, bytes | memoryview] = {f"file {name}": content for name, content in files.items()}
    for name in original.probes:
        blobs[f"probe {name}"] = tensors.save(_owned(original.probes[name]))
        blobs[f"expected {name}"] = tensors.save(_owned(original.expected[name]))
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
    probes = {name: tensors.load(bytes(parts[f"probe {name}"])) for name in asked["probes"]}
    expected = {}
    for name, outputs in asked["probes"].items():
        loaded = tensors.load(bytes(parts[f"expected {name}"]))
        expected[name] = {output: loaded[output] for output in outputs}
    differences = check(files, Captured(None, probes, expected))  # type: ignore[arg-type]
    return {"differences": [asdict(difference) for difference in differences]}, {}


def _owned(arrays: Arrays) -> Arrays:
    return {name: np.array(array) for name, array in arrays.items()}


def badness(difference: Difference) -> tuple[bool, float]:
    """By which the worst of differences is found."""
    scale = difference.allowed or 1.0
    return not difference.passes, difference.max_abs / scale


def _session(files: Mapping[str, bytes | memoryview]) -> Any:
    """A session on the files' bytes; nodes that the custom form left alone get their function bodies."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
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
        return 0 if same.all() else int(np.abs(expected.astype(np.float64) - got.astype(np.float64)).max())
    width: type = {2: np.int16, 4: np.int32, 8: np.int64}[expected.dtype.itemsize]
    lowest = int(np.iinfo(width).min)

    def ordered(values: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(values.astype(expected.dtype)).view(width).astype(object)
        return np.where(bits < 0, lowest - bits, bits)

    if same.all():
        return 0
    comparable = ~same & np.isfinite(expected) & np.isfinite(got)
    distance = np.abs(ordered(expected[comparable]) - ordered(got[comparable]))
    return int(distance.max(initial=0))

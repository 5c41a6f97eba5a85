"""Work in a child process with limits: a model that came from a file is prepared and runs there, and so does code for
data.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from gemedge import confined, model_file
from gemedge.capture import packing
from gemedge.confined import Blobs, Phase, enter
from gemedge.model import QuantizedModel
from gemedge.quant.batches import inputs_of, open_data
from gemedge.quant.bias_correction import Corrected, correct_biases
from gemedge.quant.calibrate import calibrate
from gemedge.quant.choose import Choice
from gemedge.quant.compare import Comparison, TensorError, compare
from gemedge.quant.prepare import Prepared, prepare
from gemedge.quant.ranges import Ranges

_MB = 1 << 20
_DONE = re.compile(r"after (\d+) samples")
_NUMBERS = ("sqnr", "max_abs", "mean_abs", "cosine", "saturated", "low", "high")
_SECONDS_TO_PREPARE = 120
_SECONDS = 300  # of one worker between two signs of progress


@dataclass(frozen=True, slots=True)
class Request:
    """What to calibrate with, in the words of the command line's options."""

    data: Path
    choice: Choice
    batch: int = 64
    limit: int | None = None
    workers: int | None = None
    scheduler: str = ""
    trust: bool = False
    choices: Mapping[str, Choice] = field(default_factory=dict)


def prepare_confined(model: ir.Model, *, trust: bool = False) -> Prepared:
    """`prepare` in a child process: the graph of a stranger may be large to fold, or made to be."""
    graph, pieces = packing.pack(model)
    blobs: Blobs = {"graph": graph, "data": pieces}
    reply, parts = confined.call("gemedge.quant.job:run_prepare", {"trust": trust}, blobs)
    made = packing.unpack(parts["graph"], parts["data"])
    return Prepared(made, tuple(reply["notes"]), tuple(reply["findings"]))


def run_prepare(asked: dict[str, Any], parts: Mapping[str, memoryview]) -> tuple[dict[str, Any], Blobs]:
    """The child's side of prepare_confined."""
    model = packing.unpack(parts["graph"], parts["data"])
    size = parts["graph"].nbytes + parts["data"].nbytes
    seconds, memory = _SECONDS_TO_PREPARE + size // (10 * _MB), 1200 * _MB + 8 * size
    enter(Phase("preparing", *((86_400, 1 << 40) if asked["trust"] else (seconds, memory))))
    made = prepare(model)
    graph, pieces = packing.pack(made.model)
    blobs: Blobs = {"graph": graph, "data": pieces}
    return {"notes": list(made.notes), "findings": list(made.findings)}, blobs


def calibrate_confined(model: ir.Model, request: Request, on_progress: Callable[[int], None]) -> Ranges:
    """`calibrate` on the data of the request, in a child process."""
    graph, pieces = packing.pack(model)
    choice = request.choice
    asked = {
        "data": os.fsencode(request.data).hex(),
        "batch": request.batch,
        "limit": request.limit,
        "method": choice.method,
        "percentile": choice.percentile,
        "bits": choice.bits,
        "symmetric": choice.symmetric,
        "workers": request.workers,
        "scheduler": request.scheduler,
        "trust": request.trust,
        "choices": {name: astuple(other) for name, other in request.choices.items()},
    }

    def on_phase(name: str) -> None:
        if found := _DONE.fullmatch(name):
            on_progress(int(found[1]))

    reply, _ = confined.call("gemedge.quant.job:run", asked, {"graph": graph, "data": pieces}, on_phase=on_phase)
    return replace(Ranges.from_json(reply["ranges"]), typical=reply["typical"])


def run(asked: dict[str, Any], parts: Mapping[str, memoryview]) -> tuple[dict[str, Any], Blobs]:
    """The child's side of calibrate_confined."""
    model = packing.unpack(parts["graph"], parts["data"])
    seconds = _SECONDS * (asked["workers"] or os.cpu_count() or 1) if not asked["trust"] else 86_400
    enter(Phase("after 0 samples", seconds, _memory() if not asked["trust"] else 1 << 40))
    data = open_data(
        Path(os.fsdecode(bytes.fromhex(asked["data"]))), inputs_of(model), batch=asked["batch"], limit=asked["limit"]
    )
    ranges = calibrate(
        model,
        data,
        method=asked["method"],
        percentile=asked["percentile"],
        bits=asked["bits"],
        symmetric=asked["symmetric"],
        workers=asked["workers"],
        scheduler=asked["scheduler"],
        choices={name: Choice(*other) for name, other in asked["choices"].items()},
        on_progress=lambda done: enter(Phase(f"after {done} samples", seconds, 0)),
    )
    return {"ranges": ranges.to_json(), "typical": dict(ranges.typical)}, {}


def compare_confined(model: ir.Model, quantized: QuantizedModel, request: Request) -> Comparison:
    """`compare` on the data of the request, in a child process."""
    graph, pieces = packing.pack(model)
    asked = {"data": os.fsencode(request.data).hex(), "batch": request.batch, "limit": request.limit}
    blobs: Blobs = {"graph": graph, "data": pieces, "quantized": model_file.save(quantized)}
    reply, found = confined.call("gemedge.quant.job:run_compare", asked | {"trust": request.trust}, blobs)
    heard = [_heard(told, quantized) for told in reply["errors"]]
    sides = [
        {
            name: np.frombuffer(found[f"{side} {index}"], np.float32).reshape(shape)
            for index, (name, shape) in enumerate(reply["outputs"].items())
        }
        for side in ("exact", "found")
    ]
    return Comparison(tuple(heard), *sides)


def run_compare(asked: dict[str, Any], parts: Mapping[str, memoryview]) -> tuple[dict[str, Any], Blobs]:
    """The child's side of compare_confined."""
    model, quantized = packing.unpack(parts["graph"], parts["data"]), model_file.load(parts["quantized"])
    enter(Phase("comparing", 86_400 if asked["trust"] else 600, _memory() if not asked["trust"] else 1 << 40))
    where = Path(os.fsdecode(bytes.fromhex(asked["data"])))
    data = open_data(where, inputs_of(model), batch=asked["batch"], limit=asked["limit"])
    comparison = compare(model, quantized, data)
    told = [_told(error) for error in comparison.errors]
    blobs = {
        f"{side} {index}": np.ascontiguousarray(array).tobytes()
        for side, arrays in (("exact", comparison.exact), ("found", comparison.found))
        for index, array in enumerate(arrays.values())
    }
    return {"errors": told, "outputs": {name: array.shape for name, array in comparison.exact.items()}}, blobs


def _told(error: TensorError) -> dict[str, Any]:
    """As JSON, which has no infinity: numbers as text."""
    numbers = [repr(getattr(error, name)) for name in _NUMBERS]
    counts = {"codes": error.codes, "exact": error.exact, "found": error.found}
    return {"layer": error.layer, "tensor": error.tensor, "numbers": numbers} | counts


def _heard(told: Mapping[str, Any], quantized: QuantizedModel) -> TensorError:
    return TensorError(
        layer=told["layer"],
        tensor=told["tensor"],
        params=quantized.tensors[told["tensor"]].quantized,
        **dict(zip(_NUMBERS, map(float, told["numbers"]), strict=True)),
        codes=told["codes"],
        exact=tuple(told["exact"]),
        found=tuple(told["found"]),
    )


def correct_confined(model: ir.Model, quantized: QuantizedModel, request: Request) -> Corrected:
    """`correct_biases` on the data of the request, in a child process."""
    graph, pieces = packing.pack(model)
    asked = {"data": os.fsencode(request.data).hex(), "batch": request.batch, "limit": request.limit}
    blobs: Blobs = {"graph": graph, "data": pieces, "quantized": model_file.save(quantized)}
    reply, parts = confined.call("gemedge.quant.job:run_correct", asked | {"trust": request.trust}, blobs)
    return Corrected(model_file.load(bytes(parts["quantized"])), reply["layers"])


def run_correct(asked: dict[str, Any], parts: Mapping[str, memoryview]) -> tuple[dict[str, Any], Blobs]:
    """The child's side of correct_confined."""
    model, quantized = packing.unpack(parts["graph"], parts["data"]), model_file.load(parts["quantized"])
    enter(Phase("correcting", 86_400 if asked["trust"] else 600, _memory() if not asked["trust"] else 1 << 40))
    where = Path(os.fsdecode(bytes.fromhex(asked["data"])))
    data = open_data(where, inputs_of(model), batch=asked["batch"], limit=asked["limit"])
    corrected = correct_biases(model, quantized, data)
    return {"layers": corrected.layers}, {"quantized": model_file.save(corrected.model)}


def _memory() -> int:
    """All that the machine has: enough for any batch, and an end before it swaps for hours."""
    return max(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 1200 * _MB)

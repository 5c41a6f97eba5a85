"""gemedge export --format onnx of a quantized model: a .gemq file in, an ONNX file out, compared with simulate."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gemedge.cli import console, inspect_model
from gemedge.errors import PromiseError, about

if TYPE_CHECKING:
    from gemedge.export.onnx_check import Engine, LayerDifference
    from gemedge.model import QuantizedModel

Form = Literal["integer", "qdq"]
_MOST_SAMPLES = 256
_BATCH = 16
_LONGEST_HEADER = 100_000_000


def is_quantized(model: Path) -> bool:
    """Whether the file is a .gemq file, by its header; safetensors files of weights are not."""
    from gemedge.capture.archive import open_bytes
    from gemedge.model_file import FORMAT

    with about(model):
        content = open_bytes(model)
    length = min(int.from_bytes(content[:8], "little"), _LONGEST_HEADER)
    return inspect_model.is_model(bytes(content[:16])) and json.dumps(FORMAT).encode() in bytes(content[8 : 8 + length])


def write(
    model: Path,
    output: Path | None,
    *,
    form: Form,
    opset: int | None,
    raw: bool,
    data: Path | None,
    check: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the ONNX file of a .gemq file, compared with simulate first: PromiseError where the integer form differs.

    data: what both are run on, its first samples, instead of seeded inputs.
    """
    from gemedge import files, model_file
    from gemedge.capture.archive import open_bytes
    from gemedge.export.to_integer_onnx import OPSET, to_integer_onnx
    from gemedge.export.to_qdq import to_qdq

    target = output or model.with_name(f"{model.stem}_{form}.onnx")
    inputs = tuple(path for path in (model, data) if path is not None)
    files.refuse_existing(target, force=force, inputs=inputs)
    differences: list[LayerDifference] = []
    with console.phases(f"gemedge export {model.name}", quiet=quiet or as_json) as on_phase:
        with about(model):
            quantized = model_file.load(open_bytes(model))
        batches = _batches(quantized, data) if check else []
        on_phase("writing")
        with about(model):
            if form == "qdq":
                content = to_qdq(quantized, opset=opset, raw=raw)
            else:
                content = to_integer_onnx(quantized, opset=opset or OPSET, raw=raw)
            if check:
                on_phase("comparing")
                differences = compared(quantized, content, batches, form=form, raw=raw)
        files.write({target: content}, force=force)
    told = {"files": {str(target): len(content)}, "format": "onnx", "form": form, "layers": len(quantized.layers)}
    if as_json:
        console.print_json(told | {"raw": raw, "checked": check, "compared": [_told(d) for d in differences]})
    elif not quiet:
        rows = [("form", _FORMS[form]), ("layers", str(len(quantized.layers)))]
        rows.append(("check", _shown(differences, form) if check else "not compared (--no-check)"))
        console.print_fields([*rows, ("file", f"{target}, {len(content):,} bytes")])


def compared(
    model: "QuantizedModel", content: bytes, batches: Iterable[dict[str, np.ndarray]], *, form: Form, raw: bool
) -> list["LayerDifference"]:
    """How far each layer is from simulate's over all batches. PromiseError where the integer form differs at all."""
    from gemedge.export.onnx_check import Engine, difference, joined
    from gemedge.quant.simulate import border, entered, simulate

    engine = Engine(content, model)
    found: dict[str, LayerDifference] = {}
    for given in batches:
        inputs = border(model, given)
        integers = entered(model, inputs, Counter())
        feeds = {name: integers[name] if raw or model.tensors[name].params is None else inputs[name] for name in inputs}
        expected = simulate(model, given, layers=[layer.name for layer in model.layers], raw=True)
        for name, array in engine.integers(feeds).items():
            one = difference(name, expected[name], array)
            found[name] = joined(found[name], one) if name in found else one
            if form == "integer" and one.differing:
                raise PromiseError(f"the exported model differs from simulate: {one}")
        if form == "integer":
            _check_outputs(model, engine, given, feeds, raw=raw)
    return list(found.values())


def _check_outputs(
    model: "QuantizedModel",
    engine: "Engine",
    given: dict[str, np.ndarray],
    feeds: dict[str, np.ndarray],
    *,
    raw: bool,
) -> None:
    from gemedge.quant.simulate import simulate

    expected = simulate(model, given, raw=raw)
    for name, array in engine.outputs(feeds).items():
        if array.dtype != expected[name].dtype or not np.array_equal(array, expected[name]):
            raise PromiseError(f"the exported model's output {name!r} differs from simulate's")


def _batches(model: "QuantizedModel", data: Path | None) -> Iterable[dict[str, np.ndarray]]:
    from gemedge.probes import probes
    from gemedge.quant.batches import Input, open_data

    if data is None:
        return [probes(model)]
    tensors = [model.tensors[name] for name in model.inputs]
    kinds = [np.dtype(np.float32 if tensor.params else np.int64) for tensor in tensors]
    inputs = tuple(Input(t.name, (None, *t.shape), kind) for t, kind in zip(tensors, kinds, strict=True))
    return open_data(data, inputs, batch=_BATCH, limit=_MOST_SAMPLES)


_FORMS = {
    "integer": "integer: simulate's integers at every layer",
    "qdq": "qdq: near simulate's integers, rounded as the runtime does",
}


def _shown(differences: list["LayerDifference"], form: Form) -> str:
    total = sum(difference.numbers for difference in differences)
    if form == "integer":
        return f"0 of {total:,} integers differ from simulate's in onnxruntime"
    worst = max(differences, key=lambda d: (d.largest, d.share), default=None)
    if worst is None or not worst.differing:
        return f"0 of {total:,} integers differed from simulate's in this onnxruntime"
    share = sum(difference.differing for difference in differences) / total
    return f"{share:.2%} of {total:,} integers differ from simulate's in this onnxruntime; the worst: {worst}"


def _told(difference: "LayerDifference") -> dict[str, Any]:
    return {
        "layer": difference.layer,
        "max_lsb": difference.largest,
        "differing": difference.differing,
        "numbers": difference.numbers,
    }

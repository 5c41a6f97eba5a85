"""gemedge export of a float model: a checked ONNX or TensorFlow Lite file."""

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemedge.cli import console, export_tflite
from gemedge.errors import about

if TYPE_CHECKING:
    from gemedge.capture import Captured, Source
    from gemedge.export import Exported, Format

_TYPE_NAMES = {"FLOAT": "float32", "DOUBLE": "float64"}


def write(
    source: "Source",
    output: Path | None,
    format_: "Format",
    gem: str | None,
    *,
    opset: int | None,
    inputs: tuple[Path, ...],
    external_data: bool,
    check: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a float model, compared with the original before the file appears. inputs: files not to replace."""
    from gemedge import files
    from gemedge.capture import capture
    from gemedge.capture.archive import open_bytes
    from gemedge.export import OPSET_OF_TFLITE, export_checked

    model = source.path
    with about(model):
        open_bytes(model)  # before the output's place is judged, and in no time
    target = output or model.with_suffix(f".{format_}")
    targets = [target.with_name(f"{target.name}.data"), target] if external_data else [target]
    for path in targets:
        files.refuse_existing(path, force=force, inputs=inputs)
    with ExitStack() as stack:
        on_phase = stack.enter_context(console.phases(f"gemedge export {model.name}", quiet=quiet or as_json))
        captured = capture(source, opset=OPSET_OF_TFLITE if format_ == "tflite" else opset, on_phase=on_phase)
        for remark in captured.notes:
            console.note(remark, quiet=quiet)
        with about(model):
            exported = export_checked(
                captured,
                format_,
                gem=gem,
                external_data=external_data,
                name=target.name,
                check=check,
                confined=True,
                trust=source.trust,
                on_phase=on_phase,
            )
        contents = {target.with_name(name): content for name, content in exported.files.items()}
        files.write(contents, force=force)
    form = gem or {"onnx": "function", "tflite": "float"}[format_]
    if as_json:
        console.print_json(_summary(exported, list(contents), form, format_))
    elif not quiet:
        _print(exported, target, form)


def _summary(exported: "Exported", paths: list[Path], gem: str, format_: str) -> dict[str, Any]:
    captured = exported.captured
    return {
        "files": {str(path): len(exported.files[path.name]) for path in paths},
        "format": format_,
        "gem": gem,
        **_borders(exported),
        "activations": [{"node": node, "activation": text} for node, text in _activations(captured)],
        "notes": list(captured.notes),
        "compared": [
            {
                "probe": difference.probe,
                "output": difference.output,
                "max_abs": difference.max_abs,
                "allowed": difference.allowed,
                "max_ulp": difference.max_ulp,
                "index": list(difference.index),
            }
            for difference in exported.differences
        ],
    }


def _borders(exported: "Exported") -> dict[str, Any]:
    graph = exported.captured.model.graph
    if exported.written is not None:
        return export_tflite.borders(exported.written)
    sides = {"inputs": _values(graph.inputs), "outputs": _values(graph.outputs)}
    return {"opset": graph.opset_imports[""], **sides}


def _print(exported: "Exported", target: Path, gem: str) -> None:
    captured = exported.captured
    graph = captured.model.graph
    counts = Counter(text for _, text in _activations(captured))
    if exported.written is not None:
        rows = export_tflite.border_rows(exported.written)
    else:
        rows = [("input", _shown(value)) for value in _values(graph.inputs)]
        rows += [("output", _shown(value)) for value in _values(graph.outputs)]
    rows.append(("activations", ", ".join(f"{count} x {text}" for text, count in counts.items()) or "none of GEM's"))
    rows.append(("form", gem if exported.written is not None else f"{gem}, opset {graph.opset_imports['']}"))
    rows += [("file", f"{target.with_name(name)}, {len(content):,} bytes") for name, content in exported.files.items()]
    if exported.differences:
        worst = exported.differences[0]
        probes = len(captured.probes)
        rows.append(("error", f"{worst.max_abs:.3g} ({worst.max_ulp} ulp) at most, {worst.allowed:.3g} allowed"))
        rows.append(
            ("", f"found on {worst.probe}, output {worst.output}{list(worst.index)}; {probes} sets of inputs compared")
        )
    else:
        rows.append(("error", "not compared (--no-check)"))
    console.print_fields(rows)


def _activations(captured: "Captured") -> list[tuple[str, str]]:
    from gemedge.capture import forms, schema

    return [(node.name or "", str(schema.activation_of(node))) for node in forms.activation_nodes(captured.model)]


def _values(values: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": value.name,
            "type": _TYPE_NAMES.get(value.dtype.name, value.dtype.name.lower())
            if value.dtype is not None
            else "unknown",
            "shape": [size if isinstance(size, int) else str(size.value or "?") for size in value.shape or ()],
        }
        for value in values
    ]


def _shown(value: dict[str, Any]) -> str:
    return f"{value['name']}: {value['type']} [{', '.join(map(str, value['shape']))}]"

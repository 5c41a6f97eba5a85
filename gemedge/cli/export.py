"""gemedge export: a model file in, a checked ONNX or TensorFlow Lite file out; or a quantized model in, C out."""

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from gemedge.cli import console, export_c, export_tflite, options
from gemedge.errors import UsageError, about

if TYPE_CHECKING:
    from gemedge.capture import Captured
    from gemedge.export import Exported, Format

_EVERYWHERE = ("model", "format_", "output", "force", "as_json", "quiet")
_OF_TFLITE = (*_EVERYWHERE, "gem", "no_check")
_FORMS = {"onnx": ("function", "primitive", "custom"), "tflite": ("table", "float", "custom")}
_TYPE_NAMES = {"FLOAT": "float32", "DOUBLE": "float64"}


@click.command("export", short_help="Write a model as ONNX or TensorFlow Lite, checked, or as C.")
@click.option("--format", "format_", type=click.Choice(["onnx", "tflite", "c"]), default="onnx", show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, readable=False),
    help="The file to write; of C, the folder.  [default: MODEL with .onnx, .tflite or _c]",
)
@click.option(
    "--gem",
    type=click.Choice(["function", "primitive", "custom", "table", "float"]),
    help="An activation in ONNX: a node with a function body (the default), standard operators, or the node alone;"
    " in TensorFlow Lite: a table, float operators, or one operator whose kernel is written beside the file."
    "  [default: table at 8 bits, float at 16]",
)
@click.option("--opset", type=click.IntRange(17, 23), help="ONNX opset.  [default: 18; an ONNX file's own]")
@options.model_options
@click.option("--external-data", is_flag=True, help="Put the weights into a file beside the model.")
@click.option("--no-check", is_flag=True, help="Do not compare with the original.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    model: Path,
    format_: str,
    output: Path | None,
    gem: str | None,
    opset: int | None,
    shapes: tuple[str, ...],
    example: Path | None,
    arch: str,
    allow: tuple[str, ...],
    trust: bool,
    external_data: bool,
    no_check: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write MODEL as ONNX, compared with the original before the file appears.

    MODEL is a torch.export archive (gemedge.nn.save writes one), a torch.save file of a module or of weights,
    a TorchScript archive, or an ONNX file; its bytes tell which. No code of it runs unless --trust is given.

    With --format c, MODEL is a .gemq file and the output a folder: C99 sources that give simulate's integers.
    With --format tflite, MODEL is any of these, and the file runs in LiteRT and TensorFlow Lite Micro.
    """
    if format_ == "c":
        _refuse_others(format_, _EVERYWHERE)
        export_c.write(model, output, force=force, as_json=as_json, quiet=quiet)
        return
    if gem is not None and gem not in _FORMS[format_]:
        raise UsageError(f"--gem {gem} is not for --format {format_}; that takes {', '.join(_FORMS[format_])}")
    if format_ == "tflite" and export_tflite.is_quantized(model):
        _refuse_others("tflite of a quantized model", _OF_TFLITE)
        export_tflite.write(model, output, gem, check=not no_check, force=force, as_json=as_json, quiet=quiet)
        return
    from gemedge import files
    from gemedge.capture import capture
    from gemedge.capture.archive import open_bytes
    from gemedge.export import OPSET_OF_TFLITE, export_checked

    if format_ == "tflite":
        _refuse_others("tflite", (*_OF_TFLITE, "shapes", "example", "arch", "allow", "trust"))
        if gem not in (None, "float"):
            raise UsageError(f"--gem {gem} is for quantized models; a float model takes float")
        opset = OPSET_OF_TFLITE

    with about(model):
        open_bytes(model)  # before the output's place is judged, and in no time
    target = output or model.with_suffix(f".{format_}")
    inputs = tuple(path for path in (model, example) if path is not None)
    targets = [target.with_name(f"{target.name}.data"), target] if external_data else [target]
    for path in targets:
        files.refuse_existing(path, force=force, inputs=inputs)
    source = options.source(model, shapes, example, arch, allow, trust)
    with ExitStack() as stack:
        on_phase = stack.enter_context(console.phases(f"gemedge export {model.name}", quiet=quiet or as_json))
        captured = capture(source, opset=opset, on_phase=on_phase)
        for remark in captured.notes:
            console.note(remark, quiet=quiet)
        with about(model):
            exported = export_checked(
                captured,
                cast("Format", format_),
                gem=gem,
                external_data=external_data,
                name=target.name,
                check=not no_check,
                confined=True,
                trust=trust,
                on_phase=on_phase,
            )
        contents = {target.with_name(name): content for name, content in exported.files.items()}
        files.write(contents, force=force)
    form = gem or {"onnx": "function", "tflite": "float"}[format_]
    if as_json:
        console.print_json(_summary(exported, list(contents), form, format_))
    elif not quiet:
        _print(exported, target, form)


def _refuse_others(what: str, allowed: tuple[str, ...]) -> None:
    """UsageError for an option given on the command line that is not one of these."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        if given and parameter.name not in allowed:
            raise UsageError(f"{parameter.opts[0]} is not for --format {what}")


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

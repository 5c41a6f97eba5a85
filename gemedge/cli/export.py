"""gemedge export: a model file in, a checked ONNX file out; or a quantized model in, C out."""

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from gemedge.cli import console, export_c, options
from gemedge.errors import UsageError, about

if TYPE_CHECKING:
    from gemedge.capture import Captured
    from gemedge.export import Exported
    from gemedge.export.c_activations import Choice

_OF_C = ("model", "format_", "output", "activation", "force", "as_json", "quiet")
_TYPE_NAMES = {"FLOAT": "float32", "DOUBLE": "float64"}


@click.command("export", short_help="Write a model as ONNX, checked against the original, or as C.")
@click.option("--format", "format_", type=click.Choice(["onnx", "c"]), default="onnx", show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, readable=False),
    help="The file to write; of C, the folder.  [default: MODEL with .onnx, or with _c]",
)
@click.option(
    "--gem",
    type=click.Choice(["function", "primitive", "custom"]),
    default="function",
    show_default=True,
    help="An activation as a node with a function body, as standard operators, or as the node alone.",
)
@click.option(
    "--activation",
    type=click.Choice(["auto", "reciprocal", "table"]),
    default="auto",
    show_default=True,
    help="C: how 16-bit activations are computed, all exactly; 8-bit ones are always tables of 256 entries.",
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
    gem: str,
    activation: "Choice",
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
    """
    if format_ == "c":
        _refuse_options_of_onnx()
        export_c.write(model, output, activation, force=force, as_json=as_json, quiet=quiet)
        return
    if _is_given("activation"):
        raise UsageError("--activation is for --format c")
    from gemedge import files
    from gemedge.capture import capture
    from gemedge.capture.archive import open_bytes
    from gemedge.export import export_checked

    with about(model):
        open_bytes(model)  # before the output's place is judged, and in no time
    target = output or model.with_suffix(".onnx")
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
                "onnx",
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
    if as_json:
        console.print_json(_summary(exported, list(contents), gem, format_))
    elif not quiet:
        _print(exported, target, gem)


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _refuse_options_of_onnx() -> None:
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name and _is_given(parameter.name) and parameter.name not in _OF_C:
            raise UsageError(f"{parameter.opts[0]} is not for --format c")


def _summary(exported: "Exported", paths: list[Path], gem: str, format_: str) -> dict[str, Any]:
    captured = exported.captured
    return {
        "files": {str(path): len(exported.files[path.name]) for path in paths},
        "format": format_,
        "gem": gem,
        "opset": captured.model.graph.opset_imports[""],
        "inputs": _values(captured.model.graph.inputs),
        "outputs": _values(captured.model.graph.outputs),
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


def _print(exported: "Exported", target: Path, gem: str) -> None:
    captured = exported.captured
    graph = captured.model.graph
    counts = Counter(text for _, text in _activations(captured))
    rows = [("input", _shown(value)) for value in _values(graph.inputs)]
    rows += [("output", _shown(value)) for value in _values(graph.outputs)]
    rows.append(("activations", ", ".join(f"{count} x {text}" for text, count in counts.items()) or "none of GEM's"))
    rows.append(("form", f"{gem}, opset {graph.opset_imports['']}"))
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

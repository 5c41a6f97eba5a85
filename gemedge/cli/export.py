"""gemedge export: a float model as ONNX or TensorFlow Lite; a quantized model as either, or as C.

What is written is compared with the original first; each destination takes its own options.
"""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from click.core import ParameterSource

from gemedge.cli import export_c, export_float, export_onnx, export_tflite, options
from gemedge.errors import UsageError

if TYPE_CHECKING:
    from gemedge.export import Format
    from gemedge.export.c_activations import Choice

_EVERYWHERE = ("model", "format_", "output", "force", "as_json", "quiet")
_OF_FLOAT = ("gem", "shapes", "example", "arch", "allow", "trust", "no_check")
_TAKES = {
    "c": ("activation", "project", "data", "vectors"),
    "onnx": (*_OF_FLOAT, "opset", "external_data"),
    "onnx of a quantized model": ("form", "raw", "data", "opset", "no_check"),
    "tflite": _OF_FLOAT,
    "tflite of a quantized model": ("gem", "no_check"),
}
_FORMS = {
    "onnx": ("function", "primitive", "custom"),
    "tflite": ("float",),
    "tflite of a quantized model": ("table", "float", "custom"),
}


@click.command("export", short_help="Write a model as ONNX or TensorFlow Lite, checked, or as C.")
@click.option("--format", "format_", type=click.Choice(["onnx", "tflite", "c"]), default="onnx", show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, readable=False),
    help="The file to write; of C, the folder.  [default: MODEL with .onnx, _integer.onnx, _qdq.onnx, .tflite or _c]",
)
@click.option(
    "--gem",
    type=click.Choice(["function", "primitive", "custom", "table", "float"]),
    help="An activation in ONNX: a node with a function body (the default), standard operators, or the node alone;"
    " in TensorFlow Lite: a table, float operators, or one operator whose kernel is written beside the file."
    "  [default: table at 8 bits, float at 16]",
)
@click.option(
    "--activation",
    type=click.Choice(["auto", "reciprocal", "table"]),
    default="auto",
    show_default=True,
    help="C: how 16-bit activations are computed, all exactly; 8-bit ones are always tables of 256 entries.",
)
@click.option(
    "--form",
    type=click.Choice(["integer", "qdq"]),
    default="integer",
    show_default=True,
    help="A .gemq file in ONNX: simulate's integers by integer operators, or floats between QuantizeLinear and"
    " DequantizeLinear, which round as the runtime does.",
)
@click.option("--raw", is_flag=True, help="A .gemq file in ONNX: inputs and outputs as integers.")
@click.option("--opset", type=click.IntRange(17, 23), help="ONNX opset.  [default: 18; an ONNX file's own]")
@options.model_options
@click.option("--external-data", is_flag=True, help="Put the weights into a file beside the model.")
@click.option("--no-check", is_flag=True, help="Do not compare with the original.")
@click.option(
    "--project",
    type=click.Choice(["cmake", "arduino", "zephyr"]),
    default="cmake",
    show_default=True,
    help="What the folder of C is for.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, readable=False),
    help="Of a .gemq file, inputs (.npy or .npz): what ONNX is compared on, or what a self-test of C runs."
    "  [default: seeded numbers]",
)
@click.option(
    "--vectors", type=click.IntRange(1), metavar="N", help="Samples of the self-test of C.  [default: up to 4]"
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    model: Path,
    format_: str,
    output: Path | None,
    gem: str | None,
    activation: "Choice",
    form: export_onnx.Form,
    raw: bool,
    opset: int | None,
    shapes: tuple[str, ...],
    example: Path | None,
    arch: str,
    allow: tuple[str, ...],
    trust: bool,
    external_data: bool,
    no_check: bool,
    project: str,
    data: Path | None,
    vectors: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write MODEL for another runtime, compared with the original before the file appears.

    MODEL is a torch.export archive (gemedge.nn.save writes one), a torch.save file of a module or of weights,
    a TorchScript archive, or an ONNX file; its bytes tell which. No code of it runs unless --trust is given.

    A .gemq file becomes ONNX in integers or TensorFlow Lite, or with --format c a folder of C99 sources that give
    simulate's integers.
    """
    quantized = format_ != "c" and export_onnx.is_quantized(model)
    destination = f"{format_} of a quantized model" if quantized else format_
    _refuse_others(destination)
    told = {"force": force, "as_json": as_json, "quiet": quiet}
    if gem is not None and gem not in _FORMS[destination]:
        raise UsageError(f"--gem {gem} is not for --format {destination}; that takes {', '.join(_FORMS[destination])}")
    match destination:
        case "c":
            export_c.write(model, output, activation, project, data, vectors, **told)
        case "onnx of a quantized model":
            export_onnx.write(model, output, form=form, opset=opset, raw=raw, data=data, check=not no_check, **told)
        case "tflite of a quantized model":
            export_tflite.write(model, output, gem, check=not no_check, **told)
        case _:
            export_float.write(
                options.source(model, shapes, example, arch, allow, trust),
                output,
                cast("Format", format_),
                gem,
                opset=opset,
                inputs=(model,) if example is None else (model, example),
                external_data=external_data,
                check=not no_check,
                **told,
            )


def _refuse_others(destination: str) -> None:
    """UsageError for an option given on the command line that this destination does not take."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        if given and parameter.name not in (*_EVERYWHERE, *_TAKES[destination]):
            raise UsageError(f"{parameter.opts[0]} is not for --format {destination}")

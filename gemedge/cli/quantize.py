"""gemedge quantize: a model and data in, a model of integers out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemedge.cli import console, options
from gemedge.errors import UsageError, about

if TYPE_CHECKING:
    from gemedge.model import QuantizedModel
    from gemedge.quant.compare import TensorError

_ROWS = 10
_COMPARED = 256  # samples


@click.command("quantize", short_help="Turn a model into integers, with data to find its ranges.")
@options.model_options
@click.option("--data", required=True, type=click.Path(path_type=Path), help="As for gemedge calibrate.")
@click.option("--scheme", type=click.Choice(["int8", "int16x8", "q7", "q15"]), default="int8", show_default=True)
@click.option("--rounding", type=click.Choice(["single", "double"]), default="single", show_default=True)
@click.option(
    "--method",
    type=click.Choice(["minmax", "percentile", "mse", "entropy"]),
    default="minmax",
    show_default=True,
    help="How ranges are found; see gemedge calibrate.",
)
@click.option("--percentile", type=float, default=99.99, show_default=True, help="For --method percentile.")
@click.option("--ranges", "ranges_file", type=click.Path(path_type=Path), help="Ranges that gemedge calibrate wrote.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: MODEL with .gemq]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take the first N samples only.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Samples in one run.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Threads.  [default: one a processor]")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def command(
    model: Path,
    shapes: tuple[str, ...],
    example: Path | None,
    arch: str,
    allow: tuple[str, ...],
    trust: bool,
    data: Path,
    scheme: str,
    rounding: str,
    method: str,
    percentile: float,
    ranges_file: Path | None,
    output: Path | None,
    limit: int | None,
    batch: int,
    workers: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Calibrate MODEL on data, write it in integers, and print its error against the float model, worst first."""
    from gemedge import files, model_file
    from gemedge.capture import capture
    from gemedge.data import open_regular, reading
    from gemedge.fixed import Rounding
    from gemedge.model import SCHEMES
    from gemedge.quant import lint
    from gemedge.quant.batches import inputs_of, samples_of
    from gemedge.quant.choose import METHODS, Choice
    from gemedge.quant.formats import Formats
    from gemedge.quant.job import Request, calibrate_confined, compare_confined, prepare_confined
    from gemedge.quant.prepare import OPSET
    from gemedge.quant.quantize import quantize
    from gemedge.quant.ranges import Ranges

    target = output or model.with_suffix(".gemq")
    inputs = tuple(path for path in (model, data, example, ranges_file) if path is not None)
    files.refuse_existing(target, force=force, inputs=inputs)
    chosen = next(known for known in SCHEMES if known == scheme)
    bits = 8 if chosen in ("int8", "q7") else 16
    choice = Choice(next(known for known in METHODS if known == method), percentile, bits, chosen != "int8")
    if ranges_file is not None and method != "minmax":
        raise UsageError("--ranges and --method exclude each other: ranges are found or given")
    source = options.source(model, shapes, example, arch, allow, trust)
    title = f"gemedge quantize {model.name}"
    with console.phases(title, quiet=quiet or as_json) as on_phase:
        captured = capture(source, opset=OPSET, on_phase=on_phase)
        with about(model):
            prepared = prepare_confined(captured.model, trust=trust)
    samples, notes = samples_of(data, inputs_of(prepared.model), batch=batch, limit=limit)
    findings = lint.of_graph(prepared)
    for remark in (*captured.notes, *notes, *findings):
        console.note(remark, quiet=quiet)
    request = Request(data, choice, batch, limit, workers, "", trust)
    if ranges_file is not None:
        with reading(ranges_file), open_regular(ranges_file) as opened:
            text = opened.read()
        with about(ranges_file):
            ranges = Ranges.from_json(text)
    else:
        with about(model), console.progress(title, samples, quiet=quiet or as_json) as on_progress:
            ranges = calibrate_confined(prepared.model, request, on_progress)
    with about(model):
        weak = lint.of_ranges(prepared.model, ranges, Formats(chosen))
    for remark in weak:
        console.note(remark, quiet=quiet)
    with about(model):
        quantized = quantize(prepared.model, ranges, scheme=chosen, rounding=Rounding(rounding))
        few = Request(data, choice, batch, min(limit or _COMPARED, _COMPARED), workers, "", trust)
        errors = compare_confined(prepared.model, quantized, few).errors
    content = model_file.save(quantized)
    files.write({target: content}, force=force)
    if as_json:
        console.print_json(_summary(quantized, errors, target, len(content)) | {"findings": [*findings, *weak]})
    elif not quiet:
        _print(quantized, errors, target, len(content))


def _summary(quantized: "QuantizedModel", errors: "tuple[TensorError, ...]", target: Path, size: int) -> dict[str, Any]:
    return {
        "file": str(target),
        "bytes": size,
        "scheme": quantized.scheme,
        "rounding": quantized.rounding.value,
        "layers": len(quantized.layers),
        "errors": [
            {
                "layer": error.layer,
                "tensor": error.tensor,
                "sqnr_db": error.sqnr if abs(error.sqnr) < float("inf") else None,
                "max_abs": error.max_abs,
                "max_lsb": error.max_lsb,
                "saturated": error.saturated,
            }
            for error in errors
        ],
    }


def _print(quantized: "QuantizedModel", errors: "tuple[TensorError, ...]", target: Path, size: int) -> None:
    rows = [
        (error.layer, f"{error.sqnr:.1f}", f"{error.max_lsb:.2f}", f"{error.max_abs:.4g}", f"{error.saturated:.2%}")
        for error in errors[:_ROWS]
    ]
    console.print_table(("layer, worst first", "SQNR, dB", "max LSB", "max error", "saturated"), rows)
    console.print_fields(
        [
            ("integers", f"{quantized.scheme}, rounding {quantized.rounding.value}, {len(quantized.layers)} layers"),
            ("file", f"{target}, {size:,} bytes"),
        ]
    )

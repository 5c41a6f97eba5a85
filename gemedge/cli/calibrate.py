"""gemedge calibrate: a model and data in, the range of every tensor out."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemedge.cli import console, options
from gemedge.errors import DataError, ModelError, UnsupportedError, about

if TYPE_CHECKING:
    from gemedge.quant.ranges import Ranges

_ROWS = 12  # of the table: the widest ranges are what one looks for


@click.command("calibrate", short_help="Find the range of every tensor of a model from data.")
@options.model_options
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="A .npy or .npz file, a folder of them, or module:callable that yields batches.",
)
@click.option(
    "--method",
    type=click.Choice(["minmax", "percentile", "mse", "entropy"]),
    default="minmax",
    show_default=True,
    help="All numbers, all but the outermost, least squared error, or least loss of information.",
)
@click.option("--percentile", type=float, default=99.99, show_default=True, help="For --method percentile.")
@click.option("--bits", type=int, default=8, show_default=True, help="Width of the integers, for --method mse.")
@click.option("--symmetric", is_flag=True, help="Ranges from -m to m.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: MODEL with .ranges.json]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take the first N samples only.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Samples in one run.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Threads.  [default: one a processor]")
@click.option("--scheduler", default="", metavar="ADDRESS", help="Run on a Dask cluster: tls://host:port.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the ranges as JSON.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    model: Path,
    shapes: tuple[str, ...],
    example: Path | None,
    arch: str,
    allow: tuple[str, ...],
    trust: bool,
    data: Path,
    method: str,
    percentile: float,
    bits: int,
    symmetric: bool,
    output: Path | None,
    limit: int | None,
    batch: int,
    workers: int | None,
    scheduler: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run MODEL on data and write the range of every tensor as JSON, to be edited or given to quantize."""
    from gemedge import files
    from gemedge.capture import capture
    from gemedge.quant import lint
    from gemedge.quant.batches import inputs_of, samples_of
    from gemedge.quant.calibrate import check_scheduler
    from gemedge.quant.choose import METHODS, Choice
    from gemedge.quant.job import Request, calibrate_confined, prepare_confined
    from gemedge.quant.prepare import OPSET

    choice = Choice(next(known for known in METHODS if known == method), percentile, bits, symmetric)
    target = output or model.with_suffix(".ranges.json")
    files.refuse_existing(target, force=force, inputs=(model, data, *([example] if example else [])))
    source = options.source(model, shapes, example, arch, allow, trust)
    if warning := check_scheduler(scheduler):
        console.note(warning, quiet=quiet)
    title = f"gemedge calibrate {model.name}"
    with console.phases(title, quiet=quiet or as_json) as on_phase:
        captured = capture(source, opset=OPSET, on_phase=on_phase)
        with about(model):
            prepared = prepare_confined(captured.model, trust=trust)
    samples, notes = samples_of(data, inputs_of(prepared.model), batch=batch, limit=limit)
    for remark in (*captured.notes, *notes, *lint.of_graph(prepared)):
        console.note(remark, quiet=quiet)
    request = Request(data, choice, batch, limit, workers, scheduler, trust)
    try:
        with console.progress(title, samples, quiet=quiet or as_json) as on_progress:
            ranges = calibrate_confined(prepared.model, request, on_progress)
    except (ModelError, UnsupportedError) as error:
        raise type(error)(f"{model}: {error}") from error
    except DataError as error:
        raise DataError(str(error) if str(data) in str(error) else f"{data}: {error}") from error
    text = ranges.to_json()
    files.write({target: text.encode()}, force=force)
    if as_json:
        click.echo(text, nl=False)
    elif not quiet:
        _print(ranges, target)


def _print(ranges: "Ranges", target: Path) -> None:
    widest = sorted(ranges.ranges.items(), key=lambda item: -item[1].width)
    rows = [(name, f"{found.min:.6g}", f"{found.max:.6g}") for name, found in widest[:_ROWS]]
    console.print_table(("tensor", "min", "max"), rows)
    if len(widest) > _ROWS:
        click.echo(f"and {len(widest) - _ROWS} narrower ones")
    about = f"{len(ranges)} tensors, {ranges.method}, {ranges.samples:,} samples"
    console.print_fields([("ranges", about), ("file", str(target))])

"""gemedge report: how far the integers are from the float model, why, and what to change."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from gemedge.cli import console, options, report_targets
from gemedge.errors import DataError, PromiseError, about

if TYPE_CHECKING:
    from gemedge.model import QuantizedModel
    from gemedge.quant.batches import Input
    from gemedge.quant.report import Report

_ROWS = 10
_PROBED = 16  # samples that the attribution runs on


@click.command("report", short_help="Say how far integers are from the float model, why, and what to change.")
@options.model_options
@click.argument("quantized_file", metavar="QUANTIZED", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="As for gemedge simulate.")
@click.option("--labels", type=click.Path(path_type=Path), help="A .npy file with the class of each sample.")
@click.option("--target", help="Say what it costs on this CPU: cortex-m4, cortex-m0plus, rv32imc, avr ...")
@click.option("--flash", metavar="SIZE", help="Of that chip, such as 256k: exit status 1 where it does not fit.")
@click.option("--ram", metavar="SIZE", help="Likewise.")
@click.option("--html", type=click.Path(path_type=Path), help="Write one self-contained page here.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take the first N samples only.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Samples in one run.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def command(
    model: Path,
    shapes: tuple[str, ...],
    example: Path | None,
    arch: str,
    allow: tuple[str, ...],
    trust: bool,
    quantized_file: Path,
    data: Path,
    labels: Path | None,
    target: str | None,
    flash: str | None,
    ram: str | None,
    html: Path | None,
    limit: int | None,
    batch: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare QUANTIZED, a .gemq file, with the MODEL that it was made of, on data."""
    from gemedge import files, model_file
    from gemedge.capture import capture
    from gemedge.capture.archive import open_bytes
    from gemedge.quant.batches import inputs_of, open_data
    from gemedge.quant.choose import Choice
    from gemedge.quant.equalise import EQUALISED, equalise
    from gemedge.quant.job import Request, compare_confined, prepare_confined
    from gemedge.quant.prepare import OPSET
    from gemedge.quant.quantize import reals_of
    from gemedge.quant.report import check_labels, report

    chip = report_targets.Chip(target, flash, ram)
    if html is not None:
        inputs_given = tuple(path for path in (model, quantized_file, data, labels, example) if path is not None)
        files.refuse_existing(html, force=force, inputs=inputs_given, option="--html")
    classes = labels_of(labels, limit) if labels is not None else None
    with about(quantized_file):
        quantized = model_file.load(open_bytes(quantized_file))
    title = f"gemedge report {quantized_file.name}"
    with console.phases(title, quiet=quiet or as_json) as on_phase:
        captured = capture(options.source(model, shapes, example, arch, allow, trust), opset=OPSET, on_phase=on_phase)
        with about(model):
            prepared = prepare_confined(captured.model, trust=trust).model
            if EQUALISED in quantized.notes:
                prepared = equalise(prepared).model
        inputs = inputs_of(prepared)
        few = open_data(data, inputs, batch=_PROBED, limit=_PROBED)
        for remark in (*captured.notes, *few.notes):
            console.note(remark, quiet=quiet)
        on_phase("comparing")
        with about(quantized_file):
            _refuse_another(quantized, inputs)
            request = Request(data, Choice("minmax", 100.0, 8, False), batch, limit, None, "", trust)
            reals = reals_of(prepared, quantized)  # or it is of another model, which is said before it runs
            comparison = compare_confined(prepared, quantized, request)
        if labels is not None and classes is not None:
            with about(labels):
                check_labels(classes, next(iter(comparison.exact.values())))
        on_phase("attributing")
        with about(quantized_file):
            found = report(reals, quantized, comparison, next(iter(few)), classes)
        on_phase("emulating")
        with about(quantized_file):
            cost = chip.cost(quantized, next(iter(few)))
    if html is not None:
        from gemedge.cli.report_html import page

        section = "" if cost is None else report_targets.section(cost.estimate, cost.plan, cost.fit, cost.known)
        shown = page(found, model.name, quantized_file.name, section, captured.notes)
        files.write({html: shown.encode()}, force=force)
    if as_json:
        told = found.as_json() | {"notes": list(captured.notes)}
        console.print_json(told | ({} if cost is None else {"target": cost.as_json()}))
    elif not quiet:
        _print(found, html)
        if cost is not None:
            cost.print()
    if cost is not None and not cost.fit.holds:
        raise PromiseError(f"{quantized_file} does not fit: {cost.fit.text}")


def _refuse_another(quantized: "QuantizedModel", inputs: "tuple[Input, ...]") -> None:
    names = tuple(given.name for given in inputs)
    if names != quantized.inputs:
        raise DataError(f"it takes inputs {', '.join(quantized.inputs)}; the float model takes {', '.join(names)}")


def labels_of(path: Path, limit: int | None = None) -> np.ndarray:
    """The one array of the file, of as many samples as are taken; what it must be, the report checks."""
    from gemedge.data import load_arrays

    arrays = load_arrays(path)
    if len(arrays) != 1:
        raise DataError(f"{path}: it holds {len(arrays)} arrays; labels are one")
    (array,) = arrays.values()
    return array[:limit] if array.ndim else array


def _print(found: "Report", html: Path | None) -> None:
    attribution = found.attribution
    fields = [("first", found.headline), ("outputs", f"{found.sqnr:.1f} dB SQNR over {found.samples:,} samples")]
    if found.classes is not None:
        classes = found.classes
        shown = f"{classes.agreement:.2%} the same as float"
        if classes.accuracy is not None:
            shown += f"; right {classes.accuracy:.2%}, float {classes.float_accuracy:.2%}"
        fields.append(("top-1", shown))
    fields.append(("worst", f"sample {found.worst.sample}, {found.worst.sqnr:.1f} dB"))
    shares: dict[str, float] = {cause: forward for cause, (forward, _) in attribution.causes.items()}
    shares |= {"multipliers": attribution.rescaling}
    parts = [f"{cause} {share / attribution.noise:.0%}" for cause, share in shares.items() if attribution.noise]
    fields.append(("causes", ", ".join(parts) or "none"))
    if html is not None:
        fields.append(("page", str(html)))
    console.print_fields(fields)
    advice = [(a.text, f"{a.gain:.1f}") for a in found.advice[:_ROWS]]
    if advice:
        console.print_table(("what to change, best first", "gain, dB"), advice)
    rows = [
        (
            error.layer,
            f"{error.sqnr:.1f}",
            f"{error.max_lsb:.2f}",
            f"{error.mean_lsb:.2f}",
            f"{error.cosine:.5f}",
            f"{error.saturated:.2%}",
            f"{error.codes:,} of {1 << error.params.bits:,}",
        )
        for error in found.tensors[:_ROWS]
    ]
    header = ("layer, worst first", "SQNR, dB", "max LSB", "mean LSB", "cosine", "saturated", "codes used")
    console.print_table(header, rows)

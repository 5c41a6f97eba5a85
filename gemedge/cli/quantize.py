"""gemedge quantize: a model and data in, a model of integers out."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemedge.cli import console, options, quantize_budget
from gemedge.errors import DataError, UsageError, about

if TYPE_CHECKING:
    import onnx_ir as ir

    from gemedge.fixed import Rounding
    from gemedge.model import QuantizedModel, Scheme
    from gemedge.quant.compare import TensorError
    from gemedge.quant.config import Config

_ROWS = 10
_COMPARED = 256  # samples
_PROBED = 16  # samples that gains are estimated on


@click.command("quantize", short_help="Turn a model into integers, with data to find its ranges.")
@options.model_options
@click.option("--data", required=True, type=click.Path(path_type=Path), help="As for gemedge calibrate.")
@click.option("--scheme", type=click.Choice(["int8", "int16x8", "q7", "q15"]), help="[default: int8]")
@click.option("--rounding", type=click.Choice(["single", "double"]), help="[default: single]")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Layers that differ, by name: a TOML file."
)
@click.option(
    "--method",
    type=click.Choice(["minmax", "percentile", "mse", "entropy"]),
    default="minmax",
    show_default=True,
    help="How ranges are found; see gemedge calibrate.",
)
@click.option("--percentile", type=float, default=99.99, show_default=True, help="For --method percentile.")
@click.option("--ranges", "ranges_file", type=click.Path(path_type=Path), help="Ranges that gemedge calibrate wrote.")
@click.option("--equalise", "equalised", is_flag=True, help="Scale channels between layers first, and say what it did.")
@click.option(
    "--bias-correction", "corrected", is_flag=True, help="Move biases to the float model's means, and say what it did."
)
@click.option("--budget", metavar="SIZES", help="Find formats per layer: flash=64k, ram=32k or flash=64k,ram=32k.")
@click.option(
    "--metric", type=click.Choice(["sqnr", "accuracy"]), default="sqnr", show_default=True, help="What --budget seeks."
)
@click.option("--labels", type=click.Path(path_type=Path), help="A .npy file with the class of each sample.")
@click.option("--target", "chip", default="cortex-m4", show_default=True, help="For --budget, as for gemedge report.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw what --budget found: .png, .svg or .pdf.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: MODEL with .gemq]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take the first N samples only.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Samples in one run.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Threads.  [default: one a processor]")
@click.option("--scheduler", default="", metavar="ADDRESS", help="Calibrate on a Dask cluster: tls://host:port.")
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
    scheme: str | None,
    rounding: str | None,
    config_file: Path | None,
    method: str,
    percentile: float,
    ranges_file: Path | None,
    equalised: bool,
    corrected: bool,
    budget: str | None,
    metric: str,
    labels: Path | None,
    chip: str,
    plot: Path | None,
    output: Path | None,
    limit: int | None,
    batch: int,
    workers: int | None,
    scheduler: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Calibrate MODEL on data, write it in integers, and print its error against the float model, worst first."""
    from gemedge import files, model_file
    from gemedge.capture import capture
    from gemedge.data import open_regular, reading
    from gemedge.quant import lint
    from gemedge.quant.batches import inputs_of, open_data, samples_of
    from gemedge.quant.bias_correction import CORRECTED
    from gemedge.quant.calibrate import check_scheduler
    from gemedge.quant.choose import METHODS, Choice
    from gemedge.quant.equalise import EQUALISED, equalise
    from gemedge.quant.formats import Formats
    from gemedge.quant.job import Request, calibrate_confined, compare_confined, correct_confined, prepare_confined
    from gemedge.quant.prepare import OPSET
    from gemedge.quant.quantize import check_sizes, check_supported, quantize
    from gemedge.quant.ranges import Ranges
    from gemedge.quant.search import to_toml

    target = output or model.with_suffix(".gemq")
    inputs = tuple(path for path in (model, data, example, ranges_file, config_file) if path is not None)
    files.refuse_existing(target, force=force, inputs=inputs)
    config, chosen, law = _settings(config_file, scheme, rounding)
    asked = None
    if budget is not None:
        if config_file or equalised or corrected:
            raise UsageError("--budget finds formats: --config, --equalise and --bias-correction exclude it")
        asked = quantize_budget.Asked(budget, metric, labels, chip, plot, limit)
        if chosen not in ("int8", "q7"):
            raise UsageError(f"--budget begins with 8 bits and widens layers: --scheme int8 or q7, not {chosen}")
        for path in (target.with_suffix(".layers.toml"), *([plot] if plot else [])):
            files.refuse_existing(path, force=force, inputs=inputs)
    elif labels or plot or any(_is_given(name) for name in ("chip", "metric")):
        raise UsageError("--labels, --metric, --target and --plot belong to --budget")
    bits = 8 if chosen in ("int8", "q7") else 16
    choice = Choice(next(known for known in METHODS if known == method), percentile, bits, chosen != "int8")
    if ranges_file is not None and (method != "minmax" or equalised):
        other = "--equalise" if equalised else "--method"
        raise UsageError(f"--ranges and {other} exclude each other: ranges are found or given")
    if ranges_file is not None and any(rule.method for rule in config.rules):
        raise UsageError(f"{config_file}: method and --ranges exclude each other: ranges are found or given")
    source = options.source(model, shapes, example, arch, allow, trust)
    if warning := check_scheduler(scheduler):
        console.note(warning, quiet=quiet)
    title = f"gemedge quantize {model.name}"
    with console.phases(title, quiet=quiet or as_json) as on_phase:
        captured = capture(source, opset=OPSET, on_phase=on_phase)
        with about(model):
            prepared = prepare_confined(captured.model, trust=trust)
            check_sizes(prepared.model)
    samples, notes = samples_of(data, inputs_of(prepared.model), batch=batch, limit=limit)
    findings = lint.of_graph(prepared)
    for remark in (*captured.notes, *notes, *findings):
        console.note(remark, quiet=quiet)
    with about(model):
        check_supported(prepared.model)
    with about(config_file):
        config.check_names(prepared.model)
        choices = config.choices(prepared.model, choice, chosen)
    request = Request(data, choice, batch, limit, workers, scheduler, trust, choices)
    few = replace(request, limit=min(limit or _COMPARED, _COMPARED))

    weak: list[str] = []

    def calibrated(graph: "ir.Model") -> Ranges:
        if ranges_file is not None:
            with reading(ranges_file), open_regular(ranges_file) as opened:
                text = opened.read()
            with about(ranges_file):
                return Ranges.from_json(text)
        with about(model), console.progress(title, samples, quiet=quiet or as_json) as on_progress:
            return calibrate_confined(graph, request, on_progress)

    def integers(graph: "ir.Model") -> "tuple[QuantizedModel, tuple[TensorError, ...]]":
        """The graph in integers, and how far they are from it."""
        ranges = calibrated(graph)
        with about(model):
            schemes_asked: set[str] = set()

            def scheme_of(layer: str) -> "Scheme | None":
                schemes_asked.add(layer)
                return config.scheme_of(layer)

            found = {**ranges, **config.ranges(graph)}
            made = quantize(graph, found, scheme=chosen, rounding=law, scheme_of=scheme_of)
            for remark in config.unheeded(graph, made, schemes_asked) if graph is prepared.model else ():
                console.note(f"{config_file}: {remark}", quiet=quiet)
            weak[:] = lint.of_ranges(graph, ranges, Formats(chosen), made.tensors)
            return made, compare_confined(graph, made, few).errors

    front = None
    if asked is not None:
        ranges = calibrated(prepared.model)
        probe = next(iter(open_data(data, inputs_of(prepared.model), batch=_PROBED, limit=_PROBED)))
        seen = few if asked.labels is None else request
        with about(model), console.phases(f"{title}: searching", quiet=quiet or as_json):
            front = asked.search(
                prepared.model, ranges, chosen, law, probe, lambda made: compare_confined(prepared.model, made, seen)
            )
        config = front.config  # and from here on as with --config, which therefore gives the same file
        request = replace(request, choices=config.choices(prepared.model, choice, chosen))
    quantized, errors = integers(prepared.model)
    if asked is not None:
        asked.require(quantized)
    steps: list[_Step] = []
    graph = prepared.model
    if equalised:
        before = errors
        balanced = equalise(graph)
        graph = balanced.model
        quantized, errors = integers(graph)
        quantized = replace(quantized, notes=(*quantized.notes, EQUALISED))
        steps.append(_Step("equalise", balanced.note, *_effect(quantized, before, errors)))
    if corrected:
        before = errors
        with about(model):
            moved = correct_confined(graph, quantized, few)
            quantized = replace(moved.model, notes=(*quantized.notes, CORRECTED))
            errors = compare_confined(graph, quantized, few).errors
        steps.append(_Step("bias correction", f"{moved.layers} layers", *_effect(quantized, before, errors)))
    for remark in weak:
        console.note(remark, quiet=quiet)
    content = model_file.save(quantized)
    written = {target: content}
    if asked is not None and front is not None:
        written[target.with_suffix(".layers.toml")] = to_toml(front.config).encode()
        if plot is not None:
            written[plot] = asked.figure(front)
    files.write(written, force=force)
    if as_json:
        told: dict[str, Any] = {} if front is None else {"front": quantize_budget.front_as_json(front)}
        told |= {
            "steps": [asdict(step) for step in steps],
            "notes": [*captured.notes, *notes],
            "findings": [*findings, *weak],
        }
        console.print_json(_summary(quantized, errors, target, len(content)) | told)
    elif not quiet:
        if front is not None:
            quantize_budget.print_front(front, [path for path in written if path != target])
        _print(quantized, errors, target, len(content), steps)


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _settings(file: Path | None, scheme: str | None, rounding: str | None) -> "tuple[Config, Scheme, Rounding]":
    """The configuration, and the scheme and rounding of layers without a rule: the command line's, the file's, ours."""
    from gemedge.data import open_regular, reading
    from gemedge.fixed import Rounding
    from gemedge.model import SCHEMES
    from gemedge.quant.config import Config

    config = Config()
    if file is not None:
        try:
            with reading(file), open_regular(file) as opened:
                text = opened.read()
        except DataError as error:
            raise UsageError(str(error)) from error
        with about(file):
            config = Config.from_toml(text)
    chosen = next((known for known in SCHEMES if known == scheme), config.scheme or "int8")
    return config, chosen, Rounding(rounding) if rounding else config.rounding or Rounding.SINGLE


@dataclass(frozen=True, slots=True)
class _Step:
    """What an option did: SQNR in dB, before and after, of the worst tensor and of each output; None where exact."""

    option: str
    note: str
    worst: "tuple[float | None, float | None]"
    outputs: "dict[str, tuple[float | None, float | None]]"

    def __str__(self) -> str:
        told = [("worst tensor", self.worst), *((f"output {name}", pair) for name, pair in self.outputs.items())]
        shown = (f"{name} {_decibels(old)} -> {_decibels(new)} dB" for name, (old, new) in told)
        return f"{self.note}; {', '.join(shown)}"


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"


def _effect(quantized: "QuantizedModel", before: "tuple[TensorError, ...]", after: "tuple[TensorError, ...]") -> Any:
    def of(errors: "tuple[TensorError, ...]") -> dict[str, float | None]:
        return {error.tensor: _finite(error.sqnr) for error in errors}

    old, new = of(before), of(after)
    outputs = {
        name: (old[tensor], new[tensor]) for name, tensor in quantized.outputs.items() if {tensor} <= old.keys() & new
    }
    return tuple(_finite(errors[0].sqnr) if errors else None for errors in (before, after)), outputs


def _finite(number: float) -> float | None:
    return number if abs(number) < float("inf") else None


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
                "sqnr_db": _finite(error.sqnr),
                "max_abs": error.max_abs,
                "max_lsb": error.max_lsb,
                "saturated": error.saturated,
            }
            for error in errors
        ],
    }


def _print(
    quantized: "QuantizedModel", errors: "tuple[TensorError, ...]", target: Path, size: int, steps: list[_Step]
) -> None:
    rows = [
        (error.layer, f"{error.sqnr:.1f}", f"{error.max_lsb:.2f}", f"{error.max_abs:.4g}", f"{error.saturated:.2%}")
        for error in errors[:_ROWS]
    ]
    console.print_table(("layer, worst first", "SQNR, dB", "max LSB", "max error", "saturated"), rows)
    console.print_fields(
        [
            *((step.option, str(step)) for step in steps),
            ("integers", f"{quantized.scheme}, rounding {quantized.rounding.value}, {len(quantized.layers)} layers"),
            ("file", f"{target}, {size:,} bytes"),
        ]
    )

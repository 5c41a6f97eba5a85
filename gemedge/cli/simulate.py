"""gemedge simulate: a quantized model and data in, its outputs by integers only."""

import io
import math
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from gemedge.cli import console
from gemedge.errors import about

if TYPE_CHECKING:
    from gemedge.export.host import Host
    from gemedge.model import QuantizedModel
    from gemedge.quant.batches import Data


@click.command("simulate", short_help="Run a quantized model with integers only.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="A .npy or .npz file, or a folder of them."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: MODEL with .out.npz]")
@click.option("--raw", is_flag=True, help="Outputs as integers.")
@click.option("--layer", "layers", multiple=True, metavar="NAME", help="The integers of this layer, too. Repeatable.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take the first N samples only.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Samples at a time.")
@click.option(
    "--engine",
    type=click.Choice(["numpy", "c"]),
    default="numpy",
    show_default=True,
    help="What computes: c is the exported C, built for this machine; the integers are the same.",
)
@click.option("--workers", type=click.IntRange(1, 1024), help="Threads.  [default: one a processor]")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def command(
    model: Path,
    data: Path,
    output: Path | None,
    raw: bool,
    layers: tuple[str, ...],
    limit: int | None,
    batch: int,
    engine: str,
    workers: int | None,
    force: bool,
    quiet: bool,
) -> None:
    """Write the outputs of MODEL, a .gemq file, for data, as .npz under the names of the float model's outputs."""
    from gemedge import files, model_file
    from gemedge.capture.archive import open_bytes
    from gemedge.quant.simulate import simulate

    target = output or model.with_suffix(".out.npz")
    files.refuse_existing(target, force=force, inputs=(model, data))
    with about(model):
        quantized = model_file.load(open_bytes(model))
    batches = open_batches(quantized, data, batch=batch, limit=limit)
    for remark in batches.notes:
        console.note(remark, quiet=quiet)
    parts: list[dict[str, np.ndarray]] = []
    saturated: Counter[str] | None = None if engine == "c" else Counter()
    with about(model):
        host = _host(quantized, model.stem, layers) if engine == "c" else None
    with console.progress(f"gemedge simulate {model.name}", batches.samples, quiet=quiet) as on_progress:
        done = 0
        for given in batches:
            with about(model):
                if host is None:
                    part = simulate(quantized, given, layers=layers, raw=raw, workers=workers, saturated=saturated)
                else:
                    part = _by_c(host, given, layers, raw, workers)
            parts.append(part)
            done += len(next(iter(given.values())))
            on_progress(done)
    results = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    files.write({target: _npz(results)}, force=force)
    if not quiet:
        shown = ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in results.items())
        cut = "not counted by --engine c" if saturated is None else _saturated(quantized, saturated, done)
        console.print_fields([("samples", f"{done:,}"), ("saturated", cut), ("arrays", shown), ("file", str(target))])


def open_batches(model: "QuantizedModel", data: Path, *, batch: int, limit: int | None) -> "Data":
    """The data as floats, or whole numbers for indices, under the names of the model's inputs."""
    from gemedge.quant.batches import Input, open_data

    tensors = [model.tensors[name] for name in model.inputs]
    kinds = [np.dtype(np.float32 if tensor.params else np.int64) for tensor in tensors]
    inputs = tuple(Input(t.name, (None, *t.shape), kind) for t, kind in zip(tensors, kinds, strict=True))
    return open_data(data, inputs, batch=batch, limit=limit)


def _host(model: "QuantizedModel", name: str, layers: tuple[str, ...]) -> "Host":
    """The model's C, built for this machine."""
    from gemedge.export import folder, host

    for layer in layers:
        model.layer(layer)  # or it is named only after the build
    exported = folder.of_model(model, name)
    return host.Host(model, exported.arena, host.library(exported))


def _by_c(
    host: "Host", inputs: Mapping[str, np.ndarray], layers: tuple[str, ...], raw: bool, workers: int | None
) -> dict[str, np.ndarray]:
    """As simulate, by the model's C."""
    from gemedge.quant.simulate import border, entered, results

    model = host.model
    numbers = {layer.name: index for index, layer in enumerate(model.layers)}
    integers = entered(model, border(model, inputs), Counter())
    outputs, shown = host.run(integers, layers=[numbers[name] for name in layers], workers=workers)
    made = {model.outputs[name]: array for name, array in outputs.items()}
    made |= {model.layers[index].output: array for index, array in shown.items()}
    return results(model, made, layers=layers, raw=raw)


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """As np.savez, which takes some names for its own options; the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _saturated(model: "QuantizedModel", counts: Counter[str], samples: int) -> str:
    """How many of each layer's numbers lay beyond their format, the largest share first."""
    made = {name: name for name in model.inputs} | {layer.name: layer.output for layer in model.layers}
    totals = {name: samples * math.prod(model.tensors[made[name]].shape) for name in counts}
    cut = sorted((name for name, count in counts.items() if count), key=lambda name: -counts[name] / totals[name])
    told = (f"{name} {counts[name]:,} of {totals[name]:,} ({counts[name] / totals[name]:.2%})" for name in cut)
    return ", ".join(told) or "none"

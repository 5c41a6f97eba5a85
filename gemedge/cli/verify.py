"""gemedge verify: a quantized model in every engine that is found here, each layer compared with simulate."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from gemedge.cli import console, verify_engines, verify_log
from gemedge.errors import PromiseError, ToolError, UnsupportedError, UsageError, about

if TYPE_CHECKING:
    from gemedge.cli.verify_engines import Engine
    from gemedge.model import QuantizedModel

_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an engine gave. exact: whether simulate's integers are promised; layer: that of the largest difference.

    layers is 0 where it did not run to its end, and why says why; failed: where that is its own fault.
    """

    engine: str
    version: str
    exact: bool
    layers: int = 0
    max_lsb: int = 0
    share: float = 0.0
    layer: str = ""
    seconds: float = 0.0
    why: str = ""
    failed: bool = False

    @property
    def kept(self) -> bool:
        """Whether what was promised holds; an engine that did not run breaks no promise."""
        return not (self.exact and (self.max_lsb or self.failed))


@click.command("verify")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="As for gemedge simulate.  [default: seeded numbers]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help=f"Take the first N samples.  [default: {_SAMPLES}]")
@click.option(
    "--target",
    "targets",
    type=click.Choice(verify_engines.TARGETS),
    multiple=True,
    help="An emulated CPU to run the C on; may be given several times.  [default: each of them]",
)
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    help="Instead of engines: what the self-test printed on a board, exported with this data, or none.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    model: Path,
    data: Path | None,
    limit: int | None,
    targets: tuple[str, ...],
    log: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run MODEL, a .gemq file, in every engine that is found here, and compare every layer with simulate.

    Exit status 1 where an engine that is to give simulate's integers gives others. ONNX of float operators and
    TensorFlow Lite round by laws of their own: how far off they are is told.
    """
    if log is not None:
        if limit or targets:
            raise UsageError("--limit and --target are not for --log, which says what ran and where")
        verify_log.compare(model, data, log, as_json=as_json, quiet=quiet)
        return
    from gemedge import model_file
    from gemedge.capture.archive import open_bytes
    from gemedge.cli.simulate import open_batches
    from gemedge.probes import probes

    with about(model):
        quantized = model_file.load(open_bytes(model))
    count = limit or _SAMPLES
    if data is None:
        given = probes(quantized, count)
    else:
        given = next(iter(open_batches(quantized, data, batch=count, limit=count)))
    engines = verify_engines.engines(quantized, model.stem, targets or verify_engines.TARGETS)
    verdicts = []
    with console.progress(f"gemedge verify {model.name}", len(engines), quiet=quiet or as_json) as on_progress:
        for number, engine in enumerate(engines):
            with about(model):
                verdicts.append(judged(quantized, engine, given))
            on_progress(number + 1)
    samples = len(next(iter(given.values())))
    broken = [verdict for verdict in verdicts if not verdict.kept]
    if as_json:
        console.print_json({"samples": samples, "kept": not broken, "engines": [asdict(v) for v in verdicts]})
    elif not quiet:
        _print(verdicts, samples)
    if broken:
        raise PromiseError(f"{model}: {'; '.join(map(_broken, broken))}")


def judged(model: "QuantizedModel", engine: "Engine", given: dict[str, np.ndarray]) -> Verdict:
    """The engine's integers at every layer beside simulate's, for inputs as a user gives them."""
    from gemedge.cli.engines import differences
    from gemedge.quant.simulate import border, entered, run

    start = time.perf_counter()
    inputs = border(model, given)
    integers = entered(model, inputs, Counter())
    try:
        found = engine.run(inputs, integers)
    except (UnsupportedError, ToolError) as error:
        return Verdict(engine.name, engine.version, engine.exact, why=str(error))
    except PromiseError as error:
        return Verdict(engine.name, engine.version, engine.exact, why=str(error), failed=True)
    seconds = time.perf_counter() - start
    if engine.alone:
        layers = differences(model, integers | found)
        apart = [(d.layer, d.max_lsb, d.share) for d in layers]
    else:
        wanted = run(model, integers, keep=list(found))
        names = {layer.output: layer.name for layer in model.layers}
        apart = [(names.get(name, name), *_apart(array, wanted[name])) for name, array in found.items()]
    layer, lsb, share = max(apart, key=lambda one: one[1:], default=("", 0, 0.0))
    first = layer if lsb else ""
    return Verdict(engine.name, engine.version, engine.exact, len(apart), lsb, share, first, seconds)


def _apart(found: np.ndarray, wanted: np.ndarray) -> tuple[int, float]:
    off = np.abs(found.astype(np.int64) - wanted.astype(np.int64))
    return int(off.max(initial=0)), float((off > 0).mean()) if off.size else 0.0


def _print(verdicts: Sequence[Verdict], samples: int) -> None:
    ran = [verdict for verdict in verdicts if verdict.layers]
    rows = [
        (v.engine, v.version, "the same" if v.exact else "near", f"{v.layers}", _result(v), f"{v.seconds:.2f}")
        for v in ran
    ]
    header = ("engine", "version", "promised", "layers", "found", "seconds, build included")
    console.print_table(header, rows, title=f"beside gemedge simulate, {samples} samples")
    missing = [(v.engine, v.why) for v in verdicts if not v.layers]
    if missing:
        console.print_fields(missing)
    same = [v for v in ran if v.exact and v.kept]
    console.print_fields([("same", f"integers at every layer in {len(same)} engines")])


def _result(verdict: Verdict) -> str:
    if not verdict.max_lsb:
        return "equal"
    return f"{verdict.max_lsb} LSB at most, {verdict.share:.2%} of {verdict.layer!r}"


def _broken(verdict: Verdict) -> str:
    return f"{verdict.engine} differs from simulate: {verdict.why or _result(verdict)}"

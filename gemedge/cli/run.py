"""gemedge run: exported C on an emulated target or on this machine, every layer compared with simulate."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from gemedge.cli import console
from gemedge.cli.simulate import open_batches
from gemedge.errors import PromiseError, UsageError, about

if TYPE_CHECKING:
    from gemedge.export.difference import Difference
    from gemedge.export.folder import Folder
    from gemedge.model import QuantizedModel
    from gemedge.quant.batches import Data
    from gemedge.targets import Cycles, Estimate, Fit, Measured

HOST = "host"
_EMULATED_SAMPLES = 16
_BATCH = 256  # a child process each, on this machine
_TARGETS = ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "rv32imc", "avr", HOST)
_LEVELS = ("-O0", "-O1", "-O2", "-O3", "-Os")
Integers = dict[str, np.ndarray]


@click.command("run", short_help="Run exported C on an emulated target and compare every layer.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--target", type=click.Choice(_TARGETS), required=True, help="An emulated CPU, or this machine's own.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="As for gemedge simulate.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help=f"Take the first N samples only.  [default: {_EMULATED_SAMPLES}; of host, all]",
)
@click.option("--level", type=click.Choice(_LEVELS), help="How an emulated target's compiler optimizes. [default: -O2]")
@click.option("--flash", metavar="SIZE", help="Of the chip, such as 256k: exit status 1 where it does not fit.")
@click.option("--ram", metavar="SIZE", help="Likewise.")
@click.option("--trust", is_flag=True, help="Run code on this machine that this user has not exported.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def command(
    folder: Path,
    target: str,
    data: Path,
    limit: int | None,
    level: str | None,
    flash: str | None,
    ram: str | None,
    trust: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Build the C in FOLDER, which gemedge export --format c wrote, run it, and compare every layer with simulate.

    An emulated target also says what a run takes there: instructions, cycles, flash, arena and stack.
    """
    from gemedge.export.folder import read

    if target == HOST and (level or flash or ram):
        raise UsageError("--level, --flash and --ram are for emulated targets")
    if trust and target != HOST:
        raise UsageError("--trust is for --target host: on an emulated target no code of the folder runs here")
    if target != HOST and limit is None:
        limit = _EMULATED_SAMPLES
    found = read(folder)
    batches = open_batches(found.model, data, batch=_BATCH if target == HOST else 1, limit=limit)
    for remark in batches.notes:
        console.note(remark, quiet=quiet)
    job = _Native(folder, found, trust) if target == HOST else _Target(folder, found, target, level, flash, ram)
    with console.progress(f"gemedge run {folder.name}", batches.samples, quiet=quiet or as_json) as on_progress:
        difference, samples = None, 0
        for integers, wanted, count in _wanted(folder, found.model, batches):
            with about(folder):
                difference = job.compare(integers, wanted, samples)
            samples += count
            on_progress(samples)
            if difference is not None:
                break
    cause = None if difference is None else _about_folder(found)
    if as_json:
        told = {"target": target, "samples": samples, "same": difference is None, **job.as_json()}
        console.print_json(told | ({} if difference is None else {"difference": _told(difference), "folder": cause}))
    elif not quiet and difference is None:
        job.print(samples)
    if difference is not None:
        raise PromiseError(f"{folder} on {target}: {difference}; {cause}")
    job.refuse_too_large()


def _wanted(folder: Path, model: "QuantizedModel", batches: "Data") -> Iterator[tuple[Integers, Integers, int]]:
    """The integers that go in, those of every tensor as simulate has them, and how many samples these are."""
    from gemedge.quant.simulate import border, entered, run

    keep = [layer.output for layer in model.layers] + list(model.outputs.values())
    for given in batches:
        with about(folder):
            integers = entered(model, border(model, given), Counter())
            wanted = run(model, integers, keep=keep)
        yield integers, wanted, len(next(iter(integers.values())))


class _Target:
    """Runs on an emulated CPU."""

    def __init__(
        self, path: Path, folder: "Folder", target: str, level: str | None, flash: str | None, ram: str | None
    ) -> None:
        from gemedge.export.device import device
        from gemedge.targets import parse_size

        self.path, self.folder = path, folder
        self.flash, self.ram = (None if size is None else parse_size(size) for size in (flash, ram))
        with about(path):
            self.emulated = device(folder, target, level or "-O2")  # type: ignore[arg-type]
        self.measured: Measured | None = None

    def compare(self, integers: Integers, wanted: Integers, before: int) -> "Difference | None":
        from gemedge.export.difference import first_difference

        for number in range(len(next(iter(integers.values())))):
            sample = _one(integers, number)
            found = self.emulated.run(sample)
            if difference := first_difference(
                self.folder.model, before + number, _one(wanted, number), found.layers, found.outputs
            ):
                return difference
            if self.measured is None:
                self.measured = self.emulated.measure(sample, found.took)
        return None

    def cost(self) -> "tuple[Estimate, Fit] | None":
        from gemedge.targets import estimate, fits, target_named

        if self.measured is None:
            return None
        found = estimate(self.folder.model, target_named(self.emulated.target), self.measured)
        return found, fits(found, self.flash, self.ram)

    def as_json(self) -> dict[str, Any]:
        cost = self.cost()
        return {} if cost is None else {"cost": cost[0].as_json(), "fits": cost[1].holds}

    def print(self, samples: int) -> None:
        cost = self.cost()
        if cost is None:
            return
        found, measured = cost[0], cost[0].measured
        counted = measured.all_instructions is not None
        layers = [
            (x.name, x.kind, *([_count(x.instructions.value)] if counted else []), _span(x.cycles))
            for x in found.layers
        ]
        console.print_table(("layer", "kind", *(["instructions"] if counted else []), "cycles"), layers)
        sections = ", ".join(f"{name} {size:,}" for name, size in sorted(measured.sections.items()))
        rows = [
            ("instructions", f"{measured.all_instructions:,}, of the first sample" if counted else "not counted here"),
            ("cycles", _cycles(measured)),
            ("flash", f"{found.flash.value:,} bytes: {sections}"),
            ("arena", f"{found.arena.value:,} bytes"),
            ("stack", f"{found.stack.value:,} bytes"),
            ("same", _same(self.folder, samples, f"an emulated {self.emulated.target}")),
        ]
        console.print_fields(rows)

    def refuse_too_large(self) -> None:
        cost = self.cost()
        if cost is not None and not cost[1].holds:
            raise PromiseError(f"{self.path} does not fit: {cost[1].text}")


class _Native:
    """Runs on this machine, in a child process with limits."""

    def __init__(self, path: Path, folder: "Folder", trust: bool) -> None:
        from gemedge.cli.known_code import is_known
        from gemedge.export.host import library

        self.folder = folder
        if not (trust or is_known(folder.digest)):
            raise UsageError(
                f"{path}: this user has not exported this code (digest {folder.digest[:16]}); --trust runs it anyway"
            )
        with about(path):
            self.library = library(folder)

    def compare(self, integers: Integers, wanted: Integers, before: int) -> "Difference | None":
        from gemedge.export.difference import first_difference
        from gemedge.export.host import run_confined

        outputs, layers = run_confined(self.folder, self.library, integers)
        for number in range(len(next(iter(integers.values())))):
            shown = {layer: array[number] for layer, array in layers.items()}
            if difference := first_difference(
                self.folder.model, before + number, _one(wanted, number), shown, _one(outputs, number)
            ):
                return difference
        return None

    def as_json(self) -> dict[str, Any]:
        return {}

    def print(self, samples: int) -> None:
        console.print_fields([("same", _same(self.folder, samples, "this machine"))])

    def refuse_too_large(self) -> None:
        """It has run."""


def _one(arrays: Mapping[str, np.ndarray], number: int) -> Integers:
    return {name: array[number] for name, array in arrays.items()}


def _same(folder: "Folder", samples: int, where: str) -> str:
    from gemedge.export.to_c import shown

    return f"every number of {len(shown(folder.model))} layers and the outputs, {samples:,} samples, on {where}"


def _about_folder(folder: "Folder") -> str:
    changed = folder.changed()
    if not changed:
        return "the C is what gemedge writes for this model, so compiler or kernel is wrong"
    return f"{', '.join(changed[:3])} {'is' if len(changed) == 1 else 'are'} not what gemedge writes for this model"


def _told(difference: "Difference") -> dict[str, Any]:
    return {name: getattr(difference, name) for name in difference.__slots__} | {"index": list(difference.index)}


def _count(value: int) -> str:
    return f"{value:,}"


def _cycles(measured: "Measured") -> str:
    if measured.all_cycles is None:
        return "not published for this CPU"
    return f"{measured.all_cycles}, of the first sample, {measured.timed}"


def _span(cycles: "Cycles | None") -> str:
    return "" if cycles is None else str(cycles)

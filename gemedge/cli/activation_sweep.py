"""`gemedge activation --sweep`: a grid of n, epsilon and formats, certified in parallel."""

import csv
import io
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from gemedge import files
from gemedge.activation import Activation
from gemedge.certificate import certify
from gemedge.cli.console import note, print_json, print_table
from gemedge.cli.formats import read_params
from gemedge.errors import PromiseError, UnsupportedError, UsageError
from gemedge.fixed import QuantParams
from gemedge.kernel import FixedActivation
from gemedge.table import Table

Case = tuple[str, int, float, QuantParams, QuantParams]
FIELDS = (
    "family", "n", "epsilon", "in", "out", "misrounded", "max_error", "rms_error", "exceptions",
    "table_misrounded", "table_max_error", "refused",
)  # fmt: skip


def run_sweep(
    activation: Activation,
    ns: str,
    epsilons: str,
    formats: str,
    jobs: int | None,
    output: Path | None,
    plot: Path | None,
    *,
    as_json: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Certify the grid, write its CSV and its heat map, print a summary; PromiseError if a code is misrounded."""
    cases = read_grid(activation, ns, epsilons, formats)
    rows = _certified(cases, jobs or os.cpu_count() or 1, quiet=quiet)
    written: dict[Path, bytes] = {}
    if plot:
        from gemedge.cli.activation_plot import draw_sweep

        written[plot] = draw_sweep(rows, plot.suffix[1:])
    if output:
        written[output] = _csv(rows)
    files.write(written, force=force)
    if as_json:
        print_json({"sweep": rows})
    else:
        _print(rows)
    for row in rows:
        if row["refused"]:
            note(str(row["refused"]), quiet=quiet)
    wrong = [row for row in rows if row["misrounded"]]
    if wrong:
        first = wrong[0]
        raise PromiseError(
            f"{len(wrong)} kernels misround, first {first['family']}(n={first['n']}, epsilon={first['epsilon']})"
            f" from {first['in']} to {first['out']}"
        )


def read_grid(activation: Activation, ns: str, epsilons: str, formats: str) -> list[Case]:
    """Every combination; each value is checked before the long work begins."""
    if activation.family == "rational":
        raise UsageError(f"--sweep varies n and epsilon of GEM or SE-GEM; {activation} has no n")
    family = "segem" if activation.family == "segem" else "egem"
    both = [read_params(part) for part in _parts("--formats", formats)]
    for params in both:
        if params.bits != 16:
            raise UsageError(f"--formats {params}: --sweep compares 16-bit formats")
    whole = [_number("--ns", part, int) for part in _parts("--ns", ns)]
    real = [_number("--epsilons", part, float) for part in _parts("--epsilons", epsilons)]
    for n, epsilon in product(whole, real):
        _activation(family, n, epsilon)
    return [(family, *case) for case in product(whole, real, both, both)]


def _certified(cases: list[Case], jobs: int, *, quiet: bool) -> list[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import track

    shown = Console(file=sys.stderr)
    with ProcessPoolExecutor(min(jobs, len(cases))) as pool:
        try:
            done = pool.map(certify_case, cases, chunksize=4)
            hidden = quiet or not shown.is_terminal
            return list(track(done, "certifying", len(cases), console=shown, transient=True, disable=hidden))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def certify_case(case: Case) -> dict[str, Any]:
    """One row of the CSV."""
    family, n, epsilon, source, target = case
    activation = _activation(family, n, epsilon)
    row: dict[str, Any] = dict.fromkeys(FIELDS, "")
    row.update({"family": family, "n": n, "epsilon": epsilon, "in": str(source), "out": str(target)})
    try:
        kernel = FixedActivation(activation, source, target)
    except UnsupportedError as error:
        return row | {"refused": str(error)}
    certificate = kernel.certify()
    table = Table(activation, source, target, entries=513, interpolation="linear")
    usual = certify(table, activation, source, target, "")
    return row | {
        "misrounded": certificate.misrounded,
        "max_error": certificate.max_error,
        "rms_error": certificate.rms_error,
        "exceptions": len(kernel.constants.exceptions),
        "table_misrounded": usual.misrounded,
        "table_max_error": usual.max_error,
    }


def _activation(family: str, n: int, epsilon: float) -> Activation:
    return Activation.segem(n, epsilon) if family == "segem" else Activation.egem(n, epsilon)


def _parts(option: str, text: str) -> list[str]:
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise UsageError(f"{option} is empty; write its values with commas between them")
    return parts


def _number(option: str, text: str, kind: type[Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{option}: {text[:40]!r} is not {'a whole' if kind is int else 'a'} number") from None


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _print(rows: list[dict[str, Any]]) -> None:
    shown = []
    for pair in dict.fromkeys((row["in"], row["out"]) for row in rows):
        done = [row for row in rows if (row["in"], row["out"]) == pair and not row["refused"]]
        refused = sum(1 for row in rows if (row["in"], row["out"]) == pair) - len(done)
        shown.append(
            [
                f"{pair[0]} to {pair[1]}",
                str(len(done)),
                str(refused),
                f"{sum(row['misrounded'] for row in done):,}",
                f"{max((row['max_error'] for row in done), default=0):.6f}",
                f"{sum(row['table_misrounded'] for row in done):,}",
                f"{max((row['table_max_error'] for row in done), default=0):.4g}",
            ]
        )
    header = ["formats", "kernels", "refused", "misrounded", "max LSB", "513-entry: misrounded", "max LSB"]
    print_table(header, shown)

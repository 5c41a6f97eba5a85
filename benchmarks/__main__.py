"""All benchmarks, or those named, as one Markdown and one JSON file with their figures: `python -m benchmarks`.

Each runs in a process of its own, one after the other, and hands its rows over (benchmarks/row.py). With -o
docs/benchmarks the site's page shows them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.figures import figures
from benchmarks.row import Row, markdown
from gemedge import __version__

NAMES = (
    "startup",
    "float_activations",
    "fused_kernel",
    "kernel",
    "simulate",
    "integer_onnx",
    "instructions",
    "avr",
    "convolution_instructions",
    "calibrate",
    "export_resnet",
    "export_gpt2",
    "tradeoffs",
    "growth",
)
PACKAGES = ("numpy", "torch", "onnx", "onnxscript", "onnxruntime", "ai-edge-litert")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all of them by default")
    parser.add_argument("--quick", action="store_true", help="too little for figures, enough to see that it runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench"), help="a folder")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"{sorted(unknown)[0]!r} is not one of {', '.join(NAMES)}")
    machine = machine_and_versions()
    rows: list[Row] = []
    for name in given.names or NAMES:
        print(f"gemedge: benchmarks/{name}.py", flush=True)
        found = rows_of(name, quick=given.quick)
        print("\n".join(markdown(found)), flush=True)
        rows += found
    write(given.output, machine, rows)
    print(f"gemedge: {given.output / 'benchmarks.md'}")


def rows_of(name: str, *, quick: bool) -> list[Row]:
    """What the benchmark of that name gives."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *(["--quick"] if quick else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603
    if run.returncode:
        raise SystemExit(f"gemedge: benchmarks/{name}.py failed")
    return [Row(**row) for row in json.loads(run.stdout.splitlines()[-1])]


def machine_and_versions() -> dict[str, str]:
    """What the figures depend on, by name. The load tells whether the machine was quiet when they began."""
    found = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "load": f"{os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()}, {platform.machine()}",
        "python": platform.python_version(),
        "gemedge": __version__,
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def write(folder: Path, machine: dict[str, str], rows: Sequence[Row]) -> None:
    """benchmarks.json, benchmarks.md and the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "rows": [asdict(row) for row in rows]}
    (folder / "benchmarks.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = ["| measured on | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.items()), ""]
    lines += markdown(rows)
    for name, figure in figures(rows).items():
        figure.savefig(folder / name, dpi=90, metadata={"Software": None})
        lines += [f"![{name.removesuffix('.png')}]({name})", ""]
    (folder / "benchmarks.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()

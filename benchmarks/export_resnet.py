"""The time of `gemedge export` of a ResNet-20, and whose it is: `python -m benchmarks.export_resnet`.

To reach: under 15 s, the check included, of which under 1 s is gemedge's own: what remains without
imports, torch.export and torch.onnx, and without running the models.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import networks
import torch.onnx

import gemedge.nn as gnn
from benchmarks.row import Row, main
from gemedge.capture import capture_module
from gemedge.export import export_checked

TITLE = "Export of a ResNet-20"
COMMAND_REACH, OWN_REACH = 15.0, 1.0


def rows(quick: bool) -> list[Row]:
    """Seconds of the command, and of each part in one process."""
    torch.set_num_threads(1)
    model = networks.resnet20(lambda: gnn.GEM(1)).eval()
    x = torch.randn(1, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        gnn.save(model, path, x)
        command = [sys.executable, "-m", "gemedge", "export", str(path), "--quiet", "--force"]
        runs = [seconds_of(lambda: subprocess.run(command, check=True)) for _ in range(1 if quick else 3)]  # noqa: S603
    found = [Row(TITLE, "gemedge export, check included", statistics.median(runs), "s", at_most=COMMAND_REACH)]
    exporters = {"torch.export": (torch.export, "export"), "torch.onnx": (torch.onnx, "export")}
    spent = {name: watch(module, attribute) for name, (module, attribute) in exporters.items()}
    capture_module(model, x)  # imports what torch imports late
    for taken in spent.values():
        taken.clear()
    captured: list[Any] = []
    total = seconds_of(lambda: captured.append(capture_module(model, x)))
    theirs = {name: sum(taken) for name, taken in spent.items()}
    probes = captured[0].probes.values()
    theirs["torch running the probes"] = seconds_of(lambda: [model(torch.from_numpy(p[next(iter(p))])) for p in probes])
    total += seconds_of(
        lambda: export_checked(
            captured[0], "onnx", gem="function", external_data=False, name="m", check=True, confined=False
        )
    )
    found += [Row(TITLE, f"of it, imports apart: {name}", seconds, "s") for name, seconds in theirs.items()]
    ours = total - sum(theirs.values())
    return [*found, Row(TITLE, "of it: gemedge, onnx, onnxruntime", ours, "s", at_most=OWN_REACH)]


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def watch(module: Any, attribute: str) -> list[float]:
    """Replace a function by one that notes its seconds in the list returned."""
    function = getattr(module, attribute)
    seconds: list[float] = []

    def watched(*arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            seconds.append(time.perf_counter() - start)

    setattr(module, attribute, watched)
    return seconds


if __name__ == "__main__":
    main(rows)

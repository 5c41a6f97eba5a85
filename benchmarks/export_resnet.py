"""The time of `gemedge export` of a ResNet-20, and whose it is: `python benchmarks/export_resnet.py`.

To reach (issue 2): under 15 s, the check included, of which under 1 s is gemedge's own: what remains without
imports, torch.export and torch.onnx, and without running the models.
"""

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
from gemedge.capture import capture_module
from gemedge.export import export_checked


def main() -> None:
    torch.set_num_threads(1)
    model = networks.resnet20(lambda: gnn.GEM(1)).eval()
    x = torch.randn(1, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        gnn.save(model, path, x)
        command = [sys.executable, "-m", "gemedge", "export", str(path), "--quiet", "--force"]
        seconds = min(timed(lambda: subprocess.run(command, check=True)) for _ in range(3))  # noqa: S603
    print(f"gemedge export of a ResNet-20, check included: {seconds:.1f} s (reach: 15)")
    exporters = {"torch.export": (torch.export, "export"), "torch.onnx": (torch.onnx, "export")}
    spent = {name: watch(module, attribute) for name, (module, attribute) in exporters.items()}
    capture_module(model, x)  # imports what torch imports late
    for taken in spent.values():
        taken.clear()
    captured: list[Any] = []
    total = timed(lambda: captured.append(capture_module(model, x)))
    theirs = {name: sum(taken) for name, taken in spent.items()}
    runs = timed(lambda: [model(torch.from_numpy(p[next(iter(p))])) for p in captured[0].probes.values()])
    checking = timed(
        lambda: export_checked(
            captured[0], "onnx", gem="function", external_data=False, name="m", check=True, confined=False
        )
    )
    print(f"in one process, imports apart: capture {total:.2f} s, forms and check {checking:.2f} s")
    for name, spent_there in theirs.items():
        print(f"  {name:<28}{spent_there:6.2f} s")
    print(f"  {'torch running the probes':<28}{runs:6.2f} s")
    ours = total + checking - sum(theirs.values()) - runs
    print(f"  {'gemedge, onnx, onnxruntime':<28}{ours:6.2f} s (reach: 1)")


def timed(work: Callable[[], object]) -> float:
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
    main()

"""A trained network through all of gemedge: ONNX in three forms, integers in four schemes, and what they cost.

`deploy` leaves the files in a folder of the network's name under ./models, for `gemedge report` and the other
commands to go on with, and prints what is in them.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from models import parameters
from torch import Tensor, nn

import gemedge.nn as gnn
from gemedge import model_file
from gemedge.capture import capture_module
from gemedge.capture.forms import FORMS
from gemedge.export import export_checked
from gemedge.fixed import Rounding
from gemedge.model import SCHEMES
from gemedge.quant.calibrate import calibrate
from gemedge.quant.prepare import prepare
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import simulate
from gemedge.targets import estimate, target_named

FOLDER = Path("models")
TARGET = "cortex-m4"
SAMPLES = 16  # of the test inputs, that an emulated CPU runs

Score = Callable[[np.ndarray], float]


def deploy(
    name: str,
    model: nn.Module,
    calibration: Tensor,
    test: Tensor,
    score: Score,
    measure: str,
    *,
    emulated: tuple[str, ...] = (),
) -> None:
    """Print how the model and its integers score on the test inputs, and what they take on a microcontroller.

    score: a number from 0 to 1 of the outputs for `test`; measure: what it is. calibration: inputs that
    give the ranges, which are not to be those of the test. emulated: schemes whose C runs on the emulated CPU, which
    gives what is otherwise estimated, and the integers of simulate at every layer.
    """
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    gnn.save(model, folder / "model.pt", test[:1])
    np.savez(folder / "test.npz", test.numpy())
    with torch.no_grad():
        reference = torch.cat([model(part) for part in test.split(100)]).numpy()
    print(f"{name}: {parameters(model):,} parameters, {measure} {score(reference):.1%} on {len(test):,} test samples")
    captured = capture_module(model, test[:1])
    for note in captured.notes:
        print(f"  note      {note}")
    for form in FORMS:
        exported = export_checked(
            captured, "onnx", gem=form, external_data=False, name=f"{form}.onnx", check=True, confined=False
        )
        for file, content in exported.files.items():
            (folder / file).write_bytes(content)
        worst = exported.differences[0]
        print(f"  {form:<10}ONNX, largest error {worst.max_abs:.1e}, {worst.allowed:.1e} allowed")
    float_model = prepare(captured.model).model
    (given,) = (value.name or "" for value in float_model.graph.inputs)
    ranges = calibrate(float_model, [{given: part.numpy()} for part in calibration.split(50)], workers=1)
    print(f"  {'integers':<10}{measure:>14}{'SQNR, dB':>10}{'flash, kB':>11}{'RAM, kB':>9}  {TARGET}, estimated")
    for scheme in SCHEMES:
        quantized = quantize(float_model, ranges, scheme=scheme, rounding=Rounding.SINGLE)
        (folder / f"{scheme}.gemq").write_bytes(model_file.save(quantized))
        (outputs,) = simulate(quantized, {given: test.numpy()}, workers=1).values()
        sqnr = 10 * np.log10(np.square(reference).sum() / np.square(outputs - reference).sum())
        print(f"  {scheme:<10}{score(outputs):>14.1%}{sqnr:>10.1f}", end="")
        cost = estimate(quantized, target_named(TARGET))
        print(
            f"{cost.flash.value / 1024:>11.1f}{cost.ram.value / 1024:>9.1f}  {cost.instructions.value:,} instructions"
        )
    for shown in emulated:
        run_on_target(folder, shown)
    print(flush=True)


def run_on_target(folder: Path, scheme: str) -> None:
    """Print what the network's C takes on the emulated CPU; an error where a number there or here is not simulate's."""
    source = str(folder / f"{scheme}-c")
    gemedge("export", str(folder / f"{scheme}.gemq"), "--format", "c", "-o", source, "--force", "-q")
    data = str(folder / "test.npz")
    here = json.loads(gemedge("run", source, "--target", "host", "--data", data, "--json"))
    told = json.loads(gemedge("run", source, "--target", TARGET, "--data", data, "--limit", str(SAMPLES), "--json"))
    of = {name: figure["value"] for name, figure in told["cost"]["totals"].items()}
    print(
        f"  {scheme}, C: the same integers at every layer for {here['samples']} samples here, {told['samples']} on"
        f" {TARGET}, emulated; flash {of['flash'] / 1024:.1f} kB, RAM {of['ram'] / 1024:.1f} kB,"
        f" {of['instructions']:,} instructions"
    )


def gemedge(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run([sys.executable, "-m", "gemedge", *command], stdout=subprocess.PIPE, text=True)  # noqa: S603
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout

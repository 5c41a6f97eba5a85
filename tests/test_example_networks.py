"""The examples that train reference networks, run as a user runs them, for fewer steps than by default."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import gemedge.nn as gnn
from gemedge import model_file

ROOT = Path(__file__).parents[1]
SCHEMES = ["int8", "int16x8", "q7", "q15"]


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    words = [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / command[0]), *command[1:]]
    found = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    assert found.returncode == 0, found.stderr
    return found.stdout


@dataclass(frozen=True)
class Row:
    """A network, what it scores at least in float, and how many points each scheme may lose. All in percent."""

    script: str
    network: str
    steps: int
    least: float
    lost: tuple[float, float, float, float]
    emulated: tuple[str, ...] = ()


ROWS = [
    Row("train_images.py", "mlp", 60, 60, (5, 1, 6, 0.5), tuple(SCHEMES)),
    Row("train_motion.py", "autoencoder", 100, 90, (5, 1, 6, 0.5), ("int8", "int16x8")),
    Row("train_text.py", "gpt", 40, 20, (5, 1, 6, 0.5)),
    Row("train_images.py", "cnn", 300, 75, (2, 1, 4, 0.5), tuple(SCHEMES)),
    Row("train_images.py", "resnet8", 120, 65, (4, 1, 6, 0.5), ("int8",)),
    Row("train_images.py", "mobilenet", 300, 85, (10, 3, 20, 2)),
    Row("train_images.py", "resnet56", 100, 20, (10, 3, 100, 2)),  # too deep for q7 with so little training
    Row("train_images.py", "vit", 200, 60, (4, 1, 6, 0.5)),
    Row("train_motion.py", "ds_cnn", 100, 50, (5, 2, 8, 1), ("int8", "int16x8")),
    Row("train_text.py", "bert", 100, 10, (5, 1, 6, 0.5)),
]


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.network)
def test_a_reference_network_is_trained_exported_and_runs_in_integers(row, tmp_path):
    printed = run(tmp_path, row.script, row.network, "--steps", str(row.steps))
    (reached,) = re.findall(rf"^{row.network}: [\d,]+ parameters, \w+ ([\d.]+)% on", printed, re.MULTILINE)
    assert float(reached) > row.least
    errors = re.findall(r"^  (\w+) +ONNX, largest error (\S+), (\S+) allowed$", printed, re.MULTILINE)
    assert [form for form, _, _ in errors] == ["function", "primitive", "custom"]
    assert all(float(error) <= float(allowed) for _, error, allowed in errors)
    scores = re.findall(r"^  (\w+) +([\d.]+)% +[-\d.]+ +[\d.]+ +[\d.]+  [\d,]+ instructions$", printed, re.MULTILINE)
    assert [scheme for scheme, _ in scores] == SCHEMES
    for (scheme, score), lost in zip(scores, row.lost, strict=True):
        assert float(score) >= float(reached) - lost, scheme
        written = (tmp_path / "models" / row.network / f"{scheme}.gemq").read_bytes()
        assert model_file.load(written).scheme == scheme
    found = re.findall(
        r"^  (\w+), C: the same integers at every layer for (\d+) samples here, 16 on cortex-m4, emulated; flash",
        printed,
        re.MULTILINE,
    )
    (tested,) = re.findall(r" on ([\d,]+) test samples$", printed, re.MULTILINE)
    assert found == [(scheme, tested.replace(",", "")) for scheme in row.emulated]


# name: trained numbers (MLPerf Tiny's counts have the moving averages of BatchNorm, which are not trained), shapes
REFERENCES = {
    "resnet8": (78_666, (3, 32, 32), (10,)),
    "ds_cnn": (24_908, (1, 49, 10), (12,)),
    "mobilenet": (221_794, (3, 96, 96), (2,)),
    "autoencoder": (269_992, (640,), (640,)),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_network_of_mlperf_tiny_has_its_size_and_shapes(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import models

    count, given, made = REFERENCES[name]
    model = getattr(models, name)(lambda: gnn.GEM(1)).eval()
    averages = sum(module.running_mean.numel() for module in model.modules() if hasattr(module, "running_mean"))
    assert models.parameters(model) + 2 * averages == count
    assert model(torch.zeros(2, *given)).shape == (2, *made)


@pytest.mark.long
def test_activations_are_compared_in_one_pipeline(tmp_path):
    printed = run(tmp_path, "compare_activations.py", "--seeds", "1", "--epochs", "1")
    rows = re.findall(r"^([A-Z][^\n]*?) +([\d.]+) \+- [\d.]+ +([-\d. ]+)$", printed, re.MULTILINE)
    assert len(rows) == 12
    for name, accuracy, lost in rows:
        assert float(accuracy) > 80, name
        assert [abs(float(points)) < limit for points, limit in zip(lost.split(), (4, 2, 8, 1), strict=True)], name
    learned = re.findall(r"^(E-GEM|SE-GEM), learned, epsilon of each layer, by seed: \[\[(.*)\]\]$", printed, re.M)
    assert [name for name, _ in learned] == ["E-GEM", "SE-GEM"]
    assert all(float(epsilon) != 0.5 for _, epsilons in learned for epsilon in epsilons.split(","))
    assert printed.count("learned, folded into the weights around it") == 4
    assert (tmp_path / "compare_activations.png").read_bytes().startswith(b"\x89PNG")


def test_an_example_says_which_extra_it_needs(tmp_path):
    code = f"""
import runpy, sys
sys.modules["timm"] = None
sys.path.insert(0, {str(ROOT / "examples")!r})
sys.argv = ["replace_activations.py", "timm"]
runpy.run_path({str(ROOT / "examples/replace_activations.py")!r}, run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 1
    assert re.fullmatch(r"timm is not installed \(.*\): pip install 'gemedge\[models\]'\n", found.stderr)


# A torchvision built for another build of torch finds its operators nowhere, and its import needs two of them.
WITH_OPERATORS = """
import runpy, sys, torch
try:
    import torchvision
except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.long
@pytest.mark.parametrize(("package", "swapped"), [("torchvision", 9), ("timm", 12), ("transformers", 2)])
def test_activations_of_other_packages_networks_are_replaced(package, swapped, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    script = str(ROOT / "examples/replace_activations.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")])}
    found = subprocess.run(
        [sys.executable, "-c", WITH_OPERATORS, script, package],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(f"{package}: {swapped} activations swapped, the first ")
    assert found.stdout.count("ONNX, ") == 3


LARGE = [("gpt2", "function"), ("gpt2", "primitive"), ("gpt2", "custom"), ("vit_small", "function"),
         ("vit_small", "primitive"), ("bert_small", "function"), ("bert_small", "custom")]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("network", "form"), LARGE)
def test_a_large_network_is_exported_and_compared_in_bounded_time_and_memory(network, form, tmp_path):
    printed = run(tmp_path, "export_large.py", network, "--gem", form)
    assert re.search(rf"^form +{form}, ", printed, re.MULTILINE)
    assert re.search(r"^error +\S+ \(.* ulp\) at most, \S+ allowed$", printed, re.MULTILINE)
    (seconds, peak) = re.findall(r"(\d+) s of processor time; largest process [\d,]+ MB, ([\d.]+) times", printed)[0]
    assert float(seconds) < 60
    if network == "gpt2":  # beside smaller ones, Python and its libraries weigh more
        assert float(peak) <= 3.2

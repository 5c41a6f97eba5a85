"""Simulate on several threads: the same integers in the same order, no more at a time than asked, nothing kept."""

import gc
import threading
from collections import Counter, namedtuple

import numpy as np
import pytest
import torch
from torch import nn

import gemedge.nn as gnn
from gemedge import DataError, UsageError, model_file
from gemedge.capture import capture_module
from gemedge.cli import _status
from gemedge.fixed import Rounding
from gemedge.model import SCHEMES
from gemedge.quant import evaluate
from gemedge.quant import simulate as module
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import simulate

Range = namedtuple("Range", "min max")
SAMPLES = 37  # five parts, the last shorter


def quantized(scheme="int16x8"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), gnn.GEM(1), nn.Flatten(), nn.Linear(4 * 9, 3))
    found = capture_module(model, torch.randn(1, 2, 5, 5)).model
    names = [found.graph.inputs[0].name, *(value.name for node in found.graph for value in node.outputs)]
    return quantize(found, dict.fromkeys(names, Range(-4.0, 4.0)), scheme=scheme, rounding=Rounding.SINGLE)


def images():
    return np.random.default_rng(0).standard_normal((SAMPLES, 2, 5, 5)).astype(np.float32)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_number_of_workers_gives_the_integers_of_one_sample_at_a_time(scheme):
    model, x = quantized(scheme), images()
    names = [layer.name for layer in model.layers]
    alone = [simulate(model, {"x": x[i : i + 1]}, layers=names, raw=True, workers=1) for i in range(SAMPLES)]
    for workers in (1, 2, 5, 50, None):
        together = simulate(model, {"x": x}, layers=names, raw=True, workers=workers)
        for name, array in together.items():
            np.testing.assert_array_equal(array, np.concatenate([one[name] for one in alone]))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_as_many_parts_run_at_once_as_there_are_workers(monkeypatch, workers):
    run, lock, at_once = module.run, threading.Lock(), [0]
    running, first, met = [0], threading.Semaphore(workers), threading.Barrier(workers)

    def counted(*arguments, **keywords):
        with lock:
            running[0] += 1
            at_once[0] = max(at_once[0], running[0])
        if first.acquire(blocking=False):
            met.wait(timeout=30)
        made = run(*arguments, **keywords)
        with lock:
            running[0] -= 1
        return made

    monkeypatch.setattr(module, "run", counted)
    simulate(quantized(), {"x": images()}, workers=workers)
    assert at_once[0] == workers


def test_an_error_is_that_of_the_first_part_that_fails(monkeypatch):
    second = threading.Event()

    def failing(_, integers, **__):
        first = (integers[next(iter(integers))][0] == marked).all()
        if not first:
            second.set()
            raise DataError("a later part")
        assert second.wait(timeout=30)
        raise DataError("the first part")

    model, x = quantized(), images()
    marked = module.entered(model, {model.inputs[0]: x[:1]}, Counter())[model.inputs[0]][0]
    monkeypatch.setattr(module, "run", failing)
    with pytest.raises(DataError, match="the first part"):
        simulate(model, {"x": x}, workers=2)


def test_what_is_kept_for_a_model_goes_with_it():
    gc.collect()
    before = len(evaluate._KEPT)
    model = quantized()
    simulate(model, {"x": images()})
    assert len(evaluate._KEPT) > before
    del model
    gc.collect()
    assert len(evaluate._KEPT) == before


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])  # rescaled in float64, and in integers
def test_saturated_numbers_are_counted_over_all_threads(scheme):
    model, counts = quantized(scheme), {}
    for workers in (1, 3):
        counts[workers] = Counter()
        simulate(model, {"x": 40 * images()}, saturated=counts[workers], workers=workers)
    raw = simulate(model, {"x": 40 * images()}, layers=["0"], raw=True)["0"]
    params = model.tensors[model.layers[0].output].quantized
    ends = int(((raw == params.raw_min) | (raw == params.raw_max)).sum())
    assert counts[1] == counts[3]
    assert 0.7 * ends < counts[1]["0"] <= ends


def test_no_workers_are_refused():
    with pytest.raises(UsageError, match="workers=0 must be at least 1"):
        simulate(quantized(), {"x": images()}, workers=0)


def test_inputs_with_other_numbers_of_samples_are_refused():
    class Both(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    found = capture_module(Both(), (torch.randn(1, 3), torch.randn(1, 3))).model
    names = [value.name for value in (*found.graph.inputs, *found.graph.outputs)]
    model = quantize(found, dict.fromkeys(names, Range(-1.0, 1.0)), scheme="int8", rounding=Rounding.SINGLE)
    given = dict(zip(model.inputs, (np.zeros((3, 3)), np.zeros((4, 3))), strict=True))
    with pytest.raises(DataError, match="as many samples each; there are 3 in 'a', 4 in 'b'"):
        simulate(model, given)


def test_the_command_writes_the_same_file_whatever_the_workers(tmp_path):
    (tmp_path / "m.gemq").write_bytes(model_file.save(quantized()))
    np.save(tmp_path / "x.npy", images())
    for workers in ("1", "3"):
        arguments = ("--data", tmp_path / "x.npy", "-o", tmp_path / f"{workers}.npz", "--workers", workers, "-q")
        assert _status([str(word) for word in ("simulate", tmp_path / "m.gemq", *arguments, "--batch", "20")]) == 0
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "3.npz").read_bytes()
    assert len(np.load(tmp_path / "1.npz")["output"]) == SAMPLES

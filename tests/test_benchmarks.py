"""The benchmarks: what their collector makes of rows, and that each of them runs."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import gemedge
from gemedge import Activation, QFormat

sys.path.append(str(Path(__file__).parents[1]))
from benchmarks import __main__ as collector
from benchmarks import instructions
from benchmarks.growth import _exponents
from benchmarks.row import Row, markdown, timed

ROOT = Path(__file__).parents[1]
Q3_12, Q3_4 = QFormat(3, 12), QFormat(3, 4)


@pytest.mark.parametrize(
    ("row", "reached"),
    [
        (Row("t", "no goal", 3.0, "ms"), None),
        (Row("t", "a value", 3.0, "ms", at_most=2.0), False),
        (Row("t", "its ratio is what counts", 3.0, "ms", 1.5, "peer", at_most=2.0), True),
        (Row("t", "too slow", 3.0, "images a second", at_least=4.0), False),
    ],
    ids=lambda value: value.name if isinstance(value, Row) else "",
)
def test_a_goal_is_judged_by_the_ratio_or_else_by_the_value(row, reached):
    assert row.reached is reached


def test_times_stand_beside_their_peer_with_the_ratio():
    lines = list(markdown(timed("T", {"Gelu": 0.002, "GEM": 0.001, "SE-GEM": 0.003}, "Gelu", {"SE-GEM": 1.2})))
    assert lines[0] == "**T**\n"
    assert lines[3:6] == [
        "| Gelu | 2 |  |  |",
        "| GEM | 1 | 0.5 of Gelu |  |",
        "| SE-GEM | 3 | 1.5 of Gelu | at most 1.2: **missed** |",
    ]


def test_an_activation_stands_beside_its_own_table_and_relu_of_its_width():
    gem, segem = (gemedge.FixedActivation(made, Q3_12, Q3_12) for made in (Activation.gem(1), Activation.segem(1, 1)))
    byte = gemedge.FixedActivation(Activation.gem(1), Q3_4, Q3_4)
    table = instructions.TABLES[0]
    taken = {
        (gem, "ours"): (30, 200), (gem, table): (20, 1000), (segem, "ours"): (15, 100), (segem, table): (30, 800),
        (gem, instructions.RELUS[0]): (5, 20), (byte, instructions.RELUS[1]): (3, 20), (byte, "ours"): (6, None),
    }  # fmt: skip
    measured = {
        instructions.Subject(name, kernel, ""): instructions.Measured(count, None, flash, None)
        for (kernel, name), (count, flash) in taken.items()
    }
    found = {(s.kernel, s.name): instructions.beside_peers(s, measured) for s in measured}
    assert found[gem, "ours"] == {"of the table's": 1.5, "flash, of the table's": 0.2, "of ReLU's": 6}
    assert found[segem, "ours"] == {"of the table's": 0.5, "flash, of the table's": 0.125, "of ReLU's": 3}
    assert found[byte, "ours"] == {"of ReLU's": 2}


# time and memory by size: their exponents over the last two and fitted to all, and whether the goal is reached
GROWTH = [
    (lambda size: (1e-6 * size**1.5, 1e3 * size), [(1.5, 1.5, False), (1.0, 1.0, True)]),
    (lambda size: (1e-6 * size, 1e3 * size**1.2), [(1.0, 1.0, True), (1.2, 1.2, False)]),
    (lambda size: (1e-2, max(1e3 * size, 1e8)), [(0.0, 0.0, True), (1.0, 0.5, True)]),
    (lambda size: (1e-3 if size < 10**5 else 1e-3 * size / 10**3, 1e6), [(1.0, 1.5, False), (0.0, 0.0, True)]),
]


@pytest.mark.parametrize(("cost", "expected"), GROWTH)
def test_an_exponent_is_that_of_the_growth_and_neither_may_be_worse_than_linear(cost, expected):
    rows = _exponents("parameters", "step", [(size, cost(size)) for size in (10**4, 10**5, 10**6)])
    assert [row.name for row in rows] == ["step, time", "step, memory"]
    for row, (last, fitted, reached) in zip(rows, expected, strict=True):
        assert row.beside == pytest.approx({"of the last two": last, "fitted to all": fitted}, abs=1e-9)
        assert row.value == pytest.approx(max(last, fitted), abs=1e-9)
        assert row.reached is reached


@pytest.mark.long
def test_every_benchmark_runs_and_is_collected(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "-o", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "benchmarks.json").read_text())
    assert found["machine"].keys() >= {"processor", "python", "torch", "onnxruntime"}
    rows = [Row(**row) for row in found["rows"]]
    assert all(math.isfinite(row.value) for row in rows)
    assert len({row.table for row in rows}) >= len(collector.NAMES)
    text = (tmp_path / "benchmarks.md").read_text()
    assert all(f"**{row.table}**" in text for row in rows)
    for picture in ("growth.png", "tradeoffs.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert f"({picture})" in text

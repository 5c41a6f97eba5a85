"""What long work shows on a terminal, and that it shows nothing elsewhere."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

ROOT = Path(__file__).parent.parent
TEXT = """<ir_version: 8, opset_import: ["": 18]>
g (float[batch, 4] x) => (float[batch, 4] z) { z = Relu(x) }"""
CODE = """import time, numpy as np
def batches():
    for _ in range(12):
        time.sleep(0.15)
        yield np.ones((5, 4), np.float32)
"""


@pytest.fixture
def folder(tmp_path):
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "m.onnx")
    np.save(tmp_path / "d.npy", np.ones((60, 4), np.float32))
    (tmp_path / "slow.py").write_text(CODE)
    return tmp_path


def environment(**rest):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120", "TERM": "xterm", **rest}


def shown_on_a_terminal(folder: Path, *arguments: str) -> str:
    """All that a command writes to stderr where that is a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gemedge", *arguments],
        cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # Linux says so where the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait() == 0, shown
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_calibrate_shows_how_many_samples_are_done_their_rate_and_the_time_left(folder):
    shown = shown_on_a_terminal(folder, "calibrate", "m.onnx", "--data", "d.npy", "--batch", "1", "--workers", "1")
    last = [line for line in re.split(r"[\r\n]+", shown) if "samples" in line][-1]
    assert re.search(r"gemedge calibrate m\.onnx .* 60 of 60 samples +[\d,]+/s +\d+:\d\d:\d\d", last), last


def test_a_stream_of_unknown_length_shows_its_rate(folder):
    shown = shown_on_a_terminal(folder, "calibrate", "m.onnx", "--data", "slow:batches", "--batch", "5")
    rates = re.findall(r"(\d+) of \? samples +([\d,]+)/s", shown)
    assert rates, shown
    assert rates[-1][0] == "60"
    assert 5 <= int(rates[-1][1].replace(",", "")) <= 60  # it yields 33 a second at most


def test_nothing_is_shown_where_stderr_is_no_terminal(folder):
    command = [sys.executable, "-m", "gemedge", "calibrate", "m.onnx", "--data", "d.npy"]
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=True)
    assert result.stderr == ""

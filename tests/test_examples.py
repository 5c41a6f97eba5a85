"""The examples, run as a user runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_demo_keeps_the_accuracy_in_every_form(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    script = str(ROOT / "examples/demo.py")
    run = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    rows = re.findall(r"^(torch|onnxruntime, \w+) +([\d.]+)% +([\d.]+)%$", run.stdout, re.MULTILINE)
    assert [name for name, _, _ in rows] == [
        "torch",
        *(f"onnxruntime, {f}" for f in ("function", "primitive", "custom")),
    ]
    assert all(float(accuracy) > 93 and float(agreement) > 99.5 for _, accuracy, agreement in rows), rows
    for picture in ("activation.png", "confusion.png"):
        assert (tmp_path / "demo" / picture).read_bytes().startswith(b"\x89PNG")

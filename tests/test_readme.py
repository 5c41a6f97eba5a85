"""The commands and programs of the README, run in their order in one folder."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(python|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_block_of_the_readme_runs_and_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ran = 0
    for kind, text in blocks((ROOT / "README.md").read_text()):
        if kind == "python":
            subprocess.run([sys.executable, "-W", "ignore", "-c", text], check=True, cwd=tmp_path, timeout=300)
        else:
            command, _, shown = text.partition("\n")
            words = shlex.split(command.removeprefix("$ "))
            assert words[0] == "gemedge"
            run = [sys.executable, "-m", *words]
            printed = subprocess.run(run, check=True, cwd=tmp_path, capture_output=True, text=True, timeout=300).stdout
            for line in shown.splitlines():
                assert re.search(re.escape(line).replace(r"\.\.\.", ".*"), printed), (line, printed)
        ran += 1
    assert ran >= 4
    assert (tmp_path / "model.onnx").exists()

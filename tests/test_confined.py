"""gemedge.confined: whatever happens in the child, the parent gets one error and nobody is left running."""

import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from gemedge import confined
from gemedge.errors import DataError, ModelError, OutputError

CALL = """
import sys
from gemedge import confined
confined._CHILD = "confined_jobs"
confined.call("confined_jobs:hang", {"pid": sys.argv[1], "seconds": 1000})
"""


@pytest.fixture(autouse=True)
def _misbehaving_child(monkeypatch):
    monkeypatch.setattr(confined, "_CHILD", "confined_jobs")


def test_values_and_bytes_go_there_and_back():
    blobs = {"a": b"abc", "empty": b"", "ä": memoryview(bytes(range(200)))}
    reply, parts = confined.call("confined_jobs:echo", {"x": [1, "\udcff", None]}, blobs)
    assert reply == {"asked": {"x": [1, "\udcff", None]}}
    assert {name: bytes(part) for name, part in parts.items()} == {
        name: bytes(blob)[::-1] for name, blob in blobs.items()
    }


def test_a_list_of_pieces_arrives_joined():
    _, parts = confined.call("confined_jobs:echo", {}, {"a": [memoryview(b"abc"), memoryview(b"de")], "b": b"f"})
    assert {name: bytes(part) for name, part in parts.items()} == {"a": b"edcba", "b": b"f"}


def test_a_released_blob_is_read_again(tmp_path):
    (tmp_path / "blob").write_bytes(bytes(range(256)) * 64)
    with open(tmp_path / "blob", "rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[256:512]
    confined.release(view)
    confined.release(b"not mapped")
    assert bytes(view) == bytes(range(256))


def test_a_job_that_computes_without_end_is_stopped(tmp_path):
    phases = []
    with pytest.raises(ModelError, match=r"^hanging it took more than 1 seconds of processor time$"):
        confined.call("confined_jobs:hang", {"pid": str(tmp_path / "pid"), "seconds": 1}, on_phase=phases.append)
    assert phases == ["hanging"]
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_job_that_waits_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(confined, "_WALL_FACTOR", 1)
    with pytest.raises(ModelError, match=r"^sleeping it did not end$"):
        confined.call("confined_jobs:sleep", {})


def test_a_job_that_eats_memory_is_stopped():
    with pytest.raises(ModelError, match=r"^it needs more memory than its size justifies$"):
        confined.call("confined_jobs:eat", {})


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGFPE"])
def test_a_crash_is_one_error(name):
    with pytest.raises(ModelError, match=f"^dying it ended the reading process with {name}$"):
        confined.call("confined_jobs:die", {"signal": name})


def test_our_errors_keep_their_class_and_text():
    with pytest.raises(DataError, match=r"^a reason\nof two lines, ä$"):
        confined.call("confined_jobs:refuse", {})


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError, match=r"in fail\n(?s:.*)ZeroDivisionError: a bug of ours"):
        confined.call("confined_jobs:fail", {})


def test_a_child_that_leaves_early_is_quoted():
    with pytest.raises(RuntimeError, match=r"ended with status 7:\nthese are last words"):
        confined.call("confined_jobs:leave", {})


def test_noise_of_a_library_does_not_reach_the_user(capfd):
    assert confined.call("confined_jobs:chatter", {}) == ({"done": True}, {})
    assert capfd.readouterr() == ("", "")


def test_only_the_jobs_of_the_list_are_run(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match=r"ended with status 1:\nconfined_jobs:echo is no job"):
        confined.call("confined_jobs:echo", {})


def test_no_room_for_the_answer_is_an_output_error():
    with pytest.raises(OutputError, match=r"there is no room for temporary files"):
        confined.call("confined_jobs:overflow", {})


def test_no_folder_for_temporary_files_is_an_output_error(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(OutputError, match=r"there is no room for temporary files.*: No such file or directory"):
        confined.call("confined_jobs:echo", {})


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_parent_that_ends_leaves_no_child(name, tmp_path):
    path = os.pathsep.join(filter(None, sys.path))
    parent = subprocess.Popen(
        [sys.executable, "-c", CALL, str(tmp_path / "pid")],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )
    child = int(when_written(tmp_path / "pid"))
    assert not is_gone(child)
    parent.send_signal(getattr(signal, name))
    parent.wait(60)
    deadline = time.monotonic() + 30
    while not is_gone(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_gone(child)


def when_written(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return path.read_text()


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True

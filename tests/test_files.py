"""gemedge.files: a reader sees the old bytes or the new ones, whatever happens to the writer."""

import errno
import os
import random
import resource
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemedge import files
from gemedge.errors import OutputError

OLD, NEW = b"old" * 100_000, b"new" * 100_000


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".gemedge-")]


def in_a_fork(work) -> int:
    """The process of a child that does this work and nothing else of pytest."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_writes_what_it_is_given_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a"
    files.write({path: NEW}, force=False)
    assert path.read_bytes() == NEW
    assert list(tmp_path.iterdir()) == [path]
    files.write({path: memoryview(b"")}, force=True)
    assert path.read_bytes() == b""


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        files.write({tmp_path / "a": NEW}, force=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.exhaustive
def test_300_kills_leave_no_torn_file_and_the_next_run_removes_what_they_left(tmp_path):
    paths = [tmp_path / "model.onnx", tmp_path / "model.json"]
    files.write(dict.fromkeys(paths, OLD), force=True)

    def write_on_and_on() -> None:
        while True:
            for content in (NEW, OLD):
                files.write(dict.fromkeys(paths, content), force=True)

    moments = random.Random(0)
    left = 0
    for _ in range(300):
        pid = in_a_fork(write_on_and_on)
        time.sleep(moments.uniform(0.0005, 0.02))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        left += bool(temporaries(tmp_path))
        assert all(path.read_bytes() in (OLD, NEW) for path in paths)
        assert len(temporaries(tmp_path)) <= 2, "the run before did not remove what its predecessor left"
    assert left > 50, "the kills did not come in the middle"
    files.write({tmp_path / "other": b""}, force=True)
    assert temporaries(tmp_path) == []


def test_a_temporary_file_of_a_writer_at_work_stays(tmp_path):
    with files._temporary(tmp_path / "a", NEW) as temporary:
        files.write({tmp_path / "b": NEW}, force=True)
        assert temporary.exists()
    assert temporaries(tmp_path) == []


def test_a_pipe_named_as_a_temporary_file_holds_nobody_up(tmp_path):
    os.mkfifo(tmp_path / ".gemedge-1-0.tmp")
    files.write({tmp_path / "a": NEW}, force=True)
    assert (tmp_path / "a").read_bytes() == NEW


def test_writers_at_once_without_force_have_one_winner(tmp_path):
    path, errors, start = tmp_path / "a", [], threading.Barrier(8)
    contents = [bytes([65 + index]) * 50_000 for index in range(8)]

    def write(content: bytes) -> None:
        start.wait()
        try:
            files.write({path: content}, force=False)
        except OutputError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=write, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [f"{path} exists; --force replaces it"] * 7
    assert path.read_bytes() in contents
    assert temporaries(tmp_path) == []


def test_writers_at_once_with_force_leave_the_whole_file_of_one(tmp_path):
    path = tmp_path / "a"
    contents = [bytes([65 + index]) * 50_000 for index in range(8)]
    writers = [in_a_fork(lambda content=content: files.write({path: content}, force=True)) for content in contents]
    for pid in writers:
        os.waitpid(pid, 0)
    assert path.read_bytes() in contents
    assert temporaries(tmp_path) == []


def test_links_are_followed(tmp_path):
    (tmp_path / "sub").mkdir()
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    link.symlink_to("sub/target")
    dangling.symlink_to("sub/new")
    (tmp_path / "sub" / "target").write_bytes(OLD)
    files.write({link: NEW}, force=True)
    files.write({dangling: NEW}, force=False)
    assert link.is_symlink()
    assert (tmp_path / "sub" / "target").read_bytes() == NEW
    assert (tmp_path / "sub" / "new").read_bytes() == NEW


def test_of_two_files_neither_appears_where_the_second_cannot(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    second.write_bytes(OLD)
    with pytest.raises(OutputError, match=r"second exists; --force replaces it"):
        files.write({first: NEW, second: NEW}, force=False)
    assert list(tmp_path.iterdir()) == [second]
    with pytest.raises(OutputError, match=r"cannot write .*second: No such file or directory"):
        files.write({first: NEW, tmp_path / "absent" / "second": NEW}, force=True)
    assert list(tmp_path.iterdir()) == [second]
    assert second.read_bytes() == OLD


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler, whatever a command line run in this process has left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_between_two_renames_waits_for_the_second(tmp_path, monkeypatch):
    rename, seen = os.replace, []

    def interrupted(*arguments) -> None:
        rename(*arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "replace", interrupted)
    monkeypatch.setattr(files, "_flush_folder", lambda folder: seen.append(folder))
    paths = [tmp_path / "first", tmp_path / "second"]
    with pytest.raises(KeyboardInterrupt):
        files.write(dict.fromkeys(paths, NEW), force=True)
    assert [path.read_bytes() for path in paths] == [NEW, NEW]
    assert seen == [str(tmp_path)]
    assert temporaries(tmp_path) == []


@pytest.mark.parametrize("what", ["EFBIG", "ENOSPC"])
def test_a_full_disk_leaves_the_old_file(what, tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    if what == "EFBIG":

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
            try:
                files.write({path: NEW}, force=True)
            except OutputError as error:
                (tmp_path / "said").write_text(str(error))

        os.waitpid(in_a_fork(limit), 0)
        assert (tmp_path / "said").read_text() == f"cannot write {path}: File too large"
    else:

        def no_space(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", no_space)
        with pytest.raises(OutputError, match=r"cannot write .*a: No space left on device"):
            files.write({path: NEW}, force=True)
    assert path.read_bytes() == b"old"
    assert temporaries(tmp_path) == []


def test_a_file_system_without_links_still_replaces_nothing(tmp_path, monkeypatch):
    def no_links(*arguments) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a"
    files.write({path: OLD}, force=False)
    with pytest.raises(OutputError, match=r"a exists; --force replaces it"):
        files.write({path: NEW}, force=False)
    assert path.read_bytes() == OLD


def test_a_folder_that_cannot_be_flushed_is_no_failure(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    files.write({tmp_path / "a": NEW}, force=False)
    assert (tmp_path / "a").read_bytes() == NEW


def test_no_free_temporary_name_is_said(tmp_path):
    for attempt in range(1000):
        (tmp_path / f".gemedge-{os.getpid()}-{attempt}.tmp").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*a: no free temporary name in its folder"):
        files.write({tmp_path / "a": NEW}, force=True)


def make_each(folder: Path) -> None:
    (folder / "there").write_bytes(b"")
    (folder / "sub").mkdir()
    (folder / "input").write_bytes(b"")
    (folder / "link").symlink_to("input")
    os.mkfifo(folder / "pipe")


REFUSED = {
    "there": "there exists; --force replaces it",
    "sub": "sub is a folder; name a file with -o",
    "pipe": "pipe is a device or pipe; name a file with -o",
    "input": "input is the input; name another output with -o",
    "link": "link is the input; name another output with -o",
    "absent/a": "absent/a: the folder .*absent does not exist",
    "there/a": "cannot write .*there/a: Not a directory",
    "x" * 256: "cannot write .*x: File name too long",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_place_where_nothing_can_be_written_is_refused_beforehand(name, tmp_path):
    make_each(tmp_path)
    with pytest.raises(OutputError, match=REFUSED[name]):
        files.refuse_existing(tmp_path / name, force=False, inputs=(tmp_path / "input",))


@pytest.mark.parametrize("name", ["sub", "pipe", "input"])
def test_force_does_not_help_there(name, tmp_path):
    make_each(tmp_path)
    with pytest.raises(OutputError, match=REFUSED[name]):
        files.refuse_existing(tmp_path / name, force=True, inputs=(tmp_path / "input",))


def test_a_folder_that_is_not_writable_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(OutputError, match=f"a: the folder {tmp_path} is not writable"):
        files.refuse_existing(tmp_path / "a", force=False)


def test_a_free_place_is_not_refused(tmp_path):
    make_each(tmp_path)
    files.refuse_existing(tmp_path / "new", force=False)
    files.refuse_existing(tmp_path / "there", force=True)
    assert (tmp_path / "there").exists()


def test_a_folder_of_folders_is_written_whole_or_not_at_all(tmp_path):
    wanted = {"src/a": b"1", "src/inner/b": b"2", "c": b"3"}
    (tmp_path / "out/src/inner/b").mkdir(parents=True)
    with pytest.raises(OutputError):
        files.write_folder(tmp_path / "out", wanted, force=False)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["b", "inner", "src"]
    files.write_folder(tmp_path / "new", wanted, force=False)
    assert {
        str(p.relative_to(tmp_path / "new")): p.read_bytes() for p in (tmp_path / "new").rglob("*") if p.is_file()
    } == wanted


def test_folders_made_for_files_that_cannot_be_written_do_not_stay(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_write_all", full)
    with pytest.raises(OutputError, match="No space left on device"):
        files.write_folder(tmp_path / "new", {"src/inner/b": b"2", "c": b"3"}, force=False)
    assert list(tmp_path.iterdir()) == []

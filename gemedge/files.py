"""Whole files or none: every file that gemedge writes goes through here.

A file is written beside its place under a temporary name, flushed to the disk and renamed. A reader sees
the old bytes or the new ones. What a killed run leaves behind is removed by the next run in that folder:
a writer holds a lock on its temporary file, so one that can be locked has no writer.
"""

import errno
import fcntl
import os
import signal
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gemedge.errors import OutputError, reason

_PREFIX = ".gemedge-"
_SUFFIX = ".tmp"


def refuse_existing(path: Path, *, force: bool, inputs: tuple[Path, ...] = (), option: str = "-o") -> None:
    """Raise OutputError now, before long work, where `write` could not put a file at path later.

    option: what names the output on the command line.
    """
    target = Path(os.path.realpath(path))
    if any(target == Path(os.path.realpath(source)) for source in inputs):
        raise OutputError(f"{path} is the input; name another output with {option}")
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise _failed(path, error) from error
    if mode is not None and not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
        raise OutputError(f"{path} is {what}; name a file with {option}")
    if mode is not None and not force:
        raise OutputError(f"{path} exists; --force replaces it")
    if not target.parent.is_dir():
        raise OutputError(f"{path}: the folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {target.parent} is not writable")


def write(files: Mapping[Path, bytes | memoryview], *, force: bool) -> None:
    """Write all files or none; the last one named appears last.

    A path that is a symbolic link is followed. Raises OutputError naming the file and the cause, and
    leaves what stood there before.
    """
    with ExitStack() as stack:
        temporaries = {path: stack.enter_context(_temporary(path, data)) for path, data in files.items()}
        with uninterrupted():  # or one file would be new and the other old
            _rename_all(temporaries, force)


def refuse_folder(folder: Path, names: Iterable[str], *, force: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Raise OutputError now where `write_folder` could not put files of these names into the folder later."""
    if folder.is_dir():
        for name in names:
            refuse_existing(folder / name, force=force, inputs=inputs)
    elif os.path.lexists(folder):
        raise OutputError(f"{folder} is no folder; name one with -o")
    else:
        refuse_existing(folder, force=False, inputs=inputs)


def write_folder(folder: Path, files: Mapping[str, bytes], *, force: bool) -> None:
    """Write all files into the folder or none, by their paths in it.

    It and folders in it are made where they are missing, and not left behind empty.
    """
    inner = {parent for name in files for parent in (folder / name).parents if folder in (parent, *parent.parents)}
    made: list[Path] = []
    try:
        for missing in sorted(path for path in inner if not path.is_dir()):
            missing.mkdir()
            made.append(missing)
        write({folder / name: content for name, content in files.items()}, force=force)
    except BaseException as error:
        for empty in reversed(made):
            with suppress(OSError):
                empty.rmdir()
        if isinstance(error, OSError):
            raise _failed(folder, error) from error
        raise


@contextmanager
def _temporary(path: Path, data: bytes | memoryview) -> Iterator[Path]:
    folder = Path(os.path.realpath(path)).parent
    try:
        _remove_stale(folder)
        name, descriptor = _create_locked(folder)
    except OSError as error:
        raise _failed(path, error) from error
    try:
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        except OSError as error:
            raise _failed(path, error) from error
        yield name
    finally:
        with suppress(FileNotFoundError):
            name.unlink()
        os.close(descriptor)


def _create_locked(folder: Path) -> tuple[Path, int]:
    for attempt in range(1000):
        name = folder / f"{_PREFIX}{os.getpid()}-{attempt}{_SUFFIX}"
        try:
            descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(name).st_ino == os.fstat(descriptor).st_ino:  # not swept between creating and locking
                return name, descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(descriptor)
    raise OSError(0, "no free temporary name in its folder")


def _remove_stale(folder: Path) -> None:
    for leftover in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(descriptor)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest[: 1 << 26]) :]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the end of the block; a mask would hold for one thread of many."""
    if threading.current_thread() is not threading.main_thread():  # others are not interrupted, and may not ask
        yield
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def _rename_all(temporaries: Mapping[Path, Path], force: bool) -> None:
    """Rename each; where one cannot be and nothing was replaced, those before it disappear again."""
    placed: list[str] = []
    try:
        for path, temporary in temporaries.items():
            target = os.path.realpath(path)
            _rename(temporary, path, target, force)
            placed.append(target)
    except OutputError:
        if not force:
            for target in placed:
                os.unlink(target)
        raise
    for folder in {os.path.dirname(target) for target in placed}:
        _flush_folder(folder)


def _rename(temporary: Path, path: Path, target: str, force: bool) -> None:
    try:
        if force:
            os.replace(temporary, target)
        else:
            _link(temporary, target)
    except FileExistsError as error:
        raise OutputError(f"{path} exists; --force replaces it") from error
    except OSError as error:
        raise _failed(path, error) from error


def _link(temporary: Path, target: str) -> None:
    """Unlike a rename, fails where another run was faster; a file system without links gets a plain check."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
        os.replace(temporary, target)


def _flush_folder(folder: str) -> None:
    """Ask for the names to last as well; the files are there also where the folder cannot be opened for that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _failed(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {reason(error)}")

"""Work on files that are not ours, in a child process with limits on memory and processor time.

What crosses the border is JSON and raw bytes, never a pickle. A hang, a crash or a memory bomb in a library
becomes one ModelError in the parent. On systems without the limits (macOS enforces fewer) the child still
keeps a crash away from the parent.
"""

import ctypes
import importlib
import json
import mmap
import os
import resource
import selectors
import signal
import subprocess  # runs this interpreter on this module, nothing else
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gemedge import errors
from gemedge.errors import GemedgeError, ModelError, OutputError, reason
from gemedge.files import uninterrupted

Blob = bytes | memoryview | list[memoryview]  # a list is joined on the way
Blobs = Mapping[str, Blob]
Job = Callable[[dict[str, Any], Mapping[str, memoryview]], tuple[dict[str, Any], Blobs]]

_JOBS = (
    "gemedge.capture.job:run",
    "gemedge.export.check:run",
    "gemedge.export.host:run",
    "gemedge.export.tflite_run:serve",
    "gemedge.quant.job:run",
    "gemedge.quant.job:run_prepare",
    "gemedge.quant.job:run_compare",
    "gemedge.quant.job:run_correct",
)
_CHILD = "gemedge.confined"
_ALIGNMENT = 64
_NO_ROOM = "there is no room for temporary files, which lie in $TMPDIR or /tmp"
_PR_SET_PDEATHSIG = 1
_WALL_FACTOR = 20  # a busy machine may give the child a twentieth of a processor


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the child's work: what it is called, its processor seconds, and bytes of memory beyond now.

    memory=0 keeps the limit of the phase before.
    """

    name: str
    seconds: int
    memory: int


def call(
    job: str, request: dict[str, Any], blobs: Blobs | None = None, *, on_phase: Callable[[str], None] = lambda _: None
) -> tuple[dict[str, Any], dict[str, memoryview]]:
    """Run a job, `module:function` of _JOBS, in a child; its answer, or its GemedgeError raised here.

    on_phase is told the name of each phase as the child enters it. Raises ModelError where the child exceeds
    a limit or dies, OutputError where there is no room for temporary files, and RuntimeError with the child's
    traceback where it fails for a reason of ours.
    """
    with ExitStack() as stack:
        try:
            given, answer, noise = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            _pack(given, request, blobs or {})
        except OSError as error:
            raise OutputError(f"{_NO_ROOM}: {reason(error)}") from error
        reader, writer = os.pipe()
        command = [
            sys.executable,
            "-P",
            "-m",
            _CHILD,
            job,
            *map(str, (given.fileno(), answer.fileno(), writer)),
        ]
        child = None
        try:
            with uninterrupted():  # or it could be started and not known
                child = subprocess.Popen(  # noqa: S603
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=noise,
                    stderr=noise,
                    pass_fds=(given.fileno(), answer.fileno(), writer),
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "0"},
                )
            os.close(writer)
            phase = _follow(reader, on_phase)
            status = child.wait()
        finally:
            os.close(reader)
            if child is not None and child.poll() is None:
                child.kill()
                child.wait()
        if status != 0:
            raise _death(status, phase, noise)
        reply, parts = _unpack(answer)
    if (failure := reply.get("error")) is not None:
        raise _rebuilt(failure)
    return reply, parts


def enter(phase: Phase) -> None:
    """In the child: announce a phase and let its limits hold from here on."""
    if _announce is not None:
        os.write(_announce, json.dumps([phase.name, phase.seconds]).encode() + b"\n")
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        _limit(resource.RLIMIT_CPU, int(used) + 1 + phase.seconds)
        if phase.memory and (data := _data_in_use()) is not None:
            _limit(resource.RLIMIT_DATA, data + phase.memory)


def release(blob: bytes | memoryview) -> None:
    """Let go of the memory of a blob that a job was given; it is read from its file again where it is needed."""
    if isinstance(blob, memoryview) and isinstance(blob.obj, mmap.mmap):
        blob.obj.madvise(mmap.MADV_DONTNEED)


_announce: int | None = None


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _data_in_use() -> int | None:
    try:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def _follow(reader: int, on_phase: Callable[[str], None]) -> Phase:
    """Read the child's announcements until it closes the pipe or a phase lasts far too long."""
    phase, deadline, pending = Phase("starting", 30, 0), time.monotonic() + 600, b""
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            received = os.read(reader, 4096)
            if not received:
                return phase
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                name, seconds = json.loads(line)
                phase, deadline = Phase(name, seconds, 0), time.monotonic() + _WALL_FACTOR * (seconds + 1)
                on_phase(name)
    raise ModelError(f"{phase.name} it did not end")


def _death(status: int, phase: Phase, noise: IO[bytes]) -> Exception:
    if status == os.EX_IOERR:
        return OutputError(_NO_ROOM)
    if status == -signal.SIGXCPU:
        return ModelError(f"{phase.name} it took more than {phase.seconds} seconds of processor time")
    if status < 0:
        return ModelError(f"{phase.name} it ended the reading process with {signal.Signals(-status).name}")
    noise.seek(max(0, noise.seek(0, os.SEEK_END) - 4000))
    return RuntimeError(f"the reading process ended with status {status}:\n{noise.read().decode(errors='replace')}")


def _rebuilt(error: Mapping[str, str]) -> Exception:
    kind = getattr(errors, error["kind"], None)
    if isinstance(kind, type) and issubclass(kind, GemedgeError):
        return kind(error["message"])
    return RuntimeError(f"in the reading process:\n{error['message']}")


def _pack(file: IO[bytes], header: dict[str, Any], blobs: Blobs) -> None:
    """Eight bytes of length, the header and the blobs' places as JSON, then the blobs, each aligned."""
    places: dict[str, tuple[int, int]] = {}
    end = 0
    pieces = {name: blob if isinstance(blob, list) else [memoryview(blob)] for name, blob in blobs.items()}
    for name, parts in pieces.items():
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = start + sum(part.nbytes for part in parts)
        places[name] = (start, end)
    text = json.dumps({"header": header, "blobs": places}).encode()
    base = _base(len(text))
    file.write(len(text).to_bytes(8, "little") + text)
    for name, parts in pieces.items():
        file.seek(base + places[name][0])
        file.writelines(parts)
    file.truncate(max(base + end, 1))
    file.flush()


def _unpack(file: IO[bytes]) -> tuple[dict[str, Any], dict[str, memoryview]]:
    view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    length = int.from_bytes(view[:8], "little")
    content = json.loads(bytes(view[8 : 8 + length]))
    base = _base(length)
    return content["header"], {name: view[base + start : base + end] for name, (start, end) in content["blobs"].items()}


def _base(length: int) -> int:
    return -(-(8 + length) // _ALIGNMENT) * _ALIGNMENT


def _child(job: str, given: int, answer: int, announce: int) -> None:
    global _announce
    if job not in _JOBS:
        raise SystemExit(f"{job} is no job")
    _announce = announce
    _die_with_parent()
    module, function = job.split(":")
    with os.fdopen(given, "rb") as request_file, os.fdopen(answer, "wb") as answer_file:
        reply: dict[str, Any]
        blobs: Blobs = {}
        try:
            run: Job = getattr(importlib.import_module(module), function)
            reply, blobs = run(*_unpack(request_file))
        except GemedgeError as error:
            reply = {"error": {"kind": type(error).__name__, "message": str(error)}}
        except MemoryError:
            reply = {"error": {"kind": "ModelError", "message": "it needs more memory than its size justifies"}}
        except Exception:
            reply = {"error": {"kind": "", "message": traceback.format_exc()}}
        for kind in (resource.RLIMIT_CPU, resource.RLIMIT_DATA):
            resource.setrlimit(kind, (resource.getrlimit(kind)[1],) * 2)
        try:
            _pack(answer_file, reply, blobs)
        except OSError:
            os._exit(os.EX_IOERR)
    os._exit(0)  # libraries that crash while they clean up do not matter any more


def _die_with_parent() -> None:
    """Where the system can (Linux): a killed parent leaves nobody working for it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    import gemedge.confined as this  # the module that jobs import, not __main__

    this._child(sys.argv[1], *map(int, sys.argv[2:5]))

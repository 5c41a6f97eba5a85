"""Children of gemedge.confined that are forked from the tests' process, where torch is imported already.

A new interpreter takes longer to import torch and its exporter than most tests take. Its limits, its signals and how
it ends are tested with children of their own: tests/test_confined.py, and all tests that run `python -m gemedge`.
"""

import functools
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import IO, Any

from gemedge import confined

JOBS = ("gemedge.capture.job:run", "gemedge.export.check:run", "gemedge.quant.job")


def popen(command: Sequence[str], *, env: Mapping[str, str], stdout: IO[bytes], **rest: Any) -> Any:
    """subprocess.Popen as gemedge.confined calls it: what runs one of JOBS is forked."""
    child, job = command[-5:-3]
    if child != "gemedge.confined" or not job.startswith(JOBS):
        return subprocess.Popen(command, env=env, stdout=stdout, **rest)
    if job == JOBS[0]:
        _warm()
    return Forked(job, [int(number) for number in command[-3:]], env, stdout.fileno())


class Forked:
    """What gemedge.confined uses of subprocess.Popen."""

    def __init__(self, job: str, files: Sequence[int], env: Mapping[str, str], noise: int) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _become(job, files, env, noise)

    def poll(self) -> int | None:
        return self._ended(os.WNOHANG)

    def wait(self) -> int | None:
        return self._ended(0)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def _ended(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


@functools.cache
def _warm() -> None:
    """What torch's exporter imports when it is first used."""
    import torch

    from gemedge.capture import capture_module

    capture_module(torch.nn.Linear(1, 1).eval(), {"input": torch.zeros(1, 1)}, opset=20)


def _become(job: str, files: Sequence[int], env: Mapping[str, str], noise: int) -> None:
    try:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(noise, 1)
        os.dup2(noise, 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", closefd=False)
        os.environ.update(env)
        warnings.resetwarnings()  # which are errors in tests
        confined._child(job, *files)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)

"""Children of gemedge.confined that are forked from the tests' process, where torch is imported already.

A new interpreter takes longer to import torch and its exporter than most tests take. Its limits, its signals and how
it ends are tested with children of their own: tests/test_confined.py, and all tests that run `python -m gemedge`.
"""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import IO, Any

from gemedge import confined

CAPTURE = "gemedge.capture.job:run"
JOBS = (CAPTURE, "gemedge.export.check:run", "gemedge.quant.job")


def popen(command: Sequence[str], *, env: Mapping[str, str], stdout: IO[bytes], **rest: Any) -> Any:
    """subprocess.Popen as gemedge.confined calls it: what runs one of JOBS is forked."""
    child, job = command[-5:-3]
    if child != "gemedge.confined" or not job.startswith(JOBS):
        return subprocess.Popen(command, env=env, stdout=stdout, **rest)
    if job == CAPTURE:
        _warm()
    return Forked(job, [int(number) for number in command[-3:]], env, stdout.fileno())


class Forked:
    """What gemedge.confined uses of subprocess.Popen."""

    def __init__(self, *child: Any) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=_become, args=child)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns where a process has threads
            self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


@functools.cache
def _warm() -> None:
    """What torch's exporter imports when it is first used."""
    import torch

    from gemedge.capture import capture_module

    capture_module(torch.nn.Linear(1, 1).eval(), {"input": torch.zeros(1, 1)}, opset=20)


def _become(job: str, files: Sequence[int], env: Mapping[str, str], noise: int) -> None:
    """Lay aside what is the tests': handlers of signals, captured output, and that warnings are errors."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    os.dup2(noise, 1)
    os.dup2(noise, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", closefd=False)
    warnings.resetwarnings()
    os.environ.update(env)
    confined._child(job, *files)

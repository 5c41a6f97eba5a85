"""Jobs that misbehave, and the child that knows them: `python -m confined_jobs` for `python -m gemedge.confined`."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import gemedge.confined as confined
from gemedge.errors import DataError


def echo(asked, parts):
    return {"asked": asked}, {name: bytes(part)[::-1] for name, part in parts.items()}


def hang(asked, parts):
    """Says its process id in the file `asked` names, and computes without end."""
    confined.enter(confined.Phase("hanging", asked["seconds"], 1 << 30))
    Path(asked["pid"]).write_text(str(os.getpid()))
    while True:
        pass


def sleep(asked, parts):
    confined.enter(confined.Phase("sleeping", 0, 1 << 30))
    time.sleep(60)


def eat(asked, parts):
    confined.enter(confined.Phase("eating", 10, 64 << 20))
    return {}, {"big": np.ones(1 << 27).tobytes()}


def die(asked, parts):
    confined.enter(confined.Phase("dying", 10, 1 << 30))
    os.kill(os.getpid(), getattr(signal, asked["signal"]))


def refuse(asked, parts):
    raise DataError("a reason\nof two lines, ä")


def fail(asked, parts):
    raise ZeroDivisionError("a bug of ours")


def leave(asked, parts):
    print("these are", "last words", file=sys.stderr, flush=True)
    os._exit(7)


def chatter(asked, parts):
    os.write(1, b"noise\n" * 100_000)
    print("noise", file=sys.stderr)
    return {"done": True}, {}


def overflow(asked, parts):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    return {}, {"big": bytes(1 << 20)}


if __name__ == "__main__":
    confined._JOBS = tuple(f"confined_jobs:{name}" for name in vars() if not name.startswith("_"))
    confined._child(sys.argv[1], *map(int, sys.argv[2:5]))

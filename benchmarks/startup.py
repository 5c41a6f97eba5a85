"""How long a user waits for nothing: `python -m benchmarks.startup`. To reach: --help under 0.3 s.

CPU time of the command: what a user waits for on a machine that does nothing else.
"""

import resource
import subprocess
import sys
from functools import partial

from benchmarks.row import Row, main
from benchmarks.timing import interleaved

HELP_REACH = 300.0  # ms
ROUNDS = 15
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import numpy": ["-c", "import numpy"],
    "import gemedge": ["-c", "import gemedge"],
    "gemedge --help": ["-m", "gemedge", "--help"],
    "gemedge export --help": ["-m", "gemedge", "export", "--help"],
}


def rows(quick: bool) -> list[Row]:
    """Milliseconds of each command, a process each time."""
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
    calls = {name: partial(run, [sys.executable, *words]) for name, words in COMMANDS.items()}
    found = interleaved(calls, 1 if quick else ROUNDS, _seconds_of_children)
    peer = found["python -c pass"]
    return [
        Row(
            "Start",
            name,
            1e3 * seconds,
            "ms",
            at_most=HELP_REACH if "--help" in name else None,
            beside={"ms beyond python's": 1e3 * (seconds - peer)},
        )
        for name, seconds in found.items()
    ]


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(rows)

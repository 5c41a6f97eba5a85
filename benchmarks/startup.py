"""How long a user waits for nothing: `python benchmarks/startup.py`. To reach (issue 2): --help under 0.3 s."""

import statistics
import subprocess
import sys
import time

ROUNDS = 15
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import numpy": ["-c", "import numpy"],
    "import gemedge": ["-c", "import gemedge"],
    "gemedge --help": ["-m", "gemedge", "--help"],
    "gemedge export --help": ["-m", "gemedge", "export", "--help"],
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
            seconds[name].append(time.perf_counter() - start)
    for name, taken in seconds.items():
        print(f"{name:24}{statistics.median(taken):7.3f} s")


if __name__ == "__main__":
    main()

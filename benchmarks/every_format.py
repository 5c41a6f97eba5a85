"""Certify 16-bit kernels by the thousand: every format pair on a grid of epsilon, and random ones.

    python -m benchmarks.every_format grid
    python -m benchmarks.every_format random --count 10000

Each kernel is compared with the exact value of all its 65,536 codes by gemedge.certificate. Exits with 1 if a code
of any kernel is misrounded. The grid is 8 activations x 10 epsilons x 256 pairs.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator

from gemedge import Activation, FixedActivation, QFormat, QuantParams, UnsupportedError

EPSILONS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3)
Case = tuple[Activation, QFormat | QuantParams, QFormat | QuantParams]


def grid(part: int, parts: int) -> Iterator[Case]:
    cases = [
        (make(n, epsilon), QFormat(i, 15 - i), QFormat(o, 15 - o))
        for epsilon in EPSILONS
        for make in (Activation.egem, Activation.segem)
        for n in (1, 2, 3, 4)
        for i in range(16)
        for o in range(16)
    ]
    yield from cases[part::parts]


def drawn(count: int, seed: int) -> Iterator[Case]:
    rng = random.Random(seed)  # noqa: S311

    def params() -> QFormat | QuantParams:
        if rng.random() < 0.5:
            int_bits = rng.randint(0, 15)
            return QFormat(int_bits, 15 - int_bits)
        return QuantParams(2.0 ** rng.uniform(-15, 0), 0, 16)

    for _ in range(count):
        make = rng.choice((Activation.egem, Activation.segem))
        yield make(rng.randint(1, 4), 10 ** rng.uniform(-6, 3)), params(), params()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("grid", "random"))
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=int, default=0, help="every PARTS-th case of the grid, from PART on")
    parser.add_argument("--parts", type=int, default=1)
    given = parser.parse_args()
    cases = grid(given.part, given.parts) if given.what == "grid" else drawn(given.count, given.seed)
    begun, kernels, wrong, refused, stored, largest = time.monotonic(), 0, 0, 0, 0, 0.0
    for kernels, (activation, source, target) in enumerate(cases, 1):
        try:
            kernel = FixedActivation(activation, source, target)
        except UnsupportedError as error:
            refused += 1
            print("refused:", error, flush=True)
            continue
        certificate = kernel.certify()
        stored += len(kernel.constants.exceptions)
        largest = max(largest, certificate.max_error)
        if certificate.misrounded:
            wrong += 1
            print(f"{activation} {source} {target}: {certificate}", flush=True)
        if kernels % 1000 == 0:
            print(f"{kernels} kernels, {wrong} wrong, {time.monotonic() - begun:.0f} s", flush=True)
    print(
        f"{given.what}: {kernels} kernels, {wrong} with a misrounded code, {refused} refused, {stored} stored"
        f" exceptions, largest error {largest:.6f} LSB, {time.monotonic() - begun:.0f} s"
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

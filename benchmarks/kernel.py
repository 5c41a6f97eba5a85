"""Speed of the integer kernels: one command, one table, the ratios measured in one run on one core.

    OMP_NUM_THREADS=1 python -m benchmarks.kernel

Times are the best of several runs on 1,000,000 int16 codes, all values alike likely. The linear-interpolation table is
timed as `gemedge.table.Table` computes it and again in cache-sized parts, which is how the kernel runs.
"""

import time
from collections.abc import Callable

import numpy as np

from gemedge import Activation, FixedActivation, QFormat
from gemedge.table import Table

SIZE = 1_000_000
FORMAT = QFormat(3, 12)
KERNELS = ("gem(n=1)", "gem(n=2)", "gem(n=4)", "egem(n=1, epsilon=0.01)", "segem(n=1, epsilon=1.0)",
           "segem(n=4, epsilon=1.0)")  # fmt: skip


def best(function: Callable[[], object], repeats: int = 9) -> float:
    """Seconds of the fastest of several runs."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return min(times)


def in_parts(table: Table, raw: np.ndarray) -> np.ndarray:
    out = np.empty(raw.shape, np.int16)
    for begin in range(0, raw.size, 1 << 15):
        out[begin : begin + (1 << 15)] = table(raw[begin : begin + (1 << 15)])
    return out


def main() -> None:
    raw = np.random.default_rng(0).integers(-32768, 32768, SIZE).astype(np.int16)
    table = Table(Activation.gem(1), FORMAT, FORMAT, entries=513, interpolation="linear")
    assert np.array_equal(in_parts(table, raw), table(raw))
    linear, linear_in_parts = best(lambda: table(raw)), best(lambda: in_parts(table, raw))
    print(f"513-entry table, linear: {linear * 1e3:.2f} ms per million, in parts {linear_in_parts * 1e3:.2f} ms")
    print(f"{'kernel':26} {'ms per million':>14} {'M codes/s':>10} {'x table':>8} {'x in parts':>10}"
          f" {'build, ms':>10} {'certify, ms':>12}")  # fmt: skip
    for text in KERNELS:
        activation = Activation.parse(text)
        kernel = FixedActivation(activation, FORMAT, FORMAT)
        seconds = best(lambda: kernel(raw))  # noqa: B023
        build = best(lambda: FixedActivation(activation, FORMAT, FORMAT), 5)  # noqa: B023
        certify = best(kernel.certify, 3)
        print(
            f"{text:26} {seconds * 1e3:14.2f} {SIZE / seconds / 1e6:10.1f} {seconds / linear:8.2f}"
            f" {seconds / linear_in_parts:10.2f} {build * 1e3:10.1f} {certify * 1e3:12.0f}"
        )


if __name__ == "__main__":
    main()

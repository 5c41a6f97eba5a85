"""Speed of the integer kernels in NumPy: `OMP_NUM_THREADS=1 python -m benchmarks.kernel`.

A million int16 codes, all values alike likely. The linear-interpolation table is timed as `gemedge.table.Table`
computes it and again in cache-sized parts, which is how the kernel runs.
"""

from collections.abc import Callable
from functools import partial
from time import process_time

import numpy as np

from benchmarks.row import Row, main, timed
from benchmarks.timing import interleaved
from gemedge import Activation, FixedActivation, QFormat
from gemedge.table import Table

SIZE = 1_000_000
ROUNDS = 9
FORMAT = QFormat(3, 12)
KERNELS = ("gem(n=1)", "gem(n=2)", "gem(n=4)", "egem(n=1, epsilon=0.01)", "segem(n=1, epsilon=1.0)",
           "segem(n=4, epsilon=1.0)")  # fmt: skip


def in_parts(table: Table, raw: np.ndarray) -> np.ndarray:
    out = np.empty(raw.shape, np.int16)
    for begin in range(0, raw.size, 1 << 15):
        out[begin : begin + (1 << 15)] = table(raw[begin : begin + (1 << 15)])
    return out


def rows(quick: bool) -> list[Row]:
    """Milliseconds of a million codes beside the table's, in parts; those of making and certifying a kernel."""
    size, rounds = (SIZE // 10, 1) if quick else (SIZE, ROUNDS)
    raw = np.random.default_rng(0).integers(-32768, 32768, size).astype(np.int16)
    table = Table(Activation.gem(1), FORMAT, FORMAT, entries=513, interpolation="linear")
    assert np.array_equal(in_parts(table, raw), table(raw))
    peer = "513-entry table, linear, in parts"
    activations = {text: Activation.parse(text) for text in KERNELS[: 1 if quick else None]}
    kernels = {text: FixedActivation(activation, FORMAT, FORMAT) for text, activation in activations.items()}
    calls: dict[str, Callable[[], object]] = {"513-entry table, linear": partial(table, raw)}
    calls[peer] = partial(in_parts, table, raw)
    calls |= {text: partial(kernel, raw) for text, kernel in kernels.items()}
    found = timed("Integer kernels in NumPy, a million codes", interleaved(calls, rounds, process_time), peer)
    made = interleaved(
        {t: partial(FixedActivation, a, FORMAT, FORMAT) for t, a in activations.items()}, rounds, process_time
    )
    certified = interleaved({text: kernel.certify for text, kernel in kernels.items()}, min(rounds, 3), process_time)
    for text, seconds in made.items():
        beside = {"certify, ms": 1e3 * certified[text]}
        found.append(Row("Make a kernel and certify it on all codes", text, 1e3 * seconds, "make, ms", beside=beside))
    return found


if __name__ == "__main__":
    main(rows)

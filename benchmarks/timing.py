"""Timing that survives a busy machine: the rivals take turns in one process, and medians are compared.

The order changes every turn: what a rival leaves in the heap and the caches costs each of the others alike.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    rivals: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of one call of each, over `rounds` turns of all of them; one turn before is not counted.

    clock: time.process_time for calls of one thread, which are not slower then for waiting for a busy machine.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    order, shuffle = list(rivals), random.Random(0).shuffle  # noqa: S311
    for turn in range(rounds + 1):
        shuffle(order)
        for name in order:
            call = rivals[name]
            start = clock()
            call()
            if turn > 0:
                seconds[name].append(clock() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}

"""How often each block of emulated code ran, counted by a few lines of C: Python would be called millions of times."""

import ctypes
from collections import Counter
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from gemedge.errors import PromiseError
from gemedge.export.build import library, loaded, zig

Blocks = Counter[tuple[int, int]]  # how often each block ran, by its address and bytes
_SOURCE = "block_counter.c"
_CELLS = 1 << 16


class BlockCounter:
    """The table that `function` fills when an emulator calls it with `context`."""

    def __init__(self) -> None:
        self.function = ctypes.cast(_native().count, ctypes.c_void_p)
        self._table = np.zeros(2 + 2 * _CELLS, np.uint64)
        self.context = ctypes.c_void_p(self._table.ctypes.data)

    def clear(self) -> None:
        self._table[:] = 0

    def blocks(self) -> Blocks:
        """What ran since it was cleared; PromiseError where the code has more blocks than the table."""
        if self._table[1]:
            raise PromiseError(f"the code has more than {int(self._table[0]):,} blocks, too many to count")
        cells = self._table[2:].reshape(-1, 2)
        return Counter({(int(key) >> 16, int(key) & 0xFFFF): int(times) for key, times in cells[cells[:, 0] > 0]})


@cache
def _native() -> Any:
    source = resources.files("gemedge.export").joinpath(_SOURCE).read_bytes()
    flags = ["-std=c99", "-O2", "-mcpu=baseline", "-nostdlib"]
    return loaded(library({_SOURCE: source}, [*zig(), "cc"], flags))

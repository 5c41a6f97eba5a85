"""Generated C, compiled by the machine's compiler and run in this process: every layer's integers as they are made."""

import ctypes
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemedge.export import to_c as exporting
from gemedge.export.layout import orders
from gemedge.model import QuantizedModel
from gemedge.quant.evaluate import stored_type

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Werror"]
_OBSERVER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_MARGIN = 64  # bytes around arena and outputs that must stay as they are
_MARK = 0xA5


def compiled(arguments: list[str], folder: Path) -> None:
    """Run the compiler there; its own message where it fails."""
    done = subprocess.run(["cc", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def written(model: QuantizedModel, folder: Path, name: str = "net", vectors=None) -> dict[str, bytes]:
    files = exporting.to_c(model, name, vectors)
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return files


@dataclass
class Result:
    """What a run gave: its status, outputs and layers by name, in the model's order of axes."""

    status: int
    outputs: dict[str, np.ndarray]
    layers: dict[str, np.ndarray]


class Built:
    """One model as a shared library."""

    def __init__(self, model: QuantizedModel, folder: Path, flags: tuple[str, ...] = ("-O1",)) -> None:
        self.model, self.orders = model, orders(model)
        written(model, folder)
        compiled([*STRICT, *flags, "-DGEMEDGE_OBSERVE", "-shared", "-fPIC", "model.c", "-o", "net.so"], folder)
        self._library = ctypes.CDLL(str(folder / "net.so"))
        line = next(x for x in (folder / "model.h").read_text().splitlines() if x.startswith("#define NET_ARENA_SIZE"))
        self.arena_size = int(line.split()[-1])

    def run(self, inputs: Mapping[str, np.ndarray], *, size: int | None = None, shift: int = 0) -> Result:
        """One sample's integers by the model's input names; size and shift of the arena to be wrong with.

        Asserts that nothing outside the arena and the outputs was written, and where it failed nothing at all.
        """
        size = self.arena_size if size is None else size
        arena = np.full(size + 2 * _MARGIN + 16, _MARK, np.uint8)
        start = -arena.ctypes.data % 16 + _MARGIN + shift
        given = [self._laid(name, inputs[name]) for name in self.model.inputs]
        made = [np.full(self._bytes(name) + 2 * _MARGIN, _MARK, np.uint8) for name in self.model.outputs.values()]
        layers: dict[str, np.ndarray] = {}

        def observe(layer: int, data: int, count: int, _: int) -> None:
            output = self.model.layers[layer].output
            layers[self.model.layers[layer].name] = self._read(output, ctypes.string_at(data, count))

        pointers = [ctypes.c_void_p(array.ctypes.data) for array in given]
        pointers += [ctypes.c_void_p(array.ctypes.data + _MARGIN) for array in made]
        place = ctypes.c_void_p(arena.ctypes.data + start)
        status = self._library.net_run_observed(place, ctypes.c_size_t(size), *pointers, _OBSERVER(observe), None)
        around = [arena[:start], arena[start + size :], *(a[:_MARGIN] for a in made), *(a[-_MARGIN:] for a in made)]
        around += [arena] if status in (1, 2, 3) else []
        around += made if status else []
        assert all((part == _MARK).all() for part in around), "written outside"
        outputs = {
            name: self._read(tensor, array[_MARGIN:-_MARGIN].tobytes())
            for (name, tensor), array in zip(self.model.outputs.items(), made, strict=True)
        }
        return Result(status, outputs, layers)

    def layer_name(self, index: int) -> bytes:
        found = self._library.net_layer_name
        found.restype = ctypes.c_char_p
        return found(index)

    def _type(self, name: str) -> np.dtype:
        tensor = self.model.tensors[name]
        return np.dtype(np.int32) if tensor.params is None else stored_type(tensor)

    def _bytes(self, name: str) -> int:
        return int(np.prod(self.model.tensors[name].shape)) * self._type(name).itemsize

    def _laid(self, name: str, sample: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(sample.astype(self._type(name)).transpose(self.orders[name]))

    def _read(self, name: str, content: bytes) -> np.ndarray:
        shape, order = self.model.tensors[name].shape, self.orders[name]
        laid = np.frombuffer(content, self._type(name)).reshape([shape[axis] for axis in order])
        return laid.transpose(np.argsort(order, kind="stable"))

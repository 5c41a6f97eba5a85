"""Exported C on this machine's own CPU: built by its compiler as a library that takes many samples in one call.

The library runs in this process where gemedge wrote its C of a checked model, and in a confined child where a folder
brought it (`run`, a job of gemedge.confined).
"""

import ctypes
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from gemedge import confined, model_file
from gemedge.arena import bytes_of
from gemedge.errors import DataError, PromiseError, ToolError
from gemedge.export import build, to_c
from gemedge.export.emulated import STATUS, stored
from gemedge.export.folder import MODEL, Folder
from gemedge.export.layout import from_memory, orders
from gemedge.export.run import compilers
from gemedge.model import QuantizedModel
from gemedge.moving import Constant

Integers = Mapping[str, np.ndarray]
_FLAGS = ("-std=c99", "-O3", "-fvisibility=hidden", "-DGEMEDGE_OBSERVE")
_ARENA_ALIGNMENT = 64
_JOB = "gemedge.export.host:run"
_PHASE = "running the folder's code"
_MEMORY = 2 << 30


def library(folder: Folder) -> bytes:
    """The library of a folder's sources for this CPU, by the first compiler that can; ToolError with what each says."""
    sources = {**folder.sources, "gemedge_batch.c": _harness(folder).encode()}
    failures = []
    for compiler in compilers():
        native = [] if "ziglang" in compiler.command else ["-march=native"]
        try:
            return build.library(sources, compiler.command, [*_FLAGS, *native])
        except ToolError as error:
            failures.append(str(error))
    raise ToolError("; ".join(failures) or "no C compiler: none of $CC, cc, gcc, clang, and no Python package ziglang")


class Host:
    """A library of a model's C, loaded here. It keeps nothing between runs."""

    def __init__(self, model: QuantizedModel, arena: int, content: bytes) -> None:
        self.model, self._arena, self._orders = model, arena, orders(model)
        self._constants = _constants(model)
        self._batch = build.loaded(content).gemedge_batch
        self._batch.restype = ctypes.c_int

    def run(
        self, integers: Integers, *, layers: Collection[int] = (), workers: int | None = None
    ) -> tuple[dict[str, np.ndarray], dict[int, np.ndarray]]:
        """The outputs by name, and the numbers of the layers asked for, of a batch of integers by input name.

        workers: threads, None for one a processor. PromiseError where a run gives an error code, DataError for an index
        outside its table.
        """
        samples = len(next(iter(integers.values())))
        given = [self._laid(name, integers[name]) for name in self.model.inputs]
        made = [self._empty(tensor, samples) for tensor in self.model.outputs.values()]
        wanted = {layer: self.model.layers[layer].output for layer in layers}
        shown = {i: self._empty(tensor, samples) for i, tensor in wanted.items() if tensor not in self._constants}
        constant = {i: self._constants[tensor] for i, tensor in wanted.items() if tensor in self._constants}
        count = max(1, min(workers or os.cpu_count() or 1, samples))
        ends = [samples * part // count for part in range(count + 1)]
        parts = list(pairwise(ends))
        with ThreadPoolExecutor(count) as pool:
            statuses = list(pool.map(lambda part: self._part(given, made, shown, *part), parts))
        for status in filter(None, statuses):
            what = STATUS.get(status, "a code that gemedge has not")
            raise (
                DataError(f"the data hold {what} its table")
                if status == 4
                else PromiseError(f"status {status}: {what}")
            )
        outputs = zip(self.model.outputs.items(), made, strict=True)
        return (
            {name: self._back(tensor, array) for (name, tensor), array in outputs},
            {layer: self._back(wanted[layer], array) for layer, array in shown.items()}
            | {layer: np.broadcast_to(value, (samples, *value.shape)) for layer, value in constant.items()},
        )

    def _part(
        self,
        given: Sequence[np.ndarray],
        made: Sequence[np.ndarray],
        shown: Mapping[int, np.ndarray],
        first: int,
        end: int,
    ) -> int:
        """Samples first to end - 1, with an arena of their own; the status."""
        arena = np.empty(self._arena + _ARENA_ALIGNMENT, np.uint8)
        start = -arena.ctypes.data % _ARENA_ALIGNMENT
        places = (ctypes.c_void_p * max(1, len(self.model.layers)))()
        for layer, array in shown.items():
            places[layer] = array[first:].ctypes.data
        return int(
            self._batch(
                ctypes.c_size_t(end - first),
                ctypes.c_void_p(arena.ctypes.data + start),
                ctypes.c_size_t(self._arena),
                _pointers([array[first:] for array in given]),
                _pointers([array[first:] for array in made]),
                places if shown else None,
            )
        )

    def _laid(self, name: str, array: np.ndarray) -> np.ndarray:
        order = [0, *(axis + 1 for axis in self._orders[name])]
        return np.ascontiguousarray(array.astype(stored(self.model, name), copy=False).transpose(order))

    def _empty(self, tensor: str, samples: int) -> np.ndarray:
        shape = self.model.tensors[tensor].shape
        return np.zeros((samples, int(np.prod(shape, dtype=np.int64))), stored(self.model, tensor))

    def _back(self, tensor: str, array: np.ndarray) -> np.ndarray:
        return from_memory(array, self.model.tensors[tensor].shape, self._orders[tensor])


def run_confined(
    folder: Folder, content: bytes, integers: Integers
) -> tuple[dict[str, np.ndarray], dict[int, np.ndarray]]:
    """As Host.run with every layer that is shown, in a child with limits: the folder's code is not ours.

    content: the folder's library.
    """
    layers = to_c.shown(folder.model)
    samples = len(next(iter(integers.values())))
    work = sum(bytes_of(tensor) for tensor in folder.model.tensors.values())
    request = {
        "arena": folder.arena,
        "samples": samples,
        "seconds": 60 + samples * work // 100_000,
        "memory": _MEMORY + folder.arena + 4 * samples * work,
    }
    blobs = {f"in {name}": integers[name].astype(stored(folder.model, name)).tobytes() for name in folder.model.inputs}
    blobs |= {MODEL: model_file.save(folder.model), "library": content}
    _, parts = confined.call(_JOB, request, blobs)
    model = folder.model

    def array(part: str, tensor: str) -> np.ndarray:
        numbers = np.frombuffer(parts[part], stored(model, tensor))
        return numbers.reshape(samples, *model.tensors[tensor].shape)

    outputs = {name: array(f"out {name}", tensor) for name, tensor in model.outputs.items()}
    return outputs, {layer: array(f"layer {layer}", model.layers[layer].output) for layer in layers}


def run(request: dict[str, Any], blobs: Mapping[str, memoryview]) -> tuple[dict[str, Any], confined.Blobs]:
    """The job of the child."""
    model = model_file.load(blobs[MODEL])
    confined.enter(confined.Phase(_PHASE, request["seconds"], request["memory"]))
    host = Host(model, request["arena"], bytes(blobs["library"]))
    integers = {
        name: np.frombuffer(blobs[f"in {name}"], stored(model, name)).reshape(-1, *model.tensors[name].shape)
        for name in model.inputs
    }
    outputs, layers = host.run(integers, layers=to_c.shown(model), workers=1)
    given = {f"out {name}": array for name, array in outputs.items()}
    given |= {f"layer {layer}": array for layer, array in layers.items()}
    return {}, {name: np.ascontiguousarray(array).tobytes() for name, array in given.items()}


def _constants(model: QuantizedModel) -> dict[str, np.ndarray]:
    """The tensors that lie in flash, which no run shows."""
    shown = {model.layers[index].output for index in to_c.shown(model)}
    found: dict[str, np.ndarray] = {}
    for layer in model.layers:
        if layer.output not in shown:
            value = layer.value if isinstance(layer, Constant) else found[layer.inputs[0]]
            found[layer.output] = value.reshape(model.tensors[layer.output].shape).astype(stored(model, layer.output))
    return found


def _pointers(arrays: Sequence[np.ndarray]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def _harness(folder: Folder) -> str:
    """C that calls a run for each sample, and keeps the layers that are asked for."""
    model = folder.model

    def arguments(source: str, const: str, tensors: Sequence[str]) -> list[str]:
        of = [model.tensors[name] for name in tensors]
        return [
            f"({const}int{8 * stored(model, tensor.name).itemsize}_t *)({source}[{i}] + sample * {bytes_of(tensor)}u)"
            for i, tensor in enumerate(of)
        ]

    given = arguments("in", "const ", model.inputs) + arguments("out", "", tuple(model.outputs.values()))
    sizes = [f"{bytes_of(model.tensors[layer.output])}u" for layer in model.layers] or ["0"]
    return f"""#include <string.h>

#include "model.h"

struct places {{
    unsigned char *const *of;
    size_t sample;
}};

static void keep(int layer, const void *data, size_t bytes, void *context) {{
    const struct places *const places = (const struct places *)context;
    static const size_t wanted[] = {{{", ".join(sizes)}}};
    if (layer >= 0 && layer < {len(model.layers)} && places->of[layer] && bytes == wanted[layer]) {{
        memcpy(places->of[layer] + places->sample * bytes, data, bytes);
    }}
}}

__attribute__((visibility("default"))) int gemedge_batch(size_t samples, void *arena, size_t size,
    const unsigned char *const *in, unsigned char *const *out, unsigned char *const *layers);

int gemedge_batch(size_t samples, void *arena, size_t size,
    const unsigned char *const *in, unsigned char *const *out, unsigned char *const *layers) {{
    for (size_t sample = 0; sample < samples; sample++) {{
        struct places places = {{layers, sample}};
        const int status = {folder.name}_run_observed(arena, size,
            {", ".join(given)}, layers ? keep : 0, &places);
        if (status) {{
            return status;
        }}
    }}
    return 0;
}}
"""

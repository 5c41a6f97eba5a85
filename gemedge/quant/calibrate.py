"""The range of every float tensor of a model, from running it on data.

onnxruntime runs the float model in its function form, one thread a run, with every computed tensor as an output;
each batch's numbers are counted and dropped. Batches run side by side on threads, or on a Dask cluster. What is
kept adds exactly (gemedge.quant.histogram), so the ranges are the same whatever the workers and the order of the
batches. (Machines of different kinds may run the float model to different last bits; then so may their ranges.)
"""

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from gemedge.capture import forms, packing
from gemedge.errors import DataError, GemedgeError, GemedgeWarning, ModelError, UnsupportedError, UsageError, reason
from gemedge.quant.batches import Batch, Data, checked, inputs_of
from gemedge.quant.choose import Choice, Method
from gemedge.quant.histogram import Histogram
from gemedge.quant.ranges import Ranges

Histograms = dict[str, Histogram]
Packed = tuple[bytes, bytes]  # the graph and its weights, as gemedge.capture.packing has them

_FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")
_SECONDS_TO_CONNECT = 10


def calibrate(
    model: ir.Model,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    method: Method = "minmax",
    percentile: float = 99.99,
    bits: int = 8,
    symmetric: bool = False,
    workers: int | None = None,
    scheduler: str = "",
    choices: Mapping[str, Choice] = MappingProxyType({}),
    on_progress: Callable[[int], None] = lambda _: None,
) -> Ranges:
    """A Range for every input and every computed tensor of the graph that is float, in the graph's order.

    batches: from open_data, or any iterable of {input name: array} with samples along the first axis.
    method, percentile, bits, symmetric: gemedge.quant.choose. workers: threads, None for one a processor.
    scheduler: the address of a Dask scheduler to run on instead, tls://host:port (configured as Dask documents).
    choices: another Choice for single tensors. on_progress is told how many samples are done.

    Infinities that a constant brings in, as masks of attention do, are left out of a range; a tensor that never takes
    a finite number has none. Raises DataError (also where the model makes NaN, or infinity of finite numbers),
    UnsupportedError or UsageError.
    """
    choice = Choice(method, percentile, bits, symmetric)
    stream = iter(batches) if isinstance(batches, Data) else checked(batches, inputs_of(model))
    packed = _packed(model)
    warning = check_scheduler(scheduler)
    if warning:
        warnings.warn(warning, GemedgeWarning, stacklevel=2)
    run = _on_dask(packed, scheduler) if scheduler else _on_threads(packed, workers)
    found, samples = run(stream, on_progress)
    if samples == 0:
        raise DataError("the data has no samples")
    ranges = {name: choices.get(name, choice).range_of(seen) for name, seen in found.items() if seen.total}
    typical = {name: found[name].typical() for name in ranges}
    other = len(choices.keys() & ranges.keys())
    return Ranges(ranges, f"{choice}{f'; another for {other} tensors' if other else ''}", samples, typical)


def check_scheduler(address: str) -> str:
    """A warning about the address of a Dask scheduler, or "". Raises UsageError where it is no address, or no Dask."""
    if not address:
        return ""
    if not address.startswith(("tls://", "tcp://")) or len(address) == len("tls://"):
        raise UsageError(f"scheduler {address!r} is not of the form tls://host:port")
    try:
        import dask.distributed  # noqa: F401
    except ImportError as error:
        raise UsageError("a scheduler needs Dask: pip install 'gemedge[dask]'") from error
    if address.startswith("tcp://"):
        return f"{address} is neither encrypted nor authenticated: anyone on the way can read the data and run code"
    return ""


# The model with all of its tensors as outputs


def _packed(model: ir.Model) -> Packed:
    written = forms.to_form(model.clone(), "function")
    graph, pieces = packing.pack(written)
    proto = onnx.ModelProto.FromString(graph)
    outputs = {output.name for output in proto.graph.output}
    for node in proto.graph.node:
        for name in node.output:
            if name and name not in outputs:
                outputs.add(name)
                proto.graph.output.add(name=name)
    return proto.SerializeToString(deterministic=True), b"".join(pieces)


def runner(model: ir.Model) -> "_Runner":
    """Runs the model on batches: call it with a batch and its first sample's number for (tensor, array) pairs."""
    return _Runner(_packed(model))


class _Runner:
    """Runs a packed model; safe to use from several threads."""

    def __init__(self, packed: Packed) -> None:
        import onnxruntime

        graph, data = packed
        self._packed = packed
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_mem_pattern = options.enable_cpu_mem_arena = False  # or every batch's tensors stay allocated
        self._kept = packing.runtime_values(graph, memoryview(data))
        options.add_external_initializers(list(self._kept), list(self._kept.values()))
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UnsupportedError(f"onnxruntime cannot load the model: {_first_line(error)}") from error
        self.inputs = [entry.name for entry in self._session.get_inputs() if entry.type in _FLOATS]
        given = set(self.inputs)
        outputs = [e.name for e in self._session.get_outputs() if e.type in _FLOATS and e.name not in given]
        self._sources = _sources(graph)
        order = {name: place for place, name in enumerate(self._sources)}
        self.outputs = sorted(outputs, key=lambda name: order.get(name, -1))

    def __call__(self, batch: Batch, first: int) -> Iterator[tuple[str, np.ndarray]]:
        """Every float tensor by name, in the graph's order. first: the number of the batch's first sample."""
        count = len(next(iter(batch.values())))
        where = f"samples {first} to {first + count - 1}"
        try:
            results = self._session.run(self.outputs, batch) if self.outputs else []
        except Exception as error:
            raise DataError(f"the model does not run on {where}: {reason(error)}") from error
        yield from ((name, batch[name]) for name in self.inputs)
        infinite: set[str] = set()
        for name in self.outputs:
            array = np.asarray(results.pop(0))
            if array.size and not (np.isfinite(array.max()) and np.isfinite(array.min())):
                infinite.add(name)
                self._check(name, array, where, infinite)
            yield name, array

    def _check(self, name: str, array: np.ndarray, where: str, infinite: set[str]) -> None:
        """DataError for NaN, and for infinity that no input of the tensor's node brought."""
        brought = name in self._constant or not (infinite | self._infinite).isdisjoint(self._sources.get(name, ()))
        bad = np.isnan(array) if brought else ~np.isfinite(array)
        if bad.any():
            index = [int(i) for i in np.argwhere(bad)[0]]
            value = array[tuple(index)]
            told = "NaN" if np.isnan(value) else f"{value}, beyond every {array.dtype},"
            raise DataError(f"tensor {name!r}, element {index}, is {told} on {where}")

    @cached_property
    def _constant(self) -> set[str]:
        """Tensors that no input of the model reaches."""
        reached = {entry.name for entry in self._session.get_inputs()}
        for name, sources in self._sources.items():
            if not reached.isdisjoint(sources):
                reached.add(name)
        return self._sources.keys() - reached

    @cached_property
    def _infinite(self) -> set[str]:
        """Stored constants that hold infinity."""
        graph, data = self._packed
        values = packing.unpack(memoryview(graph), memoryview(data)).graph.initializers.values()
        arrays = {value.name or "": value.const_value.numpy() for value in values if value.const_value is not None}
        return {name for name, array in arrays.items() if array.dtype.kind == "f" and np.isinf(array).any()}


def _sources(graph: bytes) -> dict[str, list[str]]:
    """What each computed tensor's node reads, in the graph's order."""
    nodes = onnx.ModelProto.FromString(graph).graph.node
    return {name: list(node.input) for node in nodes for name in node.output}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# Where batches run

Work = Callable[[Iterator[Batch], Callable[[int], None]], tuple[Histograms, int]]


def _on_threads(packed: Packed, workers: int | None) -> Work:
    count = workers if workers is not None else os.cpu_count() or 1
    if count < 1:
        raise UsageError(f"workers={count} must be at least 1")
    runner = _Runner(packed)
    found: Histograms = {name: Histogram() for name in (*runner.inputs, *runner.outputs)}
    locks = {name: threading.Lock() for name in found}

    def count_batch(batch: Batch, first: int) -> None:
        for name, array in runner(batch, first):
            with locks[name]:
                found[name].add(array)

    def work(stream: Iterator[Batch], on_progress: Callable[[int], None]) -> tuple[Histograms, int]:
        pool = ThreadPoolExecutor(count)
        try:
            done = _in_turn(
                stream, count, lambda batch, first: pool.submit(count_batch, batch, first).result, on_progress
            )
        finally:
            pool.shutdown(cancel_futures=True)
        return found, done

    return work


def _in_turn(
    stream: Iterator[Batch],
    most: int,
    submit: Callable[[Batch, int], Callable[[], Any]],
    on_progress: Callable[[int], None],
    take: Callable[[Any], None] = lambda _: None,
) -> int:
    """Submit batches, at most `most` unfinished, and take their results in order; the number of samples.

    The first batch that fails in the stream's order raises its error, whoever was faster.
    """
    waiting: deque[tuple[Callable[[], Any], int]] = deque()
    first = 0

    def finish() -> None:
        result, done = waiting.popleft()
        take(result())
        on_progress(done)

    for batch in stream:
        if len(waiting) == most:
            finish()
        start, first = first, first + len(next(iter(batch.values())))
        waiting.append((submit(batch, start), first))
    while waiting:
        finish()
    return first


def _on_dask(packed: Packed, address: str) -> Work:
    from dask.distributed import Client

    found: Histograms = {}

    def take(histograms: Histograms) -> None:
        for name, histogram in histograms.items():
            found.setdefault(name, Histogram()).merge(histogram)

    def work(stream: Iterator[Batch], on_progress: Callable[[int], None]) -> tuple[Histograms, int]:
        try:
            client = Client(address, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
        except (OSError, TimeoutError, ValueError, TypeError) as error:
            raise UsageError(f"scheduler {address} does not answer: {_first_line(error)}") from error
        with client:
            try:
                most = 2 * max(1, sum(client.ncores().values()))
                shared = client.scatter([packed], broadcast=True)[0]
                done = _in_turn(
                    stream,
                    most,
                    lambda batch, first: client.submit(count_remotely, shared, batch, first, pure=False).result,
                    on_progress,
                    take,
                )
            except GemedgeError:
                raise
            except Exception as error:
                raise ModelError(
                    f"on the workers of {address}: {type(error).__name__}: {_first_line(error)}"
                ) from error
        return found, done

    return work


def count_remotely(packed: Packed, batch: Batch, first: int) -> Histograms:
    """What a Dask worker does with a batch."""
    histograms: Histograms = {}
    for name, array in _runner(packed)(batch, first):
        histograms[name] = Histogram()
        histograms[name].add(array)
    return histograms


@lru_cache(maxsize=1)
def _runner(packed: Packed) -> _Runner:
    return _Runner(packed)

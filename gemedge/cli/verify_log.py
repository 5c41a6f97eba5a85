"""gemedge verify --log: whether a board has simulate's integers at every layer, by what its self-test printed."""

from pathlib import Path
from typing import TYPE_CHECKING

from gemedge.cli import console
from gemedge.errors import DataError, PromiseError, about

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from gemedge.export.selftest_log import Difference, Log
    from gemedge.model import QuantizedModel


def compare(model: Path, data: Path | None, log: Path, *, as_json: bool, quiet: bool) -> None:
    """Compare the log of a board's self-test with what the simulator gives for the data it was exported with.

    data: None where it was exported without. PromiseError names the first layer that differs.
    """
    from gemedge import model_file
    from gemedge.capture.archive import open_bytes
    from gemedge.export import selftest_log

    with about(model):
        quantized = model_file.load(open_bytes(model))
    content = _read(log, selftest_log.LARGEST)
    with about(log):
        read = selftest_log.read_log(content)
        selftest_log.check_log(read, quantized)
    difference = _first_difference(quantized, data, log, read)
    layers = len({place for _, place in read.digests if place[0] == "layer"})
    if as_json:
        console.print_json(_summary(quantized, read, layers, difference))
    if difference:
        raise PromiseError(f"{log}: {_told(quantized, difference)}")
    if not (as_json or quiet):
        rows = [("samples", f"{read.samples:,}"), ("layers", f"{layers:,}")]
        console.print_fields([*rows, ("result", "the same integers at every layer")])


def _read(log: Path, largest: int) -> bytes:
    from gemedge.data import open_regular, reading

    with reading(log), open_regular(log) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise DataError(f"{log}: it is larger than {largest >> 20} MiB, which no log of a self-test is")
    return content


def _first_difference(model: "QuantizedModel", data: Path | None, file: Path, log: "Log") -> "Difference | None":
    from collections import Counter

    from gemedge.export import selftest_log
    from gemedge.quant.simulate import border, entered, run

    for sample, given in enumerate(_samples(model, data, file, log.samples)):
        integers = run(model, entered(model, border(model, given), Counter()), keep=model.tensors)
        wanted = selftest_log.digests(model, {name: array[0] for name, array in integers.items()})
        with about(file):
            difference = selftest_log.first_difference(log, sample, wanted)
        if difference and difference.place[0] == "in":
            whose = "an export without --data" if data is None else str(data)
            raise DataError(f"{file}: sample {sample} of its run is not that of {whose}")
        if difference:
            return difference
    return None


def _samples(
    model: "QuantizedModel", data: Path | None, file: Path, count: int
) -> "Iterable[Mapping[str, np.ndarray]]":
    """One at a time, as many as the log says that it has."""
    from gemedge.cli.simulate import open_batches
    from gemedge.probes import probe

    if data is None:
        return (probe(model, number) for number in range(count))
    batches = open_batches(model, data, batch=1, limit=count)
    if batches.samples is not None and batches.samples < count:
        raise DataError(f"{file}: its run has {count} samples; {data} has {batches.samples}")
    return batches


def _told(model: "QuantizedModel", difference: "Difference") -> str:
    part, index = difference.place
    layer = model.layers[index] if part == "layer" else None
    what = f"layer {layer.name!r} ({type(layer).__name__}, number {index})" if layer else f"output {index}"
    digests = f"{difference.board:08x} on the board, {difference.simulated:08x} in the simulator"
    return f"sample {difference.sample}: {what} is the first that differs: {digests}"


def _summary(model: "QuantizedModel", log: "Log", layers: int, difference: "Difference | None") -> dict[str, object]:
    first = None
    if difference:
        part, index = difference.place
        name = model.layers[index].name if part == "layer" else list(model.outputs)[index]
        first = {"sample": difference.sample, "part": part, "index": index, "name": name}
    return {"samples": log.samples, "layers": layers, "equal": difference is None, "first_difference": first}

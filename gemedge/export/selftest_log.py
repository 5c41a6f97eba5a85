"""What a self-test on a board printed, compared with the integers that each layer must have.

A log is hostile: what a serial line carries is read by patterns of bounded length, whatever stands around them on a
line. It may hold several runs, as a board that starts again prints; the last whole one counts, or the last one.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gemedge import model_file
from gemedge.arena import stored
from gemedge.errors import DataError
from gemedge.export.c_writer import bytes_per
from gemedge.export.layout import in_memory, orders
from gemedge.model import QuantizedModel

LARGEST = 16 << 20
STATUSES = {1: "arena too small", 2: "arena misaligned", 3: "null pointer", 4: "index outside its table"}
_LINE = re.compile(
    rb"gemedge (?:begin ([0-9a-f]{8}) ([0-9]{1,9}) ([0-9]{1,9})"
    rb"|([0-9]{1,9}) (in|layer|out) ([0-9]{1,9}) ([0-9a-f]{8})"
    rb"|end ([0-9]{1,9}) ([0-9]{1,9}))(?![0-9a-f])"
)
Place = tuple[str, int]  # "in", "layer" or "out", and which one


@dataclass(frozen=True, slots=True)
class Log:
    """One run: the digest of its model, how many samples it has, the CRC-32 of each place, and its status at the end.

    status: None where the log ends before the run does.
    """

    model: int
    layers: int
    samples: int
    digests: dict[tuple[int, Place], int] = field(default_factory=dict)
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where the board has other numbers: in which sample, and both digests."""

    sample: int
    place: Place
    board: int
    simulated: int


def model_digest(model: QuantizedModel) -> int:
    """What tells a model from others in its self-test: the CRC-32 of its .gemq file."""
    return zlib.crc32(model_file.save(model))


def read_log(content: bytes) -> Log:
    """The run that counts; DataError where there is none."""
    run: Log | None = None
    whole: Log | None = None
    for found in _LINE.finditer(content):
        model, layers, samples, sample, part, index, crc, status, _ = found.groups()
        if model:
            run = Log(int(model, 16), int(layers), int(samples))
        elif part and run:
            run.digests[int(sample), (part.decode(), int(index))] = int(crc, 16)
        elif status and run:
            whole, run = replace(run, status=int(status)), None
    counting = whole or run
    if counting is None:
        raise DataError("it holds no line `gemedge begin ...`, with which a self-test starts")
    return counting


def check_log(log: Log, model: QuantizedModel) -> None:
    """DataError where the log is another model's, or holds no samples."""
    if log.model != model_digest(model):
        raise DataError(f"it is of another model: its digest is {log.model:08x}, this one's {model_digest(model):08x}")
    if log.samples < 1:
        raise DataError("its run has no samples")


def places(model: QuantizedModel) -> dict[Place, str]:
    """What a self-test shows, in its order, and the tensor of each; what stays in flash is not shown."""
    unseen = stored(model)
    shown = {("layer", i): layer.output for i, layer in enumerate(model.layers) if layer.output not in unseen}
    ends = {("out", i): name for i, name in enumerate(model.outputs.values())}
    return {("in", i): name for i, name in enumerate(model.inputs)} | shown | ends


def digests(model: QuantizedModel, integers: Mapping[str, np.ndarray]) -> dict[Place, int]:
    """The CRC-32 of each place for one sample's integers by tensor, as they lie in the C's memory."""
    laid = orders(model)
    types = {name: f"<i{bytes_per(tensor)}" for name, tensor in model.tensors.items()}
    return {
        place: zlib.crc32(in_memory(integers[name], laid[name]).astype(types[name]).tobytes())
        for place, name in places(model).items()
    }


def first_difference(log: Log, sample: int, wanted: Mapping[Place, int]) -> Difference | None:
    """The first place of a sample where the log has another digest; DataError where it has none."""
    for place, simulated in wanted.items():
        board = log.digests.get((sample, place))
        if board is None:
            raise DataError(f"{_end(log)} without a digest of sample {sample}, {place[0]} {place[1]}")
        if board != simulated:
            return Difference(sample, place, board, simulated)
    return None


def _end(log: Log) -> str:
    if log.status:
        return f"its run ended with status {log.status} ({STATUSES.get(log.status, 'unknown')})"
    return "its run is cut off" if log.status is None else "its run ended"

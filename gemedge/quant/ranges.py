"""The range of real numbers that each tensor of a model takes: what calibration finds and a user may edit.

As JSON: {"format": "gemedge ranges 1", "method": ..., "samples": ..., "ranges": {tensor: [min, max]}}. Numbers are
written so that they survive exactly; a file is refused until every one of its parts is what it must be.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from gemedge.errors import DataError

FORMAT = "gemedge ranges"
VERSION = 1
MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """The real numbers from min to max, both finite. It need not hold zero."""

    min: float
    max: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min) and math.isfinite(self.max) and self.min <= self.max):
            raise DataError(f"range [{self.min!r}, {self.max!r}] must be two finite numbers, the lower one first")

    @property
    def width(self) -> float:
        """max - min; infinity where no float64 holds it."""
        return self.max - self.min


@dataclass(frozen=True, slots=True)
class Ranges(Mapping[str, Range]):
    """A Range for each tensor by name, how they were chosen, and from how many samples.

    typical: the median magnitude of each tensor where calibration just found it; a file does not keep it.
    """

    ranges: Mapping[str, Range]
    method: str
    samples: int
    typical: Mapping[str, float] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranges", MappingProxyType(dict(self.ranges)))

    def __getitem__(self, tensor: str) -> Range:
        """The tensor's range; DataError where calibration never saw it take a finite number."""
        try:
            return self.ranges[tensor]
        except KeyError:
            raise DataError(f"tensor {tensor!r} has no range; there are {len(self.ranges)} others") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.ranges)

    def __len__(self) -> int:
        return len(self.ranges)

    def __contains__(self, tensor: object) -> bool:
        return tensor in self.ranges

    def to_json(self) -> str:
        """One tensor a line, in order; the same text for the same ranges."""
        head = {"format": f"{FORMAT} {VERSION}", "method": self.method, "samples": self.samples}
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        entries = [f"    {json.dumps(name)}: {json.dumps([r.min, r.max])}" for name, r in self.ranges.items()]
        lines.append('  "ranges": {' + ("\n" + ",\n".join(entries) + "\n  }" if entries else "}"))
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Ranges":
        """What to_json wrote, perhaps edited. DataError names the tensor and what is wrong with it."""
        if len(text) > MOST_BYTES:
            raise DataError(f"it is larger than {MOST_BYTES >> 20} MiB, which no ranges are")
        try:
            value = json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise DataError(f"it is not JSON: {str(error).splitlines()[0][:120]}") from error
        if not isinstance(value, dict) or not str(value.get("format", "")).startswith(f"{FORMAT} "):
            raise DataError(f'it holds no ranges: "format" must be "{FORMAT} {VERSION}"')
        if value["format"] != f"{FORMAT} {VERSION}":
            raise DataError(f"it is {str(value['format'])[:40]!r}; this gemedge reads {FORMAT} {VERSION}")
        if value.keys() != {"format", "method", "samples", "ranges"}:
            raise DataError(f"it has {', '.join(sorted(value))[:120]}; it must have format, method, samples, ranges")
        if not isinstance(value["method"], str):
            raise DataError(f"method {str(value['method'])[:40]} is not a text")
        if type(value["samples"]) is not int or value["samples"] < 0:
            raise DataError(f"samples {str(value['samples'])[:40]} is not a count")
        if not isinstance(value["ranges"], dict):
            raise DataError("ranges is not an object of [min, max] by tensor")
        ranges = {name: _range(name, entry) for name, entry in value["ranges"].items()}
        return cls(ranges, value["method"], value["samples"])


def _range(tensor: str, entry: Any) -> Range:
    if not isinstance(entry, list) or len(entry) != 2 or not all(type(end) in (int, float) for end in entry):
        raise DataError(f"tensor {tensor!r}: {str(entry)[:60]} is not [min, max]")
    try:
        return Range(float(entry[0]), float(entry[1]))
    except OverflowError:
        raise DataError(f"tensor {tensor!r}: an end of its range is beyond every float") from None
    except DataError as error:
        raise DataError(f"tensor {tensor!r}: {error}") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} appears twice")
        found[name] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")

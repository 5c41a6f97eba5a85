"""What runs exported C on an emulated microcontroller, by the target's name."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from gemedge.export import avr_limits
from gemedge.export.avr import Avr
from gemedge.export.build import CPUS, Level
from gemedge.export.emulated import Emulated, Sample
from gemedge.export.folder import Folder
from gemedge.targets import Measured

TARGETS = (*CPUS, avr_limits.NAME)


class Device(Protocol):
    """A folder built for a target."""

    target: str

    def run(self, sample: Mapping[str, np.ndarray]) -> Sample[Any]:
        """The numbers of every layer for one sample's integers by input name."""

    def measure(self, sample: Mapping[str, np.ndarray], took: Mapping[int, Any]) -> Measured:
        """What a run of this sample takes; took: what run gave of it."""


def device(folder: Folder, target: str, level: Level = "-O2", *, seconds: float | None = None) -> Device:
    """The folder built for one of TARGETS; TooLargeError where it does not fit, ToolError where no build."""
    if target == avr_limits.NAME:
        return Avr(folder, level, seconds=seconds)
    return Emulated(folder, target, level, seconds=seconds)

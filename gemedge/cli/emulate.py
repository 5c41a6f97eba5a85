"""What one sample takes on an emulated target, for a report; or why that is not known."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from gemedge.errors import GemedgeError, PromiseError

if TYPE_CHECKING:
    from gemedge.costs import Target
    from gemedge.model import QuantizedModel
    from gemedge.targets import Measured

_SECONDS = 20.0  # of emulation; a report is not to wait longer
_INSTRUCTIONS = 2_000_000_000  # take about that long


def measured(
    model: "QuantizedModel", target: "Target", inputs: Mapping[str, np.ndarray]
) -> "tuple[Measured | None, str]":
    """What the first sample of the inputs takes, and in words how that is known, or why it is not.

    PromiseError where a layer's numbers there are not simulate's.
    """
    from gemedge.export.device import TARGETS
    from gemedge.quant.simulate import border, entered, run
    from gemedge.targets import estimate

    if target.name not in TARGETS:
        return None, f"estimated: {target.name} is not emulated"
    if (expected := estimate(model, target).instructions.value) > _INSTRUCTIONS:
        return None, f"estimated: {expected:,} instructions are too many to emulate for a report"
    integers = entered(model, {name: array[:1] for name, array in border(model, inputs).items()}, Counter())
    keep = [layer.output for layer in model.layers] + list(model.outputs.values())
    wanted = run(model, integers, keep=keep)
    try:
        return _emulated(model, target.name, _first(integers), _first(wanted)), "one sample, emulated"
    except _NotSimulates:
        raise
    except GemedgeError as error:
        return None, f"estimated: {error}"


class _NotSimulates(PromiseError):
    """The C gave another integer."""


def _emulated(
    model: "QuantizedModel", target: str, sample: dict[str, np.ndarray], wanted: dict[str, np.ndarray]
) -> "Measured":
    from gemedge.export.device import device
    from gemedge.export.difference import first_difference
    from gemedge.export.folder import of_model

    runs = device(of_model(model, "model"), target, seconds=_SECONDS)
    found = runs.run(sample)
    if difference := first_difference(model, 0, wanted, found.layers, found.outputs):
        raise _NotSimulates(f"its C on {target}: {difference}")
    return runs.measure(sample, found.took)


def _first(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array[0] for name, array in arrays.items()}

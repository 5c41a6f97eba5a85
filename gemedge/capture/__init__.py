"""Model files and live modules, turned into the float ONNX model with what the original gives on probes.

A file is hostile until checked: it is read in a child process with limits, and no code of it runs unless the
caller trusts it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemedge.capture.inputs import Arrays, InputShape, by_input
from gemedge.errors import about

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

__all__ = ["Captured", "InputShape", "Source", "capture", "capture_module"]

DEFAULT_OPSET = 18


@dataclass(frozen=True, slots=True)
class Source:
    """How to read a model file, in the words of the command line's options."""

    path: Path
    arch: str = ""
    allow: tuple[str, ...] = ()
    trust: bool = False
    input_shapes: tuple[InputShape, ...] = ()
    example: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Captured:
    """A float ONNX model with one node for each activation, and the original's outputs to hold it to.

    probes and expected have the same keys; each probe is a set of inputs by name, each expectation the
    outputs by name, NumPy arrays. notes are lines for the user.
    """

    model: "ir.Model"
    probes: Mapping[str, Arrays]
    expected: Mapping[str, Arrays]
    notes: tuple[str, ...] = ()


def capture(source: Source, *, opset: int | None = None, on_phase: Callable[[str], None] = lambda _: None) -> Captured:
    """The model in a file, read in a child process.

    opset: 17 to 23; None is 18, or for an ONNX file its own. on_phase is told what the child is doing.
    Raises ModelError, UnsupportedError, UsageError or DataError, each naming the file.
    """
    from gemedge import confined
    from gemedge.capture.job import captured, request

    asked, blobs = request(source, opset)
    with about(source.path):
        reply, parts = confined.call("gemedge.capture.job:run", asked, blobs, on_phase=on_phase)
    return captured(reply, parts)


def capture_module(
    model: "nn.Module",
    example: Any,
    *,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    opset: int | None = None,
) -> Captured:
    """The model at hand, in this process. example: a tensor or array, a sequence of them, or a dict by name."""
    from gemedge.capture import live

    return live.captured(live.program(model, live.example_of(model, example), dynamic), opset or DEFAULT_OPSET, dynamic)


def dynamic_of(shapes: Sequence[InputShape], names: Sequence[str]) -> dict[str, dict[int, str]] | None:
    """The dimensions that shapes let vary, by input name; None where nothing was said."""
    if not shapes:
        return None
    return {name: shape.free for name, shape in by_input(shapes, names).items()}

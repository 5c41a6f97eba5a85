"""How a model file is named and read, in the words that every command taking one shares."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemedge.errors import UsageError

if TYPE_CHECKING:
    from gemedge.capture import Source

_OPTIONS = (
    click.argument("model", type=click.Path(path_type=Path, readable=False)),
    click.option(
        "--input-shape",
        "shapes",
        multiple=True,
        metavar="[NAME:]SHAPE[:TYPE]",
        help="Such as 1,3,32,32 or x:?,3,32,32 or tokens:batch,128:int64. '?' or a name may vary. Repeatable.",
    ),
    click.option(
        "--example",
        type=click.Path(path_type=Path, readable=False),
        help="Inputs to trace and compare with: .npy or .npz.",
    ),
    click.option(
        "--arch", default="", metavar="PACKAGE.MODULE:CALLABLE", help="What builds the network for a state dict."
    ),
    click.option(
        "--allow", multiple=True, metavar="MODULE.CLASS", help="A class of yours that the file may hold. Repeatable."
    ),
    click.option("--trust", is_flag=True, help="Load the file by running the code it holds, without limits."),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declares MODEL and the options that `source` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def source(
    model: Path, shapes: tuple[str, ...], example: Path | None, arch: str, allow: tuple[str, ...], trust: bool
) -> "Source":
    """What the options say of the model file."""
    from gemedge.capture import InputShape, Source
    from gemedge.data import load_arrays

    parsed = tuple(InputShape.parse(text) for text in shapes)
    given = load_arrays(example) if example else {}
    if arch and allow:
        raise UsageError("--arch and --allow exclude each other: the network comes from the one or from the file")
    return Source(model, arch, allow, trust, parsed, given)

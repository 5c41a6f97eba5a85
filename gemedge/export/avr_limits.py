"""What does not fit an atmega1284p, and by how much: before a build, as it is built, and when it has run."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from gemedge.arena import bytes_of
from gemedge.errors import PromiseError, ToolError
from gemedge.export.avr_build import CONSTANTS, DEVICE
from gemedge.export.emulated import TooLargeError
from gemedge.export.folder import Folder
from gemedge.model import QuantizedModel
from gemedge.targets import Estimate, Figure, estimate, fits, target_named

NAME = "avr"
FLASH_SIZE, RAM_SIZE = 1 << 17, 1 << 14
_REACHED = 65_000  # bytes of constants: their addresses have 16 bits
_ARRAY = (1 << 15) - 1  # bytes: its int has 16 bits
_MISFIT = f"it does not fit the {DEVICE}"
_LARGE_ARRAY = re.compile(r"size of array .* is too large\n.* u?int(\d+)_t (\w+)\[(\d+)\]")


def refuse_counted(folder: Folder) -> None:
    """TooLargeError where constants, or arena, inputs and outputs, are more than the memory, whatever code is like."""
    border = _border(folder)
    nothing, arena = Figure(0, "counted"), Figure(folder.arena, "counted")
    fit = fits(
        replace(_estimated(folder.model), code=nothing, stack=nothing, arena=arena), FLASH_SIZE, RAM_SIZE - border
    )
    if not fit.holds:
        raise TooLargeError(
            f"{_MISFIT}, which has {FLASH_SIZE:,} bytes of flash, and of RAM {RAM_SIZE:,} less {border:,} of inputs and"
            f" outputs: {fit.text}"
        )


@contextmanager
def told(model: QuantizedModel) -> Iterator[None]:
    """Where a compiler refuses the model's C because constants are too large, TooLargeError says by how much."""
    try:
        yield
    except ToolError as error:
        if found := _LARGE_ARRAY.search(str(error)):
            size = int(found[1]) // 8 * int(found[3])
            raise TooLargeError(
                f"{_MISFIT}: {found[2]} has {size:,} bytes, {size - _ARRAY:,} more than an array there can have"
            ) from error
        if f"constants_are_within_{_REACHED}_bytes" in str(error):
            known = _estimated(model)
            size = (known.weights + known.tables + known.constants).value
            raise TooLargeError(
                f"{_MISFIT}: constants: {size:,} bytes (counted), {size - _REACHED:,} more than the {_REACHED:,} that"
                " its pointers reach"
            ) from error
        raise


def refuse_built(sections: Mapping[str, int]) -> None:
    """TooLargeError where the sections of a program are more than the flash."""
    size = sum(sections.get(name, 0) for name in (".text", CONSTANTS, ".data"))
    if size > FLASH_SIZE:
        raise TooLargeError(f"{_MISFIT}: flash: {size:,} bytes, built; {size - FLASH_SIZE:,} too many")


def refuse_stack(used: int, room: int) -> None:
    """TooLargeError where the stack was so deep that it may have met the variables."""
    if used >= room:
        raise TooLargeError(f"{_MISFIT}: its stack takes more than the {room:,} bytes of RAM that are left for it")


def did_not_return(folder: Folder, function: str) -> PromiseError:
    """What a program is told by that ended before its run did: its stack may have had too little room."""
    left = RAM_SIZE - folder.arena - _border(folder)
    needed = _estimated(folder.model).stack.value
    if left < needed:
        return TooLargeError(f"{_MISFIT}: its stack has {left:,} bytes of RAM and takes {needed:,} (estimated)")
    return PromiseError(f"{function} on {NAME} did not return")


def _border(folder: Folder) -> int:
    """The bytes of inputs and outputs."""
    model = folder.model
    return sum(bytes_of(model.tensors[name]) for name in (*model.inputs, *model.outputs.values()))


def _estimated(model: QuantizedModel) -> Estimate:
    return estimate(model, target_named(NAME))

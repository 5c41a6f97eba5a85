"""simavr runs a program of avr_board.c: what it prints, and how many cycles passed between two holds of its clock.

simavr notes each change of the clock's pin with its cycle, so nothing on the CPU counts and no cycle is estimated.
"""

import re
import tempfile
from dataclasses import dataclass

from gemedge.errors import PromiseError, ToolError
from gemedge.export.build import ended, folder_with

_LARGEST = 1 << 26  # bytes that it prints or notes
_LINE = re.compile(rb"^(?:\x1b\[[0-9;]*m)?O:([A-Z])([0-9a-f]*)", re.MULTILINE)
_NOTE = re.compile(r"^#(\d+)\n([01])!", re.MULTILINE)
_A_CYCLE = 100  # units of 10 ns, at the board's 1 MHz
_EDGE = 2  # cycles of the instruction that ends a stretch


@dataclass(frozen=True, slots=True)
class Ran:
    """lines: key and hexadecimal digits, in order. stretches: cycles between a release of the clock and its hold."""

    lines: tuple[tuple[str, str], ...]
    stretches: tuple[int, ...]

    def number(self, key: str) -> int | None:
        """What the only line of this key says; None where there is none, or are several."""
        found = [int(digits, 16) for name, digits in self.lines if name == key and digits]
        return found[0] if len(found) == 1 else None


def run(program: bytes, seconds: float) -> Ran:
    """PromiseError where the program does not end in so many seconds; ToolError where simavr cannot run."""
    with folder_with({"program.elf": program}) as folder, tempfile.TemporaryFile() as output:
        try:
            status = ended(["simavr", "program.elf"], folder, output, seconds, largest=_LARGEST)
        except OSError as error:
            raise ToolError(f"simavr cannot be started: {error.strerror}") from error
        if status is None:
            raise PromiseError(f"a run on avr did not end in {seconds:g} seconds")
        output.seek(0)
        lines = tuple((key.decode(), digits.decode()) for key, digits in _LINE.findall(output.read()))
        clock = folder / "clock.vcd"
        return Ran(lines, _stretches(clock.read_text(errors="replace") if clock.is_file() else ""))


def _stretches(notes: str) -> tuple[int, ...]:
    """From each release to the hold behind it; what is before the first hold is start-up code."""
    found, released, begun = [], None, False
    for time, level in _NOTE.findall(notes):
        if level == "0" and begun:
            released = int(time)
        elif level == "1":
            if released is not None:
                found.append((int(time) - released) // _A_CYCLE - _EDGE)
            released, begun = None, True
    return tuple(found)

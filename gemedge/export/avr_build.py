"""C sources built for an AVR by avr-gcc and avr-libc: objects, programs of simavr, and what takes how much flash.

Sources may be anybody's, and simavr obeys what a program's section .mmcu says, which can name a file to write: that
section is taken out of their objects, and none of their headers meets the board's source.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from gemedge.errors import ToolError
from gemedge.export.build import Level, compiled, folder_with

DEVICE = "atmega1284p"
CONSTANTS = ".progmem"  # what of .text are constants, under the name that they have before they are linked
SIMAVR_HEADERS = Path("/usr/include/simavr/avr")
_COMPILER = ("avr-gcc", f"-mmcu={DEVICE}", "-std=gnu99", "-fno-lto")
_SECTIONS = ("-g0", "-ffunction-sections", "-fdata-sections")
_LINKED = ("-fno-use-linker-plugin",)
_CONFIGURED = "-Wl,--section-start=.mmcu=0x910000"  # where simavr looks for what a program says of itself
_ANY_FLASH = "-Wl,--defsym=__TEXT_REGION_LENGTH__=0x800000"  # so that what is too large is built and can be measured
_TOOLS = {"avr-gcc": "gcc-avr", "avr-objcopy": "binutils-avr", "simavr": "simavr"}
_OBJECT = re.compile(r"^ *\d+: [0-9a-f]+ +(\d+) OBJECT +\w+ +\w+ +(\d+) ", re.MULTILINE)
_SECTION = re.compile(r"^ *\[ *(\d+)\] (\.\w+) +\w+ +[0-9a-f]+ [0-9a-f]+ ([0-9a-f]+) \w+ +(\w*A\w*) ", re.MULTILINE)


def require() -> None:
    """ToolError names every tool that is missing, and what Debian and Ubuntu call its package."""
    absent = {tool: package for tool, package in _TOOLS.items() if shutil.which(tool) is None}
    if not (SIMAVR_HEADERS / "avr_mcu_section.h").is_file():
        absent["avr_mcu_section.h"] = "libsimavr-dev"
    if "avr-gcc" in absent or not _has_library():
        absent["avr/io.h"] = "avr-libc"
    if absent:
        packages = " ".join(dict.fromkeys(absent.values()))
        raise ToolError(f"an emulated avr needs {', '.join(absent)}: apt-get install {packages}")


def objects(sources: Mapping[str, bytes], level: Level, defines: Sequence[str] = ()) -> dict[str, bytes]:
    """What avr-gcc makes of each .c file among the sources, which find each other, by the object's name.

    ToolError with the compiler's message where it fails.
    """
    flags = [level, *_SECTIONS, *(f"-D{macro}" for macro in defines), "-Isources"]
    made: dict[str, bytes] = {}
    with folder_with({f"sources/{file}": content for file, content in sources.items()}) as folder:
        for file in sorted(file for file in sources if file.endswith(".c")):
            name = f"source_{len(made)}.o"
            compiled([*_COMPILER, *flags, "-c", f"sources/{file}", "-o", name], folder, file)
            compiled(["avr-objcopy", "--remove-section=.mmcu", name], folder, file)
            made[name] = (folder / name).read_bytes()
    return made


def program(parts: Mapping[str, bytes], sample: str) -> bytes:
    """The ELF program for simavr of objects and the board, whose gemedge_sample.h is given."""
    board = resources.files("gemedge.export").joinpath("avr_board.c").read_bytes()
    with folder_with({**parts, "board.c": board, "gemedge_sample.h": sample.encode()}) as folder:
        own = [*_COMPILER, "-Os", *_SECTIONS, f"-I{SIMAVR_HEADERS}", "-I.", "-c", "board.c", "-o", "board.o"]
        compiled(own, folder, "avr_board.c")
        linked = [*_COMPILER, *_LINKED, "-Wl,--gc-sections,-u,clock_traced", _CONFIGURED]
        compiled([*linked, "board.o", *parts, "-o", "program.elf"], folder, "linking")
        return (folder / "program.elf").read_bytes()


def sections(parts: Mapping[str, bytes], root: str) -> dict[str, int]:
    """The bytes of each section of a function and what it needs, without start-up code. CONSTANTS are not in .text."""
    with folder_with(parts) as folder:
        kept = f"-Wl,--gc-sections,-u,{root},-e,{root}"
        compiled(
            [*_COMPILER, *_LINKED, "-nostartfiles", kept, _ANY_FLASH, *parts, "-o", "program.elf"], folder, "linking"
        )
        told = _said(["avr-readelf", "-SsW", "program.elf"], folder)
    numbers = {number: name for number, name, _, _ in _SECTION.findall(told)}
    found = {name: int(size, 16) for _, name, size, _ in _SECTION.findall(told)}
    constants = sum(int(size) for size, number in _OBJECT.findall(told) if numbers.get(number) == ".text")
    found |= {".text": found[".text"] - constants, CONSTANTS: constants}
    return {name: size for name, size in found.items() if size}


def _has_library() -> bool:
    command = [*_COMPILER, "-E", "-x", "c", "-include", "avr/io.h", "-"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60).returncode == 0  # noqa: S603


def _said(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=True)  # noqa: S603
    return done.stdout.decode(errors="replace")

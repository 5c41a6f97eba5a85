"""C sources built into one program for a microcontroller, by the compiler of the Python package ziglang.

The program has no start-up code: a Machine (gemedge.export.machine) puts it in memory and calls its functions. It lies
at FLASH and RAM; what it needs of a C library, memcpy, memmove and memset, comes from c_freestanding, and the
arithmetic that a CPU lacks from the compiler's own library. Sources may be anybody's: they are compiled in an empty
folder, with limits on time and memory, and nothing of them runs here.
"""

import ctypes
import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import IO, Literal

from gemedge.errors import ToolError, UsageError

Level = Literal["-O0", "-O1", "-O2", "-O3", "-Os"]
LEVELS: tuple[Level, ...] = ("-O0", "-O1", "-O2", "-O3", "-Os")
FLASH, FLASH_SIZE = 0x08000000, 0x08000000
RAM, RAM_SIZE = 0x20000000, 0x08000000
ARM, RISCV = ("-target", "thumb-freestanding-eabi"), ("-target", "riscv32-freestanding-none")
CPUS = {
    "cortex-m0plus": (*ARM, "-mcpu=cortex_m0plus"),
    "cortex-m3": (*ARM, "-mcpu=cortex_m3"),
    "cortex-m4": (*ARM, "-mcpu=cortex_m4"),
    "cortex-m7": (*ARM, "-mcpu=cortex_m7"),
    "cortex-m33": (*ARM, "-mcpu=cortex_m33"),
    "rv32imc": (*RISCV, "-mcpu=generic_rv32+m+c"),
}
# Hosted: a freestanding compiler turns each copy of four bytes into a call. Unsanitized: this one adds checks at -O0.
_FLAGS = ("-std=c99", "-fhosted", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-fno-sanitize=undefined")
_SECTIONS = ("-g0", "-ffunction-sections", "-fdata-sections")
# Whatever the level: -Os would drop the symbols, and there is one library of the compiler's for a CPU, as with others.
_LINKED = ("-O2", "-nostartfiles", "-Wl,-T,program.ld,--gc-sections,-z,max-page-size=4096")
_SECONDS = 300  # the first link for a CPU builds the compiler's library for it
_MEMORY = 4 << 30
_LARGEST_MESSAGE = 2000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MACRO = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(=[A-Za-z0-9_]*)?")


def build(
    sources: Mapping[str, bytes],
    target: str,
    *,
    level: Level = "-O2",
    defines: Sequence[str] = (),
    roots: Sequence[str] = (),
) -> bytes:
    """The ELF program of all .c files among the sources, which find each other and c_freestanding's string.h.

    sources: contents by file name, below no folder but their own. target: of CPUS. defines: NAME or NAME=VALUE.
    roots: the functions to keep, with what they need; none keeps whatever the sources define. ToolError where the
    compiler is missing or fails, with its message; UsageError for a target, level or name that cannot be.
    """
    check(target, level, [*sources], defines, roots)
    compiler = [*zig(), "cc", *CPUS[target]]
    with folder_with(_laid(sources, _script(roots))) as folder:
        flags = [level, *_FLAGS, *_SECTIONS, "-isystem", "own", *(f"-D{macro}" for macro in defines)]
        compiled([*compiler, *flags, "-fno-builtin", "-c", "own/memory.c", "-o", "own.o"], folder, "memory.c")
        objects = ["own.o"]
        for file in sorted(file for file in sources if file.endswith(".c")):
            objects.append(f"source_{len(objects)}.o")
            compiled([*compiler, *flags, "-Isources", "-c", f"sources/{file}", "-o", objects[-1]], folder, file)
        kept = [f"-Wl,-u,{root}" for root in roots]
        compiled([*compiler, *_LINKED, *kept, *objects, "-o", "program.elf"], folder, "linking")
        return (folder / "program.elf").read_bytes()


@contextmanager
def folder_with(contents: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder with these files, by their names below it, that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="gemedge-build-") as name:
        folder = Path(name)
        for file, content in contents.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        yield folder


def _laid(sources: Mapping[str, bytes], script: str) -> dict[str, bytes]:
    own = resources.files("gemedge.export").joinpath("c_freestanding")
    contents = {f"sources/{file}": content for file, content in sources.items()}
    contents |= {f"own/{file}": own.joinpath(file).read_bytes() for file in ("string.h", "memory.c")}
    return contents | {"program.ld": script.encode()}


def check(target: str, level: str, files: Sequence[str], defines: Sequence[str], roots: Sequence[str]) -> None:
    """Raise UsageError for what build does not take."""
    if target not in CPUS:
        raise UsageError(f"target {target!r} cannot be built for; {', '.join(CPUS)} can")
    if level not in LEVELS:
        raise UsageError(f"level {level!r} is not one of {', '.join(LEVELS)}")
    for what, given, form in (("file", files, _NAME), ("macro", defines, _MACRO), ("symbol", roots, _SYMBOL)):
        for name in given:
            if not form.fullmatch(name):
                raise UsageError(f"{what} {name[:80]!r} has no name that a build takes")
    if not any(file.endswith(".c") for file in files):
        raise UsageError("no .c file to compile")


def library(sources: Mapping[str, bytes], compiler: Sequence[str], flags: Sequence[str]) -> bytes:
    """The shared library that a compiler of this machine makes of all .c files among the sources."""
    with folder_with(sources) as folder:
        files = sorted(file for file in sources if file.endswith(".c"))
        compiled([*compiler, *flags, "-fPIC", "-shared", "-o", "library.so", *files], folder, ", ".join(files))
        return (folder / "library.so").read_bytes()


def loaded(content: bytes) -> ctypes.CDLL:
    """A shared library in this process."""
    with folder_with({"library.so": content}) as folder:
        return ctypes.CDLL(str(folder / "library.so"))


def zig() -> list[str]:
    """The command of the compiler."""
    if importlib.util.find_spec("ziglang") is None:
        raise ToolError("building for a target needs the compiler ziglang: pip install 'gemedge[mcu]'")
    return [sys.executable, "-m", "ziglang"]


def compiled(command: Sequence[str], folder: Path, what: str, *, seconds: int = _SECONDS) -> None:
    """Run a compiler in the folder with limits; ToolError with its message where it fails.

    what: the file that it compiles, which the error names.
    """
    with tempfile.TemporaryFile() as noise:
        try:
            status = ended(command, folder, noise, seconds)
        except OSError as error:
            raise ToolError(f"{what}: the compiler {command[0]} cannot be started: {error.strerror}") from error
        if status is None:
            raise ToolError(f"{what}: the compiler did not end in {seconds} seconds")
        if status != 0:
            noise.seek(0)
            message = noise.read(_LARGEST_MESSAGE).decode(errors="replace").replace(f"{folder}/", "").strip()
            raise ToolError(f"{what}: the compiler failed with status {status}: {message or 'it gave no message'}")


def ended(
    command: Sequence[str], folder: Path, output: IO[bytes], seconds: float, *, largest: int | None = None
) -> int | None:
    """The exit status of a program that runs in the folder with limits, what it prints in output; None where it did
    not end in time. OSError where it cannot be started. largest: bytes of any file that it writes.
    """
    child = subprocess.Popen(  # noqa: S603 - a compiler or an emulator, on files in a folder of ours
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=os.environ | {"LC_ALL": "C"},
        start_new_session=True,
    )
    try:
        if hasattr(resource, "prlimit"):
            with suppress(OSError, ValueError):  # it has ended, or a lower limit stands
                resource.prlimit(child.pid, resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
                if largest is not None:
                    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (largest, largest))
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _script(roots: Sequence[str]) -> str:
    """The linker script: where nothing is named to be kept, all that the sources define is."""
    defined = "".join(f'ASSERT(DEFINED({root}), "no function {root}")\n' for root in roots)

    def kept(*sections: str) -> str:
        names = " ".join(f"{section} {section}.*" for section in sections)
        return f"*({names})" if roots else f"KEEP(*source_*.o({names})) *({names})"

    return f"""MEMORY {{
    flash : ORIGIN = {FLASH:#x}, LENGTH = {FLASH_SIZE:#x}
    ram : ORIGIN = {RAM:#x}, LENGTH = {RAM_SIZE:#x}
}}
SECTIONS {{
    .text : {{ {kept(".text")} }} > flash
    .rodata : {{ {kept(".rodata", ".srodata")} }} > flash
    .data : {{ {kept(".data", ".sdata")} }} > ram
    .bss : {{ {kept(".bss", ".sbss")} *(COMMON) }} > ram
    /DISCARD/ : {{ *(.ARM.ex* .comment .debug* .eh_frame .note*) }}
}}
{defined}"""

"""What activations in C take on emulated Cortex-M: instructions, cycles, flash, and codes that are wrong.

    python -m benchmarks.instructions

Each of ours stands beside what people use instead, in the same run: a table of 513 entries with linear interpolation
at 16 bits, a plain loop over a table of 256 at 8 bits, ReLU, and gemedge's general kernel; ratios are to the table of
the same activation and to ReLU of as many bits. Inputs are N(0, 1) in the format. Instructions are counted exactly, by
block, and on Cortex-M55 by QEMU's clock of instructions; cycles are the upper end of what Arm's timing tables leave on
a Cortex-M4 without wait states. Flash is code and tables of the function alone. zig's clang -O2, and arm-none-eabi-gcc
-O2 where it is installed; nothing here ran on silicon.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import gemedge
from benchmarks.row import Row, main
from gemedge import Activation, FixedActivation, QFormat
from gemedge.export import c_activations
from gemedge.export.build import FLASH, FLASH_SIZE, RAM, RAM_SIZE, build
from gemedge.export.c_constants import Constants, numbers
from gemedge.export.machine import Machine
from gemedge.export.timing import cycles
from gemedge.table import Table
from tests.boards import BOARDS, counted

FOLDER = Path(gemedge.__path__[0], "export")
HEADERS = {path.name: path.read_bytes() for path in FOLDER.joinpath("c_runtime").glob("*.h")}
ELEMENTS = 4096
Q3_12, Q3_4 = QFormat(3, 12), QFormat(3, 4)
RELUS, TABLES = (
    ("- int16 ReLU", "- int8 ReLU"),
    ("- 513-entry table, interpolated", "- plain loop over the 256-byte table"),
)
CONSTANT_TIME = ("GEMEDGE_CONSTANT_TIME",)
GCC = "arm-none-eabi-gcc"
TITLE = "Activations, for each number, on"
GOALS = {
    ("cortex-m4", "int16 gem(n=1)"): 20,
    ("cortex-m4", "int16 gem(n=2)"): 30,
    ("cortex-m4", "int16 segem(n=1, epsilon=1.0)"): 20,
    ("cortex-m4", "int8 gem(n=1), 256-byte table"): 3.5,
    ("cortex-m0plus", "int16 gem(n=1)"): 35,
    ("cortex-m55", "int16 gem(n=1)"): 8,
}


@dataclass(frozen=True)
class Subject:
    """C with a function run(in, out, count), and the exactly rounded outputs that it is judged by."""

    name: str
    kernel: FixedActivation
    source: str
    defines: tuple[str, ...] = ()

    @property
    def bits(self) -> int:
        return self.kernel.in_params.bits

    @property
    def codes(self) -> np.ndarray:
        params = self.kernel.in_params
        return np.arange(params.raw_min, params.raw_max + 1).astype(f"i{params.bits // 8}")

    @property
    def sample(self) -> np.ndarray:
        params = self.kernel.in_params
        raw = np.rint(np.random.default_rng(0).normal(size=ELEMENTS) / params.scale)
        return raw.clip(params.raw_min, params.raw_max).astype(f"i{params.bits // 8}")


@dataclass(frozen=True)
class Measured:
    instructions: float
    cycles: float | None
    flash: int | None
    misrounded: int | None


def source(body: str, statement: str) -> str:
    signature = "void run(const void *in, void *out, uint32_t count)"
    return f'#include "gemedge.h"\n{body}\n{signature};\n{signature} {{\n    {statement}\n}}\n'


def ours(kernel: FixedActivation, choice: c_activations.Choice) -> str:
    constants = Constants()
    constants.prefix = "of"
    if kernel.constants.table:
        table = constants.array("table", "int8_t", kernel.constants.table)
        return source(constants.text, f"gemedge_lookup(in, {table}, out, 1u, count);")
    name = c_activations.function(constants, kernel, choice)
    return source(constants.text, f"{name}(in, out, count);")


def general(kernel: FixedActivation) -> str:
    constants = Constants()
    constants.prefix = "of"
    address = constants.kernel(kernel.constants)
    return source(constants.text, f"gemedge_activate(in, {address}, out, 2u, count);")


def interpolated(kernel: FixedActivation) -> str:
    entries = Table(kernel.activation, kernel.in_params, kernel.out_params, entries=513, interpolation="linear").values
    return source(
        f"static const int16_t table[513] = {{{numbers(entries)}}};",
        """const int16_t *x = (const int16_t *)in;
    int16_t *y = (int16_t *)out;
    for (; count; count--) {
        const int32_t at = *x++ + 32768;
        const int32_t low = table[at >> 7];
        *y++ = (int16_t)(low + (((table[(at >> 7) + 1] - low) * (at & 127) + 64) >> 7));
    }""",
    )


def looked_up(kernel: FixedActivation) -> str:
    return source(
        f"static const int8_t table[256] = {{{numbers(kernel.constants.table)}}};",
        """const int8_t *x = (const int8_t *)in;
    int8_t *y = (int8_t *)out;
    uint32_t i;
    for (i = 0; i < count; i++) {
        y[i] = table[x[i] + 128];
    }""",
    )


def relu(bits: int) -> str:
    return source(
        "",
        f"""const int{bits}_t *x = (const int{bits}_t *)in;
    int{bits}_t *y = (int{bits}_t *)out;
    for (; count; count--) {{
        const int32_t q = *x++;
        *y++ = (int{bits}_t)(q < 0 ? 0 : q);
    }}""",
    )


def subjects() -> list[Subject]:
    rows = []
    for text in ("gem(n=1)", "gem(n=2)", "segem(n=1, epsilon=1.0)", "egem(n=1, epsilon=0.1)"):
        kernel = FixedActivation(Activation.parse(text), Q3_12, Q3_12)
        rows += [
            Subject(f"int16 {text}", kernel, ours(kernel, "auto")),
            Subject(f"int16 {text}, constant time", kernel, ours(kernel, "auto"), CONSTANT_TIME),
            Subject("- 513-entry table, interpolated", kernel, interpolated(kernel)),
            Subject("- gemedge's general kernel", kernel, general(kernel)),
        ]
    bytes_ = FixedActivation(Activation.gem(1), Q3_4, Q3_4)
    rows += [
        Subject(RELUS[0], rows[0].kernel, relu(16)),
        Subject("int8 gem(n=1), 256-byte table", bytes_, ours(bytes_, "auto")),
        Subject("- plain loop over the 256-byte table", bytes_, looked_up(bytes_)),
        Subject(RELUS[1], bytes_, relu(8)),
    ]
    return rows


def by_gcc(subject: Subject, target: str) -> bytes:
    """The program by gcc -O2, in the same places as zig's."""
    script = f"""MEMORY {{
    flash : ORIGIN = {FLASH:#x}, LENGTH = {FLASH_SIZE:#x}
    ram : ORIGIN = {RAM:#x}, LENGTH = {RAM_SIZE:#x}
}}
SECTIONS {{
    .text : {{ *(.text .text.*) }} > flash
    .rodata : {{ *(.rodata .rodata.*) }} > flash
    .data : {{ *(.data .data.*) }} > ram
    .bss : {{ *(.bss .bss.*) }} > ram
    /DISCARD/ : {{ *(.ARM.ex* .comment .note*) }}
}}
"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in (HEADERS | {"run.c": subject.source.encode(), "run.ld": script.encode()}).items():
            (folder / file).write_bytes(content)
        flags = ["-mthumb", f"-mcpu={target}", "-O2", "-std=c99", "-nostdlib", "-ffunction-sections", "-fdata-sections"]
        flags += ["-isystem", str(FOLDER / "c_freestanding"), "-Wl,-T,run.ld,--gc-sections,-e,run"]
        flags += [f"-D{define}" for define in subject.defines]
        subprocess.run(  # noqa: S603 - a compiler, on files in a folder of ours
            [GCC, *flags, "run.c", "-lgcc", "-o", "run.elf"], cwd=folder, check=True
        )
        return (folder / "run.elf").read_bytes()


def measured(subject: Subject, target: str, compiler: str) -> Measured:
    files = HEADERS | {"run.c": subject.source.encode()}
    zig = compiler == "zig"
    program = build(files, target, roots=["run"], defines=subject.defines) if zig else by_gcc(subject, target)
    machine = Machine(program, target)
    given, made = machine.allocate(1 << 17), machine.allocate(1 << 17)
    codes, sample, out = subject.codes, subject.sample, f"i{subject.kernel.out_params.bits // 8}"
    machine.write(given, codes.tobytes())
    machine.call("run", given, made, codes.size)
    got = np.frombuffer(machine.read(made, codes.size * np.dtype(out).itemsize), out)
    machine.write(given, sample.tobytes())
    call = machine.call("run", given, made, sample.size)
    span = cycles(machine, call.blocks)
    return Measured(
        call.instructions / sample.size,
        None if span is None else span.high / sample.size,
        sum(machine.sections.get(section, 0) for section in (".text", ".rodata")),
        None if subject.name in RELUS else int(np.count_nonzero(got != subject.kernel(codes))),
    )


def beside_peers(subject: Subject, every: Mapping[Subject, Measured]) -> dict[str, float]:
    """The ratios of instructions and of flash to the table's and ReLU's, of those that were measured."""
    taken, found = every[subject], {}
    for other, peer in every.items():
        if other.name in TABLES and other.kernel is subject.kernel:
            found["of the table's"] = taken.instructions / peer.instructions
            if taken.flash and peer.flash:
                found["flash, of the table's"] = taken.flash / peer.flash
        if other.name in RELUS and other.bits == subject.bits:
            found["of ReLU's"] = taken.instructions / peer.instructions
    return found


def row(table: str, name: str, found: Measured, ratios: Mapping[str, float], goal: float | None) -> Row:
    beside = dict(ratios)
    if found.cycles is not None:
        beside |= {"cycles at most": found.cycles, "cycles / instructions": found.cycles / found.instructions}
    if found.flash is not None:
        beside["bytes of flash"] = float(found.flash)
    if found.misrounded is not None:
        beside["wrong codes"] = float(found.misrounded)
    return Row(table, name, found.instructions, "instructions", at_most=goal, beside=beside)


def by_target(target: str, every: Sequence[Subject], compilers: Sequence[str]) -> list[Row]:
    """Each subject by each compiler; a goal is that of the better compiler."""
    by = {compiler: {subject: measured(subject, target, compiler) for subject in every} for compiler in compilers}
    found = []
    for subject in every:
        best = min(compilers, key=lambda compiler: by[compiler][subject].instructions)
        for compiler in compilers:
            goal = GOALS.get((target, subject.name)) if compiler == best else None
            ratios = beside_peers(subject, by[compiler])
            found.append(row(f"{TITLE} {target}", f"{subject.name}, {compiler}", by[compiler][subject], ratios, goal))
    return found


def with_helium(every: Sequence[Subject]) -> list[Row]:
    """By QEMU's Cortex-M55; tests/test_c_helium.py has their outputs at all codes."""
    flags, by = ["-O2", "-I", str(FOLDER / "c_runtime")], {}
    for subject in every:
        with tempfile.TemporaryDirectory() as folder:
            taken = counted(BOARDS["cortex-m55"], Path(folder), subject.source, subject.sample, flags)
        by[subject] = Measured(taken, None, None, None)
    title = f"{TITLE} cortex-m55 with Helium"
    return [
        row(title, f"{subject.name}, gcc", taken, beside_peers(subject, by), GOALS.get(("cortex-m55", subject.name)))
        for subject, taken in by.items()
    ]


def rows(quick: bool) -> list[Row]:
    """Ours and what stands beside them, on each CPU by each compiler."""
    compilers = ["zig", *(["gcc"] if shutil.which(GCC) else [])]
    every = subjects()
    if quick:
        every = [every[0], *(subject for subject in every if subject.kernel is every[0].kernel and is_peer(subject))]
    found = [row for target in ("cortex-m4", "cortex-m0plus") for row in by_target(target, every, compilers)]
    if "gcc" in compilers and shutil.which(BOARDS["cortex-m55"].emulator[0]):
        found += with_helium(
            [s for s in every if s.bits == 16 and not s.defines and (s.name.startswith("int16") or is_peer(s))]
        )
    return found


def is_peer(subject: Subject) -> bool:
    return subject.name in (*RELUS, *TABLES)


if __name__ == "__main__":
    main(rows)

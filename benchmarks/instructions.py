"""What activations in C take on emulated Cortex-M4 and M0+: instructions, cycles, flash, and codes that are wrong.

    python -m benchmarks.instructions [--json FILE]

Each of ours stands beside what people use instead, in the same run: a table of 513 entries with linear interpolation
at 16 bits, a plain loop over a table of 256 at 8 bits, ReLU, and gemedge's general kernel. Inputs are N(0, 1) in
the format. Instructions are counted exactly, by block; cycles are the interval that Arm's timing tables leave on a
Cortex-M4 without wait states. Flash is code and tables of the function alone. zig's clang -O2, and arm-none-eabi-gcc
-O2 where it is installed; nothing here ran on silicon.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import gemedge
from gemedge import Activation, FixedActivation, QFormat
from gemedge.export import c_activations
from gemedge.export.build import FLASH, FLASH_SIZE, RAM, RAM_SIZE, build
from gemedge.export.c_constants import Constants, wrapped
from gemedge.export.machine import Machine
from gemedge.export.timing import cycles
from gemedge.table import Table

FOLDER = Path(gemedge.__path__[0], "export")
HEADERS = {path.name: path.read_bytes() for path in FOLDER.joinpath("c_runtime").glob("*.h")}
ELEMENTS = 4096
Q3_12, Q3_4 = QFormat(3, 12), QFormat(3, 4)
CONSTANT_TIME = ("GEMEDGE_CONSTANT_TIME",)
GCC = "arm-none-eabi-gcc"


@dataclass(frozen=True)
class Subject:
    """C with a function run(in, out, count), and the exactly rounded outputs that it is judged by."""

    name: str
    kernel: FixedActivation
    source: str
    defines: tuple[str, ...] = ()

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
    name: str
    target: str
    compiler: str
    instructions: float
    cycles: tuple[float, float] | None
    flash: int
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
        f"static const int16_t table[513] = {{{wrapped(map(str, entries))}}};",
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
        f"static const int8_t table[256] = {{{wrapped(map(str, kernel.constants.table))}}};",
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
        Subject("int8 gem(n=1), 256-byte table", bytes_, ours(bytes_, "auto")),
        Subject("- plain loop over the table", bytes_, looked_up(bytes_)),
        Subject("- int8 ReLU", bytes_, relu(8)),
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
        subject.name,
        target,
        compiler,
        call.instructions / sample.size,
        None if span is None else (span.low / sample.size, span.high / sample.size),
        sum(machine.sections.get(section, 0) for section in (".text", ".rodata")),
        None if "ReLU" in subject.name else int(np.count_nonzero(got != subject.kernel(codes))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Instructions of activations on emulated microcontrollers.")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    compilers = ["zig", *(["gcc"] if shutil.which(GCC) else [])]
    rows = []
    print(f"{'':42} {'CPU':13} {'by':3} {'instr':>6} {'cycles':>13} {'high/instr':>10} {'flash':>6} {'wrong':>6}")
    for target in ("cortex-m4", "cortex-m0plus"):
        for subject in subjects():
            for compiler in compilers:
                row = measured(subject, target, compiler)
                rows.append(asdict(row))
                low, high = row.cycles or (0.0, 0.0)
                wrong = "-" if row.misrounded is None else f"{row.misrounded:,}"
                print(
                    f"{row.name:42} {target:13} {compiler:3} {row.instructions:6.2f} {low:6.2f}-{high:6.2f}"
                    f" {high / row.instructions:10.2f} {row.flash:6,} {wrong:>6}"
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

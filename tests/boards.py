"""C programs on boards that QEMU emulates, built by apt's gcc without a C library: what they print, what they take."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import gemedge

FREESTANDING = Path(gemedge.__path__[0], "export/c_freestanding")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-isystem", str(FREESTANDING)]
LINKED = ["-nostdlib", "-Wl,--gc-sections", "-ffunction-sections", "-fdata-sections"]
ARM, RISCV = "arm-none-eabi-gcc", "riscv64-unknown-elf-gcc"
_SECONDS = 120
_CORTEX_START = """#include <stdint.h>
extern uint32_t data_from[], data_at[], data_end[], bss_at[], bss_end[], stack_end[];
int main(void);
static int call(int number, const void *argument) { /* of the debugger: semihosting */
    register int r0 __asm__("r0") = number;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}
void gemedge_put_char(char character);
void gemedge_put_char(char character) { call(3, &character); }
void start(void);
__attribute__((__target__("general-regs-only"))) void start(void) {
    const uint32_t *from = data_from;
    uint32_t *to;
#ifndef __ARM_ARCH_6M__
    *(volatile uint32_t *)0xE000ED88u |= 0xF00000u; /* floating point and vectors */
#endif
    for (to = data_at; to != data_end; to++) {
        *to = *from++;
    }
    for (to = bss_at; to != bss_end; to++) {
        *(volatile uint32_t *)to = 0;
    }
    main();
    call(0x18, (const void *)0x20026);
}
static void fault(void) { call(0x18, (const void *)0x20023); }
__attribute__((__section__(".vectors"), __used__)) static const void *const vectors[16] = {
    stack_end, (const void *)start, (const void *)fault, (const void *)fault, (const void *)fault,
    (const void *)fault, (const void *)fault, (const void *)fault};
"""
_CORTEX_LAYOUT = """ENTRY(start)
MEMORY {{
    flash : ORIGIN = {flash:#x}, LENGTH = 0x40000
    ram : ORIGIN = {ram:#x}, LENGTH = {ram_size:#x}
}}
SECTIONS {{
    .text : {{ KEEP(*(.vectors)) *(.text .text.* .rodata .rodata.*) . = ALIGN(4); data_from = .; }} > flash
    .data : {{ data_at = .; *(.data .data.*) . = ALIGN(4); data_end = .; }} > ram AT> flash
    .bss : {{ bss_at = .; *(.bss .bss.* COMMON) . = ALIGN(4); bss_end = .; }} > ram
    stack_end = ORIGIN(ram) + LENGTH(ram);
    ASSERT(bss_end + 2048 <= stack_end, "no room for the stack")
    /DISCARD/ : {{ *(.ARM.ex* .comment .note*) }}
}}
"""
_LINUX_START = """int main(void);
static long call(long number, long first, long second, long third) {
    register long a0 __asm__("a0") = first;
    register long a1 __asm__("a1") = second;
    register long a2 __asm__("a2") = third;
    register long a7 __asm__("a7") = number;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a1), "r"(a2), "r"(a7) : "memory");
    return a0;
}
void gemedge_put_char(char character);
void gemedge_put_char(char character) { call(64, 1, (long)&character, 1); }
void _start(void);
void _start(void) {
    __asm__ volatile(".option push\\n.option norelax\\nla gp, __global_pointer$\\n.option pop");
    main();
    call(93, 0, 0, 0);
}
"""
# The system timer counts a loop of known length, and then run(): with -icount it goes by instructions.
_COUNTS = """
#define TIMER ((volatile uint32_t *)0xE000E010u)
#define STEPS 1000000u
void gemedge_put_char(char character);
static void show(uint32_t count) {
    uint32_t unit;
    for (unit = 1000000000u; unit; unit /= 10u) {
        gemedge_put_char((char)('0' + count / unit % 10u));
    }
    gemedge_put_char(' ');
}
static int16_t made[sizeof sample / sizeof *sample];
int main(void) {
    uint32_t steps = STEPS, start;
    TIMER[1] = 0xFFFFFFu;
    TIMER[2] = 0;
    TIMER[0] = 5u; /* on, by the CPU's clock, without interrupts */
    start = TIMER[2];
    __asm__ volatile("1: subs %0, #1; bne 1b" : "+l"(steps) : : "cc");
    show((start - TIMER[2]) & 0xFFFFFFu);
    start = TIMER[2];
    for (steps = 0; steps < 16u; steps++) {
        run(sample, made, sizeof sample / sizeof *sample);
    }
    show((start - TIMER[2]) & 0xFFFFFFu);
    return 0;
}
"""


@dataclass(frozen=True)
class Board:
    """A machine of qemu-system-arm, or with none qemu-riscv32, and where its memory lies."""

    compiler: str
    flags: tuple[str, ...]
    machine: str = ""
    flash: int = 0
    ram: int = 0x20000000
    ram_size: int = 0x10000

    @property
    def emulator(self) -> list[str]:
        if not self.machine:
            return ["qemu-riscv32"]
        console = ["-chardev", "stdio,id=console", "-semihosting-config", "enable=on,chardev=console"]
        display = ["-display", "none", "-monitor", "none", "-serial", "none"]
        return ["qemu-system-arm", "-M", self.machine, *display, *console, "-kernel"]


def _cortex(cpu: str, machine: str, *flags: str, **places: int) -> Board:
    return Board(ARM, (f"-mcpu={cpu}", "-mthumb", *flags), machine, **places)


BOARDS = {
    "cortex-m0": _cortex("cortex-m0", "microbit", ram_size=0x4000),
    "cortex-m3": _cortex("cortex-m3", "mps2-an385"),
    "cortex-m4": _cortex("cortex-m4", "mps2-an386"),
    "cortex-m7": _cortex("cortex-m7", "mps2-an500"),
    "cortex-m33": _cortex("cortex-m33+nofp", "mps2-an505", flash=0x10000000, ram=0x38000000),
    "cortex-m55": _cortex("cortex-m55+nofp", "mps3-an547", "-mfloat-abi=softfp", ram_size=0x40000),
    "rv32imc": Board(RISCV, ("-march=rv32imc", "-mabi=ilp32", "-ffreestanding")),
}


def program(board: Board, folder: Path, sources: list[str], flags: list[str]) -> Path:
    """The sources of the folder as board.elf, with a start of its own."""
    for tool in (board.compiler, board.emulator[0]):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    (folder / "board.c").write_text(_CORTEX_START if board.machine else _LINUX_START)
    places = {"flash": board.flash, "ram": board.ram, "ram_size": board.ram_size}
    (folder / "board.ld").write_text(_CORTEX_LAYOUT.format(**places))
    layout = ["-Wl,-T,board.ld"] if board.machine else []
    command = [board.compiler, *board.flags, *STRICT, *flags]
    memory = [str(FREESTANDING / "memory.c"), "-fno-builtin", "-ffunction-sections", "-c", "-o", "memory.o"]
    for arguments in (memory, [*LINKED, *layout, *sources, "board.c", "memory.o", "-lgcc", "-o", "board.elf"]):
        done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder / "board.elf"


def printed(board: Board, built: Path, *options: str) -> bytes:
    """What a program prints until it ends."""
    command = [board.emulator[0], *options, *board.emulator[1:], str(built)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


def counted(board: Board, folder: Path, source: str, sample: np.ndarray, flags: list[str]) -> float:
    """Instructions of a Cortex-M per number of the sample in the source's run(in, out, count), to a thousandth."""
    numbers = ", ".join(map(str, sample))
    (folder / "run.c").write_text(f"{source}static const int16_t sample[] = {{{numbers}}};\n{_COUNTS}")
    built = program(board, folder, ["run.c"], flags)
    known, ticks = map(int, printed(board, built, "-icount", "shift=0").split())
    return 2 * 1_000_000 * ticks / known / (16 * sample.size)

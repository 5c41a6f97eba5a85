"""What activations in C take on an emulated AVR: cycles, which simavr counts exactly, and flash.

    python -m benchmarks.avr

Inputs are N(0, 1) in the format. The CPU's own timer counts, and what a call of no numbers takes is subtracted. Flash
is code and tables of the function, without the compiler's library. avr-gcc -O2; nothing here ran on silicon.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.instructions import FOLDER, Subject, subjects
from benchmarks.row import Row, main

DEVICE = "atmega1284p"
PARTS, PART = 16, 32  # so few numbers at a time that the timer of 16 bits does not overflow
TOOLS = ("avr-gcc", "avr-size", "simavr")
_BOARD = """#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>
#include <avr_mcu_section.h>
#include <stdint.h>
AVR_MCU(16000000, "atmega1284p");
AVR_MCU_SIMAVR_CONSOLE(&GPIOR0);
void run(const void *in, void *out, uint32_t count);
int main(void) {
    static const number sample[] = {SAMPLE};
    static number made[PART];
    uint32_t taken = 0, unit;
    uint8_t part;
    TCCR1B = 1; /* by the CPU's clock */
    for (part = 0; part < PARTS; part++) {
        uint16_t some, none;
        TCNT1 = 0;
        run(sample + part * PART, made, PART);
        some = TCNT1;
        TCNT1 = 0;
        run(sample + part * PART, made, 0);
        none = TCNT1;
        taken += some - none;
    }
    for (unit = 1000000; unit; unit /= 10) {
        GPIOR0 = (uint8_t)('0' + taken / unit % 10);
    }
    GPIOR0 = '\\r'; /* at which simavr prints the line */
    cli();
    sleep_enable();
    sleep_cpu(); /* simavr ends */
    return 0;
}
"""


def measured(subject: Subject) -> tuple[float, int]:
    """Cycles for each number, and bytes of flash."""
    numbers = subject.sample[: PARTS * PART]
    macros = {"SAMPLE": ", ".join(map(str, numbers)), "number": f"{numbers.dtype}_t", "PARTS": PARTS, "PART": PART}
    defined = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    flags = [f"-mmcu={DEVICE}", "-O2", "-std=gnu99", "-I", str(FOLDER / "c_runtime"), "-I/usr/include/simavr/avr"]
    with tempfile.TemporaryDirectory() as folder:
        for file, text in (("run.c", subject.source), ("board.c", defined + _BOARD)):
            Path(folder, file).write_text(text)
            _done(["avr-gcc", *flags, "-c", file], folder)
        _done(["avr-gcc", *flags, "run.o", "board.o", "-Wl,--section-start=.mmcu=0x910000", "-o", "net.elf"], folder)
        flash = int(_done(["avr-size", "run.o"], folder).splitlines()[1].split()[0])
        (taken,) = re.findall(r"\b(\d{7})\b", _done(["simavr", "net.elf"], folder))
    return int(taken) / len(numbers), flash


def _done(command: list[str], folder: str) -> str:
    done = subprocess.run(  # noqa: S603 - compiler and emulator, on files in a folder of ours
        command, cwd=folder, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    return done.stdout


def rows(quick: bool) -> list[Row]:
    """Ours and what stands beside them; none where a tool is missing."""
    if not all(map(shutil.which, TOOLS)):
        return []
    every = [subject for subject in subjects() if not subject.defines]
    found = []
    for subject in every[:2] if quick else every:
        cycles, flash = measured(subject)
        table = f"Activations, for each number, on an AVR ({DEVICE}), exact"
        found.append(Row(table, subject.name, cycles, "cycles", beside={"bytes of flash": float(flash)}))
    return found


if __name__ == "__main__":
    main(rows)

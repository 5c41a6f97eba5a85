"""Programs built for emulated targets: calls, counts by hand, faults, and what builds refuse."""

import importlib.util
import os
import signal
import threading
import time

import pytest

from gemedge.errors import PromiseError, ToolError, UsageError
from gemedge.export import build as building
from gemedge.export.build import CPUS, LEVELS, build
from gemedge.export.machine import Machine

TARGETS = sorted(CPUS)
# 1 + 3 for each of n, and the rest; a conditional instruction that is skipped counts
LOOP = {
    "thumb": """
    movs r1, #0
1:  adds r1, r1, r0
    subs r0, r0, #1
    bne 1b
    mov r0, r1
    bx lr""",
    "thumb2": """
    movs r1, #0
1:  adds.w r1, r1, r0
    subs r0, r0, #1
    bne 1b
    cmp r1, #20
    ite gt
    movgt r0, r1
    movle r0, #7
    bx lr""",
    "rv": """
    li a1, 0
1:  add a1, a1, a0
    addi a0, a0, -1
    bnez a0, 1b
    mv a0, a1
    ret""",
}
C = b"""
#include <stdint.h>
#include <string.h>

int table[3] = {5, 6, 7};
int zeros[2];

void seen(int layer, const void *data, int bytes) {
    (void)layer; (void)data; (void)bytes;
    __asm__ volatile("");
}
void (*volatile see)(int, const void *, int) = seen;

int many(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j) {
    see(1, table, 12);
    see(2, table + 1, 8);
    return a + b * 2 + c * 3 + d * 4 + e * 5 + f * 6 + g * 7 + h * 8 + i * 9 + j * 10;
}
int divided(int a, int b) { return a / b; }
int high(int a, int b) { return (int)(((int64_t)a * b) >> 16); }
void copied(void *to, const void *from, size_t count) { memcpy(to, from, count); }
void moved(void *to, const void *from, size_t count) { memmove(to, from, count); }
void filled(void *to, int value, size_t count) { memset(to, value, count); }
int touched(int count) {
    volatile char room[2000];
    for (int i = 0; i < count; i++) room[1999 - i] = 1;
    return room[1999];
}
void forever(void) { for (;;) __asm__ volatile(""); }
int astray(void) { return *(volatile int *)0x60000000; }
void to_flash(void) { *(volatile int *)0x08000000 = 1; }
int deep(int n) { volatile char room[1000]; room[n % 1000] = 1; return deep(n + 1) + room[3]; }
int jumps(void) { return ((int (*)(void))0x20000001)(); }
"""


def assembled(body: str, name: str = "counted") -> bytes:
    text = f".globl {name}\n.type {name}, %function\n{name}:\n{body}\n"
    if "r0" in body:
        text = f".syntax unified\n.thumb\n.thumb_func\n{text}"
    lines = "\n".join(f'"{line}\\n"' for line in text.splitlines())
    return f'__asm__(".text\\n"\n{lines});\nextern int counted(int);\n'.encode()


def instructions_of(target: str) -> str:
    return "rv" if target.startswith("rv") else "thumb" if target == "cortex-m0plus" else "thumb2"


@pytest.fixture(scope="module")
def machines():
    made = {}

    def machine(target: str) -> Machine:
        if target not in made:
            made[target] = Machine(build({"c.c": C}, target), target)
        return made[target]

    return machine


@pytest.mark.parametrize("target", TARGETS)
def test_instructions_are_those_counted_by_hand(target):
    kind = instructions_of(target)
    machine = Machine(build({"a.c": assembled(LOOP[kind])}, target), target)
    for n in (1, 5, 1000):
        call = machine.call("counted", n)
        total = n * (n + 1) // 2
        assert call.returned == (7 if kind == "thumb2" and total <= 20 else total)
        assert call.instructions == 3 * n + (6 if kind == "thumb2" else 3)
        assert call.stack == 0


@pytest.mark.parametrize("target", TARGETS)
def test_arguments_results_and_memory_are_the_functions(machines, target):
    machine = machines(target)
    shown = []

    def look(arguments, blocks):
        layer, data, count, _ = arguments
        shown.append((layer, machine.read(data, count), machine.instructions(blocks)))

    call = machine.call("many", *range(1, 11), seen={"seen": look})
    assert call.returned == sum(i * i for i in range(1, 11))
    assert [(layer, content[0], len(content)) for layer, content, _ in shown] == [(1, 5, 12), (2, 6, 8)]
    assert 0 < shown[0][2] < shown[1][2] < call.instructions
    assert machine.call("divided", -700, 7).returned == 2**32 - 100
    assert machine.call("high", 1 << 20, -3).returned == 2**32 - 48
    assert machine.word("table") == 5
    assert set(machine.sections) >= {".text", ".data", ".bss"}
    assert machine.sections[".bss"] == 8


@pytest.mark.parametrize("target", ["cortex-m0plus", "rv32imc"])
def test_copies_are_right_at_every_alignment(machines, target):
    machine = machines(target)
    place = machine.allocate(64)
    content = bytes(range(64))
    for to in range(5):
        for source in range(5):
            for count in (0, 1, 3, 4, 9, 20):
                for name in ("copied", "moved"):
                    if name == "copied" and abs(to - source) < count:
                        continue
                    machine.write(place, content)
                    machine.call(name, place + to, place + source, count)
                    wanted = bytearray(content)
                    wanted[to : to + count] = content[source : source + count]
                    assert machine.read(place, 64) == wanted, (name, to, source, count)
                machine.write(place, content)
                machine.call("filled", place + to, 0x1FE, count)
                assert machine.read(place + to, count + 1) == b"\xfe" * count + content[to + count : to + count + 1]


def test_the_deepest_stack_is_seen(machines):
    machine = machines("cortex-m4")
    few, many = machine.call("touched", 100).stack, machine.call("touched", 1100).stack
    assert many == few + 1000
    assert machine.call("touched", 100).stack == few


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("forever", "did not end in 0.2 seconds; it was in forever+"),
        ("astray", "UC_ERR_READ_UNMAPPED"),
        ("to_flash", "UC_ERR_WRITE_PROT"),
        ("deep", "UC_ERR_WRITE_UNMAPPED"),
        ("jumps", "UC_ERR_FETCH_PROT"),
    ],
)
@pytest.mark.parametrize("target", ["cortex-m4", "rv32imc"])
def test_what_a_program_does_wrong_is_an_error_that_says_where(machines, target, function, words):
    machine = machines(target)
    with pytest.raises(PromiseError, match=f"{function} on {target}") as caught:
        machine.call(function, seconds=0.2)
    assert words in str(caught.value)
    where = "no function, at 0x2000000" if function == "jumps" else f"in {function}+0x"
    assert where in str(caught.value)
    assert machine.call("divided", 9, 3).returned == 3


def test_an_error_in_what_looks_on_comes_out(machines):
    def look(arguments, blocks):
        raise ZeroDivisionError("in the test")

    with pytest.raises(ZeroDivisionError, match="in the test"):
        machines("cortex-m4").call("many", *range(10), seen={"seen": look})


def test_an_interrupt_ends_an_emulation(machines):
    machine = machines("cortex-m4")  # made before: to interrupt the making of it is another matter
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        machine.call("forever", seconds=30)
    assert time.monotonic() - begun < 10


def test_a_program_knows_its_own_symbols_only(machines):
    with pytest.raises(UsageError, match="the program has no 'mani'"):
        machines("cortex-m4").call("mani")
    with pytest.raises(UsageError, match="target 'cortex-m9' is not emulated; cortex-m0plus, "):
        Machine(b"", "cortex-m9")


def test_memory_outside_and_too_much_memory_are_errors(machines):
    machine = machines("cortex-m4")
    with pytest.raises(PromiseError, match="8 bytes at 0x70000000 are not in the cortex-m4's memory"):
        machine.read(0x70000000, 8)
    with pytest.raises(PromiseError, match="1,073,741,824 bytes more than the 134,217,728 of the emulated RAM"):
        machine.allocate(1 << 30)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_gives_the_same_results(level):
    machine = Machine(build({"c.c": C}, "cortex-m0plus", level=level), "cortex-m0plus")
    assert machine.call("many", *range(1, 11)).returned == 385
    assert machine.call("high", 1 << 20, -3).returned == 2**32 - 48


def test_roots_alone_are_kept_with_what_they_need():
    whole, rooted = (Machine(build({"c.c": C}, "cortex-m4", roots=r), "cortex-m4") for r in ((), ("high",)))
    assert rooted.sections[".text"] < whole.sections[".text"] // 4
    assert rooted.call("high", 1 << 16, 5).returned == 5
    with pytest.raises(UsageError, match="no 'many'"):
        rooted.symbol("many")


def test_sources_find_each_other_and_macros_are_defined():
    sources = {"inner/a.c": b'#include "b.h"\nint f(void) { return B + C; }\n', "b.h": b"#define B 4\n"}
    machine = Machine(build(sources, "cortex-m4", defines=["C=3"]), "cortex-m4")
    assert machine.call("f").returned == 7


def test_a_build_is_the_same_each_time():
    assert build({"c.c": C}, "cortex-m4") == build({"c.c": C}, "cortex-m4")


@pytest.mark.parametrize(
    ("sources", "arguments", "words"),
    [
        ({"c.c": b""}, {"target": "avr"}, "target 'avr' cannot be built for; cortex-m0plus, "),
        ({"c.c": b""}, {"level": "-O9"}, "level '-O9' is not one of -O0, "),
        ({"../c.c": b""}, {}, r"file '\.\./c\.c' has no name that a build takes"),
        ({"/c.c": b""}, {}, "file '/c.c' has no name that a build takes"),
        ({"c.c": b"", "@x": b""}, {}, "file '@x' has no name that a build takes"),
        ({"c.h": b""}, {}, "no .c file to compile"),
        ({"c.c": b""}, {"defines": ["A -Ix"]}, "macro 'A -Ix' has no name"),
        ({"c.c": b""}, {"roots": ["a,b"]}, "symbol 'a,b' has no name"),
    ],
)
def test_a_build_refuses_what_it_does_not_take(sources, arguments, words):
    with pytest.raises(UsageError, match=words):
        build(sources, **{"target": "cortex-m4", **arguments})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"int f(void) { return x; }", "c.c: the compiler failed with status 1: .*undeclared identifier 'x'"),
        (b'#error "no such thing"\n', "c.c: the compiler failed with status 1: .*no such thing"),
        (b"int g(void); int f(void) { return g(); }", "linking: the compiler failed .*undefined symbol: g"),
        (b"char huge[0x9000000]; ", "linking: the compiler failed .*will not fit in region 'ram'"),
    ],
)
def test_a_failing_compiler_is_heard(source, words):
    with pytest.raises(ToolError, match=f"(?s){words}") as caught:
        build({"c.c": source}, "cortex-m4")
    assert "gemedge-build" not in str(caught.value)


def test_a_compiler_that_does_not_end_is_stopped(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ToolError, match=r"pipe: the compiler did not end in 0\.3 seconds"):
        building.compiled([*building.zig(), "cc", "-c", "-x", "c", "pipe"], tmp_path, "pipe", seconds=0.3)


def test_a_missing_compiler_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolError, match=r"ziglang: pip install 'gemedge\[mcu\]'"):
        build({"c.c": C}, "cortex-m4")

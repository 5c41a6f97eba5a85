"""Cycles of small loops, added up by hand from Arm's tables."""

import pytest
from test_machine import assembled

from gemedge.errors import PromiseError
from gemedge.export.build import build
from gemedge.export.machine import Machine
from gemedge.export.timing import cycles
from gemedge.targets import Cycles

N = 10
# the instructions; low and high of the whole but for the refills; how many branches refill the pipeline
ROWS = {
    "loads follow loads": ("ldr r1, [r3]\n ldr r2, [r3, #4]\n ldr r1, [r3, r0]\n bx lr", 2 + 1 + 1 + 1, 5, 1),
    "a load waits for its address": ("ldr r2, [r3, #8]\n ldrb r1, [r2]\n bx lr", 2 + 2 + 1, 5, 1),
    "an address that was just made may wait": ("adds r2, r3, #4\n ldr r1, [r2]\n bx lr", 4, 5, 1),
    "a store with an offset takes one": ("ldr r1, [r3]\n str r1, [r3]\n str r1, [r3, #4]\n bx lr", 5, 5, 1),
    "a store by register takes two": ("str r1, [r3, r0]\n ldr r1, [r3]\n bx lr", 5, 5, 1),
    "a literal may wait": ("ldr r1, 1f\n bx lr\n .align 2\n1: .word 0", 2, 4, 1),
    "a pair takes three": ("ldrd r1, r2, [r3]\n bx lr", 4, 4, 1),
    "many take one more than they are": ("push {r4, r5, lr}\n ldm r3, {r1, r2, r4, r5}\n pop {r4, r5, pc}", 13, 13, 1),
    "a division ends early": ("udiv r1, r0, r0\n bx lr", 3, 13, 1),
    "what is skipped takes one, its it none": ("cmp r0, #3\n it eq\n ldreq r1, [r3]\n bx lr", 1 + 0 + 1 + 1, 5, 1),
    "a loop branches back": ("1: subs r0, #1\n bne 1b\n bx lr", 2 * N + 1, 2 * N + 1, N),
    "a branch that is not taken": ("cbz r0, 1f\n movs r1, #2\n1: bx lr", 3, 3, 1),
}
MULTIPLICATIONS = {"mla r1, r0, r0, r0": (2, 2), "smull r1, r2, r0, r0": (3, 5), "umlal r1, r2, r0, r0": (4, 7)}


def taken(target: str, body: str) -> Cycles:
    machine = Machine(build({"a.c": assembled("mov r3, r1\n nop\n" + body)}, target), target)
    place = machine.allocate(64)
    machine.write(place, place.to_bytes(4, "little") * 16)
    found = cycles(machine, machine.call("counted", N, place).blocks)
    assert found is not None
    return Cycles(found.low - 2, found.high - 2)  # mov and nop


@pytest.mark.parametrize("row", ROWS)
def test_cycles_of_a_cortex_m4_are_those_of_its_table(row):
    body, low, high, refills = ROWS[row]
    assert taken("cortex-m4", body) == Cycles(low + refills, high + 3 * refills)


@pytest.mark.parametrize("instruction", MULTIPLICATIONS)
def test_long_multiplications_take_one_cycle_on_a_cortex_m4_and_more_on_a_m3(instruction):
    low, high = MULTIPLICATIONS[instruction]
    assert taken("cortex-m3", f"{instruction}\n bx lr") == Cycles(low + 2, high + 4)
    assert taken("cortex-m4", f"{instruction}\n bx lr") == Cycles(3, 5)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("ldr r2, [r3]\n ldr r1, [r3, r0]\n str r1, [r3]\n bx lr", 6 + 2),
        ("1: subs r0, #1\n bne 1b\n bx lr", 2 * N + N - 1 + 2),
        ("push {r4, lr}\n bl 1f\n pop {r4, pc}\n1: muls r0, r0, r0\n bx lr", 3 + 3 + 5 + 1 + 2),
    ],
)
def test_cycles_of_a_cortex_m0plus_are_exact(body, wanted):
    assert taken("cortex-m0plus", body) == Cycles(wanted, wanted)


def test_nothing_is_said_of_cpus_without_a_table():
    for target, body in (("cortex-m7", "bx lr"), ("rv32imc", "ret")):
        machine = Machine(build({"a.c": assembled(body)}, target), target)
        assert cycles(machine, machine.call("counted", 1).blocks) is None


def test_a_block_that_the_emulator_cut_may_follow_a_load():
    """The emulator ends a block at a multiple of 1024 bytes, here between two loads."""
    body = ".space 0\n" + "nop\n" * 512 + "ldr r1, [r3]\n" * 4 + "bx lr"
    found = taken("cortex-m4", body)
    exact = 512 + 2 + 3 + 1
    assert found.low <= exact + 1
    assert found.high >= exact + 3
    assert found.high - found.low <= 2 + 2


def test_what_is_no_instruction_has_no_time():
    machine = Machine(build({"a.c": assembled("bl counted")}, "cortex-m4"), "cortex-m4")
    half = (machine.symbol("counted") & ~1, 2)
    with pytest.raises(PromiseError, match=r"2 bytes of code at 0x80000.. are not all instructions of a cortex-m4"):
        cycles(machine, {half: 1})

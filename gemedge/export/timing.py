"""Cycles of what ran on a Cortex-M0+, M3 or M4, as an interval, by Arm's published tables of instruction timing.

Sources: Cortex-M0+ Technical Reference Manual (ARM DDI 0484C) table 3-1; Cortex-M3 (ARM DDI 0337I) and Cortex-M4 (ARM
DDI 0439B) tables 3-1 and sections "Load/store timings". All are for memory without wait states, and so are these
figures; a M0+ has the multiplier of one cycle, and no word lies across two. Of other CPUs Arm publishes no such table:
for them nothing is said.

The interval is as wide as the manuals leave it open: P, the refill of the pipeline after a branch, is 1 to 3 cycles on
M3 and M4; a load or store straight after a load takes one cycle less, unless its address needs what was loaded; one
whose address a data operation has just made may wait a cycle; a load relative to the program counter may too; IT may
be folded; an early end makes long multiplications and divisions shorter. How often a conditional branch was taken is
bounded by how often the blocks on both of its ways ran.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from gemedge.errors import PromiseError, ToolError
from gemedge.export.counting import Blocks
from gemedge.export.machine import Machine
from gemedge.targets import Cycles

Span = tuple[int, int]  # of cycles
TIMED = ("cortex-m0plus", "cortex-m3", "cortex-m4")
_REFILL: Span = (1, 3)
_LOADS = ("LDR", "LDRB", "LDRH", "LDRSB", "LDRSH")
_STORES = ("STR", "STRB", "STRH")
_MANY = ("LDM", "LDMDB", "STM", "STMDB", "PUSH", "POP")
_BRANCHES = ("B", "BX", "BL", "BLX", "CBZ", "CBNZ")
_SYSTEM = ("MRS", "MSR", "DMB", "DSB", "ISB")
_BOTH: dict[str, Span] = {
    **dict.fromkeys(("LDRD", "STRD"), (3, 3)),
    **dict.fromkeys(("SDIV", "UDIV"), (2, 12)),
    **dict.fromkeys(("TBB", "TBH"), (3, 6)),
    **dict.fromkeys(_SYSTEM, (1, 5)),
    "IT": (0, 1),
}
_M3 = {
    **_BOTH,
    **dict.fromkeys(("MLA", "MLS"), (2, 2)),
    **dict.fromkeys(("SMULL", "UMULL"), (3, 5)),
    **dict.fromkeys(("SMLAL", "UMLAL"), (4, 7)),
}
_M4 = _BOTH  # multiplications take one cycle


@dataclass(frozen=True, slots=True)
class _Timed:
    """A block without the refill of a branch at its end. ends: with a branch, not where the emulator cut the code.
    refill: of each time that the branch is taken.
    """

    span: Span
    ends: bool
    refill: Span
    conditional: bool
    target: int | None


def cycles(machine: Machine, blocks: Blocks) -> Cycles | None:
    """What so many runs of these blocks take, None for a CPU whose timing is not published.

    PromiseError where a block holds an instruction without a time in the tables.
    """
    if machine.target not in TIMED:
        return None
    ran = Counter[int]()
    for (address, _), times in blocks.items():
        ran[address] += times
    cut = {sum(block) for block in blocks if not _timed(machine.code(block), block[0], machine.target).ends}
    low = high = 0
    jumped = Counter[int]()  # how often a block was entered by a branch that is always taken
    ends: dict[int, _Timed] = {}
    reached = Counter[int]()  # how often the end of a block was, by whatever block: two may share their last branch
    for block, times in blocks.items():
        timed = _timed(machine.code(block), block[0], machine.target, block[0] in cut)
        low, high = low + times * timed.span[0], high + times * timed.span[1]
        ends[sum(block)] = timed
        reached[sum(block)] += times
    for end, timed in ends.items():
        if timed.ends and not timed.conditional and timed.target is not None:
            jumped[timed.target] += reached[end]
    ran -= jumped  # what is left of a block was entered by conditional branches, or from the block before it
    for end, timed in ends.items():
        fewest, most = _taken(timed, reached[end], ran, end)
        low, high = low + fewest * timed.refill[0], high + most * timed.refill[1]
    return Cycles(low, high)


def _taken(timed: _Timed, times: int, ran: Counter[int], following: int) -> Span:
    """How often the branch at a block's end was taken, of so many times."""
    if not timed.conditional:
        return times, times
    fewest = max(0, times - ran[following])
    return fewest, times if timed.target is None else max(fewest, min(times, ran[timed.target]))


@cache
def _timed(code: bytes, address: int, target: str, continues: bool = False) -> _Timed:
    instructions = list(_disassembler()[0].disasm(code, address))
    if sum(instruction.size for instruction in instructions) != len(code):
        raise PromiseError(f"{len(code)} bytes of code at {address:#x} are not all instructions of a {target}")
    low = high = 0
    before = None
    for instruction in instructions:
        few, many = _m0plus(instruction) if target == "cortex-m0plus" else _m3(instruction, before, target)
        low, high, before = low + few, high + many, instruction
    if continues and target != "cortex-m0plus" and _name(instructions[0]) in (*_LOADS, *_STORES):
        low, high = low - 1, high + 1  # a load may come before it, or what makes its address
    last = instructions[-1]
    ends = _name(last) in _BRANCHES or _name(last) in ("TBB", "TBH") or "pc" in _written(last)
    refill = (0, 0)
    if ends and _name(last) not in ("TBB", "TBH"):
        refill = _m0plus_refill(last) if target == "cortex-m0plus" else _REFILL
    conditional = _is_conditional(last) or _name(last) in ("CBZ", "CBNZ")
    return _Timed((low, high), ends, refill, conditional, _target(last))


def _m0plus(instruction: Any) -> Span:
    """Without the refill after a branch."""
    name = _name(instruction)
    if name in (*_LOADS, *_STORES):
        return 2, 2
    if name in _MANY:
        count = 1 + _listed(instruction)
        return count, count
    return (3, 3) if name in _SYSTEM else (1, 1)


def _m0plus_refill(instruction: Any) -> Span:
    """B, BX, BLX and a move to the program counter take two cycles, BL three, POP two more than without it."""
    extra = 2 if _name(instruction) in ("BL", "POP") else 1
    return extra, extra


def _m3(instruction: Any, before: Any, target: str) -> Span:
    """Of a Cortex-M3 or M4, without the refill after a branch. before: the instruction before, None after a branch."""
    name = _name(instruction)
    if name in (*_LOADS, *_STORES):
        span = _single(instruction, before)
    elif name in _MANY:
        span = 1 + _listed(instruction), 1 + _listed(instruction)
    else:
        span = (_M3 if target == "cortex-m3" else _M4).get(name, (1, 1))
    return (min(1, span[0]), span[1]) if _is_conditional(instruction) else span


def _single(instruction: Any, before: Any) -> Span:
    """A load or store of one register."""
    base, index = _place(instruction)
    made = set() if before is None else _written(before)
    needs = bool({base, index} & made)
    if _name(instruction) in _STORES and not index:
        return 1, 1 + needs
    if base == "pc":
        return 1, 3
    if before is None:
        return 2, 2
    if _name(before) in _LOADS:
        return (2, 2) if needs else (1, 1)
    return 2, 2 + needs


# What an instruction is


@cache
def _disassembler() -> tuple[Any, dict[int, str]]:
    try:
        import capstone
        from capstone import arm
    except ImportError as error:
        raise ToolError("cycles need capstone: pip install 'gemedge[mcu]'") from error
    found = capstone.Cs(capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS)
    found.detail = True
    prefix = "ARM_INS_"
    return found, {getattr(arm, name): name.removeprefix(prefix) for name in dir(arm) if name.startswith(prefix)}


def _name(instruction: Any) -> str:
    return _disassembler()[1][instruction.id]


def _is_conditional(instruction: Any) -> bool:
    from capstone import arm

    return instruction.cc != arm.ARM_CC_AL and instruction.id != arm.ARM_INS_IT


def _written(instruction: Any) -> set[str]:
    return {instruction.reg_name(register) for register in instruction.regs_access()[1]}


def _place(instruction: Any) -> tuple[str, str]:
    """The base and index registers of a load or store, "" where there is none."""
    from capstone import arm

    for operand in instruction.operands:
        if operand.type == arm.ARM_OP_MEM:
            return instruction.reg_name(operand.mem.base) or "", instruction.reg_name(operand.mem.index) or ""
    return "", ""


def _listed(instruction: Any) -> int:
    """How many registers a load or store of many moves."""
    from capstone import arm

    registers = sum(operand.type == arm.ARM_OP_REG for operand in instruction.operands)
    return registers - (_name(instruction) not in ("PUSH", "POP"))


def _target(instruction: Any) -> int | None:
    """Where a branch goes, None where a register holds it or it is none."""
    from capstone import arm

    found = [operand.imm for operand in instruction.operands if operand.type == arm.ARM_OP_IMM]
    return found[-1] if found and _name(instruction) in _BRANCHES else None

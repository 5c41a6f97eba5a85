"""An emulated CPU that calls functions of a program and counts exactly what ran.

Counted are blocks: stretches of code that run from their first instruction to their last. Times each block ran, times
the instructions in it, is the number of instructions; a conditional one that is skipped counts, as it takes its cycle.
Nothing here is silicon: memory answers at once, and there are no interrupts.

    machine = Machine(build({"f.c": source}, "cortex-m4"), "cortex-m4")
    place = machine.allocate(1024)
    machine.write(place, content)
    call = machine.call("f", place, 1024)
    call.returned, call.instructions, call.stack, machine.read(place, 1024)
"""

import ctypes
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gemedge.errors import PromiseError, ToolError, UsageError
from gemedge.export.build import CPUS, FLASH, FLASH_SIZE, RAM, RAM_SIZE
from gemedge.export.counting import BlockCounter, Blocks

Arguments = tuple[int, int, int, int]
Seen = Callable[[Arguments, Blocks], None]

_RETURN = 0x10000000  # where functions return to
_STACK_TOP = 0x40000000
_PAGE = 4096
_PAINT = b"\xa5"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
_ARM_MODELS = {
    "cortex-m0plus": "M0",  # it runs the same instructions
    "cortex-m3": "M3",
    "cortex-m4": "M4",
    "cortex-m7": "M7",
    "cortex-m33": "M33",
}


@dataclass(frozen=True, slots=True)
class Call:
    """What a function gave and took. stack: its bytes at the deepest, arguments on it included."""

    returned: int
    instructions: int
    stack: int
    blocks: Blocks


class Machine:
    """One emulated CPU with a program of build in its memory. stack: bytes; what needs more is a fault."""

    def __init__(self, program: bytes, target: str, *, stack: int = 1 << 16) -> None:
        if target not in CPUS:
            raise UsageError(f"target {target!r} is not emulated; {', '.join(CPUS)} are")
        self.target = target
        try:
            import unicorn
            from elftools.elf.elffile import ELFFile
        except ImportError as error:
            raise ToolError(f"an emulated target needs {error.name}: pip install 'gemedge[mcu]'") from error
        self._unicorn = unicorn
        self._cpu, self._registers = _cpu(target)
        self._stack = stack
        self._symbols: dict[str, int] = {}
        self._functions: list[tuple[int, str]] = []
        self._counted: dict[tuple[int, int], int] = {}
        self.sections: dict[str, int] = {}
        self._counter = BlockCounter()
        self._hook(self._counter.function, self._counter.context)
        self._map()
        self._load(ELFFile(io.BytesIO(program)))

    def _map(self) -> None:
        read, write, execute = (getattr(self._unicorn, f"UC_PROT_{name}") for name in ("READ", "WRITE", "EXEC"))
        self._cpu.mem_map(FLASH, FLASH_SIZE, read | execute)
        self._cpu.mem_map(RAM, RAM_SIZE, read | write)
        self._cpu.mem_map(_STACK_TOP - self._stack, self._stack, read | write)
        self._cpu.mem_map(_RETURN, _PAGE, read | execute)

    def _load(self, elf: Any) -> None:
        self._free = RAM
        for segment in elf.iter_segments("PT_LOAD"):
            self._cpu.mem_write(segment["p_vaddr"], segment.data())
            if segment["p_vaddr"] >= RAM:
                self._free = max(self._free, segment["p_vaddr"] + segment["p_memsz"])
        for section in elf.iter_sections():
            if section["sh_flags"] & 2 and section["sh_size"]:  # SHF_ALLOC: it takes memory
                self.sections[section.name] = section["sh_size"]
        table = elf.get_section_by_name(".symtab")
        for entry in table.iter_symbols() if table is not None else ():
            if entry["st_info"]["type"] in ("STT_FUNC", "STT_OBJECT") and entry["st_shndx"] != "SHN_UNDEF":
                if entry["st_info"]["bind"] == "STB_GLOBAL" or entry.name not in self._symbols:
                    self._symbols[entry.name] = entry["st_value"]
                if entry["st_info"]["type"] == "STT_FUNC":
                    self._functions.append((entry["st_value"] & ~1, entry.name))
        self._functions.sort()

    # Memory

    def symbol(self, name: str) -> int:
        """The address of a function or variable; a function of Cortex-M has the lowest bit set."""
        if name not in self._symbols:
            raise UsageError(f"the program has no {name!r}")
        return self._symbols[name]

    def allocate(self, size: int, *, alignment: int = 8) -> int:
        """The address of so many bytes of RAM that nothing else has."""
        start = -(-self._free // alignment) * alignment
        if start + size > RAM + RAM_SIZE:
            raise PromiseError(f"{size:,} bytes more than the {RAM_SIZE:,} of the emulated RAM's")
        self._free = start + size
        return start

    def write(self, address: int, content: bytes) -> None:
        self._cpu.mem_write(address, content)

    def read(self, address: int, size: int) -> bytes:
        try:
            return bytes(self._cpu.mem_read(address, size))
        except self._unicorn.UcError as error:
            raise PromiseError(f"{size:,} bytes at {address:#x} are not in the {self.target}'s memory") from error

    def word(self, name: str) -> int:
        """The 32-bit value of a variable."""
        return int.from_bytes(self.read(self.symbol(name), 4), "little")

    # Running

    def call(self, name: str, *arguments: int, seconds: float = 60, seen: Mapping[str, Seen] | None = None) -> Call:
        """Call a function with 32-bit arguments, integers or addresses, and count what runs until it returns.

        seconds: of emulation at most. seen: what to do each time a function of that name is entered, with its first
        four arguments and the blocks that ran so far; it may read memory. PromiseError where the program faults, with
        the function, or does not end.
        """
        self._cpu.mem_write(_STACK_TOP - self._stack, _PAINT * self._stack)
        start = self.symbol(name)
        self._pass(arguments)
        self._counter.clear()
        with _stopped_by_signals(self._cpu.emu_stop), self._looking(seen or {}) as failures:
            try:
                self._cpu.emu_start(start, _RETURN, timeout=int(seconds * 1e6))
            except self._unicorn.UcError as error:
                failures.append(PromiseError(f"{name} on {self.target}: {error} in {self.where(self._register('pc'))}"))
            if failures:
                raise failures[0]
        if self._register("pc") & ~1 != _RETURN:
            at = self.where(self._register("pc"))
            raise PromiseError(f"{name} on {self.target} did not end in {seconds:g} seconds; it was in {at}")
        blocks = self._counter.blocks()
        return Call(self._register("result"), self.instructions(blocks), self._high_water(), blocks)

    def instructions(self, blocks: Blocks) -> int:
        """How many instructions so many runs of these blocks are."""
        return sum(times * self._length(block) for block, times in blocks.items())

    def code(self, block: tuple[int, int]) -> bytes:
        """The bytes of a block."""
        return self.read(*block)

    def where(self, address: int) -> str:
        """The function that holds the address, and how far into it."""
        found = [item for item in self._functions if item[0] <= address]
        if not found or not FLASH <= address < FLASH + FLASH_SIZE:
            return f"no function, at {address:#x}"
        start, name = found[-1]
        return f"{name}+{address - start:#x}, at {address:#x}"

    def _pass(self, arguments: tuple[int, ...]) -> None:
        """Put the arguments where the CPU's calling convention has them; the stack stays aligned to 16 bytes."""
        words = [argument & 0xFFFFFFFF for argument in arguments]
        registers = self._registers["arguments"]
        for register, word in zip(registers, words, strict=False):
            self._cpu.reg_write(register, word)
        rest = words[len(registers) :]
        stack = _STACK_TOP - -(-4 * len(rest) // 16) * 16
        if rest:
            self._cpu.mem_write(stack, b"".join(word.to_bytes(4, "little") for word in rest))
        self._cpu.reg_write(self._registers["stack"], stack)
        self._cpu.reg_write(self._registers["link"], _RETURN | self.target.startswith("cortex"))

    @contextmanager
    def _looking(self, seen: Mapping[str, Seen]) -> Iterator[list[BaseException]]:
        """Functions are watched; what goes wrong meanwhile is collected: no exception passes through the emulator."""
        failures: list[BaseException] = []

        def entered(do: Seen) -> Callable[[int, int, int, int], None]:
            def enter(*_: int) -> None:
                try:
                    if not failures:
                        do(self._arguments(), self._counter.blocks())
                except BaseException as error:
                    failures.append(error)
                    self._cpu.emu_stop()

            return enter

        functions = {self.symbol(name) & ~1: _HOOK(entered(do)) for name, do in seen.items()}
        if functions:
            self._cpu.ctl_flush_tb()  # or code that ran before would run unseen
        handles = [self._hook(ctypes.cast(f, ctypes.c_void_p), None, at, at) for at, f in functions.items()]
        try:
            yield failures
        finally:
            for handle in handles:
                self._unhook(handle)

    def _hook(
        self, function: ctypes.c_void_p, context: ctypes.c_void_p | None, begin: int = 1, end: int = 0
    ) -> ctypes.c_size_t:
        """As Uc.hook_add of blocks from begin to end, or of all, without its wrapper in Python around each call."""
        from unicorn.unicorn_py3.unicorn import uclib

        handle = ctypes.c_size_t()
        places = (ctypes.c_uint64(begin), ctypes.c_uint64(end))
        status = uclib.uc_hook_add(
            self._cpu._uch, ctypes.byref(handle), self._unicorn.UC_HOOK_BLOCK, function, context, *places
        )
        if status:
            raise RuntimeError(f"unicorn: status {status} of a hook")
        return handle

    def _unhook(self, handle: ctypes.c_size_t) -> None:
        from unicorn.unicorn_py3.unicorn import uclib

        uclib.uc_hook_del(self._cpu._uch, handle)

    def _arguments(self) -> Arguments:
        a, b, c, d = (self._cpu.reg_read(register) for register in self._registers["arguments"][:4])
        return a, b, c, d

    def _register(self, name: str) -> int:
        return int(self._cpu.reg_read(self._registers[name]))

    def _length(self, block: tuple[int, int]) -> int:
        if block not in self._counted:
            self._counted[block] = _instructions(self.code(block), self.target)
        return self._counted[block]

    def _high_water(self) -> int:
        painted = self.read(_STACK_TOP - self._stack, self._stack)
        return len(painted.lstrip(_PAINT))


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM stop the emulation and are raised after it: while it runs, no Python sees them.

    A thread waits for what the system's handler writes into a pipe.
    """
    if threading.current_thread() is not threading.main_thread():  # others are not interrupted, and may not ask
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while (number := os.read(reader, 1)) and number[0] not in _SIGNALS:
            pass
        while number and not done.wait(0.02):  # it may not have begun
            stop()

    thread = threading.Thread(target=watch, daemon=True)
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in _SIGNALS}
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        thread.join()
        os.close(reader)
        if received:
            signal.raise_signal(received[0])


def _instructions(code: bytes, target: str) -> int:
    """The instructions in a block, by their lengths: two or four bytes, as the first halfword says."""
    count = place = 0
    while place < len(code):
        half = int.from_bytes(code[place : place + 2], "little")
        long = half & 3 == 3 if target.startswith("rv") else half >> 11 in (0b11101, 0b11110, 0b11111)
        place += 4 if long else 2
        count += 1
    return count


def _cpu(target: str) -> tuple[Any, dict[str, Any]]:
    """A CPU without memory, and its registers by what calls use them for."""
    import unicorn
    from unicorn import arm_const as arm
    from unicorn import riscv_const as riscv

    if target in _ARM_MODELS:
        cpu = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        cpu.ctl_set_cpu_model(getattr(arm, f"UC_CPU_ARM_CORTEX_{_ARM_MODELS[target]}"))
        arguments = [getattr(arm, f"UC_ARM_REG_R{i}") for i in range(4)]
        names = {"stack": arm.UC_ARM_REG_SP, "link": arm.UC_ARM_REG_LR, "pc": arm.UC_ARM_REG_PC}
    else:
        cpu = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV32)
        arguments = [getattr(riscv, f"UC_RISCV_REG_A{i}") for i in range(8)]
        names = {"stack": riscv.UC_RISCV_REG_SP, "link": riscv.UC_RISCV_REG_RA, "pc": riscv.UC_RISCV_REG_PC}
    return cpu, {**names, "arguments": arguments, "result": arguments[0]}

"""Exported C on an emulated microcontroller: its numbers after every layer, and what a run takes there.

Two programs are built of one folder. One shows each layer's numbers, which the caller compares; instructions and cycles
of a layer are those between two showings, with about ten instructions of the showing itself. The other is what a
user builds: instructions, cycles, flash and stack of the whole are its.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from gemedge.arena import bytes_of
from gemedge.errors import PromiseError
from gemedge.export import to_c
from gemedge.export.build import FLASH_SIZE, RAM_SIZE, Level, build
from gemedge.export.c_writer import bytes_per
from gemedge.export.counting import Blocks
from gemedge.export.folder import Folder
from gemedge.export.layout import from_memory, in_memory, orders
from gemedge.export.machine import Call, Machine
from gemedge.export.timing import cycles
from gemedge.model import QuantizedModel
from gemedge.operators import Shape
from gemedge.targets import Measured, estimate, fits, target_named

_OBSERVER = b"""#include <stddef.h>
void gemedge_observe(int layer, const void *data, size_t bytes, void *context);
void gemedge_observe(int layer, const void *data, size_t bytes, void *context) {
    (void)layer;
    (void)data;
    (void)bytes;
    (void)context;
    __asm__ volatile(""); /* or calls of it could disappear */
}
"""
STATUS = {1: "the arena is too small", 2: "the arena is misaligned", 3: "a null pointer", 4: "an index outside"}
_SECONDS = 600.0
_TIMED = "by Arm's timing tables, without wait states"
Took = TypeVar("Took")


class TooLargeError(PromiseError):
    """It does not fit what is emulated."""


@dataclass(frozen=True, slots=True)
class Sample(Generic[Took]):
    """What a run of one sample gave, in the model's order of axes. layers: by their numbers, those that show any.

    took: of each of them, what measure takes.
    """

    layers: dict[int, np.ndarray]
    outputs: dict[str, np.ndarray]
    took: dict[int, Took]


class Emulated:
    """A folder built for a target. TooLargeError where it does not fit what is emulated, ToolError where no build.

    seconds: of emulation that a run may take.
    """

    def __init__(self, folder: Folder, target: str, level: Level = "-O2", *, seconds: float | None = None) -> None:
        _refuse_too_large(folder, target)
        self.folder, self.target, self._level = folder, target, level
        self._seconds = _SECONDS if seconds is None else seconds
        self.model = folder.model
        self._orders = orders(folder.model)
        self._shown = to_c.shown(folder.model)
        self._run, observed = f"{folder.name}_run", f"{folder.name}_run_observed"
        program = build(
            {**folder.sources, "gemedge_observer.c": _OBSERVER},
            target,
            level=level,
            defines=["GEMEDGE_OBSERVE"],
            roots=[observed, "gemedge_observe"],
        )
        self._observed = _Placed(Machine(program, target), folder)

    @cached_property
    def _plain(self) -> "_Placed":
        program = build(self.folder.sources, self.target, level=self._level, roots=[self._run])
        return _Placed(Machine(program, self.target), self.folder)

    def run(self, sample: Mapping[str, np.ndarray]) -> Sample[Blocks]:
        """The numbers of every layer for one sample's integers [*shape] by input name.

        PromiseError where the program faults, gives an error code, or shows other layers than the model has.
        """
        placed = self._observed
        machine = placed.machine
        contents: dict[int, bytes] = {}
        until: dict[int, Blocks] = {}

        def seen(arguments: tuple[int, ...], blocks: Blocks) -> None:
            layer, data, count, _ = arguments
            contents[layer] = machine.read(data, min(count, RAM_SIZE))
            until[layer] = blocks

        self._enter(placed, sample)
        observer = [machine.symbol("gemedge_observe"), 0]
        call = machine.call(
            f"{self._run}_observed", *placed.arguments, *observer, seconds=self._seconds, seen={"gemedge_observe": seen}
        )
        self._check(call)
        refuse_other_layers(contents, self._shown, self.target)
        before: Blocks = Blocks()
        took = {}
        for layer, blocks in until.items():
            took[layer], before = blocks - before, blocks
        layers = {i: self._numbers(self.model.layers[i].output, contents[i]) for i in self._shown}
        return Sample(layers, self._leave(placed), took)

    def measure(self, sample: Mapping[str, np.ndarray], took: Mapping[int, Blocks]) -> Measured:
        """What a run of this sample takes; took: what its run with every layer shown gave."""
        machine = self._plain.machine
        self._enter(self._plain, sample)
        call = machine.call(self._run, *self._plain.arguments, seconds=self._seconds)
        self._check(call)
        names = {i: self.model.layers[i].name for i in took}
        spans = {names[i]: cycles(self._observed.machine, blocks) for i, blocks in took.items()}
        sections = machine.sections
        return Measured(
            instructions={names[i]: self._observed.machine.instructions(blocks) for i, blocks in took.items()},
            cycles={name: span for name, span in spans.items() if span is not None},
            all_instructions=call.instructions,
            all_cycles=cycles(machine, call.blocks),
            timed=_TIMED,
            sections=dict(sections),
            code=sections.get(".text", 0),
            arena=self.folder.arena,
            stack=call.stack,
        )

    def _enter(self, placed: "_Placed", sample: Mapping[str, np.ndarray]) -> None:
        for name, address in placed.inputs.items():
            laid = in_memory(sample[name], self._orders[name]).astype(stored(self.model, name))
            placed.machine.write(address, laid.tobytes())

    def _leave(self, placed: "_Placed") -> dict[str, np.ndarray]:
        return {
            name: self._numbers(tensor, placed.machine.read(placed.outputs[name], bytes_of(self.model.tensors[tensor])))
            for name, tensor in self.model.outputs.items()
        }

    def _numbers(self, tensor: str, content: bytes) -> np.ndarray:
        return numbers(self.model, tensor, self._orders[tensor], content, self.target)

    def _check(self, call: Call) -> None:
        refuse_status(call.returned - (call.returned >> 31 << 32), self._run, self.target)


class _Placed:
    """A machine with room for a run: its arguments, and where inputs and outputs lie."""

    def __init__(self, machine: Machine, folder: Folder) -> None:
        self.machine = machine
        model = folder.model
        arena = machine.allocate(folder.arena, alignment=16)
        self.inputs = {name: machine.allocate(bytes_of(model.tensors[name])) for name in model.inputs}
        self.outputs = {name: machine.allocate(bytes_of(model.tensors[t])) for name, t in model.outputs.items()}
        self.arguments = [arena, folder.arena, *self.inputs.values(), *self.outputs.values()]


def stored(model: QuantizedModel, tensor: str) -> np.dtype:
    """The type of a tensor's integers in C."""
    return np.dtype(f"<i{bytes_per(model.tensors[tensor])}")


def numbers(model: QuantizedModel, tensor: str, order: Shape, content: bytes, target: str) -> np.ndarray:
    """A tensor's numbers [*shape] of its bytes on the target; PromiseError where these are too few or too many."""
    if len(content) != bytes_of(model.tensors[tensor]):
        wanted = bytes_of(model.tensors[tensor])
        raise PromiseError(f"on {target} it shows {len(content):,} bytes of {tensor!r}; the model has {wanted:,}")
    return from_memory(np.frombuffer(content, stored(model, tensor)), model.tensors[tensor].shape, order)


def refuse_other_layers(found: Collection[int], wanted: Sequence[int], target: str) -> None:
    """PromiseError where a run shows other layers than the model has to show."""
    if sorted(found) != list(wanted):
        raise PromiseError(f"on {target} it shows {len(found)} layers; the model has {len(wanted)} to show")


def refuse_status(status: int, function: str, target: str) -> None:
    """PromiseError where a run gives an error code."""
    if status:
        what = STATUS.get(abs(status), "a code that gemedge has not")
        raise PromiseError(f"{function} on {target} gives {status}: {what}")


def _refuse_too_large(folder: Folder, target: str) -> None:
    found = estimate(folder.model, target_named(target))
    fit = fits(found, FLASH_SIZE, RAM_SIZE)
    if not fit.holds:
        raise TooLargeError(f"it does not fit what is emulated of a {target}: {fit.text}")

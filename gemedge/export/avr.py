"""Exported C on an 8-bit AVR, an atmega1284p that simavr emulates: every layer's numbers, and exact cycles.

Two programs, as in gemedge.export.emulated: one shows each layer's numbers, and a layer's cycles are those from one
showing to the next, less what two showings of nothing are apart; the other is what a user builds, and the cycles of
the whole, less a call of an empty function, the flash and the stack are its. Instructions are not counted.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from gemedge.arena import bytes_of
from gemedge.errors import PromiseError
from gemedge.export import avr_build, avr_limits, simavr, to_c
from gemedge.export.avr_limits import NAME
from gemedge.export.build import Level
from gemedge.export.emulated import Sample, numbers, refuse_other_layers, refuse_status, stored
from gemedge.export.folder import Folder
from gemedge.export.layout import in_memory, orders
from gemedge.targets import Cycles, Measured

_SECONDS = 600.0
_TIMED = "exact, emulated by simavr"


class Avr:
    """A folder built for the atmega1284p. PromiseError where it does not fit, ToolError where no build or no simavr.

    seconds: that a run may take here.
    """

    target = NAME

    def __init__(self, folder: Folder, level: Level = "-O2", *, seconds: float | None = None) -> None:
        avr_limits.refuse_counted(folder)
        avr_build.require()
        self.folder, self.model, self._level = folder, folder.model, level
        self._seconds = _SECONDS if seconds is None else seconds
        self._orders = orders(folder.model)
        self._shown = to_c.shown(folder.model)
        self._run = f"{folder.name}_run"
        avr_limits.refuse_built(self._sections)
        self._observed = avr_build.objects(folder.sources, level, ["GEMEDGE_OBSERVE"])

    @cached_property
    def _plain(self) -> dict[str, bytes]:
        with avr_limits.told(self.model):
            return avr_build.objects(self.folder.sources, self._level)

    @cached_property
    def _sections(self) -> dict[str, int]:
        return avr_build.sections(self._plain, self._run)

    def run(self, sample: Mapping[str, np.ndarray]) -> Sample[int]:
        """The numbers of every layer for one sample's integers [*shape] by input name, and their cycles.

        PromiseError where the program faults, gives an error code, or shows other layers than the model has.
        """
        ran = self._ran(self._observed, sample, f"{self._run}_observed", observed=True)
        shown, outputs = _contents(ran.lines)
        refuse_other_layers(shown, self._shown, NAME)
        if len(outputs) != len(self.model.outputs):
            raise PromiseError(f"on {NAME} it shows {len(outputs)} outputs; the model has {len(self.model.outputs)}")
        own, _, _, *stretches = _checked(ran.stretches, 4 + len(shown))
        tensors = {i: self.model.layers[i].output for i in shown}
        return Sample(
            {i: self._numbers(tensors[i], shown[i]) for i in self._shown},
            {
                name: self._numbers(tensor, content)
                for (name, tensor), content in zip(self.model.outputs.items(), outputs, strict=True)
            },
            dict(zip(shown, (stretch - own for stretch in stretches[:-1]), strict=True)),
        )

    def measure(self, sample: Mapping[str, np.ndarray], took: Mapping[int, int]) -> Measured:
        """What a run of this sample takes; took: what its run with every layer shown gave."""
        ran = self._ran(self._plain, sample, self._run)
        empty, whole = _checked(ran.stretches, 2)
        names = {i: self.model.layers[i].name for i in took}
        return Measured(
            cycles={names[i]: Cycles(cycles, cycles) for i, cycles in took.items()},
            all_cycles=Cycles(whole - empty, whole - empty),
            timed=_TIMED,
            sections=dict(self._sections),
            code=self._sections.get(".text", 0),
            arena=self.folder.arena,
            stack=ran.number("K"),
        )

    def _ran(
        self, parts: Mapping[str, bytes], sample: Mapping[str, np.ndarray], function: str, *, observed: bool = False
    ) -> simavr.Ran:
        """A program's run to its end, with the clock's stretches of the calls beside it."""
        program = avr_build.program(parts, self._sample(sample, function, observed=observed))
        ran = simavr.run(program, self._seconds)
        status, stack, room = (ran.number(key) for key in ("S", "K", "R"))
        if status is None or stack is None or room is None:
            raise avr_limits.did_not_return(self.folder, function)
        avr_limits.refuse_stack(stack, room)
        refuse_status(status - (status >> 15 << 16), function, NAME)
        return ran

    def _numbers(self, tensor: str, content: bytes) -> np.ndarray:
        return numbers(self.model, tensor, self._orders[tensor], content, NAME)

    def _sample(self, sample: Mapping[str, np.ndarray], function: str, *, observed: bool) -> str:
        """gemedge_sample.h: the function, its buffers with the sample in them, and how its outputs are shown."""
        model = self.model
        buffers, parameters, arguments, shows = [], ["void *memory", "size_t size"], ["arena", "ARENA_SIZE"], []
        for index, name in enumerate(model.inputs):
            laid = in_memory(sample[name], self._orders[name]).astype(stored(model, name))
            values = ", ".join(map(str, laid.tolist()))
            buffers.append(f"static {_ctype(laid.dtype)} in_{index}[{laid.size}] = {{{values}}};")
            parameters.append(f"const {_ctype(laid.dtype)} *input_{index}")
            arguments.append(f"in_{index}")
        for index, tensor in enumerate(model.outputs.values()):
            dtype = stored(model, tensor)
            size = bytes_of(model.tensors[tensor]) // dtype.itemsize
            buffers.append(f"static {_ctype(dtype)} out_{index}[{size}];")
            parameters.append(f"{_ctype(dtype)} *output_{index}")
            arguments.append(f"out_{index}")
            shows.append(f"put_number('O', {index}); put_bytes(out_{index}, sizeof out_{index});")
        if observed:
            parameters += ["void (*observe)(int, const void *, size_t, void *)", "void *context"]
            arguments.append("gemedge_observe, 0")
        lines = [
            *(["#define OBSERVED"] if observed else []),
            f"#define RUN {function}",
            f"#define ARENA_SIZE {self.folder.arena}u",
            f"#define PARAMETERS {', '.join(parameters)}",
            f"#define ARGUMENTS {', '.join(arguments)}",
            f"#define SHOW_OUTPUTS {' '.join(shows)}",
            f"static uint8_t arena[{max(1, self.folder.arena)}] __attribute__((aligned(8)));",
            *buffers,
            "int RUN(PARAMETERS);",
        ]
        return "\n".join(lines) + "\n"


def _checked(stretches: tuple[int, ...], count: int) -> tuple[int, ...]:
    """PromiseError where the clock ran in more stretches than the board lets it, or in fewer: the C drives its pin."""
    if len(stretches) != count:
        raise PromiseError(f"on {NAME} the clock ran in {len(stretches)} stretches, not in {count}")
    return stretches


def _contents(lines: tuple[tuple[str, str], ...]) -> tuple[dict[int, bytes], list[bytes]]:
    """The bytes of each layer shown, by its number and in that order, and of each output."""
    layers: dict[int, bytearray] = {}
    outputs: list[bytearray] = []
    content = bytearray()
    for key, digits in lines:
        if key == "D":
            content += bytes.fromhex(digits[: len(digits) // 2 * 2])
        elif key == "L" and digits:
            content = layers[int(digits, 16)] = bytearray()
        elif key == "O":
            content = bytearray()
            outputs.append(content)
    return {layer: bytes(found) for layer, found in layers.items()}, [bytes(found) for found in outputs]


def _ctype(dtype: np.dtype) -> str:
    return f"int{8 * dtype.itemsize}_t"

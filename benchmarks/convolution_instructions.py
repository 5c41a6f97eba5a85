"""Instructions of 8-bit convolutions and dense layers on an emulated Cortex-M4, beside CMSIS-NN's: one command.

    python -m benchmarks.convolution_instructions

Counted is one call of the kernel, by blocks, built by ziglang and, where it is installed, by arm-none-eabi-gcc, both
-O2. CMSIS-NN's sources are those that the Python package bakenn carries. Cycles are the upper end of what Arm's
published timing leaves open, without wait states.
"""

import shutil
import tempfile
from importlib import resources
from math import prod
from pathlib import Path

import bakenn
import numpy as np

from benchmarks.row import Row, main
from gemedge.export.build import FLASH, RAM, build, compiled
from gemedge.export.machine import Machine
from gemedge.export.timing import cycles
from gemedge.export.to_c import arena_size, to_c
from gemedge.fixed import QuantParams, Rounding
from gemedge.model import QuantizedModel
from gemedge.operators import Convolution, Dense, Lookup, Tensor

TARGET = "cortex-m4"
CMSIS_NN = Path(bakenn.__file__).parent / "backend" / "cmsis_nn" / "vendor"
IN, OUT = QuantParams(0.05, -3, 8), QuantParams(0.1, 5, 8)


def model(layer: Convolution | Dense, given: tuple[int, ...], *, table: bool = False) -> QuantizedModel:
    """A network of this layer alone, or with a table behind it."""
    tensors = [Tensor("in", given, IN), Tensor("out", layer.output_shape([given]), OUT)]
    layers: tuple[Convolution | Dense | Lookup, ...] = (layer,)
    if table:
        tensors.append(Tensor("looked up", tensors[1].shape, OUT))
        entries = np.random.default_rng(1).integers(-128, 128, 256).astype(np.int8)
        layers = (layer, Lookup("table", ("out",), "looked up", "any", entries))
    named = {"out": tensors[-1].name}
    return QuantizedModel("int8", Rounding.SINGLE, ("in",), named, {t.name: t for t in tensors}, layers)


def drawn(*shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights, bias, mantissas and shifts."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, shape).astype(np.int8)
    mantissa = rng.integers(1 << 30, 1 << 31, shape[0])
    return weight, rng.integers(-999, 999, shape[0]), mantissa, np.full(shape[0], 41)


def convolution(outputs: int, inputs: int, groups: int = 1) -> Convolution:
    weight, bias, mantissa, shift = drawn(outputs, inputs, 3, 3)
    return Convolution("conv", ("in",), "out", weight, bias, (1, 1), (1, 1, 1, 1), (1, 1), groups, mantissa, shift)


def dense(outputs: int, inputs: int) -> Dense:
    weight, bias, mantissa, shift = drawn(outputs, inputs)  # one factor for all, which CMSIS-NN wants
    return Dense("dense", ("in",), "out", weight, bias, np.full(outputs, mantissa[0]), shift)


ROWS = {
    "convolution 3x3, 16 -> 16, 32x32": (model(convolution(16, 16), (16, 32, 32)), 1024 * 16 * 144),
    "convolution with a table in its requantize": (
        model(convolution(16, 16), (16, 32, 32), table=True),
        1024 * 16 * 144,
    ),
    "depthwise 3x3, 16, 32x32": (model(convolution(16, 1, 16), (16, 32, 32)), 1024 * 144),
    "dense 128 -> 16": (model(dense(16, 128), (128,)), 2048),
}


GOALS = {"convolution 3x3, 16 -> 16, 32x32": 1.5, "dense 128 -> 16": 1.5}


def by_gcc(sources: dict[str, bytes], defines: tuple[str, ...]) -> bytes:
    """The same program by arm-none-eabi-gcc."""
    own = resources.files("gemedge.export").joinpath("c_freestanding")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in (sources | {f: own.joinpath(f).read_bytes() for f in ("string.h", "memory.c")}).items():
            (folder / file).write_bytes(content)
        script = (
            f"SECTIONS {{ . = {FLASH}; .text : {{ *(.text*) *(.rodata*) }} . = {RAM};"
            " .data : { *(.data* .bss* COMMON) } /DISCARD/ : { *(.ARM.ex*) } }"
        )
        (folder / "program.ld").write_text(script)
        flags = [f"-mcpu={TARGET}", "-mthumb", "-std=c99", "-O2", "-ffunction-sections", "-fdata-sections", "-I."]
        linked = ["-nostdlib", "-nostartfiles", "-Wl,--gc-sections,-T,program.ld,-e,net_run"]
        files = [file for file in sources if file.endswith(".c")]
        macros = [f"-D{define}" for define in defines]
        for file in ("memory.c", *files):
            extra = ["-fno-tree-loop-distribute-patterns"] if file == "memory.c" else []
            command = ["arm-none-eabi-gcc", *flags, *extra, *macros, "-c", file, "-o", f"{file}.o"]
            compiled(command, folder, file)
        objects = [f"{file}.o" for file in ("memory.c", *files)]
        command = ["arm-none-eabi-gcc", *flags, *linked, *objects, "-lgcc", "-o", "program.elf"]
        compiled(command, folder, "linking")
        return (folder / "program.elf").read_bytes()


def counted(network: QuantizedModel, program: bytes) -> tuple[int, int, bytes]:
    """Instructions and most cycles of a run less those of a copy of input and output, and what it gave."""
    machine = Machine(program, TARGET)
    (made,) = network.outputs.values()
    sizes = [prod(network.tensors[name].shape) for name in ("in", made)]
    given, out, arena = machine.allocate(sizes[0]), machine.allocate(sizes[1]), machine.allocate(arena_size(network))
    machine.write(given, np.random.default_rng(2).integers(0, 256, sizes[0]).astype(np.uint8).tobytes())
    run = machine.call("net_run", arena, arena_size(network), given, out)
    result = machine.read(out, sizes[1])
    copies = [
        machine.call("memcpy", to, source, size)
        for to, source, size in ((arena, given, sizes[0]), (out, arena, sizes[1]))
    ]
    timed = [cycles(machine, call.blocks) for call in (run, *copies)]
    return (
        run.instructions - sum(copy.instructions for copy in copies),
        timed[0].high - timed[1].low - timed[2].low,  # type: ignore[union-attr]
        result,
    )


def cmsis_nn() -> dict[str, bytes]:
    paths = [
        *CMSIS_NN.glob("*/Include/*.h"),
        *CMSIS_NN.glob("cmsis_nn/Source/*/*_s8*.c"),
        *CMSIS_NN.glob("*/Source/*/arm_q7*.c"),
    ]
    return {path.name: path.read_bytes() for path in paths} | {"math.h": b""}


def rows(quick: bool) -> list[Row]:
    """Instructions and most cycles of ours and of CMSIS-NN, for each multiply-accumulate, by each compiler."""
    theirs = ("GEMEDGE_USE_CMSIS_NN", "CMSIS_NN_USE_SINGLE_ROUNDING")
    found = []
    for name, (network, macs) in list(ROWS.items())[-1:] if quick else ROWS.items():
        results = set()
        figures: dict[str, tuple[float, float]] = {}
        for whose, defines, beside in (("gemedge", (), {}), ("CMSIS-NN", theirs, cmsis_nn())):
            sources = to_c(network, "net") | beside
            programs = {"zig": build(sources, TARGET, roots=["net_run", "memcpy"], defines=defines)}
            if shutil.which("arm-none-eabi-gcc"):
                programs["gcc"] = by_gcc(sources, defines)
            for compiler, program in programs.items():
                instructions, most, result = counted(network, program)
                results.add(result)
                figures[f"{whose}, {compiler}"] = instructions / macs, most / macs
        assert len(results) == 1, "not the same integers"
        best = min((f for f in figures if f.startswith("gemedge")), key=lambda f: figures[f][0])
        found += [
            Row(
                f"Cortex-M4: {name}, for each multiply-accumulate",
                label,
                instructions,
                "instructions",
                at_most=GOALS.get(name) if label == best else None,
                beside={
                    "cycles at most": most,
                    "of CMSIS-NN's": instructions / figures[f"CMSIS-NN, {label.split(', ')[1]}"][0],
                },
            )
            for label, (instructions, most) in figures.items()
        ]
    return found


if __name__ == "__main__":
    main(rows)

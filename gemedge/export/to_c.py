"""A network in integers as C: constants, calls in order, and the hand-written header that they call.

No text of the model gets into the C: identifiers are `L<layer>_<operator>_<role>`, symbols derive from a name that
is reduced to letters and digits, and the names of layers stand in one table, every odd byte of them escaped.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import numpy as np

from gemedge import arena
from gemedge.errors import DataError, UnsupportedError
from gemedge.export import c_sums
from gemedge.export.c_borders import Border, described
from gemedge.export.c_constants import number, wrapped
from gemedge.export.c_layers import call
from gemedge.export.c_moving import is_moved
from gemedge.export.c_writer import Writer, kind
from gemedge.export.layout import in_memory, orders
from gemedge.model import QuantizedModel
from gemedge.moving import Reshape

ALIGNMENT = 4
RUNTIME = (
    "gemedge.h",
    "gemedge_status.h",
    "gemedge_flash.h",
    "gemedge_numbers.h",
    "gemedge_loops.h",
    "gemedge_rescale.h",
    "gemedge_dsp.h",
    "gemedge_blocks.h",
    "gemedge_blocks_dsp.h",
    "gemedge_packed.h",
    "gemedge_packed_dsp.h",
    "gemedge_packed_x86.h",
    "gemedge_cmsis_nn.h",
    "gemedge_sums_of.h",
    "gemedge_sums.h",
    "gemedge_elementwise.h",
    "gemedge_windows.h",
    "gemedge_moving.h",
    "gemedge_rational.h",
)
FILES = ("model.h", "model.c", *RUNTIME, "README.md")
_LONGEST_SYMBOL = 40
_LONGEST_NAME = 200  # bytes of a layer's name that are shown
_COMPILE = "cc -std=c99 -O2 -c model.c"


@dataclass(frozen=True, slots=True)
class Vectors:
    """Integers [samples, *shape] by name, as simulate takes and gives them: a self-test's inputs and outputs."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


def to_c(model: QuantizedModel, name: str, vectors: Vectors | None = None) -> dict[str, bytes]:
    """The files model.h, model.c, README.md, those of RUNTIME, with vectors test_vectors.h: the same bytes each time.

    name: what symbols begin with, once reduced to letters and digits. UnsupportedError names a layer without C.
    """
    for tensor in model.tensors.values():
        if tensor.params is not None and tensor.params.bits > 16:
            raise UnsupportedError(f"tensor {tensor.name!r} has {tensor.params.bits} bits; C takes 8 and 16")
    written = _Model(model, symbol(name))
    runtime = resources.files("gemedge.export").joinpath("c_runtime")
    files = {"model.h": written.header(), "model.c": written.source(), "README.md": written.readme()}
    if vectors is not None:
        files["test_vectors.h"] = written.test_vectors(vectors)
    return {file: text.encode("ascii") for file, text in files.items()} | {
        file: runtime.joinpath(file).read_bytes() for file in RUNTIME
    }


def arena_size(model: QuantizedModel) -> int:
    """The bytes that a run needs."""
    return _Model(model, "").arena_size


def shown(model: QuantizedModel) -> list[int]:
    """The numbers of the layers whose numbers a run with GEMEDGE_OBSERVE shows, in their order."""
    placed = _Model(model, "").offsets
    return [index for index, layer in enumerate(model.layers) if layer.output in placed]


def symbol(name: str) -> str:
    """What the C's symbols begin with: lower-case letters, digits and underscores, a letter first."""
    reduced = re.sub(r"[^a-z0-9]+", "_", name.lower(), flags=re.ASCII).strip("_")[:_LONGEST_SYMBOL]
    return reduced if reduced[:1].isalpha() else f"m_{reduced}".rstrip("_")


def escaped(name: str) -> str:
    """A C string's inside: letters, digits and a few signs as they are, every other byte as three octal digits."""
    content = name.encode("utf-8", "surrogateescape")[:_LONGEST_NAME]
    return "".join(chr(b) if re.match(rb"[A-Za-z0-9_./ -]", bytes([b])) else f"\\{b:03o}" for b in content)


class _Model:
    def __init__(self, model: QuantizedModel, name: str) -> None:
        self.model, self.name, self.upper = model, name, name.upper()
        self.orders = orders(model)
        moved = [
            layer.name for layer in model.layers if isinstance(layer, Reshape) and is_moved(model, self.orders, layer)
        ]
        scratch = {layer.name: c_sums.scratch(model, self.orders, layer) for layer in model.layers}
        self.plan = arena.plan(model, alignment=ALIGNMENT, moved=moved, scratch=scratch)
        arena.check(self.plan, model)
        self.fused = c_sums.fused(model, self.plan)
        self.offsets = {placement.tensor: placement.offset for placement in self.plan.placements}
        self.inputs = self._borders("INPUT", model.inputs)
        self.outputs = self._borders("OUTPUT", tuple(model.outputs.values()))

    def _borders(self, direction: str, names: tuple[str, ...]) -> list[Border]:
        short = "in" if direction == "INPUT" else "out"
        many = len(names) > 1
        return [
            Border(
                self.model.tensors[name],
                self.orders[name],
                f"{short}{i if many else ''}",
                f"{self.upper}_{direction}{f'_{i}' if many else ''}",
                direction,
                self.offsets[name],
            )
            for i, name in enumerate(names)
        ]

    @property
    def arena_size(self) -> int:
        return max(self.plan.size, 1)

    @property
    def borders(self) -> list[Border]:
        return [*self.inputs, *self.outputs]

    @property
    def parameters(self) -> str:
        return ", ".join(["void *arena", "size_t size", *(border.declaration for border in self.borders)])

    def header(self) -> str:
        macros = "\n\n".join("\n".join(border.macros) for border in self.borders)
        return f"""/* Generated by gemedge. README.md says how to use it. */

#ifndef {self.upper}_MODEL_H
#define {self.upper}_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "gemedge_status.h"

#ifdef __cplusplus
extern "C" {{
#endif

/* Bytes that a run needs, and what their address must be a multiple of. */
#define {self.upper}_ARENA_SIZE {self.arena_size}
#define {self.upper}_ARENA_ALIGNMENT {ALIGNMENT}
#define {self.upper}_LAYERS {len(self.model.layers)}

/* SHAPE and AXES are in the order of memory: AXES names the axis of the model, less its batch, that lies there. */
{macros}

/* GEMEDGE_OK, or what is wrong with the arguments; then nothing was written, or where GEMEDGE_INDEX_OUTSIDE is given,
   only the arena. */
int {self.name}_run({self.parameters});

#ifdef GEMEDGE_OBSERVE
/* The same, and shows the numbers of each layer that makes any, as soon as they are made. */
int {self.name}_run_observed({self.parameters},
    void (*observe)(int layer, const void *data, size_t bytes, void *context), void *context);

/* The layer's name in the model it was made from, "" where there is no such layer; long names are cut. */
const char *{self.name}_layer_name(int layer);
#endif

#ifdef __cplusplus
}}
#endif

#endif
"""

    def source(self) -> str:
        writer = Writer(self.model, self.orders, self.plan, self.fused)
        calls = [self._layer(writer, index) for index in range(len(self.model.layers))]
        checks = " || ".join(f"!{border.parameter}" for border in self.borders)
        copies_in = "".join(
            f"    memcpy(memory + {b.offset}, {b.parameter}, {arena.bytes_of(b.tensor)});\n" for b in self.inputs
        )
        copies_out = "".join(
            f"    memcpy({b.parameter}, memory + {b.offset}, {arena.bytes_of(b.tensor)});\n" for b in self.outputs
        )
        names = "".join(f'        "{escaped(layer.name)}",\n' for layer in self.model.layers)
        arguments = ", ".join(["arena", "size", *(border.parameter for border in self.borders)])
        return f"""/* Generated by gemedge. */

#include "model.h"

#include "gemedge.h"

{c_sums.cmsis_nn_check(self.model)}

{writer.constants.text}

#ifdef GEMEDGE_OBSERVE
#define SEEN(layer, data, bytes) if (observe) observe(layer, data, bytes, context)
int {self.name}_run_observed({self.parameters},
    void (*observe)(int layer, const void *data, size_t bytes, void *context), void *context)
#else
#define SEEN(layer, data, bytes) (void)0
int {self.name}_run({self.parameters})
#endif
{{
    uint8_t *const memory = (uint8_t *)arena;
#ifdef GEMEDGE_OBSERVE
    (void)observe;
    (void)context; /* a network without layers shows nothing */
#endif
    if (!arena || {checks}) {{
        return GEMEDGE_NULL_POINTER;
    }}
    if (size < {self.upper}_ARENA_SIZE) {{
        return GEMEDGE_ARENA_TOO_SMALL;
    }}
    if ((uintptr_t)arena & ({self.upper}_ARENA_ALIGNMENT - 1u)) {{
        return GEMEDGE_ARENA_MISALIGNED;
    }}
{copies_in}{"".join(calls)}{copies_out}    return GEMEDGE_OK;
}}

#ifdef GEMEDGE_OBSERVE
int {self.name}_run({self.parameters}) {{
    return {self.name}_run_observed({arguments}, 0, 0);
}}

const char *{self.name}_layer_name(int layer) {{
    static const char *const names[] = {{
{names}        ""}};
    return names[layer >= 0 && layer < {self.upper}_LAYERS ? layer : {self.upper}_LAYERS];
}}
#endif
"""

    def _layer(self, writer: Writer, index: int) -> str:
        layer = self.model.layers[index]
        statement = call(writer, index, layer)
        body = f"    {{ /* {index}: {kind(layer)} */\n        {statement}\n    }}\n" if statement else ""
        if layer in self.fused.values():
            body = f"#ifdef GEMEDGE_UNFUSED\n{body}#endif\n"
        if layer.output in self.offsets:
            count = arena.bytes_of(self.model.tensors[layer.output])
            body += f"    SEEN({index}, memory + {self.offsets[layer.output]}, {count});\n"
        return body

    def test_vectors(self, vectors: Vectors) -> str:
        lines, samples = [], 0
        for names, borders, given in (
            (self.model.inputs, self.inputs, vectors.inputs),
            (tuple(self.model.outputs), self.outputs, vectors.outputs),
        ):
            for name, border in zip(names, borders, strict=True):
                array = given.get(name)
                if array is None or array.shape[1:] != border.tensor.shape or (samples and len(array) != samples):
                    raise DataError(f"test vectors for {name!r} do not fit its shape {list(border.tensor.shape)}")
                samples = len(array)
                laid = [int(v) for sample in array for v in in_memory(sample, border.order)]
                title = f"static const {border.ctype} {border.macro}_VECTORS[{len(laid)}]"
                lines.append(f"{title} = {{{wrapped(map(number, laid))}}};\n")
        body = "\n".join(lines)
        return f"""/* Generated by gemedge: inputs one sample after another, and the outputs that must come. */

#ifndef {self.upper}_TEST_VECTORS_H
#define {self.upper}_TEST_VECTORS_H

#include <stdint.h>

#define {self.upper}_TEST_VECTORS {samples}

{body}
#endif
"""

    def readme(self) -> str:
        rows = "".join(f"- `{b.declaration}`: {described(b)}\n" for b in self.borders)
        return f"""# {self.name}

C99 without malloc, float or division in its kernels. Compile `model.c` beside your code:

    {_COMPILE}

and call

    #include "model.h"
    static uint32_t arena[({self.upper}_ARENA_SIZE + 3) / 4];
    int status = {self.name}_run(arena, sizeof arena, {", ".join(b.parameter for b in self.borders)});

It gives `GEMEDGE_OK`, or an error code of `gemedge_status.h`. A run keeps nothing: one arena serves several models in
turn, and each thread can have one of its own. Numbers lie in the order of these shapes, the last axis side by side:

{rows}
The arena takes {self.plan.size} bytes. With `-DGEMEDGE_OBSERVE` there is also `{self.name}_run_observed`, which shows
each layer's numbers.
"""

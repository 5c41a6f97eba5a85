"""A network in integers as C: constants, calls in order, and the hand-written header that they call.

No text of the model gets into the C: identifiers are `L<layer>_<operator>_<role>`, symbols derive from a name that
is reduced to letters and digits, and the names of layers stand in one table, every odd byte of them escaped.
"""

import re
from importlib import resources

from gemedge import arena
from gemedge.errors import UnsupportedError
from gemedge.export import c_sums
from gemedge.export.c_activations import Choice
from gemedge.export.c_borders import Border, Interface, float_header
from gemedge.export.c_layers import call
from gemedge.export.c_moving import is_moved
from gemedge.export.c_project import Project, laid_out
from gemedge.export.c_selftest import Vectors, selftest, test_vectors
from gemedge.export.c_writer import Writer, kind
from gemedge.export.layout import orders
from gemedge.export.selftest_log import model_digest
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
    "gemedge_blocks_helium.h",
    "gemedge_packed.h",
    "gemedge_packed_dsp.h",
    "gemedge_packed_x86.h",
    "gemedge_cmsis_nn.h",
    "gemedge_sums_of.h",
    "gemedge_sums.h",
    "gemedge_elementwise.h",
    "gemedge_windows.h",
    "gemedge_moving.h",
    "gemedge_activation.h",
    "gemedge_helium.h",
    "gemedge_rational.h",
)
_LONGEST_SYMBOL = 40
_LONGEST_NAME = 200  # bytes of a layer's name that are shown


def to_c(
    model: QuantizedModel,
    name: str,
    vectors: Vectors | None = None,
    project: Project = "cmake",
    activation: Choice = "auto",
) -> dict[str, bytes]:
    """The files of a folder by their paths in it, the same bytes each time; with vectors there is a self-test.

    name: what symbols begin with, once reduced to letters and digits. activation: the form of 16-bit activations
    (gemedge.export.c_activations). UnsupportedError names a layer without C.
    """
    for tensor in model.tensors.values():
        if tensor.params is not None and tensor.params.bits > 16:
            raise UnsupportedError(f"tensor {tensor.name!r} has {tensor.params.bits} bits; C takes 8 and 16")
    written = _Model(model, symbol(name), activation)
    runtime = (*RUNTIME, "gemedge_float.h", *(["gemedge_selftest.h"] if vectors else []))
    where = resources.files("gemedge.export").joinpath("c_runtime")
    texts = {"model.h": written.header(), "model_float.h": float_header(written.interface)}
    if vectors is not None:
        texts["test_vectors.h"] = test_vectors(model, written.interface, vectors)
        texts["selftest.c"] = selftest(written.interface, model_digest(model))
    files = {"model.c": written.source()} | {file: where.joinpath(file).read_bytes() for file in runtime}
    files |= {file: text.encode("ascii") for file, text in texts.items()}
    return laid_out(files, written.interface, project)


def arena_size(model: QuantizedModel) -> int:
    """The bytes that a run needs."""
    return _Model(model, "", "auto").interface.arena_size


def shown(model: QuantizedModel) -> list[int]:
    """The numbers of the layers whose numbers a run with GEMEDGE_OBSERVE shows, in their order."""
    placed = _Model(model, "", "auto").offsets
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
    def __init__(self, model: QuantizedModel, name: str, activation: Choice) -> None:
        self.model, self.activation = model, activation
        self.orders = orders(model)
        moved = [
            layer.name for layer in model.layers if isinstance(layer, Reshape) and is_moved(model, self.orders, layer)
        ]
        scratch = {layer.name: c_sums.scratch(model, self.orders, layer) for layer in model.layers}
        self.plan = arena.plan(model, alignment=ALIGNMENT, moved=moved, scratch=scratch)
        arena.check(self.plan, model)
        self.fused = c_sums.fused(model, self.plan)
        self.offsets = {placement.tensor: placement.offset for placement in self.plan.placements}
        self.interface = Interface(
            name,
            self._borders(name, "INPUT", model.inputs),
            self._borders(name, "OUTPUT", tuple(model.outputs.values())),
            max(self.plan.size, 1),
            len(model.layers),
        )

    def _borders(self, symbol: str, direction: str, names: tuple[str, ...]) -> tuple[Border, ...]:
        short = "in" if direction == "INPUT" else "out"
        many = len(names) > 1
        return tuple(
            Border(
                self.model.tensors[name],
                self.orders[name],
                f"{short}{i if many else ''}",
                f"{symbol.upper()}_{direction}{f'_{i}' if many else ''}",
                direction,
                self.offsets[name],
            )
            for i, name in enumerate(names)
        )

    def header(self) -> str:
        interface = self.interface
        name, upper = interface.name, interface.upper
        macros = "\n\n".join("\n".join(border.macros) for border in interface.borders)
        return f"""/* Generated by gemedge. README.md says how to use it. */

#ifndef {upper}_MODEL_H
#define {upper}_MODEL_H

#include "gemedge_status.h"

#ifdef __cplusplus
extern "C" {{
#endif

/* Bytes that a run needs, and what their address must be a multiple of. */
#define {upper}_ARENA_SIZE {interface.arena_size}
#define {upper}_ARENA_ALIGNMENT GEMEDGE_ALIGNMENT
#define {upper}_LAYERS {interface.layers}

/* SHAPE and AXES are in the order of memory: AXES names the axis of the model, less its batch, that lies there. */
{macros}

/* GEMEDGE_OK, or what is wrong with the arguments; then nothing was written, or where GEMEDGE_INDEX_OUTSIDE is given,
   only the arena. */
int {name}_run({interface.parameters});

/* {upper}_ARENA_SIZE, for a program that is linked with the model and not compiled for it. */
size_t {name}_arena_size(void);

#ifdef GEMEDGE_OBSERVE
/* The same, and shows the numbers of each layer that makes any, as soon as they are made. */
int {name}_run_observed({interface.parameters},
    void (*observe)(int layer, const void *data, size_t bytes, void *context), void *context);

/* The layer's name in the model it was made from, "" where there is no such layer; long names are cut. */
const char *{name}_layer_name(int layer);
#endif

#ifdef __cplusplus
}}
#endif

#endif
"""

    def source(self) -> bytes:
        interface = self.interface
        name, upper = interface.name, interface.upper
        writer = Writer(self.model, self.orders, self.plan, self.fused, self.activation)
        calls = [self._layer(writer, index) for index in range(len(self.model.layers))]
        checks = " || ".join(f"!{border.parameter}" for border in interface.borders)
        copies_in = "".join(
            f"    memcpy(memory + {b.offset}, {b.parameter}, {arena.bytes_of(b.tensor)});\n" for b in interface.inputs
        )
        copies_out = "".join(
            f"    memcpy({b.parameter}, memory + {b.offset}, {arena.bytes_of(b.tensor)});\n" for b in interface.outputs
        )
        names = "".join(f'        "{escaped(layer.name)}",\n' for layer in self.model.layers)
        opening = f"""/* Generated by gemedge. */

#include "model.h"

#include "gemedge.h"

{c_sums.cmsis_nn_check(self.model)}
"""
        closing = f"""{writer.constants.reached}
#ifdef GEMEDGE_OBSERVE
#define SEEN(layer, data, bytes) if (observe) {{ observe(layer, data, bytes, context); }}
int {name}_run_observed({interface.parameters},
    void (*observe)(int layer, const void *data, size_t bytes, void *context), void *context)
#else
#define SEEN(layer, data, bytes) (void)0
int {name}_run({interface.parameters})
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
    if (size < {upper}_ARENA_SIZE) {{
        return GEMEDGE_ARENA_TOO_SMALL;
    }}
    if ((uintptr_t)arena & ({upper}_ARENA_ALIGNMENT - 1u)) {{
        return GEMEDGE_ARENA_MISALIGNED;
    }}
{copies_in}{"".join(calls)}{copies_out}    return GEMEDGE_OK;
}}

size_t {name}_arena_size(void) {{
    return {upper}_ARENA_SIZE;
}}

#ifdef GEMEDGE_OBSERVE
int {name}_run({interface.parameters}) {{
    return {name}_run_observed(arena, size, {interface.arguments}, 0, 0);
}}

const char *{name}_layer_name(int layer) {{
    static const char *const names[] = {{
{names}        ""}};
    return names[layer >= 0 && layer < {upper}_LAYERS ? layer : {upper}_LAYERS];
}}
#endif
"""
        return b"\n".join((opening.encode("ascii"), *writer.constants.definitions, closing.encode("ascii")))

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

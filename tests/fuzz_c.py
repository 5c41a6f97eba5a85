"""Fuzzes the C that gemedge writes with clang's libFuzzer and sanitizers: `python tests/fuzz_c.py -max_total_time=60`.

A model for each operator. The first bytes of an input choose one, how its arena is wrong, and which pointer is NULL;
the rest are the numbers it is given. Every buffer is as large as it must be and no larger, so that a byte outside is
seen. A run must give the status that its arguments deserve, the same outputs whatever the arena held before, and write
nothing where it refuses.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

from c_builds import written
from float_runs import float_tensors, ranges_of
from test_to_c import ALL_GRAPHS, captured_of

from gemedge.export.c_borders import bytes_per
from gemedge.fixed import Rounding
from gemedge.model import QuantizedModel
from gemedge.quant.quantize import quantize

SANITIZE = ["-g", "-O1", "-fsanitize=address,undefined,fuzzer-no-link", "-fno-sanitize-recover=all"]
SCHEMES = (("int8", Rounding.DOUBLE), ("int16x8", Rounding.SINGLE), ("q15", Rounding.SINGLE), ("q7", Rounding.SINGLE))
NETWORKS = ("mlp", "cnn", "conv1d", "gpt", "vit", "two inputs")

HARNESS = """#include <stdlib.h>
#include <string.h>
#include "gemedge.h"
{includes}
#define MOST_ENDS 8
struct model {{
    int (*run)(void *arena, size_t size, void *const *end);
    void (*floats)(const float *from, void *const *end);
    size_t arena, ends, inputs;
    size_t bytes[MOST_ENDS];
}};
{calls}
static const struct model models[] = {{
{rows}}};

static void check(int holds) {{
    if (!holds) abort();
}}

/* The bytes over and over, begun elsewhere for each seed. */
static void fill(void *to, size_t bytes, const uint8_t *data, size_t size, size_t seed) {{
    size_t i;
    for (i = 0; i < bytes; i++) ((uint8_t *)to)[i] = size ? data[(i + seed) % size] : (uint8_t)seed;
}}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {{
    const struct model *model;
    void *end[MOST_ENDS], *again[MOST_ENDS], *passed[MOST_ENDS];
    size_t i, shift, given, missing;
    uint8_t *memory;
    int status, wanted;
    if (size < 4) return 0;
    model = &models[data[0] % (sizeof models / sizeof *models)];
    shift = data[1] % 16u > 11u ? data[1] % 16u - 11u : 0u;     /* mostly aligned */
    given = data[2] > 200u ? model->arena - 1u - (data[2] - 201u) % model->arena : model->arena + data[2] % 3u;
    missing = data[3] > 230u ? data[3] % (model->ends + 1u) : MOST_ENDS + 1u;
    data += 4;
    size -= 4;
    memory = malloc(given + shift ? given + shift : 1);
    fill(memory, given + shift, data, size, 1);
    for (i = 0; i < model->ends; i++) {{
        end[i] = malloc(model->bytes[i]);
        again[i] = malloc(model->bytes[i]);
        fill(end[i], model->bytes[i], data, size, i + 2);
        memcpy(again[i], end[i], model->bytes[i]);
        passed[i] = i == missing ? NULL : end[i];
    }}
    wanted = missing <= model->ends ? GEMEDGE_NULL_POINTER
             : given < model->arena ? GEMEDGE_ARENA_TOO_SMALL
             : shift % 4u           ? GEMEDGE_ARENA_MISALIGNED
                                    : GEMEDGE_OK;
    status = model->run(missing == model->ends ? NULL : memory + shift, given, passed);
    check(status == wanted || (wanted == GEMEDGE_OK && status == GEMEDGE_INDEX_OUTSIDE));
    for (i = 0; i < model->ends; i++) {{
        check((status == GEMEDGE_OK && i >= model->inputs) || !memcmp(end[i], again[i], model->bytes[i]));
    }}
    if (status == GEMEDGE_OK) {{
        memset(memory, 0x5A, given + shift);
        for (i = 0; i < model->ends; i++) passed[i] = again[i];
        check(model->run(memory + shift, given, passed) == GEMEDGE_OK);
        for (i = 0; i < model->ends; i++) check(!memcmp(end[i], again[i], model->bytes[i]));
        if (model->floats) {{
            float *from = malloc(4 * model->bytes[0]);
            fill(from, 4 * model->bytes[0], data, size, 0);
            model->floats(from, end);
            free(from);
        }}
    }}
    for (i = 0; i < model->ends; i++) {{
        free(end[i]);
        free(again[i]);
    }}
    free(memory);
    return 0;
}}
"""


def models() -> Iterator[QuantizedModel]:
    """A few networks, and a model for each operator, in schemes by turns."""
    schemes = cycle(SCHEMES)
    for name in NETWORKS:
        graph, ranges, _ = captured_of(name)
        scheme, rounding = next(schemes)
        yield quantize(graph, ranges, scheme=scheme, rounding=rounding)
    for graph in ALL_GRAPHS.values():
        ranges = ranges_of(float_tensors(graph.model(), graph.inputs))
        scheme, rounding = next(schemes)
        yield quantize(graph.model(), ranges, scheme=scheme, rounding=rounding)


def harness(folder: Path, found: list[QuantizedModel]) -> str:
    includes, calls, rows = "", "", ""
    for index, model in enumerate(found):
        name = f"m{index}"
        written(model, folder / name, name)
        ends = [model.tensors[tensor] for tensor in (*model.inputs, *model.outputs.values())]
        types = [f"int{8 * bytes_per(tensor)}_t" for tensor in ends]
        arguments = ", ".join(f"({ctype} *)end[{i}]" for i, ctype in enumerate(types))
        includes += f'#include "{name}/model_float.h"\n'
        calls += f"static int run_{name}(void *arena, size_t size, void *const *end) {{\n"
        calls += f"    return {name}_run(arena, size, {arguments});\n}}\n"
        first = f"{name}_quantize_input{'_0' if len(model.inputs) > 1 else ''}"
        if ends[0].params is not None:
            calls += f"static void floats_{name}(const float *from, void *const *end) {{\n"
            calls += f"    {first}(from, ({types[0]} *)end[0]);\n}}\n"
        sizes = ", ".join(
            f"{name.upper()}_{border}_SIZE * sizeof({ctype})"
            for border, ctype in zip(borders(model), types, strict=True)
        )
        floats = f"floats_{name}" if ends[0].params is not None else "NULL"
        rows += (
            f"    {{run_{name}, {floats}, {name.upper()}_ARENA_SIZE, {len(ends)}, {len(model.inputs)}, {{{sizes}}}}},\n"
        )
    return HARNESS.format(includes=includes, calls=calls, rows=rows)


def borders(model: QuantizedModel) -> list[str]:
    numbered = (("INPUT", len(model.inputs)), ("OUTPUT", len(model.outputs)))
    return [f"{kind}_{i}" if count > 1 else kind for kind, count in numbered for i in range(count)]


def build(folder: Path) -> Path:
    """The fuzzer's program."""
    found = list(models())
    (folder / "harness.c").write_text(harness(folder, found))
    sources = ["harness.c", *(f"m{index}/model.c" for index in range(len(found)))]

    def compile_one(source: str) -> str:
        made = source.replace(".c", ".o")
        subprocess.run(["clang", *SANITIZE, "-Im0", "-c", source, "-o", made], cwd=folder, check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    subprocess.run(["clang", "-fsanitize=address,undefined,fuzzer", *objects, "-o", "fuzz"], cwd=folder, check=True)
    return folder / "fuzz"


def main() -> None:
    if not shutil.which("clang"):
        sys.exit("clang is not installed: the C is not fuzzed" if os.environ.get("CI") else 0)
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder, "seeds")
        seeds.mkdir()
        program = build(Path(folder))
        for index in range(len(list(Path(folder).glob("m*")))):
            (seeds / str(index)).write_bytes(bytes([index, 0, 0, 0]) + bytes(range(0, 256, 5)))
        sys.exit(subprocess.run([program, "-max_len=4096", *sys.argv[1:], seeds]).returncode)


if __name__ == "__main__":
    main()

# ruff: noqa: E501  a fault is one row
"""Faults planted one at a time in the C runtime and its generator: each must make a test fail.

    python tests/planted_faults.py [--jobs 2] [--only TEXT]

Each row changes one piece of text, which must be there exactly once, in a copy of the sources, and runs the tests that
should see it. Exits 1 where a fault survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from time import perf_counter

ROOT = Path(__file__).parents[1]
C, GENERATOR = "gemedge/export/c_runtime/", "gemedge/export/"
COPIED = ("gemedge", "tests", "benchmarks", "pyproject.toml")
ARITHMETIC = ["tests/test_c_runtime.py"]
OPERATORS = ["tests/test_to_c.py", "-k", "operator or moved"]
NETWORKS = ["tests/test_to_c.py", "-k", "layer or resnet20 or vectors or operator"]
QUICK = ["-m", "not exhaustive and not long"]
SUMS = ["tests/test_c_sums.py", *QUICK]
ACTIVATIONS = ["tests/test_c_activations.py", *QUICK]
FLOATS = ["tests/test_c_float.py"]
HELIUM = ["tests/test_c_helium.py", "-k", "every_code or numpys"]  # which need apt's gcc and QEMU
BORDERS = ["tests/test_to_c.py", "-k", "arena or outside or names or symbols or escaped or loops or bytes or vectors"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, in which file, by which change of text, and the tests that must see it."""

    what: str
    file: str
    old: str
    new: str
    tests: list[str]


FAULTS = [
    # numbers
    Fault("a rounding dropped", C + "gemedge_numbers.h", "(((int64_t)1 << shift) >> 1)) >> shift;\n}\n\n/* gemmlowp", "0) >> shift;\n}\n\n/* gemmlowp", ARITHMETIC),
    Fault("a shift off by one", C + "gemedge_numbers.h", "(sum * mantissa + (((int64_t)1 << shift) >> 1)) >> shift;", "(sum * mantissa + (((int64_t)1 << shift) >> 1)) >> (shift + 1u);", ARITHMETIC),
    Fault("gemmlowp's ties toward +infinity", C + "gemedge_numbers.h", "return high < 0 ? -((half - high) >> down) : (high + half) >> down;", "return (high + half) >> down;", ARITHMETIC),
    Fault("gemmlowp's first rounding dropped", C + "gemedge_numbers.h", "* mantissa + ((int64_t)1 << 30)) >> 31", "* mantissa) >> 31", ARITHMETIC),
    Fault("gemmlowp's left shift dropped", C + "gemedge_numbers.h", "shift < 31u ? 31u - shift : 0u", "0u", ARITHMETIC),
    Fault("one law for all", C + "gemedge_numbers.h", "law == GEMEDGE_DOUBLE ?", "law == 7u ?", ARITHMETIC),
    Fault("saturation below dropped", C + "gemedge_numbers.h", "shifted < low ? low : shifted > high", "shifted > high", ARITHMETIC),
    Fault("saturation above dropped", C + "gemedge_numbers.h", "shifted > high ? high : (int32_t)shifted", "(int32_t)shifted", ARITHMETIC),
    Fault("the output's zero point forgotten", C + "gemedge_numbers.h", "value + format.zero;", "value;", ARITHMETIC),
    Fault("16 bits saturated at -32767", C + "gemedge_numbers.h", "-(int32_t)32767 - 1", "-(int32_t)32767", ARITHMETIC),
    Fault("a quotient of one bit less", C + "gemedge_numbers.h", "divisor << (bits - 1u);", "divisor << (bits - 2u);", ARITHMETIC),
    Fault("a quotient that never meets equality", C + "gemedge_numbers.h", "if (number >= part)", "if (number > part)", ARITHMETIC),
    Fault("a root of the next number", C + "gemedge_numbers.h", "if (value >= trial)", "if (value > trial)", ARITHMETIC),
    Fault("a bit length of one less", C + "gemedge_numbers.h", "return bits + (value ? 1 : 0);", "return bits;", ARITHMETIC),
    Fault("a shift beyond 63", C + "gemedge_numbers.h", "value >> (shift > 63 ? 63 : shift)", "value >> (shift & 63)", ARITHMETIC),
    Fault("16-bit numbers read as bytes", C + "gemedge_numbers.h", "((const place gemedge_int16 *)data)[index];", "((const place int8_t *)data)[index];", OPERATORS),
    # loops
    Fault("a wrong stride back", C + "gemedge_loops.h", "step * (size - 1u)", "step * size", OPERATORS),
    Fault("a counter not begun again", C + "gemedge_loops.h", "        walk->count[axis] = 0;\n", "", OPERATORS),
    Fault("the inner step of the operand before", C + "gemedge_loops.h", "(operand + 1u) * loops->rank - 1u", "operand * loops->rank", OPERATORS),
    Fault("an input's zero point forgotten", C + "gemedge_loops.h", " - of->format.zero;", ";", OPERATORS),
    # one number at a time
    Fault("a table read one place late", C + "gemedge_elementwise.h", "centre = table + 128;", "centre = table + 129;", OPERATORS),
    Fault("a wide table read one place late", C + "gemedge_elementwise.h", "(uint32_t)(q + 128)", "(uint32_t)(q + 129)", ACTIVATIONS),
    Fault("interpolation rounded down", C + "gemedge_elementwise.h", "(position & 127u) + 64)", "(position & 127u))", OPERATORS),
    Fault("interpolation from the wrong side", C + "gemedge_elementwise.h", "(position >> 7) + 1u", "(position >> 7)", OPERATORS),
    Fault("a clamp without its upper end", C + "gemedge_elementwise.h", "q < low ? low : q > high ? high : q", "q < low ? low : q", OPERATORS),
    Fault("a sum rounded down", C + "gemedge_elementwise.h", "int64_t sum = ((int64_t)1 << shift) >> 1;", "int64_t sum = 0;", OPERATORS),
    Fault("a sum of absolute values", C + "gemedge_elementwise.h", "sum += by < 0 ? -part : part;", "sum += part;", OPERATORS),
    Fault("a gemmlowp sum without its left shift", C + "gemedge_elementwise.h", "* ((int64_t)1 << left)", "* 1", OPERATORS),
    Fault("a choice turned round", C + "gemedge_elementwise.h", "holds ? 0u : 1u", "holds ? 1u : 0u", OPERATORS),
    Fault("a product with itself", C + "gemedge_elementwise.h", "gemedge_centred(&of[1], walk.at[1] + i", "gemedge_centred(&of[0], walk.at[0] + i", OPERATORS),
    # windows
    Fault("a maximum that begins at 0", C + "gemedge_windows.h", "int32_t most = gemedge_lowest(bytes);", "int32_t most = 0;", NETWORKS),
    Fault("a minimum pool", C + "gemedge_windows.h", "most = q > most ? q : most;", "most = q < most ? q : most;", OPERATORS),
    Fault("a pool that ignores its padding", C + "gemedge_windows.h", "spot * window->stride[1] - window->pad[1] + j;\n                        if", "spot * window->stride[1] + j;\n                        if", OPERATORS),
    Fault("a mean that counts its padding", C + "gemedge_windows.h", "counts > 1u && count > 0u ? count - 1u : 0u", "counts > 1u ? counts - 1u : 0u", OPERATORS),
    Fault("a raw mean with ties to zero", C + "gemedge_windows.h", "+ (count >> 1);", "+ ((count - 1u) >> 1);", OPERATORS),
    Fault("a raw mean that loses its sign", C + "gemedge_windows.h", "sum < 0 ? -mean : mean", "mean", OPERATORS),
    Fault("a Softmax from the first number", C + "gemedge_windows.h", "if (q > top && (!mask", "if (i == 0u && (!mask", OPERATORS),
    Fault("a Softmax rounded down", C + "gemedge_windows.h", "(uint32_t)by->one + total, 2u * total", "(uint32_t)by->one, 2u * total", OPERATORS),
    Fault("a Softmax without its mask", C + "gemedge_windows.h", "            if (!mask || mask[walk.at[2] + i * step[2]]) {\n                const int32_t q = gemedge_get(in, walk.at[0] + i * step[0], bytes);\n                total", "            if (1) {\n                const int32_t q = gemedge_get(in, walk.at[0] + i * step[0], bytes);\n                total", NETWORKS),
    Fault("an exponential rounded down", C + "gemedge_windows.h", "(product + (((uint64_t)1 << by->shift) >> 1)) >> by->shift", "product >> by->shift", OPERATORS),
    Fault("a LayerNormalization without its epsilon", C + "gemedge_windows.h", "- total * total + epsilon;", "- total * total + 1;", OPERATORS),
    Fault("a LayerNormalization without its mean", C + "gemedge_windows.h", "(int64_t)size * q - total;", "(int64_t)size * q;", OPERATORS),
    Fault("a LayerNormalization rounded down", C + "gemedge_windows.h", "(norm * mantissa[i] + bias[i] + half) >> shift", "(norm * mantissa[i] + bias[i]) >> shift", OPERATORS),
    # moving
    Fault("numbers copied to the next place", C + "gemedge_moving.h", "walk.at[1] + i * gemedge_inner_step(loops, 1), bytes,\n                        gemedge_get(in, walk.at[0]", "walk.at[1] + (i ^ 1u) * gemedge_inner_step(loops, 1), bytes,\n                        gemedge_get(in, walk.at[0]", OPERATORS),
    Fault("a part taken from the wrong row", C + "gemedge_moving.h", "(i * axis + places[j]) * size", "(i + places[j]) * size", OPERATORS),
    Fault("a row outside its table read", C + "gemedge_moving.h", "index < 0 || index >= rows", "index < 0 || index > rows", BORDERS),
    Fault("a row before its table read", C + "gemedge_moving.h", "if (index < 0 || index >= rows)", "if (index >= rows)", BORDERS),
    Fault("one number filled too few", C + "gemedge_moving.h", "for (i = 0; i < count; i++) {\n        gemedge_put(out, i, bytes, value);", "for (i = 1; i < count; i++) {\n        gemedge_put(out, i, bytes, value);", OPERATORS),
    # 16-bit activations by the general kernel
    Fault("a reciprocal one step too coarse", C + "gemedge_rational.h", "const int64_t correction = error + ((error * error) >> 31);", "const int64_t correction = 0;", ARITHMETIC),
    Fault("no remainder", C + "gemedge_rational.h", "return estimate + (remainder < 0 ? 0 : 1);", "return estimate;", ARITHMETIC),
    Fault("a tie rounded down", C + "gemedge_rational.h", "(remainder < 0 ? 0 : 1)", "(remainder <= 0 ? 0 : 1)", ARITHMETIC),
    Fault("an exception forgotten", C + "gemedge_rational.h", "if (kernel->exception[i].code == x)", "if (kernel->exception[i].code == x + 1)", ARITHMETIC),
    Fault("a piece that ends one code late", C + "gemedge_rational.h", "u < side->piece[i].stop", "u <= side->piece[i].stop", ARITHMETIC),
    Fault("0 on the positive side", C + "gemedge_rational.h", "gemedge_side *side = x > 0 ?", "gemedge_side *side = x >= 0 ?", ARITHMETIC),
    Fault("an activation that wraps", C + "gemedge_rational.h", "return y < low ? low : y > high ? high : (int32_t)y;", "return (int32_t)(int16_t)y;", ARITHMETIC),
    # the generator
    Fault("channels first where a convolution reads", GENERATOR + "layout.py", "return (*range(1, axes), 0) if last and axes else tuple(range(axes))", "return tuple(range(axes))", NETWORKS),
    Fault("broadcasting that moves on", GENERATOR + "layout.py", "own = [0 if size == 1 else step", "own = [step if size == 1 else step", OPERATORS),
    Fault("loops joined that are not neighbours", GENERATOR + "layout.py", "outer == inner * size for", "outer >= inner * size for", OPERATORS),
    Fault("residuals in two orders", GENERATOR + "layout.py", "            group[head(name)] = head(layer.output)\n", "            pass\n", NETWORKS),
    Fault("a Reshape never moved", GENERATOR + "c_moving.py", "return not same_in_memory(given.shape, orders[given.name], made.shape, orders[made.name])", "return False", NETWORKS),
    Fault("padding that begins at 0", GENERATOR + "c_moving.py", "to.steps(given), own, (0, start))", "to.steps(given), own, (0, 0))", OPERATORS),
    Fault("parts of a concatenation over each other", GENERATOR + "c_moving.py", "        start += tensor.shape[layer.axis]\n", "", OPERATORS),
    Fault("a slice from the first place", GENERATOR + "c_moving.py", "(places[0] * own[layer.axis], 0))", "(0, 0))", OPERATORS),
    Fault("a strided slice without its stride", GENERATOR + "c_moving.py", "step * stride if axis == layer.axis else step", "step", OPERATORS),
    Fault("zero points left out of formats", GENERATOR + "c_writer.py", "0 if tensor.params is None else tensor.params.zero_point", "0", OPERATORS),
    Fault("the other rounding law", GENERATOR + "c_writer.py", '"GEMEDGE_DOUBLE" if gemmlowp else "GEMEDGE_SINGLE"', '"GEMEDGE_SINGLE"', NETWORKS),
    Fault("two constants under one name", GENERATOR + "c_constants.py", "while name in self._taken:", "while False:", OPERATORS),
    Fault("-2^63 not written", GENERATOR + "c_constants.py", 'if value == -(1 << 31):', "if value == 1:", OPERATORS),
    Fault("an arena of one byte less", GENERATOR + "to_c.py", "max(self.plan.size, 1),", "max(self.plan.size - 1, 1),", BORDERS),
    Fault("an arena's size not checked", GENERATOR + "to_c.py", "if (size < {upper}_ARENA_SIZE)", "if (size < 1u)", BORDERS),
    Fault("an arena's alignment not checked", GENERATOR + "to_c.py", "if ((uintptr_t)arena & ({upper}_ARENA_ALIGNMENT - 1u))", "if ((uintptr_t)arena & 0u)", BORDERS),
    Fault("names not escaped", GENERATOR + "to_c.py", 'f"\\\\{b:03o}" for b in content', "chr(b) for b in content", BORDERS),
    # sums of products
    Fault("a product of halves without its carry", C + "gemedge_rescale.h", "(middle >> 16) + (int32_t)(rest >> 16)", "(middle >> 16)", SUMS),
    Fault("a doubled product rounded down", C + "gemedge_rescale.h", "* b + ((int64_t)1 << 30)) >> 31)", "* b) >> 31)", SUMS),
    Fault("a far shift rounded down", C + "gemedge_rescale.h", "(shift - 33u)) + 2 * zero + 1) >> 1", "(shift - 33u)) + 2 * zero) >> 1", SUMS),
    Fault("gemmlowp's far shift with ties toward +infinity", C + "gemedge_rescale.h", "((high - (int32_t)((uint32_t)high >> 31)) >> (shift - 32u))", "(high >> (shift - 32u))", SUMS),
    Fault("a fused table read one place early", C + "gemedge_rescale.h", "by->table ? by->table[q + 128] : q", "by->table ? by->table[q + 127] : q", SUMS),
    Fault("a fused table forgotten", C + "gemedge_rescale.h", "*to = table ? table[q] : (int8_t)q;", "*to = (int8_t)q;", SUMS),
    Fault("16-bit sums without saturation", C + "gemedge_rescale.h", "*to = (gemedge_int16)gemedge_saturated(q, lowest, 32767);", "*to = (gemedge_int16)q;", SUMS),
    Fault("padding that is 0 and not the zero point", C + "gemedge_sums_of.h", "blank[channel] = (GEMEDGE_INPUT)zero;", "blank[channel] = (GEMEDGE_INPUT)0;", SUMS),
    Fault("a row of padding that is 0", C + "gemedge_sums_of.h", "for (k = 0; k < taps; k++) {\n                to[k] = (gemedge_int16)zero;", "for (k = 0; k < taps; k++) {\n                to[k] = 0;", SUMS),
    Fault("the same weights for two channels", C + "gemedge_sums_of.h", "                    weight = other + depth;\n", "                    weight = weight + depth;\n", SUMS),
    Fault("a depthwise convolution with the first channels' weights", C + "gemedge_sums_of.h", "weights + channel + k, channels, sums + k);", "weights + k, channels, sums + k);", SUMS),
    Fault("a dense row that is not gathered", C + "gemedge_sums_of.h", "if (in_step != 1u)", "if (in_step == 0u)", NETWORKS),
    Fault("the odd channel's sum with the even one's in it", C + "gemedge_packed_dsp.h", "(int32_t)((uint32_t)both - (uint32_t)even) >> 8", "both >> 8", SUMS),
    Fault("a packed window that begins too early", C + "gemedge_packed.h", "window->dilation[1] == 1 && group_in == channels && left >= 0 && left", "window->dilation[1] == 1 && group_in == channels && left", SUMS),
    Fault("zero points added to biases", GENERATOR + "c_sums.py", "layer.bias.astype(np.int64) - zero * weights", "layer.bias.astype(np.int64) + zero * weights", SUMS),
    Fault("packed pairs of channels turned round", GENERATOR + "c_sums.py", "parts[:, :, :, 0] + 256 * parts[:, :, :, 1]", "parts[:, :, :, 1] + 256 * parts[:, :, :, 0]", SUMS),
    Fault("a sum fused that others read", GENERATOR + "c_sums.py", " if over.get(reader.output) == layer.output:", " if reader:", SUMS),
    # 16-bit activations by short forms
    Fault("a reciprocal's line followed half as far", C + "gemedge_activation.h", "((d.m >> 14) & 4095u)", "((d.m >> 15) & 4095u)", ACTIVATIONS),
    Fault("no correction of a reciprocal", C + "gemedge_activation.h", "return g - gemedge_upper_half(g, gemedge_upper_half(d.m, r));", "return g;", ACTIVATIONS),
    Fault("a first bit looked for one too far", C + "gemedge_activation.h", "word >> (32u - step) ?", "word >> (31u - step) ?", ACTIVATIONS),
    Fault("a compact kernel that wraps", C + "gemedge_activation.h", "(int16_t)(by->saturates ? gemedge_saturated_short(y) : y)", "(int16_t)y", ACTIVATIONS),
    Fault("no remainder behind a table of the fraction", C + "gemedge_activation.h", "return (int32_t)u - k - (int32_t)(remainder >> 31);", "return (int32_t)u - k;", ACTIVATIONS),
    # floats
    Fault("ties away from even", C + "gemedge_float.h", "(whole > twice * under.mantissa || (twice & 2u))", "(whole > twice * under.mantissa || !(twice & 2u))", FLOATS),
    Fault("negative numbers quantized as positive", C + "gemedge_float.h", "q += bits >> 31 ? -size : size;", "q += size;", FLOATS),
    # vectors
    Fault("a carry dropped", C + "gemedge_helium.h", "        if ((uint32_t)by->power) {\n", "        if (0) {\n", HELIUM),
    Fault("a segment that is 32 too high", C + "gemedge_helium.h", "- sizeof gemedge_lines);", "- 0);", HELIUM),
    Fault("odd lanes stored as even ones", C + "gemedge_helium.h", "gemedge_compact_four(vmovltq_s16(x), by)", "gemedge_compact_four(vmovlbq_s16(x), by)", HELIUM),
    Fault("vectors without the correction", C + "gemedge_helium.h", "return vsubq_u32(g, vmulhq_u32(g, vmulhq_u32(d.m, r)));", "return g;", HELIUM),
    Fault("a whole vector stored where less is left", C + "gemedge_helium.h", "        vstrhq_p_s16(to, x, some);", "        vstrhq_s16(to, x);", HELIUM),
    Fault("lanes beyond the depth", C + "gemedge_blocks_helium.h", "vctp16q((uint32_t)depth);", "vctp16q((uint32_t)depth + 1u);", HELIUM),
    Fault("the second channel's sum lost", C + "gemedge_blocks_helium.h", "d = add(d, right, two);", "d = add(d, right, one);", HELIUM),
    Fault("a row's weights two bytes apart", C + "gemedge_blocks_helium.h", "one += 8u * weight_size;", "one += 16u;", HELIUM),
]  # fmt: skip


@contextmanager
def planted(fault: Fault, copy: Path) -> Iterator[None]:
    """The copy with this fault in it."""
    path = copy / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        raise SystemExit(
            f"{fault.what}: {fault.file} has its text {text.count(fault.old)} times; it must be there once"
        )
    path.write_text(text.replace(fault.old, fault.new))
    try:
        yield
    finally:
        path.write_text(text)


def survives(fault: Fault, copy: Path) -> bool:
    with planted(fault, copy):
        run = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *fault.tests]
        done = subprocess.run(run, cwd=copy, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode in (2, 3, 4, 5) and " failed" not in done.stdout:  # no test ran: the row is wrong
        raise SystemExit(f"{fault.what}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant faults one at a time; each must make a test fail.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="faults whose description or file holds this")
    asked = parser.parse_args()
    faults = [fault for fault in FAULTS if asked.only in fault.what or asked.only in fault.file]
    copies: Queue[Path] = Queue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(asked.jobs) as pool:
        for job in range(asked.jobs):
            copy = Path(folder) / str(job)
            copy.mkdir()
            for source in (ROOT / name for name in COPIED):
                (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / source.name)
            copies.put(copy)

        def judged(fault: Fault) -> tuple[bool, float]:
            copy, begin = copies.get(), perf_counter()
            try:
                return survives(fault, copy), perf_counter() - begin
            finally:
                copies.put(copy)

        left = []
        for fault, (lives, seconds) in zip(faults, pool.map(judged, faults), strict=True):
            file = fault.file.rpartition("/")[2]
            print(f"{'SURVIVES' if lives else 'found':<9}{seconds:4.0f} s  {file:<24}{fault.what}", flush=True)
            left += [fault] if lives else []
    print(f"{len(faults) - len(left)} of {len(faults)} planted faults make a test fail")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())

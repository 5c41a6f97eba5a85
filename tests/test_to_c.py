"""Exported C gives simulate's integers at every layer, and refuses what it cannot run in."""

import re
import subprocess
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from c_builds import STRICT, Built, compiled, written
from float_runs import float_tensors, ranges_of
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from networks import MLPERF_TINY, NETWORKS
from test_arena import BYTE, networks
from test_arena import Graph as ArenaGraph
from test_operators import GRAPHS, Graph, i64, normal
from test_simulate import MAKERS

import gemedge.nn as gnn
from gemedge.capture import capture_module
from gemedge.errors import DataError, UnsupportedError
from gemedge.export import layout
from gemedge.export.c_constants import Constants
from gemedge.export.to_c import RUNTIME, Vectors, escaped, symbol, to_c
from gemedge.fixed import QuantParams, Rounding
from gemedge.model import SCHEMES, QuantizedModel
from gemedge.moving import Clamp, Embed
from gemedge.operators import Combine
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import border, entered, simulate

CASES = [(scheme, Rounding.SINGLE) for scheme in SCHEMES] + [("int8", Rounding.DOUBLE)]
SMALL = ("mlp", "cnn", "mobilenet", "conv1d", "two inputs", "vit", "gpt")


def captured_of(name: str):
    """A network's float graph, its ranges, and inputs by name."""
    if name in MAKERS:
        torch.manual_seed(3)
        model, x = MAKERS[name]()
        given = {"x": x}
        found = capture_module(model.eval(), x[:1], opset=20)
        given = {found.model.graph.inputs[0].name: x.numpy()}
    else:
        network = (NETWORKS | MLPERF_TINY)[name]
        model = network.model(lambda: gnn.GEM(1) if name != "mobilenet" else gnn.SEGEM(1, 0.1))
        inputs = network.inputs(batch=2)
        found = capture_module(model, {k: v[:1] for k, v in inputs.items()}, opset=20)
        given = {k: v.numpy() for k, v in inputs.items()}
    return found.model, ranges_of(float_tensors(found.model, given)), given


@pytest.fixture(scope="module", params=[f"simulated {name}" for name in MAKERS] + list(SMALL))
def network(request):
    return captured_of(request.param.removeprefix("simulated "))


def compare(model: QuantizedModel, given: dict[str, np.ndarray], built: Built, samples: int) -> int:
    """Every layer of each sample; how many layers were seen."""
    names = [layer.name for layer in model.layers]
    few = {name: array[:samples] for name, array in given.items()}
    wanted = simulate(model, few, layers=names, raw=True)
    integers = entered(model, border(model, few), Counter())
    seen = 0
    for sample in range(samples):
        result = built.run({name: array[sample] for name, array in integers.items()})
        assert result.status == 0
        for name, array in (*result.layers.items(), *result.outputs.items()):
            np.testing.assert_array_equal(array, wanted[name][sample], name)
        seen = len(result.layers)
    return seen


@pytest.mark.parametrize(("scheme", "rounding"), CASES)
def test_every_layer_has_the_simulators_integers(network, scheme, rounding, tmp_path):
    graph, ranges, given = network
    model = quantize(graph, ranges, scheme=scheme, rounding=rounding)
    assert compare(model, given, Built(model, tmp_path), samples=2) >= 3


IMAGE = {"x": normal(2, 4, 9, 11)}
CONVOLVED = {"w": normal(6, 4, 2, 3), "b": normal(6)}
CHANNELS_LAST = {  # what each kernel does where the numbers of a row do not lie side by side
    "dilated unevenly": Graph(
        "y = Conv <dilations = [3, 2], strides = [1, 2], pads = [1, 0, 2, 3]> (x, w, b)", IMAGE, CONVOLVED
    ),
    "depthwise dilated unevenly": Graph(
        "y = Conv <dilations = [2, 3], strides = [2, 1], pads = [0, 2, 3, 1], group = 4> (x, w)",
        IMAGE,
        {"w": normal(4, 1, 3, 2)},
    ),
    "signal dilated": Graph(
        "y = Conv <dilations = [2], strides = [2], pads = [3, 1]> (x, w)",
        {"x": normal(2, 3, 17)},
        {"w": normal(5, 3, 4)},
    ),
    "largest of uneven windows": Graph(
        "y = MaxPool <kernel_shape = [2, 3], strides = [3, 2], pads = [1, 0, 0, 2]> (x)", IMAGE
    ),
    "mean of uneven windows": Graph(
        "y = AveragePool <kernel_shape = [3, 2], strides = [2, 3], pads = [0, 1, 2, 0]> (x)", IMAGE
    ),
    "mean with its padding": Graph(
        "y = AveragePool <kernel_shape = [3, 2], pads = [2, 1, 0, 0], count_include_pad = 1> (x)", IMAGE
    ),
    "softmax": Graph("c = Conv (x, w, b) y = Softmax <axis = -1> (c)", IMAGE, CONVOLVED),
    "layer norm": Graph(
        "c = Conv (x, w, b) y = LayerNormalization (c, g, h)",
        IMAGE,
        CONVOLVED | {"g": normal(9), "h": normal(9)},
    ),
    "product": Graph("c = Conv (x, w, b) t = Transpose <perm = [0, 1, 3, 2]> (c) y = MatMul (c, t)", IMAGE, CONVOLVED),
    "dense": Graph("c = Conv (x, w, b) y = MatMul (c, k)", IMAGE, CONVOLVED | {"k": normal(9, 5)}),
    "broadcast": Graph(
        "c = Conv (x, w, b) d = Add (c, k) e = Mul (d, m) y = Sub (e, c)",
        IMAGE,
        CONVOLVED | {"k": normal(6, 1, 9), "m": normal(8, 1)},
    ),
    "chosen": Graph(
        "c = Conv (x, w, b) y = Where (q, c, k)",
        IMAGE,
        CONVOLVED | {"q": np.arange(54).reshape(6, 1, 9) % 3 == 0, "k": normal(8, 1)},
    ),
    "side by side along the width": Graph(
        "c = Conv (x, w, b) d = Relu (c) y = Concat <axis = 3> (c, d, c)", IMAGE, CONVOLVED
    ),
    "places of the height in any order": Graph(
        "c = Conv (x, w, b) y = Gather <axis = 2> (c, i)", IMAGE, CONVOLVED | {"i": i64(3, 0, 5, 5, 1)}
    ),
    "channels backwards": Graph(
        "c = Conv (x, w, b) y = Slice (c, from, to, axes, step)",
        IMAGE,
        CONVOLVED | {"from": i64(-1), "to": i64(-99), "axes": i64(1), "step": i64(-2)},
    ),
    "axes turned": Graph("c = Conv (x, w, b) y = Transpose <perm = [0, 3, 1, 2]> (c)", IMAGE, CONVOLVED),
    "shape that nothing divides": Graph(
        "c = Conv (x, w, b) y = Reshape (c, s)", IMAGE, CONVOLVED | {"s": i64(0, 27, 16)}
    ),
    "padded": Graph("c = Conv (x, w, b) y = Pad (c, p)", IMAGE, CONVOLVED | {"p": i64(0, 1, 2, 0, 0, 2, 0, 3)}),
}
ALL_GRAPHS = GRAPHS | {f"channels last: {name}": graph for name, graph in CHANNELS_LAST.items()}


@pytest.mark.parametrize("name", ALL_GRAPHS)
@pytest.mark.parametrize(("scheme", "rounding"), [("int8", Rounding.DOUBLE), ("int16x8", Rounding.SINGLE)])
def test_every_operator_has_the_simulators_integers(name, scheme, rounding, tmp_path):
    graph = ALL_GRAPHS[name]
    ranges = ranges_of(float_tensors(graph.model(), graph.inputs))
    model = quantize(graph.model(), ranges, scheme=scheme, rounding=rounding)
    compare(model, dict(graph.inputs), Built(model, tmp_path, ("-O0",)), samples=2)


def test_resnet20_has_the_simulators_integers(tmp_path):
    graph, ranges, given = captured_of("resnet20")
    model = quantize(graph, ranges, scheme="int8", rounding=Rounding.DOUBLE)
    assert compare(model, given, Built(model, tmp_path, ("-O2",)), samples=1) > 40


@settings(max_examples=12, deadline=None)
@drawn(graphs=networks(), seed=st.integers(0, 99))
def test_numbers_moved_between_layouts_arrive(graphs, seed, tmp_path_factory):
    """What a Clamp touches lies channels last here, so that all the operators that move numbers meet both layouts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_LAST", (Clamp,))
        layers = tuple(replace(x, shift=np.array(0)) if isinstance(x, Combine) else x for x in graphs.layers)
        graphs = replace(graphs, layers=layers)
        built = Built(graphs, tmp_path_factory.mktemp("moved"), ("-O0",))
        rng = np.random.default_rng(seed)
        given = {name: rng.integers(-100, 100, (1, *graphs.tensors[name].shape)) for name in graphs.inputs}
        assert compare(graphs, given, built, samples=1) >= 0


def main_of(model: QuantizedModel) -> str:
    """A program that runs the test vectors and returns how many of the outputs differ."""
    (tensor,) = model.outputs.values()
    ctype = f"int{model.tensors[tensor].quantized.bits}_t"
    return f"""#include "model.h"
#include "test_vectors.h"
static uint32_t arena[(NET_ARENA_SIZE + 3) / 4];
int main(void) {{
    static {ctype} out[NET_OUTPUT_SIZE];
    int wrong = 0;
    uint32_t i, k;
    for (i = 0; i < NET_TEST_VECTORS; i++) {{
        if (net_run(arena, sizeof arena, NET_INPUT_VECTORS + i * NET_INPUT_SIZE, out) != GEMEDGE_OK) {{
            return 100;
        }}
        for (k = 0; k < NET_OUTPUT_SIZE; k++) {{
            wrong += out[k] != NET_OUTPUT_VECTORS[i * NET_OUTPUT_SIZE + k];
        }}
    }}
    return wrong > 99 ? 99 : wrong;
}}
"""


SANITIZED = ["-g", "-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover=all"]


@pytest.mark.parametrize("name", ["cnn", "conv1d", "vit"])
@pytest.mark.parametrize(("scheme", "rounding"), [("int8", Rounding.DOUBLE), ("q15", Rounding.SINGLE)])
def test_the_test_vectors_pass_under_sanitizers_and_a_wrong_one_fails(name, scheme, rounding, tmp_path):
    graph, ranges, given = captured_of(name)
    model = quantize(graph, ranges, scheme=scheme, rounding=rounding)
    inputs = entered(model, border(model, given), Counter())
    outputs = simulate(model, given, raw=True)
    written(model, tmp_path, vectors=Vectors(inputs, outputs))
    (tmp_path / "main.c").write_text(main_of(model))
    compiled([*STRICT, *SANITIZED, "model.c", "main.c", "-o", "net"], tmp_path)
    assert subprocess.run([tmp_path / "net"], capture_output=True).returncode == 0
    (output,) = outputs
    outputs[output][1, ...] ^= 1
    written(model, tmp_path, vectors=Vectors(inputs, outputs))
    compiled(["-std=c99", "model.c", "main.c", "-o", "net"], tmp_path)
    assert subprocess.run([tmp_path / "net"]).returncode == min(99, outputs[output][1].size)


@pytest.fixture(scope="module")
def small():
    graph, ranges, given = captured_of("mlp")
    return quantize(graph, ranges, scheme="int8", rounding=Rounding.SINGLE), given


@pytest.mark.parametrize(("size", "shift", "status"), [(-1, 0, 1), (None, 1, 2), (None, 2, 2), (0, 0, 1)])
def test_an_arena_too_small_or_misaligned_is_an_error_code_and_nothing_is_written(small, size, shift, status, tmp_path):
    model, given = small
    built = Built(model, tmp_path)
    sample = {name: array[0] for name, array in entered(model, border(model, given), Counter()).items()}
    wanted = None if size is None else (built.arena_size + size if size < 0 else size)
    result = built.run(sample, size=wanted, shift=shift)  # it looks around the arena
    assert (result.status, result.layers) == (status, {})


@pytest.mark.parametrize("index", [-1, 50, 2**31 - 1, -(2**31)])
def test_an_index_outside_its_table_is_an_error_code(index, tmp_path):
    graph, ranges, given = captured_of("gpt")
    model = quantize(graph, ranges, scheme="int8", rounding=Rounding.SINGLE)
    tokens = next(iter(given.values()))[0].copy()
    tokens[3] = index
    assert Built(model, tmp_path).run({model.inputs[0]: tokens}).status == 4


HOSTILE = [
    'x"); system("true',
    "*/ int pwned; /*",
    "back\\",
    "%s%n",
    "??/",
    "int",
    "main",
    "schön",
    "a\nb",
    "",
    "a.b",
    "a_b",
    "../up",
    "<script>",
    "\x1b[2J",
    "x" * 10_000,
]


def test_hostile_names_of_layers_are_text_in_c(small, tmp_path):
    model, given = small
    names = (HOSTILE * 2)[: len(model.layers)]
    for start in range(0, len(HOSTILE), len(model.layers)):
        names = [f"{name}{'' if start + i < len(HOSTILE) else i}" for i, name in enumerate(HOSTILE[start:] + HOSTILE)]
        layers = tuple(replace(layer, name=name) for layer, name in zip(model.layers, names, strict=False))
        renamed = replace(model, layers=layers)
        folder = tmp_path / str(start)
        built = Built(renamed, folder)
        assert [built.layer_name(i) for i in range(len(layers))] == [n.encode()[:200] for n in names[: len(layers)]]
        assert compare(renamed, given, built, samples=1) == len(layers)
        assert b"pwned; /*" not in (folder / "model.c").read_bytes()


@pytest.mark.parametrize(
    ("name", "reduced"),
    [
        ("Net", "net"),
        ("my net-v2.gemq", "my_net_v2_gemq"),
        ('x"); system("', "x_system"),
        ("../../etc", "etc"),
        ("8bit", "m_8bit"),
        ("", "m"),
        ("şığ", "m"),
        ("_x", "x"),
        ("a" * 99, "a" * 40),
    ],
)
def test_symbols_are_letters_and_digits(name, reduced):
    assert symbol(name) == reduced


def test_a_name_is_escaped_byte_by_byte():
    assert escaped('a"\\?\n%') == r"a\042\134\077\012\045"


def test_the_same_model_gives_the_same_bytes(small):
    model, _ = small
    assert to_c(model, "net") == to_c(model, "net")


def test_two_models_live_in_one_program_and_in_cplusplus(small, tmp_path):
    model, _ = small
    for name in ("one", "two"):
        written(model, tmp_path / name, name)
    (tmp_path / "main.cc").write_text(
        '#include "one/model.h"\n#include "two/model.h"\n'
        "int main() {\n"
        "    const bool sized = one_arena_size() == ONE_ARENA_SIZE && two_arena_size() == TWO_ARENA_SIZE;\n"
        "    return sized && one_run(0, 0, 0, 0) == two_run(0, 0, 0, 0) ? 0 : 1;\n"
        "}\n"
    )
    for name in ("one", "two"):
        compiled([*STRICT, "-c", f"{name}/model.c", "-o", f"{name}.o"], tmp_path)
    compiled(["-x", "c++", "-Wall", "-Wextra", "-Werror", "-c", "main.cc", "-o", "main.o"], tmp_path)
    compiled(["-x", "c++", "-Wall", "-Wextra", "-Werror", "-c", "one/model.c", "-o", "again.o"], tmp_path)
    compiled(["main.o", "one.o", "two.o", "-o", "both"], tmp_path)
    assert subprocess.run([tmp_path / "both"]).returncode == 0


def test_the_c_has_no_float_no_malloc_no_division(small):
    model, _ = small
    files = to_c(model, "net")
    headers = b"".join(files[file] for file in RUNTIME)
    text = (headers + files["model.c"]).decode()
    code = re.sub(r"/\*.*?\*/|\"[^\"\n]*\"", "", text, flags=re.DOTALL)
    assert not re.findall(r"\b(?:float|double|malloc|free)\b|[/%]", code)
    assert set(re.findall(rb"#include (<.*)", headers)) == {
        *(b"<arm_acle.h>", b"<arm_mve.h>", b"<immintrin.h>"),  # the compiler's own, for its CPU
        *(b"<stddef.h>", b"<stdint.h>", b"<string.h>"),
    }


def test_vectors_that_do_not_fit_are_named(small):
    model, _ = small
    with pytest.raises(DataError, match=r"test vectors for '\w+' do not fit its shape"):
        to_c(model, "net", Vectors({}, {}))


def many_operands() -> QuantizedModel:
    graph = ArenaGraph()
    model = graph.model(graph.sum(*(graph.given((2,)) for _ in range(8))))
    return replace(model, layers=(replace(model.layers[0], shift=np.array(0)),))


def deep_table() -> QuantizedModel:
    graph = ArenaGraph()
    return graph.model(graph.add(Embed, [graph.given((4,), None)], np.zeros((5, 2, 3), np.int8), params=BYTE))


def wide() -> QuantizedModel:
    graph = ArenaGraph()
    return graph.model(graph.given((2,), QuantParams(1.0, 0, 32)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (many_operands, r"layer 'layer t0' \(Combine\) in C: 9 operands in 1 loops; 8 in 8 at most"),
        (deep_table, r"layer 'layer t0' \(Embed\) in C: a table of shape \[5, 2, 3\]; its rows may have one axis"),
        (wide, "tensor 'in0' has 32 bits; C takes 8 and 16"),
    ],
)
def test_what_has_no_c_is_refused_by_name(make, message):
    with pytest.raises(UnsupportedError, match=message):
        to_c(make(), "net")


@pytest.mark.parametrize(
    ("operands", "order", "sizes", "moves"),
    [
        ([(12, 4, 1), (12, 4, 1)], (0, 1, 2), (24,), ((1,), (1,))),
        ([(12, 4, 1), (0, 4, 1)], (0, 1, 2), (2, 12), ((12, 1), (0, 1))),
        ([(1, 8, 2), (1, 8, 2)], (1, 2, 0), (24,), ((1,), (1,))),
        ([(0, 0, 0), (12, 4, 1)], (0, 1, 2), (24,), ((0,), (1,))),
    ],
)
def test_loops_that_visit_neighbours_are_one_loop(operands, order, sizes, moves):
    assert layout.loops((2, 3, 4), operands, order) == layout.Loops(sizes, moves)


def test_constants_of_one_operator_have_names_of_their_own():
    constants = Constants()
    constants.prefix = "L0_dense"
    first, second = (constants.array("weight", "int8_t", numbers) for numbers in ([1, 2], [3]))
    assert first != second
    assert constants.array("weight", "int8_t", [1, 2]) == first

"""The arena's plan: nothing that is still needed is ever overwritten, shown by running each plan on tagged bytes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemedge import arena
from gemedge.errors import FormatError, PromiseError
from gemedge.fixed import QuantParams, Rounding
from gemedge.model import QuantizedModel
from gemedge.moving import Clamp, Concatenate, Constant, Reshape, Take, Transpose
from gemedge.operators import Combine, Tensor

BYTE, WORD = QuantParams(1.0, 0, 8), QuantParams(1.0, 0, 16)


class Graph:
    """Builds a network of small operators, one at a time."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.layers: list = []
        self.inputs: list[str] = []

    def given(self, shape: tuple[int, ...], params: QuantParams = BYTE) -> str:
        self.inputs.append(self._tensor(f"in{len(self.inputs)}", shape, params))
        return self.inputs[-1]

    def add(self, kind: type, inputs: list[str], *fields: object, params: QuantParams | None = None) -> str:
        name = f"t{len(self.layers)}"
        layer = kind(f"layer {name}", tuple(inputs), name, *fields)
        shape = layer.output_shape([self.tensors[given].shape for given in inputs])
        self.layers.append(layer)
        return self._tensor(name, shape, params or self.tensors[inputs[0]].params)

    def _tensor(self, name: str, shape: tuple[int, ...], params: QuantParams | None) -> str:
        self.tensors[name] = Tensor(name, shape, params)
        return name

    def model(self, *outputs: str) -> QuantizedModel:
        named = {f"out {name}": name for name in outputs}
        return QuantizedModel("int8", Rounding.SINGLE, tuple(self.inputs), named, self.tensors, tuple(self.layers))

    # One row for each way in which memory is used

    def clamp(self, tensor: str) -> str:
        return self.add(Clamp, [tensor], -5, 5)

    def sum(self, *tensors: str, params: QuantParams = BYTE) -> str:
        return self.add(Combine, list(tensors), np.ones(len(tensors), np.int64), np.array([0]), params=params)

    def flat(self, tensor: str) -> str:
        shape = self.tensors[tensor].shape
        return self.add(Reshape, [tensor], (int(np.prod(shape)),))

    def turned(self, tensor: str) -> str:
        return self.add(Transpose, [tensor], tuple(range(len(self.tensors[tensor].shape)))[::-1])

    def half(self, tensor: str) -> str:
        return self.add(Take, [tensor], 0, np.arange((self.tensors[tensor].shape[0] + 1) // 2))

    def twice(self, tensor: str) -> str:
        return self.add(Concatenate, [tensor, tensor], 0, np.ones(2, np.int64), np.zeros(2, np.int64))

    def constant(self, shape: tuple[int, ...]) -> str:
        return self.add(Constant, [], np.zeros(shape, np.int8), params=BYTE)


@st.composite
def networks(draw):
    graph = Graph()
    made = [graph.given((draw(st.integers(1, 9)), draw(st.integers(1, 5)))) for _ in range(draw(st.integers(1, 3)))]
    for _ in range(draw(st.integers(0, 14))):
        kind = draw(st.sampled_from(["clamp", "sum", "pair", "wide", "flat", "turned", "half", "twice", "constant"]))
        tensor = draw(st.sampled_from(made))
        shape = graph.tensors[tensor].shape
        if kind == "constant":
            made.append(graph.constant(shape))
        elif kind == "wide":
            made.append(graph.sum(tensor, params=draw(st.sampled_from([BYTE, WORD]))))
        elif kind == "pair":
            beside = [name for name in made if graph.tensors[name].shape == shape]
            made.append(graph.sum(tensor, draw(st.sampled_from(beside))))
        elif kind == "twice" and np.prod(shape) > 400:
            continue
        else:
            made.append(getattr(graph, kind)(tensor))
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    return graph.model(*outputs)


def run(model: QuantizedModel, plan: arena.Plan) -> None:
    """Every layer writes its name over its bytes, and finds its inputs' names, or their aliases', where they lie."""
    memory = np.full(plan.size, "", object)
    at = {placed.tensor: placed for placed in plan.placements}
    written = {}  # what stands in a tensor's bytes: its own name, or that of the tensor it is a view of

    def expect(name: str) -> None:
        if name not in plan.stored:
            found = memory[at[name].offset : at[name].end]
            assert (found == written[name]).all(), name

    def put(name: str) -> None:
        written[name] = name
        memory[at[name].offset : at[name].end] = name

    for name in model.inputs:
        put(name)
    for index, layer in enumerate(model.layers):
        for name in layer.inputs:
            expect(name)
        for placed in plan.scratch:
            if placed.tensor == layer.name:
                memory[placed.offset : placed.end] = "scratch"
                for name in layer.inputs:
                    expect(name)
        if layer.output in plan.stored:
            continue
        placed = at[layer.output]
        assert placed.first == index
        over = at.get(placed.over)
        if isinstance(layer, Reshape) and over is not None:
            assert (placed.offset, placed.size) == (over.offset, over.size)
            written[layer.output] = written[placed.over]
            continue
        inputs = [name for name in layer.inputs if name in at]
        if not placed.over:  # it reads all the while that it writes
            taken = [name for name in inputs if at[name].offset < placed.end and placed.offset < at[name].end]
            assert not taken
        else:
            assert all(at[name].size == placed.size for name in inputs if written[name] == written[placed.over])
        put(layer.output)
    for name in model.outputs.values():
        expect(name)


@given(networks(), st.sampled_from([1, 4, 8]), st.data())
@settings(max_examples=300, deadline=None)
def test_nothing_is_overwritten_while_it_is_needed(model, alignment, data):
    names = [layer.name for layer in model.layers]
    scratch = data.draw(st.dictionaries(st.sampled_from(names), st.integers(0, 30))) if names else {}
    moved = [name for name in names if data.draw(st.booleans())]
    plan = arena.plan(model, alignment=alignment, scratch=scratch, moved=moved)
    arena.check(plan, model)
    run(model, plan)
    assert plan.lower_bound <= plan.size <= plan.lower_bound * 2
    assert all(placed.offset % alignment == 0 for placed in (*plan.placements, *plan.scratch))
    assert {placed.tensor for placed in plan.placements} | plan.stored.keys() == model.tensors.keys()


@given(networks())
@settings(max_examples=100, deadline=None)
def test_the_check_finds_whatever_a_run_finds(model):
    plan = arena.plan(model)
    for index, placed in enumerate(plan.placements):
        squeezed = replace(placed, offset=0, over="")
        broken = replace(plan, placements=(*plan.placements[:index], squeezed, *plan.placements[index + 1 :]))
        try:
            run(model, broken)
        except AssertionError:
            with pytest.raises(PromiseError, match=r"share bytes|lies elsewhere"):
                arena.check(broken, model)


def test_a_chain_of_clamps_and_reshapes_takes_one_tensor():
    graph = Graph()
    x = graph.given((3, 8))
    model = graph.model(graph.flat(graph.clamp(graph.clamp(x))))
    plan = arena.plan(model)
    assert (plan.size, plan.lower_bound) == (24, 24)
    assert [(p.tensor, p.first, p.last, p.over) for p in plan.placements] == [
        ("in0", -1, 0, ""), ("t0", 0, 1, "in0"), ("t1", 1, 2, "t0"), ("t2", 2, 3, "t1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "size"),
    [
        pytest.param(lambda g, x: [g.clamp(x), x], 48, id="an output is kept"),
        pytest.param(lambda g, x: [g.sum(g.clamp(x), x)], 48, id="read again later"),
        pytest.param(lambda g, x: [g.sum(x, x)], 24, id="twice the same"),
        pytest.param(lambda g, x: [g.sum(x, params=WORD)], 72, id="a wider output"),
        pytest.param(lambda g, x: [g.turned(x)], 48, id="numbers change places"),
        pytest.param(lambda g, x: [g.sum(g.constant((3, 8)), x)], 24, id="a constant stays in flash"),
        pytest.param(lambda g, x: [g.flat(g.constant((3, 8))), g.clamp(x)], 48, id="a constant is given out"),
        pytest.param(lambda g, x: [g.sum(x, g.clamp(g.half(x)))], None, id="shapes that do not combine"),
    ],
)
def test_what_shares_bytes(build, size):
    graph = Graph()
    x = graph.given((3, 8))
    if size is None:
        with pytest.raises(FormatError, match="do not combine"):
            build(graph, x)
        return
    assert arena.plan(graph.model(*build(graph, x))).size == size


def test_a_reshape_that_moves_numbers_gets_bytes_of_its_own():
    graph = Graph()
    model = graph.model(graph.flat(graph.given((3, 8))))
    assert arena.plan(model).size == 24
    assert arena.plan(model, moved=["layer t0"]).size == 48


def test_scratch_lies_beside_what_its_layer_reads_and_writes():
    graph = Graph()
    model = graph.model(graph.turned(graph.given((3, 8))))
    plan = arena.plan(model, scratch={"layer t0": 10})
    assert (plan.size, [placed.size for placed in plan.scratch]) == (60, [10])
    with pytest.raises(FormatError, match="scratch for 'nothing', which is no layer"):
        arena.plan(model, scratch={"nothing": 1})
    with pytest.raises(FormatError, match="alignment 3 must be a power of two"):
        arena.plan(model, alignment=3)


def test_an_order_by_size_alone_is_beaten():
    """Sizes and lifetimes with which the largest first leaves a hole; another order fills it."""
    rng = np.random.default_rng(5)
    better = 0
    for _ in range(40):
        starts = rng.integers(0, 20, 24)
        spans = [arena._Span(int(size), int(a), int(a + n)) for a, n, size in
                 zip(starts, rng.integers(0, 7, 24), rng.integers(1, 60, 24), strict=True)]  # fmt: skip
        by_size = arena._greedy(spans, sorted(range(24), key=lambda i: -spans[i].size))
        best = arena._pack(spans)
        assert arena._top(spans, best) <= arena._top(spans, by_size)
        better += arena._top(spans, best) < arena._top(spans, by_size)
    assert better > 10

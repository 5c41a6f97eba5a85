"""Where each tensor lies in one static block of memory, the arena: planned from lifetimes before anything runs.

Time is counted in layers. A tensor is live from the layer that makes it to the last one that reads it, both
included; inputs are live from before the first layer (-1), outputs to after the last (the number of layers). What is
live at the same time shares no byte, but where a layer works in place: its output then takes over an input's bytes.
Integers keep their number and width in any layout, so the plan holds for channels first and channels last.

A Constant stays in flash, and so does a Reshape of it, unless the network gives it out or a layer reads it that has
no other input: only layers with several inputs read flash and RAM alike.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gemedge.errors import FormatError, PromiseError
from gemedge.model import Op, QuantizedModel
from gemedge.moving import Clamp, Constant, Reshape
from gemedge.operators import (
    Activate,
    Choose,
    Combine,
    GemmlowpSum,
    Interpolate,
    LayerNormalization,
    Lookup,
    Multiply,
    Softmax,
    Tensor,
)

_ONE_TO_ONE = (Activate, Lookup, Interpolate, Clamp, Combine, GemmlowpSum, Multiply, Choose)  # number i from numbers i
_BY_ROWS = (Softmax, LayerNormalization)  # each row is read before it is written, or as it is
_IN_PLACE = (*_ONE_TO_ONE, *_BY_ROWS)
_INDEX_BYTES = 4  # of a number without a format, which is an index
_TRIES, _WORK = 2000, 4_000_000  # orders tried beyond the first ones, and times the square of how many things lie there


@dataclass(frozen=True, slots=True)
class Placement:
    """Bytes offset .. offset + size - 1 of the arena hold a tensor while layers first to last run.

    over: the tensor whose bytes it takes over, or "". Of scratch memory, tensor is the layer's name.
    """

    tensor: str
    offset: int
    size: int
    first: int
    last: int
    over: str = ""

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Plan:
    """The arena of a network: its size in bytes, and where everything lies, in the order in which it is made.

    lower_bound: the most bytes that are live at once, each rounded up to the alignment: no plan with the same sharing
    is smaller. scratch: what layers need while they run. stored: tensors that stay in flash, and the Constant that
    holds each. layers: how many there are.
    """

    placements: tuple[Placement, ...]
    scratch: tuple[Placement, ...]
    stored: Mapping[str, str]
    size: int
    lower_bound: int
    alignment: int
    layers: int


def plan(
    model: QuantizedModel,
    *,
    alignment: int = 4,
    moved: Collection[str] = (),
    scratch: Mapping[str, int] | None = None,
) -> Plan:
    """The smallest arena found for the network, the same one each time.

    alignment: what every offset and the size are a multiple of. moved: names of Reshapes that must copy, because the
    layouts of input and output order the numbers differently; others alias their input. scratch: bytes that a layer
    needs while it runs, by its name.
    """
    if alignment < 1 or alignment & (alignment - 1):
        raise FormatError(f"alignment {alignment} must be a power of two")
    wanted = {name: size for name, size in (scratch or {}).items() if size}
    if unknown := wanted.keys() - {layer.name for layer in model.layers}:
        raise FormatError(f"scratch for {sorted(unknown)[0]!r}, which is no layer")
    held = stored(model)
    lives = _lives(model, held)
    blocks = _blocks(model, lives, set(moved))
    needs = [_Need(i, _rounded(size, alignment), wanted[layer.name]) for i, layer, size in _scratches(model, wanted)]
    everything = [_Span(block.size(alignment), block.first, block.last) for block in blocks]
    everything += [_Span(need.size, need.at, need.at) for need in needs]
    offsets = _pack(everything)
    found = {
        life.tensor: Placement(life.tensor, offsets[index], life.size, life.first, life.last, over)
        for index, block in enumerate(blocks)
        for life, over in block.lives
    }
    behind = offsets[len(blocks) :]
    return Plan(
        tuple(found[name] for name in lives),
        tuple(
            Placement(model.layers[need.at].name, offset, need.asked, need.at, need.at)
            for need, offset in zip(needs, behind, strict=True)
        ),
        held,
        max((offset + span.size for offset, span in zip(offsets, everything, strict=True)), default=0),
        _most_live(everything, len(model.layers)),
        alignment,
        len(model.layers),
    )


def check(plan: Plan, model: QuantizedModel) -> None:
    """PromiseError names two things that are live at once and share bytes, though neither takes the other's over.

    A tensor that takes over bytes does so when the one before it is read last; only Reshapes share them for longer.
    """
    everything = [*plan.placements, *plan.scratch]
    for placed in everything:
        inside = placed.offset >= 0 and placed.offset % plan.alignment == 0 and placed.end <= plan.size
        if not inside:
            raise PromiseError(f"{placed.tensor!r} at {placed.offset} to {placed.end} of an arena of {plan.size} bytes")
    at = {placed.tensor: placed for placed in plan.placements}
    for placed in plan.placements:
        if placed.over and placed.offset != at[placed.over].offset:
            raise PromiseError(f"{placed.tensor!r} takes over {placed.over!r} at {placed.offset}, which lies elsewhere")
    moving = {layer.output for layer in model.layers if isinstance(layer, Reshape)}
    block = _first_of_chain(plan.placements, lambda placed: bool(placed.over))
    alias = _first_of_chain(plan.placements, lambda placed: bool(placed.over) and placed.tensor in moving)
    for one, other in combinations(everything, 2):
        at_once = one.first <= other.last and other.first <= one.last
        if not at_once or one.end <= other.offset or other.end <= one.offset:
            continue
        touching = min(one.last, other.last) == max(one.first, other.first)
        chain = block if touching else alias
        scratch = one in plan.scratch or other in plan.scratch
        if scratch or chain[one.tensor] != chain[other.tensor] or one.offset != other.offset:
            raise PromiseError(f"{one.tensor!r} and {other.tensor!r} are live at once and share bytes")


def bytes_of(tensor: Tensor) -> int:
    """What a tensor's integers take: its elements times the bytes of its width, and of an index four."""
    width = _INDEX_BYTES if tensor.params is None else tensor.params.bits // 8
    return math.prod(tensor.shape) * width


# Lifetimes


@dataclass(frozen=True, slots=True)
class _Life:
    tensor: str
    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class _Need:
    """Scratch of the layer of this number: rounded, and as it was asked for."""

    at: int
    size: int
    asked: int


@dataclass
class _Block:
    """Tensors that share bytes one after another, each with the one it takes over from."""

    lives: list[tuple[_Life, str]]

    @property
    def first(self) -> int:
        return self.lives[0][0].first

    @property
    def last(self) -> int:
        return max(life.last for life, _ in self.lives)

    def size(self, alignment: int) -> int:
        return _rounded(max(life.size for life, _ in self.lives), alignment)


def stored(model: QuantizedModel) -> dict[str, str]:
    """Tensors that are a Constant or a Reshape of one, and which, where only layers with several inputs read them."""
    held: dict[str, str] = {}
    for layer in model.layers:
        if isinstance(layer, Constant):
            held[layer.output] = layer.output
        elif isinstance(layer, Reshape) and layer.inputs[0] in held:
            held[layer.output] = held[layer.inputs[0]]
    alone = (layer.inputs[0] for layer in model.layers if len(layer.inputs) == 1 and layer.output not in held)
    copied = {held[name] for name in (*model.outputs.values(), *alone) if name in held}
    return {name: constant for name, constant in held.items() if constant not in copied}


def _lives(model: QuantizedModel, stored: Mapping[str, str]) -> dict[str, _Life]:
    """The tensors of the arena in the order in which they are made."""
    last = dict.fromkeys(model.inputs, -1)
    first = dict(last)
    for index, layer in enumerate(model.layers):
        first[layer.output] = last[layer.output] = index
        last.update(dict.fromkeys(layer.inputs, index))
    last.update(dict.fromkeys(model.outputs.values(), len(model.layers)))
    return {
        name: _Life(name, bytes_of(model.tensors[name]), first[name], last[name])
        for name in first
        if name not in stored
    }


def _blocks(model: QuantizedModel, lives: Mapping[str, _Life], moved: Collection[str]) -> list[_Block]:
    of: dict[str, _Block] = {}
    blocks = []
    makers = {layer.output: (index, layer) for index, layer in enumerate(model.layers)}
    for name, life in lives.items():
        over = ""
        if name in makers:
            index, layer = makers[name]
            over = _taken_over(model, layer, index, of, moved)
        if over:
            of[name] = of[over]
            of[name].lives.append((life, over))
        else:
            of[name] = _Block([(life, "")])
            blocks.append(of[name])
    return blocks


def _taken_over(model: QuantizedModel, layer: Op, index: int, of: Mapping[str, _Block], moved: Collection[str]) -> str:
    """The input whose bytes the layer's output takes, or ""."""
    if isinstance(layer, Reshape):
        given = layer.inputs[0]
        return given if given in of and layer.name not in moved else ""
    if not isinstance(layer, _IN_PLACE):
        return ""
    made = model.tensors[layer.output]
    for name in dict.fromkeys(layer.inputs):
        if name not in of or of[name].last != index:
            continue  # in flash, or somebody still needs these bytes
        beside = [other for other in layer.inputs if of.get(other) is of[name]]
        same = all(_alike(model.tensors[other], made) for other in beside)
        if same:
            return name
    return ""


def _alike(given: Tensor, made: Tensor) -> bool:
    return given.shape == made.shape and given.quantized.bits == made.quantized.bits


def _scratches(model: QuantizedModel, wanted: Mapping[str, int]) -> Iterable[tuple[int, Op, int]]:
    return ((i, layer, wanted[layer.name]) for i, layer in enumerate(model.layers) if layer.name in wanted)


def _first_of_chain(placements: Sequence[Placement], linked: Callable[[Placement], bool]) -> dict[str, str]:
    """The tensor at the head of each tensor's chain of `over`, as far back as its members are linked."""
    first: dict[str, str] = {}
    for placed in placements:
        first[placed.tensor] = first[placed.over] if linked(placed) else placed.tensor
    return first


# Packing


@dataclass(frozen=True, slots=True)
class _Span:
    size: int
    first: int
    last: int

    def meets(self, other: "_Span") -> bool:
        return self.first <= other.last and other.first <= self.last


_ORDERS: tuple[Callable[[_Span], tuple[int, ...]], ...] = (
    lambda span: (-span.size, span.first),
    lambda span: (-span.size * (span.last - span.first + 1), span.first),
    lambda span: (span.first - span.last, -span.size),
    lambda span: (span.first, -span.size),
)


def _pack(spans: Sequence[_Span]) -> list[int]:
    """An offset for each span: the best of several greedy orders, then of orders with one span moved at a time."""
    bound = _most_live(spans, max((span.last for span in spans), default=0))
    orders = [sorted(range(len(spans)), key=lambda i: key(spans[i])) for key in _ORDERS]
    found = [_greedy(spans, order) for order in orders]
    least = min(range(len(orders)), key=lambda i: _top(spans, found[i]))
    order, offsets = orders[least], found[least]
    random = np.random.default_rng(0)
    for _ in range(min(_TRIES, _WORK // max(1, len(spans)) ** 2)):
        if _top(spans, offsets) == bound:
            break
        taken, put = random.integers(len(order), size=2)
        other = list(order)
        other.insert(put, other.pop(taken))
        tried = _greedy(spans, other)
        if _top(spans, tried) <= _top(spans, offsets):
            order, offsets = other, tried
    return offsets


def _greedy(spans: Sequence[_Span], order: Sequence[int]) -> list[int]:
    """Each span in turn goes into the tightest gap between those it meets that are placed, or on top of them."""
    offsets = [0] * len(spans)
    placed: list[int] = []
    for index in order:
        span = spans[index]
        taken = sorted((offsets[i], offsets[i] + spans[i].size) for i in placed if spans[i].meets(span))
        offsets[index] = _tightest(taken, span.size)
        placed.append(index)
    return offsets


def _tightest(taken: Sequence[tuple[int, int]], size: int) -> int:
    best, least, end = -1, math.inf, 0
    for begin, stop in taken:
        gap = begin - end
        if size <= gap < least:
            best, least = end, gap
        end = max(end, stop)
    return end if best < 0 else best


def _top(spans: Sequence[_Span], offsets: Sequence[int]) -> int:
    return max((offset + span.size for offset, span in zip(offsets, spans, strict=True)), default=0)


def _most_live(spans: Sequence[_Span], last: int) -> int:
    """The largest sum of sizes over spans that are live at the same time."""
    change = [0] * (last + 3)  # from time -1 to behind the last
    for span in spans:
        change[span.first + 1] += span.size
        change[span.last + 2] -= span.size
    live = most = 0
    for step in change:
        live += step
        most = max(most, live)
    return most


def _rounded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment

"""Chains of element-wise nodes that are one function of one tensor, and one node in place of each.

A chain begins at one tensor, its root, and reads nothing else but constants of which all elements are equal; it
ends in one tensor. Nothing outside it reads what lies between. So it is a function of one number, and a table in
integers, rounded once. Its node is `Elementwise` of domain ai.gemedge.table, with the chain as the body of a
model-local function: the model runs in onnxruntime as before. Equal chains share a body.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

from gemedge.capture.reading import FOLDED
from gemedge.quant import functions

_VERSION = 1
_FIRST_IR_WITH_OVERLOADS = 10
_MOST_ROOTS = 128  # tensors at which one chain may begin
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_TRUTHS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not"}
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_OWN_FORM = {*functions.NAMES, "Relu", "LeakyRelu", "Identity"}  # in integers, as one node


@dataclass(frozen=True, slots=True)
class Chain:
    """Nodes in the graph's order, from the one tensor they read to the one they make."""

    root: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def end(self) -> ir.Value:
        return self.nodes[-1].outputs[0]

    @property
    def op_types(self) -> list[str]:
        return [node.op_type for node in self.nodes]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The chain's output in float64, for numbers of the root."""
        return functions.value_of(self.nodes, self.root, self.end, x)


def fuse(model: ir.Model) -> list[str]:
    """Put one node in the place of every chain, in place; a line for each.

    Taken are the longest chains, of two nodes or more, and single nodes without an integer form. A lone Add or Sub
    of a tensor and a number is taken as well: a table rounds once and needs no second tensor. A lone product with a
    positive number stays: it changes what integers stand for, and no integer. A Relu that follows weights stays:
    runtimes apply it to the accumulator. GEM and SEGEM are never part of a chain.
    """
    taken: set[ir.Node] = set()
    notes: list[str] = []
    for chain in candidates(model.graph, taken, _is_relu_of_weights):
        if len(chain.nodes) > 1 or not (chain.nodes[0].op_type in _OWN_FORM or _is_scaling(chain.nodes[0])):
            taken.update(chain.nodes)
            _replace(model, chain)
            shown = ", ".join(chain.op_types[:8]) + (", ..." if len(chain.nodes) > 8 else "")
            notes.append(f"node {chain.nodes[-1].name!r}: {shown} became one table")
    return notes[::-1]


def candidates(
    graph: ir.Graph,
    taken: set[ir.Node],
    stops: Callable[[ir.Node], bool] = lambda _: False,
    most_roots: int = _MOST_ROOTS,
) -> Iterator[Chain]:
    """Every chain of nodes not taken: the last end first, and for each end the earliest root first.

    taken may grow, and its nodes leave the graph, between two chains. A node for which `stops` holds is in no chain.
    most_roots: where an end has more roots, only the latest so many.
    """
    roots = _roots(graph, stops, most_roots)
    for end in reversed(list(graph)):
        for root in roots.get(end.outputs[0], ()) if end.op_type not in _TRUTHS else ():
            if end in taken:
                break
            if root.dtype in _FLOATS and (nodes := _between(root, end, roots)) and not taken.intersection(nodes):
                yield Chain(root, nodes)


def _roots(graph: ir.Graph, stops: Callable[[ir.Node], bool], most: int) -> dict[ir.Value, list[ir.Value]]:
    """For what an element-wise node makes: the tensors of which it is a function, the earliest first."""
    roots: dict[ir.Value, list[ir.Value]] = {}
    shapes: set[ir.Value] = set()  # what shapes and constants alone make: it is folded, no table's input
    for node in graph:
        if node.op_type in ("Shape", "Size") or (
            node.op_type in FOLDED and all(v is None or v in shapes or v.const_value is not None for v in node.inputs)
        ):
            shapes.update(node.outputs)
            continue
        tensors = _tensors(node)
        if tensors and not stops(node):
            first, *others = ([*roots.get(tensor, ()), tensor] for tensor in tensors)
            common = [root for root in first if all(root in other for other in others)]
            if common:
                roots[node.outputs[0]] = common[-most:]
    return roots


def _tensors(node: ir.Node) -> list[ir.Value]:
    """What an element-wise node reads that is no number; nothing where it is another kind of node."""
    if node.domain or node.op_type not in functions.ELEMENTWISE or len(node.outputs) != 1:
        return []
    if node.op_type == "Cast" and node.attributes["to"].as_int() not in (*_FLOATS, ir.DataType.BOOL):
        return []
    given = [value for value in node.inputs if value is not None]
    tensors = [value for value in given if value.const_value is None or value.is_graph_input()]
    constants = [value for value in given if value not in tensors]
    if not tensors or not all(_is_number(value, tensors[0]) for value in constants):
        return []
    is_bias = node.op_type == "Add" and any(value.shape and len(value.shape) for value in constants)
    return [] if is_bias and _producer(tensors[0]) == "MatMul" else list(dict.fromkeys(tensors))


def _is_number(value: ir.Value, tensor: ir.Value) -> bool:
    """Whether a constant is one number repeated, in a shape that leaves the tensor's as it is."""
    constant = value.const_value
    if constant is None or constant.size == 0 or constant.dtype == ir.DataType.STRING:
        return False
    sizes, known = constant.shape.numpy(), tensor.shape
    if len(sizes) > (len(known) if known is not None else 0):
        return False
    if any(size not in (1, own) for size, own in zip(sizes[::-1], list(known or ())[::-1], strict=False)):
        return False
    array = constant.numpy()
    return constant.size == 1 or bool((array == array.reshape(-1)[0]).all())


def _between(root: ir.Value, end: ir.Node, roots: dict[ir.Value, list[ir.Value]]) -> tuple[ir.Node, ...]:
    """The nodes from root to end in order; none where something else reads what lies between them."""
    found: dict[ir.Node, None] = {}
    waiting = [(end, False)]
    while waiting:
        node, is_done = waiting.pop()
        if is_done:
            found[node] = None
        elif node not in found:
            waiting.append((node, True))
            producers = [value.producer() for value in node.inputs if value in roots and value is not root]
            waiting += [(producer, False) for producer in producers if producer is not None]
    for node in found:
        output = node.outputs[0]
        if node is not end and (output.is_graph_output() or any(use.node not in found for use in output.uses())):
            return ()
    return tuple(found)


def _is_scaling(node: ir.Node) -> bool:
    """Whether a node multiplies by a positive number, or divides by one."""
    number = node.inputs[1] if node.op_type == "Div" else next((v for v in node.inputs if v and v.const_value), None)
    if node.op_type not in ("Mul", "Div") or number is None or number.const_value is None:
        return False
    return number.const_value.size == 1 and 0 < float(number.const_value.numpy().item()) < math.inf


def _is_relu_of_weights(node: ir.Node) -> bool:
    if node.op_type != "Relu" or node.inputs[0] is None:
        return False
    given = node.inputs[0]
    above = [value for value in given.producer().inputs if value] if _producer(given) == "Add" else []  # type: ignore[union-attr]
    return _producer(given) in _WEIGHTED or any(_producer(value) == "MatMul" for value in above)


def _producer(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None or node.domain else node.op_type


def _replace(model: ir.Model, chain: Chain) -> None:
    body = _body(chain, model.graph.opset_imports[""])
    model.functions[body.identifier()] = body
    model.graph.opset_imports[functions.DOMAIN] = _VERSION
    model.ir_version = max(model.ir_version, _FIRST_IR_WITH_OVERLOADS)
    node = ir.Node(functions.DOMAIN, functions.CHAIN, [chain.root], overload=body.overload, name=chain.nodes[-1].name)
    put(model.graph, chain, node)


def put(graph: ir.Graph, chain: Chain, node: ir.Node) -> None:
    """A node of one output in the place of a chain."""
    end = chain.end
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = end.name, end.shape, end.type
    replace_nodes_and_values(graph, chain.nodes[-1], chain.nodes, [node], [end], node.outputs)


def _body(chain: Chain, opset: int) -> ir.Function:
    """The chain as a function named by its content."""
    given = ir.Value(name="x")
    values: dict[ir.Value, ir.Value] = {chain.root: given}
    nodes: list[ir.Node] = []

    def add(node: ir.Node) -> ir.Value:
        node.outputs[0].name = f"v{len(nodes)}"
        nodes.append(node)
        return node.outputs[0]

    def read(value: ir.Value | None) -> ir.Value | None:
        if value is None:
            return None
        if value not in values:
            number = np.asarray(value.const_value.numpy().reshape(-1)[0])  # type: ignore[union-attr]
            constant = ir.tensor(number, dtype=value.const_value.dtype)  # type: ignore[union-attr]
            values[value] = add(ir.Node("", "Constant", [], [ir.AttrTensor("value", constant)]))
        return values[value]

    for old in chain.nodes:
        inputs = [read(value) for value in old.inputs]
        values[old.outputs[0]] = add(ir.Node("", old.op_type, inputs, _attributes(old)))
    graph = ir.Graph([given], [values[chain.end]], nodes=nodes, opset_imports={"": opset}, name=functions.CHAIN)
    function = ir.Function(functions.DOMAIN, functions.CHAIN, graph=graph, attributes=())
    content = ir.to_proto(function).SerializeToString(deterministic=True)
    function.overload = hashlib.sha256(content).hexdigest()[:16]
    return function


def _attributes(node: ir.Node) -> Sequence[ir.Attr]:
    return list(node.attributes.values())

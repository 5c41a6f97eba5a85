"""What the parts of an ONNX model are called: nodes after their modules, outputs after their keys.

Nothing of the machine (paths, stack traces) stays in the model, so that the same module gives the same bytes.
"""

import ast
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from gemedge import __version__


def name_nodes(graph: ir.Graph) -> None:
    """Call a node after its module; where a module has several, add the operator; then number."""
    paths = {node: _module_path(node) for node in graph.all_nodes()}
    crowd = Counter(paths.values())
    taken: set[str] = set()
    for node, path in paths.items():
        node.name = _fresh(path if path and crowd[path] == 1 else f"{path}/{node.op_type}".lstrip("/"), taken)


def _fresh(name: str, taken: set[str]) -> str:
    """The name, numbered from 2 on where it is taken; it is taken from now on."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    free = name if name not in taken else next(other for other in numbered if other not in taken)
    taken.add(free)
    return free


def _module_path(node: ir.Node) -> str:
    """The module whose weight the node reads, where torch merged another into it, else the one it came from."""
    for value in node.inputs[1:2]:
        if value is not None and value.is_initializer() and (value.name or "").endswith(".weight"):
            return str(value.name).removesuffix(".weight")
    try:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        path = str(scopes[-2])
    except (ValueError, SyntaxError, IndexError, TypeError):
        return ""
    return "" if path.startswith("_empty_nn_module_stack") else path  # torch's word for none


def name_inputs_and_outputs(graph: ir.Graph, inputs: Sequence[str], keys: Sequence[str]) -> None:
    """Inputs are called as given; outputs by their keys, or output, or output_0, output_1 ... where those are empty.

    An output that is an input, a weight or another output as it stands becomes a value of its own. Values
    inside the graph give way where they bear one of these names.
    """
    _separate_outputs(graph)
    names = list(keys) if len(keys) == len(graph.outputs) else [""] * len(graph.outputs)
    plain = ["output"] if len(names) == 1 else [f"output_{index}" for index in range(len(names))]
    taken = set(graph.initializers) | set(inputs)
    wanted = dict(zip(graph.inputs, inputs, strict=True)) if len(inputs) == len(graph.inputs) else {}
    wanted |= {v: _fresh(name or p, taken) for v, name, p in zip(graph.outputs, names, plain, strict=True)}
    inner = [value for node in graph.all_nodes() for value in node.outputs if value not in wanted]
    taken |= {value.name or "" for value in inner}
    public = set(wanted.values())
    for value in inner:
        if value.name in public:
            value.name = _fresh(value.name, taken)
    for value, name in wanted.items():
        value.name = name


def _separate_outputs(graph: ir.Graph) -> None:
    seen: set[ir.Value] = set()
    for index, value in enumerate(graph.outputs):
        if value in seen or value.producer() is None:
            node = ir.Node("", "Identity", [value], name=f"Identity_of_output_{index}")
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
        seen.add(graph.outputs[index])


def name_dimensions(
    graph: ir.Graph, dynamic: Mapping[str, Mapping[int, str]], known: Sequence[Sequence[int | None]]
) -> None:
    """Give the symbols of torch the names asked for; a first dimension is otherwise called batch.

    known: for each input, the sizes that are numbers though torch.onnx may have left a symbol there.
    """
    names: dict[str, int | str] = {}
    for value, sizes in zip(graph.inputs, known, strict=True):
        for axis, (size, number) in enumerate(zip(value.shape or (), sizes, strict=True)):
            if isinstance(size, ir.SymbolicDim) and str(size.value) not in names:
                wanted = dynamic.get(value.name or "", {}).get(axis) or (
                    "batch" if axis == 0 else f"{value.name}_dim{axis}"
                )
                while wanted in names.values():
                    wanted = f"{value.name}_{wanted}"
                names[str(size.value)] = wanted if number is None else number
    values = [*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, names: Mapping[str, int | str]) -> int | str | None:
    if isinstance(size, int) or size.value is None:
        return size if isinstance(size, int) else None
    if size.value in names:
        return names[size.value]
    return re.sub(r"\b[a-z]+\d+\b", lambda match: str(names.get(match[0], match[0])), str(size.value))


def forget_origin(model: ir.Model) -> None:
    """Drop what torch notes down for debugging: stack traces, paths of this machine, long type names."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
    model.producer_name, model.producer_version, model.doc_string = "gemedge", __version__, None

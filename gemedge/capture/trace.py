"""A live torch module or exported program, turned into the float ONNX model.

A GEM activation is one node of domain ai.gemedge. Nodes are called after the modules they came from, and
nothing of the machine (paths, stack traces) stays in the model, so that the same module gives the same bytes.
"""

import ast
import contextlib
import inspect
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import onnxscript
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import TensorArgument

import gemedge.nn  # registers the operators gemedge::gem and gemedge::segem
from gemedge.capture import schema
from gemedge.errors import UnsupportedError, UsageError, innermost

_FIRST_OPSET, _LAST_OPSET = 17, 23
Dimensions = Mapping[str, Mapping[int, str]]


def trace(
    model: nn.Module, example: Sequence[Tensor] | Mapping[str, Tensor], dynamic: Dimensions | None
) -> ExportedProgram:
    """The module as a graph, in eval mode, on inputs like `example`.

    dynamic: for each input name, which dimensions may vary, with their names; None lets the first dimension
    of every input vary where the model permits it. Raises UnsupportedError where torch.export cannot follow
    the model, or a dimension that was asked for cannot vary.
    """
    arguments, keywords = _arguments(model, example)
    try:
        inspect.signature(model.forward).bind(*arguments, **keywords)
    except TypeError as error:
        given = len(arguments) + len(keywords)
        raise UsageError(f"the model's forward() does not take the {given} inputs it is given: {error}") from error
    names = input_names(model, example)
    was_training = model.training
    model.eval()
    try:
        if dynamic is not None:
            return _export(model, arguments, keywords, [set(dynamic.get(name, {})) for name in names])
        with contextlib.suppress(UnsupportedError):
            return _export(model, *_at_least_two(arguments, keywords), [{0}] * len(names))
        return _export(model, arguments, keywords, [set()] * len(names))
    finally:
        model.train(was_training)


def to_onnx(program: ExportedProgram, opset: int, dynamic: Dimensions | None = None) -> ir.Model:
    """The float ONNX model of a program; opset from 17 to 23.

    Raises UnsupportedError naming an operator that ONNX does not have.
    """
    if not any(isinstance(spec.arg, TensorArgument) for spec in program.graph_signature.output_specs):
        raise UnsupportedError("the model returns no tensor")
    schema.register()
    try:
        with quiet():
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=opset, custom_translation_table=_translations(), verbose=False
            )
    except Exception as error:
        raise UnsupportedError(_why_no_onnx(error)) from error
    if exported is None:
        raise UnsupportedError("torch.onnx gave no model")
    model: ir.Model = exported.model
    _name_nodes(model.graph)
    _name_outputs(model.graph, program)
    _name_dimensions(model.graph, dynamic or {})
    forget_origin(model)
    return model


def _export(model: nn.Module, arguments: tuple, keywords: dict[str, Any], varying: list[set[int]]) -> ExportedProgram:
    marks = [dict.fromkeys(dimensions, Dim.AUTO) or None for dimensions in varying]
    shapes = tuple(marks[: len(arguments)]), dict(zip(keywords, marks[len(arguments) :], strict=True))
    try:
        with quiet():
            return torch.export.export(
                model, arguments, keywords or None, dynamic_shapes=_shapes(model, arguments, *shapes), strict=False
            )
    except Exception as error:
        raise UnsupportedError(f"torch.export cannot follow the model: {first_line(error)}") from error


def _shapes(model: nn.Module, arguments: tuple, positional: tuple, named: dict[str, Any]) -> dict[str, Any]:
    """torch.export wants the dimensions of *args as one tuple and everything else by name."""
    shapes: dict[str, Any] = {}
    parameters = list(inspect.signature(model.forward).parameters.values())
    for index, parameter in enumerate(parameters[: len(arguments)]):
        if parameter.kind is parameter.VAR_POSITIONAL:
            shapes[parameter.name] = positional[index:]
            break
        shapes[parameter.name] = positional[index]
    return shapes | named


def _arguments(model: nn.Module, example: Sequence[Tensor] | Mapping[str, Tensor]) -> tuple[tuple, dict[str, Tensor]]:
    """The example as positional and keyword arguments of forward."""
    if not isinstance(example, Mapping):
        return tuple(example), {}
    parameters = inspect.signature(model.forward).parameters
    if all(name in parameters for name in example):
        return (), dict(example)
    return tuple(example.values()), {}  # names of forward(*args), or of a graph that lost them


def input_names(model: nn.Module, example: Sequence[Tensor] | Mapping[str, Tensor]) -> list[str]:
    """What the inputs of the exported program are called, in order."""
    arguments, keywords = _arguments(model, example)
    names: list[str] = []
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{index}" for index in range(len(arguments) - len(names))]
        names.append(parameter.name)
    return [*names[: len(arguments)], *keywords]


def _at_least_two(arguments: tuple, keywords: dict[str, Tensor]) -> tuple[tuple, dict[str, Tensor]]:
    """torch.export fixes a dimension of size one; two samples keep it free."""

    def doubled(x: Tensor) -> Tensor:
        return torch.cat([x, x]) if x.dim() and x.shape[0] == 1 else x

    return tuple(map(doubled, arguments)), {name: doubled(x) for name, x in keywords.items()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _translations() -> dict[Callable, Callable]:
    opset = onnxscript.values.Opset(schema.DOMAIN, schema.VERSION)
    standard = onnxscript.opset18

    def translation(op_type: str) -> Callable:
        def translate(x: Any, n: int = 1, epsilon: float = 1.0) -> Any:
            if x.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):  # computed in float32, as everywhere
                wide = standard.Cast(x, to=ir.DataType.FLOAT)
                return standard.Cast(getattr(opset, op_type)(wide, n=n, epsilon=epsilon), to=x.dtype)
            return getattr(opset, op_type)(x, n=n, epsilon=epsilon)

        return translate

    operators = torch.ops.gemedge
    return {operators.gem.default: translation("GEM"), operators.segem.default: translation("SEGEM")}


def _why_no_onnx(error: BaseException) -> str:
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__
    text = "\n".join(causes)
    if missing := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text):
        node = re.search(r"translating node %(\w+)", text)
        return f"node {node[1] if node else '?'}: ONNX has no operator for {missing[1]}"
    return f"torch.onnx cannot translate the model: {first_line(innermost(error))}"


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    code = ("def forward", "#", "return", "File ")
    shown = next((line for line in lines if line and not line.startswith(code) and "torch.ops." not in line), "")
    return f"{type(error).__name__}: {shown}"[:300]


def _name_nodes(graph: ir.Graph) -> None:
    """Call a node after its module; where a module has several, add the operator; then number."""
    paths = {node: _module_path(node) for node in graph}
    crowd = Counter(paths.values())
    taken: Counter[str] = Counter()
    for node, path in paths.items():
        name = path if path and crowd[path] == 1 else f"{path}/{node.op_type}".lstrip("/")
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


def _module_path(node: ir.Node) -> str:
    try:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        return str(scopes[-2])
    except (ValueError, SyntaxError, IndexError, TypeError):
        return ""


def _name_outputs(graph: ir.Graph, program: ExportedProgram) -> None:
    """Outputs are called by their keys where the model returns a dict, else output, or output_0, output_1 ..."""
    keys: list[str] = []
    with contextlib.suppress(Exception):  # a tree torch cannot rebuild keeps plain numbers
        spec = program.call_spec.out_spec
        tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
        keys = [_key_text(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    taken = {value.name for value in graph.inputs} | set(graph.initializers)
    for index, value in enumerate(graph.outputs):
        plain = "output" if len(graph.outputs) == 1 else f"output_{index}"
        name = keys[index] if index < len(keys) and len(keys) == len(graph.outputs) and keys[index] else plain
        if value.name in taken:  # the model returns an input or a weight as it is
            continue
        while name in taken:
            name += "_"
        taken.add(name)
        value.name = name


def _key_text(path: tuple) -> str:
    """a.0 for result["a"][0], and nothing where the outermost container is a plain tuple."""
    parts = [str(key.key if isinstance(key, pytree.MappingKey) else getattr(key, "idx", "")) for key in path]
    return ".".join(parts) if path and isinstance(path[0], pytree.MappingKey) else ""


def _name_dimensions(graph: ir.Graph, dynamic: Dimensions) -> None:
    """Give the symbols of torch the names asked for; a first dimension is otherwise called batch."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value not in names:
                wanted = dynamic.get(value.name or "", {}).get(axis) or (
                    "batch" if axis == 0 else f"{value.name}_dim{axis}"
                )
                while wanted in names.values():
                    wanted = f"{value.name}_{wanted}"
                names[str(size.value)] = wanted
    pattern = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in names) or r"(?!)")
    values = [*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, pattern, names) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, pattern: re.Pattern[str], names: Mapping[str, str]) -> int | str | None:
    if isinstance(size, int) or size.value is None:
        return size if isinstance(size, int) else None
    return pattern.sub(lambda match: names[match[0]], str(size.value))


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
    model.producer_name, model.producer_version, model.doc_string = "gemedge", gemedge.__version__, None

"""A live torch module or exported program, turned into the float ONNX model.

A GEM activation is one node of domain ai.gemedge. A dimension is free only where the program was seen to run
at another size.
"""

import contextlib
import inspect
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument

import gemedge.nn  # noqa: F401  registers the operators gemedge::gem and gemedge::segem
from gemedge.capture import naming, schema, varying
from gemedge.errors import UnsupportedError, UsageError, innermost

_SMALL = 1024  # bytes; what is smaller may lie there twice
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
    with evaluating(model):
        if dynamic is not None:
            free = varying.asked(dynamic, names, [*arguments, *keywords.values()])
            program = _export(model, *varying.at_least_two(arguments, keywords, free), free)
            varying.check(program, tensor_inputs(program), [dynamic.get(name, {}) for name in names])
            return program
        free = [{0} if x.dim() else set() for x in (*arguments, *keywords.values())]
        with contextlib.suppress(UnsupportedError):
            program = _export(model, *varying.at_least_two(arguments, keywords, free), free)
            varying.check(program, tensor_inputs(program))
            return program
        return _export(model, arguments, keywords, [set()] * len(names))


def to_onnx(program: ExportedProgram, opset: int, dynamic: Dimensions | None = None) -> ir.Model:
    """The float ONNX model of a program; opset from 17 to 23.

    Raises UnsupportedError naming an operator that ONNX does not have.
    """
    if not any(isinstance(spec.arg, TensorArgument) for spec in program.graph_signature.output_specs):
        raise UnsupportedError("the model returns no tensor")
    schema.register()
    for index, output in enumerate(program.graph_signature.output_specs):
        if isinstance(output.arg, ConstantArgument) and output.arg.value is not None:
            raise UnsupportedError(f"the model returns {output.arg.value!r:.40} at place {index}; ONNX returns tensors")
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
    if model.graph.opset_imports[""] != opset:
        raise UnsupportedError(f"torch.onnx gave opset {model.graph.opset_imports['']} where {opset} was asked for")
    naming.name_nodes(model.graph)
    naming.name_inputs_and_outputs(model.graph, list(tensor_inputs(program)), _output_names(program))
    shapes = [[varying.fixed(size) for size in value.shape] for value in tensor_inputs(program).values()]
    naming.name_dimensions(model.graph, dynamic or {}, shapes)
    naming.forget_origin(model)
    _tie_transposed(model.graph, program.state_dict)
    model.ir_version = onnx.helper.find_min_ir_version_for(
        [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()], True
    )
    return model


def user_inputs(program: ExportedProgram) -> dict[str, Any]:
    """For each user input by name, its fake tensor (which knows type and shape) or its constant value."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    return {
        spec.arg.name: values[spec.arg.name]
        if isinstance(spec.arg, TensorArgument)
        else getattr(spec.arg, "value", None)
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    }


def tensor_inputs(program: ExportedProgram) -> dict[str, Tensor]:
    return {name: value for name, value in user_inputs(program).items() if isinstance(value, Tensor)}


def _output_names(program: ExportedProgram) -> list[str]:
    """The keys of the model's tensor outputs where it returns a dict, "" for the others; nothing where unknown."""
    spec = program.call_spec.out_spec
    results = [output.arg for output in program.graph_signature.output_specs]
    with contextlib.suppress(Exception):  # a tree torch cannot rebuild keeps plain numbers
        leaves = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))[0]
        own = results[len(results) - len(leaves) :]
        return [_key_text(path) for (path, _), one in zip(leaves, own, strict=True) if isinstance(one, TensorArgument)]
    return []


def _key_text(path: tuple) -> str:
    """a.0 for result["a"][0], and nothing where the outermost container is a plain tuple."""
    parts = [str(key.key if isinstance(key, pytree.MappingKey) else getattr(key, "idx", "")) for key in path]
    return ".".join(parts) if path and isinstance(path[0], pytree.MappingKey) else ""


def _tie_transposed(graph: ir.Graph, weights: Iterable[str]) -> None:
    """Store a weight once where torch.onnx also folded its transposition: tied weights would lie there twice."""
    own = {name: graph.initializers[name].const_value for name in weights if name in graph.initializers}
    matrices = {name: tensor for name, tensor in own.items() if tensor is not None and len(tensor.shape) == 2}
    for value in [value for name, value in graph.initializers.items() if name not in own]:
        folded = value.const_value
        if folded is None or folded.nbytes < _SMALL or len(folded.shape) != 2:
            continue
        same = (name for name, tensor in matrices.items() if _is_transposed(folded, tensor))
        if (name := next(same, None)) is not None:
            node = ir.Node("", "Transpose", [graph.initializers[name]], [ir.AttrInt64s("perm", [1, 0])])
            node.name, node.outputs[0].name = f"{name}/Transpose", value.name
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            del graph.initializers[value.name or ""]
            value.replace_all_uses_with(node.outputs[0])
            graph.insert_before(graph[0], node)


def _is_transposed(folded: ir.TensorProtocol, weight: ir.TensorProtocol) -> bool:
    if folded.dtype != weight.dtype or tuple(folded.shape) != tuple(weight.shape)[::-1]:
        return False
    one, other = folded.numpy(), weight.numpy().T
    return bool((one[0] == other[0]).all()) and bool((one == other).all())  # the first row decides nearly always


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


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The module and each of its parts in eval mode, and afterwards each in the mode it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


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

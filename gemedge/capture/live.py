"""A live module or exported program: its example, its probes, and what it gives on them."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram

from gemedge.capture import Captured, learned, reference, trace, varying
from gemedge.capture.inputs import Arrays, InputShape, by_input, random_input
from gemedge.capture.trace import Dimensions
from gemedge.errors import DataError, UnsupportedError, UsageError

_NUMPY_NAMES = {torch.bfloat16: "float32"}


def example_of(model: nn.Module, example: Any) -> dict[str, Tensor] | tuple[Tensor, ...]:
    """The example as tensors on the CPU: one, a sequence, or a dict by input name.

    Float arrays take the type of the model's first float parameter, or torch's default: NumPy's is another.
    """
    wanted = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())

    def tensor(value: Any) -> Tensor:
        if isinstance(value, np.ndarray | np.generic | int | float):
            made = torch.from_numpy(np.asarray(value).copy())
            return made.to(wanted) if made.is_floating_point() else made
        if not isinstance(value, Tensor):
            raise UsageError(f"an example must be tensors or NumPy arrays, not {type(value).__name__}")
        return value.detach().cpu()

    if isinstance(example, Mapping):
        return {name: tensor(value) for name, value in example.items()}
    if isinstance(example, tuple | list):
        return tuple(map(tensor, example))
    return (tensor(example),)


def program(
    model: nn.Module, example: Mapping[str, Tensor] | Sequence[Tensor], dynamic: Dimensions | None
) -> ExportedProgram:
    """trace() of the module on the CPU, with the very example given as its example inputs."""
    moved = model if all(p.device.type == "cpu" for p in model.parameters()) else copy.deepcopy(model).cpu()
    return trace.trace(moved, example, dynamic)


def captured(
    program: ExportedProgram,
    opset: int,
    dynamic: Dimensions | None = None,
    example: Mapping[str, np.ndarray] | None = None,
) -> Captured:
    """The float ONNX model of a program, with its outputs on probes made from the example.

    example: one array for each tensor input, by name, or in order where these are not its names; None takes
    the program's own, or makes one.
    """
    model = trace.to_onnx(program, opset, dynamic)
    notes = learned.fold(model)
    tensors = _checked_example(program, example) if example is not None else _own_example(program)
    names = [value.name or "" for value in model.graph.inputs]
    if len(names) != len(tensors):
        raise UnsupportedError(f"the model has {len(tensors)} tensor inputs, its ONNX form {len(names)}")
    arrays = {name: _array(tensor) for name, tensor in zip(names, tensors, strict=True)}
    return reference.captured(model, arrays, _Runner(program, len(model.graph.outputs)), notes)


class _Runner:
    """Runs a program on arrays for its tensor inputs, in order; its tensor outputs, `outputs` in number."""

    def __init__(self, program: ExportedProgram, outputs: int) -> None:
        self._module = program.module()
        self._outputs = outputs
        placeholders = list(trace.user_inputs(program).values())
        self._dtypes = [value.dtype if isinstance(value, Tensor) else None for value in placeholders]
        self._constants = placeholders
        self._spec = program.call_spec.in_spec

    def __call__(self, inputs: Arrays) -> list[np.ndarray]:
        given = iter(inputs.values())
        leaves = [
            torch.from_numpy(np.array(next(given))).to(dtype) if dtype is not None else constant
            for dtype, constant in zip(self._dtypes, self._constants, strict=True)
        ]
        if self._spec is None:
            raise UnsupportedError("the program does not say how it is called")
        arguments, keywords = pytree.tree_unflatten(leaves, self._spec)
        with torch.no_grad():
            result = self._module(*arguments, **keywords)
        tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if len(tensors) != self._outputs:
            raise UnsupportedError(f"the model returns {len(tensors)} tensors, its ONNX form {self._outputs}")
        return [_array(tensor) for tensor in tensors]


def random_example(program: ExportedProgram, shapes: Sequence[InputShape]) -> Arrays | None:
    """Random numbers for each tensor input, of the shape given by its name or place; None where none is given."""
    if not shapes:
        return None
    inputs = trace.tensor_inputs(program)
    given = by_input(shapes, list(inputs))
    made = {}
    for seed, (name, value) in enumerate(inputs.items()):
        shape = given.get(name)
        sizes = shape.sizes() if shape else tuple(_sizes(program, value))
        if not _fits(value, sizes):
            raise UsageError(
                f"--input-shape: {name!r} cannot be {list(sizes)}; the file holds it as {_shape_of(value)}"
            )
        made[name] = random_input(sizes, (shape and shape.dtype) or _dtype_name(value.dtype), seed)
    return made


def _own_example(program: ExportedProgram) -> list[Tensor]:
    if program.example_inputs is not None:
        return [leaf.detach().cpu() for leaf in pytree.tree_leaves(program.example_inputs) if isinstance(leaf, Tensor)]
    return [
        torch.from_numpy(np.array(random_input(_sizes(program, value), _dtype_name(value.dtype), seed))).to(value.dtype)
        for seed, value in enumerate(trace.tensor_inputs(program).values())
    ]


def _fits(value: Tensor, shape: Sequence[int]) -> bool:
    return len(value.shape) == len(shape) and all(
        varying.fixed(size) in (None, given) for size, given in zip(value.shape, shape, strict=True)
    )


def _shape_of(value: Tensor) -> str:
    sizes = [varying.fixed(size) for size in value.shape]
    return f"[{', '.join('?' if size is None else str(size) for size in sizes)}]"


def _checked_example(program: ExportedProgram, example: Mapping[str, np.ndarray]) -> list[Tensor]:
    """The example in the program's types and order, or DataError where a shape or kind of number does not fit."""
    inputs = trace.tensor_inputs(program)
    if len(inputs) != len(example):
        raise DataError(f"the example has {len(example)} arrays; the model takes {len(inputs)}")
    arrays = [example[name] for name in inputs] if set(inputs) == set(example) else list(example.values())
    tensors = []
    for (name, value), array in zip(inputs.items(), arrays, strict=True):
        if not _fits(value, array.shape):
            raise DataError(f"example {name!r} has shape {list(array.shape)}; the model takes {_shape_of(value)}")
        if (array.dtype.kind == "f") != value.is_floating_point():
            raise DataError(f"example {name!r} has type {array.dtype}; the model takes {value.dtype}")
        tensors.append(torch.from_numpy(np.array(array)).to(value.dtype))
    return tensors


def _sizes(program: ExportedProgram, value: Tensor) -> list[int]:
    """Sizes with every free symbol at two, or the nearest that its range permits."""
    free = {
        symbol: int(max(bounds.lower, min(2, bounds.upper))) for symbol, bounds in program.range_constraints.items()
    }
    return [size if isinstance(size, int) else int(size.node.expr.xreplace(free)) for size in value.shape]


def _array(tensor: Tensor) -> np.ndarray:
    return np.asarray(
        (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().contiguous().numpy()
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return _NUMPY_NAMES.get(dtype, str(dtype).removeprefix("torch."))

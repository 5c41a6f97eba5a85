"""State dicts and modules made from the plain data of a checked pickle.

A module's class is looked up in a list of allowed ones, never imported because a file names it, and none of
its own code runs: no __init__, __new__, __setstate__ or __setattr__. Hooks are refused, and so is an
attribute that would hide a method such as `forward`. Parameters and buffers that were tied stay tied.
"""

import importlib
import sys
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from gemedge.capture.tree import ITEM_SIZES, Device, Name, ObjectRecord, Size, TensorRecord, Tree, classes
from gemedge.errors import ActivationError, ModelError, UsageError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_OWN_CLASSES = ("GEM", "EGEM", "SEGEM")
_FUNCTIONS = {
    "torch": "relu tanh sigmoid selu celu softmax erf exp square sin cos abs",
    "torch._C._nn": "gelu softplus log_sigmoid",
    "torch.nn.functional": "relu relu6 elu selu celu leaky_relu gelu silu mish hardswish hardtanh hardsigmoid"
    " softplus softsign tanh tanhshrink sigmoid logsigmoid softmax log_softmax glu",
}
_SETTINGS = ("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook")


def state_dict(tree: Tree, records: Mapping[str, memoryview]) -> dict[str, torch.Tensor]:
    """The tensors of a saved state dict, or of the one state dict within a checkpoint, by name.

    A checkpoint is a dict with a state dict under `state_dict`, `model_state_dict`, `model` or `net`.
    Raises ModelError naming what is there instead.
    """
    tensors = _Tensors(records)
    return {name: tensors.tensor(record) for name, record in _flat(tree).items()}


def module(tree: Tree, records: Mapping[str, memoryview], allowed: Mapping[str, type]) -> nn.Module:
    """The saved module, of classes of torch.nn, gemedge.nn and `allowed` (module.Class -> the class).

    Raises ModelError naming every class that is not allowed, or the first attribute that is not plain data;
    UsageError where an allowed class is not a subclass of torch.nn.Module.
    """
    for name, kind in allowed.items():
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise UsageError(f"--allow {name}: it is not a subclass of torch.nn.Module")
    if not isinstance(tree, ObjectRecord):
        raise ModelError(f"it holds {_described(tree)}, not a module")
    wanted = classes(tree)
    known = _torch_classes() | _own_classes(wanted) | dict(allowed)
    unknown = sorted(wanted - set(known))
    if unknown:
        flags = " ".join(f"--allow {name}" for name in unknown)
        raise ModelError(f"it holds objects of classes that are not allowed; if you trust their code, add {flags}")
    return _Modules(known, _Tensors(records)).module(tree, "")


def values(tree: Tree, records: Mapping[str, memoryview]) -> Any:
    """The tree with tensors for their records. ModelError where it holds anything but tensors and plain values."""
    if classes(tree):
        raise ModelError(f"it holds objects of {', '.join(sorted(classes(tree)))}, not tensors and plain values")
    return _Modules({}, _Tensors(records))._plain(tree, "a value")


def _flat(tree: Tree) -> dict[str, TensorRecord]:
    if _is_flat(tree):
        return cast(dict[str, TensorRecord], tree)
    if not isinstance(tree, dict):
        raise ModelError(f"it holds {_described(tree)}, not a state dict")
    inner = [name for name in _WRAPPERS if name in tree and _is_flat(tree[name])]
    if len(inner) == 1:
        return cast(dict[str, TensorRecord], tree[inner[0]])
    if inner:
        raise ModelError(f"it holds a state dict under each of {', '.join(inner)}; save the one that is meant")
    name, value = next(
        (name, value) for name, value in tree.items() if type(name) is not str or not isinstance(value, TensorRecord)
    )
    raise ModelError(f"its entry {name!r:.80} is {_described(value)}; a state dict has names and tensors only")


def _is_flat(tree: Tree) -> bool:
    return isinstance(tree, dict) and all(
        type(name) is str and isinstance(value, TensorRecord) for name, value in tree.items()
    )


def _described(value: Tree) -> str:
    match value:
        case ObjectRecord():
            return f"an object of class {value}"
        case TensorRecord():
            return "a single tensor"
        case None:
            return "None"
        case bool() | int() | float():
            return f"the number {value}"
        case Name():
            return f"the name {value}"
        case str():
            return "a text"
        case dict():
            return "a dict"
    return f"a {type(value).__name__}"


def _torch_classes() -> dict[str, type]:
    found = {}
    for name, namespace in list(sys.modules.items()):
        if name.startswith("torch.nn.modules."):
            for value in vars(namespace).values():
                if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == name:
                    found[f"{name}.{value.__qualname__}"] = value
    return found


def _own_classes(wanted: set[str]) -> dict[str, type]:
    ours = {f"gemedge.nn.{name}": name for name in _OWN_CLASSES}
    return {path: getattr(importlib.import_module("gemedge.nn"), ours[path]) for path in wanted & set(ours)}


class _Tensors:
    """Tensors with memory of their own, one copy of each storage; the same record gives the same parameter."""

    def __init__(self, records: Mapping[str, memoryview]) -> None:
        self._records = records
        self._storages: dict[str, torch.UntypedStorage] = {}
        self._parameters: dict[int, nn.Parameter] = {}

    def tensor(self, record: TensorRecord) -> torch.Tensor:
        tensor = torch.empty(0, dtype=getattr(torch, record.dtype))
        return tensor.set_(self._storage(record.storage.key), record.offset, record.shape, record.stride)

    def parameter(self, record: TensorRecord) -> nn.Parameter:
        made = self._parameters.get(id(record))
        if made is None:
            tensor = self.tensor(record)
            if record.requires_grad and not tensor.is_floating_point():
                raise ModelError(f"a parameter of {record.dtype} requires a gradient; only floats can")
            made = self._parameters[id(record)] = nn.Parameter(tensor, record.requires_grad)
        return made

    def any(self, record: TensorRecord) -> torch.Tensor:
        return self.parameter(record) if record.is_parameter else self.tensor(record)

    def _storage(self, key: str) -> torch.UntypedStorage:
        if key not in self._storages:
            source = np.frombuffer(self._records[f"data/{key}"], np.uint8)
            owned = torch.empty(len(source), dtype=torch.uint8)
            owned.numpy()[:] = source
            self._storages[key] = owned.untyped_storage()
        return self._storages[key]


class _Modules:
    """Modules from their records; a record that is shared gives one module."""

    def __init__(self, known: Mapping[str, type], tensors: _Tensors) -> None:
        self._known = known
        self._tensors = tensors
        self._made: dict[int, nn.Module] = {}

    def module(self, record: ObjectRecord, path: str) -> nn.Module:
        if id(record) not in self._made:
            kind = self._known[str(record)]
            made: nn.Module = object.__new__(kind)
            nn.Module.__init__(made)
            self._fill(made, record.state or {}, path)
            self._made[id(record)] = made
        return self._made[id(record)]

    def _fill(self, made: nn.Module, state: dict[str, Tree], path: str) -> None:
        own = set(vars(made))
        _refuse_hooks(own, state, path)
        made.training = _setting(state, "training", bool, path)
        for name, value in _named(made, own, state, "_parameters", path):
            if value is not None and not (isinstance(value, TensorRecord) and value.is_parameter):
                raise ModelError(f"{_at(path, name)} is {_described(value)}, not a parameter")
            made._parameters[name] = None if value is None else self._tensors.parameter(value)
        for name, value in _named(made, own, state, "_buffers", path):
            if value is not None and not isinstance(value, TensorRecord):
                raise ModelError(f"{_at(path, name)} is {_described(value)}, not a buffer")
            made._buffers[name] = None if value is None else self._tensors.any(value)
        for name, value in _named(made, own, state, "_modules", path):
            if value is not None and not isinstance(value, ObjectRecord):
                raise ModelError(f"{_at(path, name)} is {_described(value)}, not a module")
            made._modules[name] = None if value is None else self.module(value, f"{path}.{name}".lstrip("."))
        made._non_persistent_buffers_set = _setting(state, "_non_persistent_buffers_set", set, path) & set(
            made._buffers
        )
        for name, value in state.items():
            if name not in own:
                _check_name(made, own, name, path)
                made.__dict__[name] = self._plain(value, _at(path, name))
        if isinstance(made, nn.RNNBase):
            _restore_flat_weights(made, path)
        if str(type(made).__module__) == "gemedge.nn":
            _check_activation(made, path)

    def _plain(self, value: Tree, where: str) -> Any:
        match value:
            case None | bool() | int() | float() | str():
                return value
            case Size():
                return torch.Size(value)
            case list() | tuple():
                return type(value)(self._plain(item, where) for item in value)
            case dict():
                return {key: self._plain(item, where) for key, item in value.items()}
            case set():
                return set(value)
            case Device():
                return torch.device("cpu")  # wherever it was, here it runs on the CPU
            case TensorRecord():
                return self._tensors.any(value)
            case ObjectRecord():
                return self.module(value, where)
            case Name(module="torch", qualname=dtype) if dtype in ITEM_SIZES:
                return getattr(torch, dtype)
            case Name(module=owner, qualname=function) if function in _FUNCTIONS.get(owner, "").split():
                return getattr(importlib.import_module(owner), function)
        raise ModelError(f"{where} is {_described(value)}; of functions only the activations of torch.nn are allowed")


def _refuse_hooks(own: set[str], state: dict[str, Tree], path: str) -> None:
    for name, value in state.items():
        if value and name not in _SETTINGS and (name in own or name.endswith("_hooks")):
            raise ModelError(f"{_at(path, name)} is not empty; save the module without hooks")


def _setting(state: dict[str, Tree], name: str, kind: type, path: str) -> Any:
    value = state.get(name)
    if type(value) is not kind:
        raise ModelError(f"{_at(path, name)} is {_described(value)}, not a {kind.__name__}; it is no module's state")
    return value


def _named(made: nn.Module, own: set[str], state: dict[str, Tree], part: str, path: str) -> list[tuple[str, Tree]]:
    """The named values of one of a module's dicts, each name checked."""
    values = state.get(part)
    if not isinstance(values, dict):
        raise ModelError(f"{_at(path, part)} is {_described(values)}, not a dict; it is no module's state")
    for name in values:
        _check_name(made, own, name, path)
    return list(values.items())


def _check_name(made: nn.Module, own: set[str], name: Any, path: str) -> None:
    """Refuse a name that torch could not have given, or that hides what the class or the module already has."""
    if type(name) is not str or not name or "." in name or name.startswith("__"):
        raise ModelError(f"{_at(path, name)} is no name of an attribute")
    taken = (vars(made), made._parameters, made._buffers, made._modules)
    if name in own or any(name in names for names in taken):
        raise ModelError(f"{_at(path, name)} is there twice")
    for kind in type(made).__mro__:
        hidden = kind.__dict__.get(name)
        if callable(hidden) or hasattr(hidden, "__get__"):
            raise ModelError(f"{_at(path, name)} hides {kind.__name__}.{name} of its class")


def _restore_flat_weights(made: nn.RNNBase, path: str) -> None:
    try:
        made._init_flat_weights()
    except (AttributeError, TypeError, RuntimeError) as error:
        raise ModelError(f"{_at(path, '_flat_weights_names')} does not fit its parameters: {error}") from error


def _check_activation(made: nn.Module, path: str) -> None:
    """__init__, which would have refused it, has not run."""
    try:
        _ = made.activation
    except (ActivationError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"layer {path!r}: {error}") from error


def _at(path: str, name: Any) -> str:
    return f"attribute {str(name)[:80]!r} of {f'layer {path!r}' if path else 'the module'}"

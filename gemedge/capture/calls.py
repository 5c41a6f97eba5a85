"""The few functions that a pickle of torch.save calls, each answered with plain data."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gemedge.capture.tree import ITEM_SIZES, Device, Name, Size, StorageRef, TensorRecord, check_dtype
from gemedge.errors import ModelError, UnsupportedError

_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
_UNSUPPORTED = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "_rebuild_wrapper_subclass": "a tensor of a subclass",
}


class Storages:
    """The data records of an archive, each checked when it is first referred to."""

    def __init__(self, records: Mapping[str, memoryview]) -> None:
        self._records = records
        self._known: dict[str, StorageRef] = {}

    def reference(self, identifier: Any) -> StorageRef:
        """The storage of a persistent id ('storage', type, key, location, numel)."""
        match identifier:
            case ("storage", Name(module=module, qualname=kind), str(key), str(location), int(numel)):
                dtype = _STORAGES.get(kind) if module in ("torch", "torch.storage") else None
            case _:
                raise ModelError("its pickle refers to a storage in a way torch does not")
        if dtype is None:
            raise UnsupportedError(f"it holds a storage of {module}.{kind}; gemedge reads {', '.join(_STORAGES)}")
        if location == "meta":
            raise UnsupportedError(f"it holds {_UNSUPPORTED['_rebuild_meta_tensor_no_storage']}")
        reference = StorageRef(dtype, key, numel)
        if key not in self._known:
            self._check(reference)
            self._known[key] = reference
        if self._known[key] != reference:
            raise ModelError(f"its pickle refers to storage {key[:40]!r} as two different ones")
        return self._known[key]

    def _check(self, reference: StorageRef) -> None:
        record = self._records.get(f"data/{reference.key}")
        if record is None:
            raise ModelError(f"its record 'data/{reference.key[:40]}' is missing")
        if reference.numel < 0 or len(record) != reference.nbytes:
            raise ModelError(
                f"its record 'data/{reference.key}' has {len(record)} bytes;"
                f" {reference.numel} elements of {reference.dtype} need {reference.nbytes}"
            )
        if reference.dtype == "bool":
            check_bools(f"data/{reference.key}", record)


def check_bools(name: str, record: memoryview) -> None:
    """Raise ModelError unless each byte is 0 or 1, as torch relies on."""
    if len(record) and np.frombuffer(record, np.uint8).max() > 1:
        raise ModelError(f"its record {name!r} holds a bool that is neither 0 nor 1")


def call(function: Name, arguments: tuple[Any, ...]) -> Any:
    """The plain data that stands for function(*arguments); ModelError for any function but torch's own few."""
    answer = _CALLS.get(str(function))
    if answer is not None:
        return answer(arguments)
    if function.module in ("torch._utils", "torch._tensor") and function.qualname in _UNSUPPORTED:
        raise UnsupportedError(f"it holds {_UNSUPPORTED[function.qualname]}; gemedge reads dense ones")
    raise ModelError(f"its pickle calls {function}; gemedge calls nothing that a file names")


def set_of_text(arguments: tuple[Any, ...]) -> set[str]:
    match arguments:
        case (list(items),) if all(type(item) is str for item in items):
            return set(items)
    raise ModelError("its pickle makes a set of something else than texts")


def _ordered_dict(arguments: tuple[Any, ...]) -> OrderedDict[Any, Any]:
    if arguments:
        raise ModelError("its pickle makes an OrderedDict with arguments; torch makes it empty")
    return OrderedDict()


def _size(arguments: tuple[Any, ...]) -> Size:
    match arguments:
        case (tuple(sizes),) if all(type(size) is int for size in sizes):
            return Size(sizes)
    raise ModelError("its pickle makes a torch.Size of something else than whole numbers")


def _device(arguments: tuple[Any, ...]) -> Device:
    match arguments:
        case (str(kind),) | (str(kind), int()) if len(kind) < 20:
            return Device(":".join(map(str, arguments)))
    raise ModelError("its pickle makes a torch.device of something else than its name")


def _layout(arguments: tuple[Any, ...]) -> Name:
    match arguments:
        case (str(layout),):
            return Name("torch", layout.removeprefix("torch."))
    raise ModelError("its pickle makes a layout of something else than its name")


def _attribute(arguments: tuple[Any, ...]) -> Name:
    match arguments:
        case (Name(module="torch._C", qualname="_VariableFunctionsClass"), str(name)):
            return Name("torch", name)
        case (Name() as owner, str(name)):
            raise ModelError(f"its pickle calls getattr on {owner}; gemedge calls nothing that a file names")
    raise ModelError("its pickle calls getattr; gemedge calls nothing that a file names")


def _tensor(arguments: tuple[Any, ...]) -> TensorRecord:
    """Answers _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None)."""
    match arguments:
        case (StorageRef() as storage, offset, tuple(shape), tuple(stride), bool(grad), hooks, *metadata):
            _check_extras(hooks, metadata)
            return TensorRecord(storage, storage.dtype, offset, tuple(shape), tuple(stride), grad)
    raise ModelError("its pickle makes a tensor with arguments that torch does not write")


def _tensor_of_type(arguments: tuple[Any, ...]) -> TensorRecord:
    """Answers _rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None)."""
    match arguments:
        case (
            StorageRef() as storage,
            offset,
            tuple(shape),
            tuple(stride),
            bool(grad),
            hooks,
            Name(module="torch", qualname=dtype),
            *metadata,
        ):
            _check_extras(hooks, metadata)
            check_dtype(dtype)
            if storage.dtype != "uint8" or storage.nbytes % ITEM_SIZES[dtype]:
                raise ModelError(f"storage {storage.key!r} of {storage.nbytes} bytes holds no tensor of {dtype}")
            return TensorRecord(storage, dtype, offset, tuple(shape), tuple(stride), grad)
    raise ModelError("its pickle makes a tensor with arguments that torch does not write")


def _check_extras(hooks: Any, metadata: list[Any]) -> None:
    if hooks:
        raise ModelError("its pickle gives a tensor backward hooks")
    if len(metadata) > 1:
        raise ModelError("its pickle makes a tensor with arguments that torch does not write")
    if metadata and metadata[0]:
        raise UnsupportedError("it holds a tensor with flags (a conjugate or negative view); gemedge reads plain ones")


def _with_attributes(arguments: tuple[Any, ...]) -> TensorRecord:
    """Answers _rebuild_from_type_v2(function, type, arguments, state); the attributes are dropped."""
    match arguments:
        case (Name() as function, Name() as kind, tuple(inner), _):
            if str(kind) not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
                raise UnsupportedError(f"it holds a tensor of the subclass {kind}; gemedge reads plain ones")
            answer = _TENSOR_CALLS.get(str(function))
            if answer is not None:
                return answer(inner)
    raise ModelError("its pickle makes a tensor with arguments that torch does not write")


def _parameter(arguments: tuple[Any, ...]) -> TensorRecord:
    """Answers _rebuild_parameter(tensor, requires_grad, hooks)."""
    match arguments:
        case (TensorRecord() as tensor, bool(grad), hooks):
            _check_extras(hooks, [])
            return TensorRecord(tensor.storage, tensor.dtype, tensor.offset, tensor.shape, tensor.stride, grad, True)
    raise ModelError("its pickle makes a parameter with arguments that torch does not write")


_TENSOR_CALLS: dict[str, Callable[[tuple[Any, ...]], TensorRecord]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": lambda arguments: _parameter(arguments[:3]),
}
_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = _TENSOR_CALLS | {
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
    "builtins.set": set_of_text,
    "__builtin__.set": set_of_text,
    "builtins.getattr": _attribute,
    "__builtin__.getattr": _attribute,
}

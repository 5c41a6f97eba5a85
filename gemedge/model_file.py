"""A QuantizedModel as one file: a safetensors file whose header carries the graph as JSON (docs/file-format.md).

Reading copies numbers and checks every one of them; it runs nothing. The digest covers the graph and the
weights, so that a damaged file is refused rather than read as another network.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

import numpy as np

from gemedge.activation import Activation
from gemedge.errors import GemedgeError, ModelError
from gemedge.fixed import QuantParams, Rounding
from gemedge.model import Op, QuantizedModel
from gemedge.operators import Tensor

FORMAT = "gemedge model"
VERSION = 1
_OPERATORS = {kind.__name__: kind for kind in get_args(Op)}
_DTYPES = {"I8": np.int8, "I16": np.int16, "I64": np.int64}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000


def save(model: QuantizedModel) -> bytes:
    """The file's bytes, the same for the same model. The safetensors library reads its tensors."""
    arrays: dict[str, np.ndarray] = {}
    layers = [_layer(index, layer, arrays) for index, layer in enumerate(model.layers)]
    graph = {
        "scheme": model.scheme,
        "rounding": model.rounding.value,
        "inputs": list(model.inputs),
        "outputs": dict(model.outputs),
        "tensors": [_tensor(tensor) for tensor in model.tensors.values()],
        "layers": layers,
        "notes": list(model.notes),
    }
    text = json.dumps(graph, separators=(",", ":"), allow_nan=False)
    header: dict[str, Any] = {}
    chunks, offset = [], 0
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        chunks.append(raw)
        offset += len(raw)
    data = b"".join(chunks)
    index = json.dumps(header, separators=(",", ":"))
    header["__metadata__"] = {
        "format": FORMAT,
        "version": str(VERSION),
        "digest": _digest(text, index, data),
        "graph": text,
    }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + data


def load(content: bytes | memoryview) -> QuantizedModel:
    """The model in a file's bytes, validated throughout. ModelError says in one line what is wrong."""
    try:
        return _load(memoryview(content))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        if isinstance(error, GemedgeError):
            raise ModelError(str(error)) from error
        missing = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else str(error)
        raise ModelError(f"it is no sound gemedge model: {missing[:200]}") from error
    except GemedgeError as error:
        raise ModelError(str(error)) from error


def _load(content: memoryview) -> QuantizedModel:
    length = int.from_bytes(content[:8], "little")
    if len(content) > 8 and content[8] != ord("{"):
        raise ModelError("it is no .gemq file, which gemedge quantize writes")
    if len(content) < 8 or length > min(len(content) - 8, _LONGEST_HEADER):
        raise ModelError(f"its header of {length} bytes does not fit a file of {len(content)}")
    header = json.loads(bytes(content[8 : 8 + length]), parse_constant=_refuse)
    if json.dumps(header, separators=(",", ":")).encode().ljust(length) != bytes(content[8 : 8 + length]):
        raise ModelError("its header is not written as gemedge writes it")
    metadata = header.pop("__metadata__")
    if metadata["format"] != FORMAT:
        raise ModelError(f"its format is {metadata['format']!r:.60}, not {FORMAT!r}")
    if metadata["version"] != str(VERSION):
        raise ModelError(f"it is of version {metadata['version']!r:.20}; this gemedge reads version {VERSION}")
    data = content[8 + length :]
    if metadata["digest"] != _digest(metadata["graph"], json.dumps(header, separators=(",", ":")), data):
        raise ModelError("its digest does not match: the file is damaged")
    arrays = _arrays(header, data)
    graph = json.loads(metadata["graph"], parse_constant=_refuse)
    tensors = [_read_tensor(entry) for entry in graph["tensors"]]
    return QuantizedModel(
        graph["scheme"],
        Rounding(graph["rounding"]),
        tuple(map(_text, graph["inputs"])),
        {_text(name): _text(tensor) for name, tensor in graph["outputs"].items()},
        {tensor.name: tensor for tensor in tensors},
        tuple(_read_layer(entry, arrays) for entry in graph["layers"]),
        tuple(map(_text, graph["notes"])),
    )


def _digest(graph: str, index: str, data: bytes | memoryview) -> str:
    digest = hashlib.sha256(graph.encode())
    digest.update(index.encode())
    digest.update(data)
    return digest.hexdigest()


def _layer(index: int, layer: Op, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    written: dict[str, Any] = {"operator": type(layer).__name__}
    for field in fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, np.ndarray):
            arrays[f"{index}.{field.name}"] = value
            value = {"tensor": f"{index}.{field.name}"}
        elif isinstance(value, Activation):
            value = str(value)
        written[field.name] = list(value) if isinstance(value, tuple) else value
    return written


def _read_layer(entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Op:
    if entry["operator"] not in _OPERATORS:
        raise ModelError(f"operator {entry['operator']!r:.40} is not known")
    kind = _OPERATORS[entry["operator"]]
    values = {}
    for field in fields(kind):
        values[field.name] = _READ[field.type if isinstance(field.type, str) else _type_name(field.type)](
            entry[field.name], arrays
        )
    made: Op = kind(**values)
    return made


def _type_name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind)) if "[" not in str(kind) else str(kind)


def _tensor(tensor: Tensor) -> dict[str, Any]:
    written: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape)}
    if tensor.params is not None:
        params = tensor.params
        written |= {"scale": params.scale, "zero_point": params.zero_point, "bits": params.bits}
    if tensor.bounded != "none":
        written["bounded"] = tensor.bounded
    return written


def _read_tensor(entry: Mapping[str, Any]) -> Tensor:
    params = QuantParams(entry["scale"], entry["zero_point"], entry["bits"]) if "scale" in entry else None
    return Tensor(_text(entry["name"]), _ints(entry["shape"]), params, entry.get("bounded", "none"))


def _arrays(header: Mapping[str, Any], data: memoryview) -> dict[str, np.ndarray]:
    """Tensors in the order of their places, which fill the data without gaps."""
    arrays, end = {}, 0
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), _ints(entry["shape"])
        if start != end or stop > len(data) or stop - start != dtype.itemsize * int(np.prod(shape, dtype=object)):
            raise ModelError(f"tensor {name!r:.60} does not lie where its header says")
        arrays[name] = np.frombuffer(data[start:stop], dtype).reshape(shape)
        end = stop
    if end != len(data):
        raise ModelError(f"{len(data) - end} bytes after its last tensor")
    return arrays


def _refuse(text: str) -> None:
    raise ModelError(f"it holds the number {text}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ModelError(f"{value!r:.60} must be a text")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ModelError(f"{value!r:.60} must be a whole number")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ModelError(f"{value!r:.60} must be true or false")
    return value


def _ints(value: Any) -> tuple[int, ...]:
    return tuple(map(_whole, value))


_READ: dict[str, Any] = {
    "str": lambda value, _: _text(value),
    "int": lambda value, _: _whole(value),
    "bool": lambda value, _: _flag(value),
    "tuple[int, ...]": lambda value, _: _ints(value),
    "tuple[str, ...]": lambda value, _: tuple(map(_text, value)),
    "Activation": lambda value, _: Activation.parse(_text(value)),
    "ndarray": lambda value, arrays: arrays[value["tensor"]],
}

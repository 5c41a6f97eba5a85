"""What kind of file a file is, from its bytes: its name says nothing, and nothing in it is unpickled."""

from enum import StrEnum
from pathlib import Path

from gemedge.capture.archive import directory, open_bytes

_HEAD = 4096
_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # pickle of torch's magic number


class Kind(StrEnum):
    """A kind of file, in the words of an error message."""

    PT2 = "a torch.export archive"
    OLD_PT2 = "a torch.export archive of torch 2.7 or older"
    TORCHSCRIPT = "a TorchScript archive"
    TORCH_ZIP = "a torch.save archive"
    LEGACY_TAR = "a torch file of torch 0.1"
    LEGACY_PICKLE = "a torch file of torch 1.5 or older"
    PICKLE = "a Python pickle without torch's archive"
    ONNX = "an ONNX model"
    QUANTIZED = "a model in integers, which gemedge simulate runs"
    SAFETENSORS = "a safetensors file"
    NPZ = "a NumPy .npz archive"
    NPY = "a NumPy .npy array"
    TFLITE = "a TensorFlow Lite model"
    ZIP = "a zip archive of an unknown kind"
    EMPTY = "empty"
    TEXT = "a text"
    UNKNOWN = "of an unknown kind"


def sniff(path: Path) -> Kind:
    """The kind of the file at path. ModelError where it cannot be read or is a zip without a sound directory."""
    return kind_of(open_bytes(path))


def kind_of(data: memoryview) -> Kind:
    """`sniff` of bytes at hand."""
    head = bytes(data[:_HEAD])
    if not head:
        return Kind.EMPTY
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _zip_kind({entry.name for entry in directory(data)[0]})
    for kind, is_kind in _TESTS.items():
        if is_kind(head):
            return Kind.QUANTIZED if kind is Kind.SAFETENSORS and _is_quantized(data) else kind
    return Kind.ONNX if _is_onnx(data) else Kind.UNKNOWN


def _zip_kind(names: set[str]) -> Kind:
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner:
        return Kind.PT2
    if "serialized_exported_program.json" in names:
        return Kind.OLD_PT2
    if "data.pkl" in inner:
        is_script = "constants.pkl" in inner or any(name.startswith("code/") for name in inner)
        return Kind.TORCHSCRIPT if is_script else Kind.TORCH_ZIP
    return Kind.NPZ if names and all(name.endswith(".npy") for name in names) else Kind.ZIP


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000


def _is_quantized(data: memoryview) -> bool:
    """Whether the header of a safetensors file has our mark."""
    return b'"format":"gemedge model"' in bytes(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # anything but a character cut by the end of the head
            return False
        text = head[: error.start].decode()
    return bool(text) and all(character.isprintable() or character in "\t\r\n\f" for character in text)


_TESTS = {
    Kind.LEGACY_PICKLE: lambda head: head.startswith(_LEGACY_MAGIC),
    Kind.PICKLE: lambda head: head[:1] == b"\x80" and head[1:2] in (b"\1", b"\2", b"\3", b"\4", b"\5"),
    Kind.NPY: lambda head: head.startswith(b"\x93NUMPY"),
    Kind.TFLITE: lambda head: head[4:8] == b"TFL3",
    Kind.LEGACY_TAR: lambda head: head[257:262] == b"ustar",
    Kind.SAFETENSORS: _is_safetensors,
    Kind.TEXT: _is_text,
}

# ModelProto's fields: number -> wire type (0 a number, 2 bytes)
_ONNX_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_GRAPH = 7


def _is_onnx(data: memoryview) -> bool:
    """Whether the file is fields of a ModelProto up to its graph; the graph may be cut short."""
    position = 0
    for _ in range(1000):
        tag, position = _varint(data, position)
        if _ONNX_FIELDS.get(tag >> 3) != tag & 7:
            return False
        if tag >> 3 == _GRAPH:
            return True
        length, position = _varint(data, position)
        if tag & 7 == 2:
            position += length
    return False


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if position >= len(data):
            return 0, position
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, position

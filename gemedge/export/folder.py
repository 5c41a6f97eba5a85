"""A folder of exported C, read back: the sources to compile, and the quantized model that they were made of.

A folder may be anybody's: only plain files of a bounded size are read, none through a symbolic link, and what they say
of themselves is checked against the model. Its digest tells one folder's code from another's.
"""

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemedge import model_file
from gemedge.errors import ModelError, about
from gemedge.export import to_c
from gemedge.export.c_activations import CHOICES
from gemedge.model import QuantizedModel

MODEL = "model.gemq"
_LARGEST = {".h": 1 << 26, ".c": 1 << 29, ".gemq": 1 << 31}
_MOST_HEADERS = 64
_SAYS = re.compile(rb"^#define ([A-Z][A-Z0-9_]*)_(ARENA_SIZE|LAYERS) (\d{1,10})$", re.MULTILINE)
_HEADER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.h")


@dataclass(frozen=True, slots=True)
class Folder:
    """Exported C. sources: model.c and the headers. name: what its functions begin with. arena: bytes of a run."""

    model: QuantizedModel
    sources: Mapping[str, bytes]
    name: str
    arena: int

    @property
    def digest(self) -> str:
        """SHA-256 of all sources and their names, in hexadecimal."""
        parts = [part for name in sorted(self.sources) for part in (name.encode(), self.sources[name])]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    def changed(self) -> list[str]:
        """The sources that are not what gemedge writes for this model."""
        found = []
        for choice in CHOICES:
            written = to_c.to_c(self.model, self.name, activation=choice)
            found.append(
                [name for name, content in sorted(self.sources.items()) if written.get(name, content) != content]
            )
        return min(found, key=len)


def of_model(model: QuantizedModel, name: str) -> Folder:
    """What an export of the model under this name would hold."""
    return Folder(model, compiled(to_c.to_c(model, name)), to_c.symbol(name), to_c.arena_size(model))


def compiled(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those files of an export that a build compiles: model.c, and the headers beside it."""
    return {name: content for name, content in files.items() if name == "model.c" or _HEADER.fullmatch(name)}


def read(path: Path) -> Folder:
    """The folder at path. ModelError names what is missing, no plain file, too large, or not of the same export."""
    if not path.is_dir():
        raise ModelError(f"{path}: it is no folder of exported C")
    names = sorted(os.listdir(path))
    for name in ("model.c", "model.h", MODEL):
        if name not in names:
            raise ModelError(f"{path}: it holds no {name}; gemedge export --format c writes folders that do")
    headers = [name for name in names if _HEADER.fullmatch(name)]
    if len(headers) > _MOST_HEADERS:
        raise ModelError(f"{path}: it holds {len(headers)} headers; {_MOST_HEADERS} at most")
    sources = {name: _content(path / name) for name in ("model.c", *headers)}
    with about(path / MODEL):
        model = model_file.load(_content(path / MODEL))
    with about(path):
        return _checked(model, sources)


def _content(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        what = "it is a symbolic link, which is not followed" if path.is_symlink() else error.strerror
        raise ModelError(f"{path}: {what}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path}: it is not a regular file")
        largest = _LARGEST[path.suffix]
        if status.st_size > largest:
            raise ModelError(f"{path}: it has {status.st_size:,} bytes; {largest:,} at most")
        return file.read(largest)


def _checked(model: QuantizedModel, sources: Mapping[str, bytes]) -> Folder:
    """The folder, where model.h speaks of one model, and of one of as many layers."""
    says = {(name.decode(), what.decode()): int(value) for name, what, value in _SAYS.findall(sources["model.h"])}
    names = sorted({name for name, _ in says})
    if len(names) != 1 or len(says) != 2:
        raise ModelError("its model.h does not say how large the arena is, and how many layers there are")
    layers, arena = says[names[0], "LAYERS"], says[names[0], "ARENA_SIZE"]
    if layers != len(model.layers):
        raise ModelError(f"model.c has {layers} layers, {MODEL} {len(model.layers)}: they are not of one export")
    return Folder(model, sources, names[0].lower(), arena)

"""The real engines, driven from Python.

onnxruntime runs the nodes of domain ai.gemedge, GEM and SEGEM in float and QuantizedGEM and QuantizedSEGEM in 8 bits,
with kernels of ours where a C compiler is at hand. They are built on first use and kept in a folder that only its
owner can write, under a name made of what they were built from and of their own digest: a file that is not what its
name says is not loaded.
"""

import ctypes
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from gemedge import files
from gemedge.errors import GemedgeWarning, OutputError

if TYPE_CHECKING:
    import onnxruntime

_SOURCE = "onnxruntime_kernel.c"
# Contraction would change bits; a trap or errno is not asked for by anyone, and costs the vector loops.
_FLAGS = ["-std=c99", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
_FLAGS += ["-fPIC", "-shared", "-fvisibility=hidden"]
_SECONDS_TO_BUILD = 300
_REGISTERED = "gemedge.fused_kernels"  # onnxruntime takes a domain once, and its options can be asked for entries only


def onnxruntime_options(base: "onnxruntime.SessionOptions | None" = None) -> "onnxruntime.SessionOptions":
    """Session options under which the fused kernels run the nodes of ai.gemedge, whether or not a model brings bodies.

    base: options to add the kernels to, once; they are returned. None makes fresh ones. Where the kernels
    cannot be built or loaded a GemedgeWarning says why, in one line, and the function bodies in the model serve.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions() if base is None else base
    if _is_registered(options):
        return options
    try:
        library = _kernel_library()
    except (_BuildError, OSError) as error:
        _warn(f"{error}; the function bodies in the model run instead of the fused kernels")
        return options
    try:
        options.register_custom_ops_library(str(library))
        options.add_session_config_entry(_REGISTERED, "1")
    except Exception as error:  # onnxruntime's own, of several classes
        _warn(f"onnxruntime does not take the fused kernels, the function bodies run instead: {error}")
    return options


def _is_registered(options: "onnxruntime.SessionOptions") -> bool:
    try:
        return str(options.get_session_config_entry(_REGISTERED)) == "1"
    except RuntimeError:  # no such entry
        return False


class _BuildError(Exception):
    """No compiler gave a library that can be loaded."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A command that compiles C, and whatever tells this installation of it from another."""

    command: tuple[str, ...]
    identity: str


def _kernel_library() -> Path:
    """The path of a library that can be loaded: one built before, or one built now by the first compiler that can."""
    source = resources.files("gemedge.export").joinpath(_SOURCE).read_bytes()
    available = compilers()
    folder = _cache_folder()
    for compiler in available:
        if found := _find(folder, _key(compiler, source)):
            return found
    reasons = [] if available else ["no C compiler: none of $CC, cc, gcc, clang, and no Python package ziglang"]
    for compiler in available:
        try:
            return _keep(folder, _key(compiler, source), _build(compiler, source))
        except _BuildError as error:
            reasons.append(str(error))
    raise _BuildError("; ".join(reasons))


def compilers() -> list[Compiler]:
    """The compilers of this machine, in the order in which they are tried; a program under two names comes once."""
    found: dict[str, Compiler] = {}
    for text in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = _words(text)
        program = shutil.which(words[0]) if words else None
        if program is not None:
            resolved = os.path.realpath(program)
            status = os.stat(resolved)
            identity = f"{resolved} {status.st_size} {status.st_mtime_ns} {words[1:]}"
            found.setdefault(identity, Compiler((program, *words[1:]), identity))
    if (zig := importlib.util.find_spec("ziglang")) is not None:
        from importlib.metadata import version

        command = (sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline")  # or this CPU would be baked in
        found["zig"] = Compiler(command, f"{zig.origin} {version('ziglang')}")
    return list(found.values())


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # an open quotation mark
        return [text]


def _key(compiler: Compiler, source: bytes) -> str:
    """Names everything that the library depends on; it picks the CPU's vectors when it is loaded."""
    parts = [source, repr(_FLAGS).encode(), compiler.identity.encode(), sys.platform.encode()]
    parts.append(platform.machine().encode())
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


# Where libraries are kept: <key>-<SHA-256 of the file>.so


def _find(folder: Path, key: str) -> Path | None:
    for path in sorted(folder.glob(f"{key}-*.so")):
        try:
            if path.name == _name(key, path.read_bytes()):
                return path
            path.unlink()  # damaged
        except OSError:
            continue  # removed meanwhile, or unreadable: it is built again
    return None


def _name(key: str, library: bytes) -> str:
    return f"{key}-{hashlib.sha256(library).hexdigest()}.so"


def _keep(folder: Path, key: str, library: bytes) -> Path:
    """Write the library into the folder, or where that cannot be done into this process's own."""
    path = folder / _name(key, library)
    try:
        files.write({path: library}, force=True)
    except OutputError as error:
        if folder == _private_folder():
            raise _BuildError(f"the fused kernels cannot be kept: {error}") from error
        _warn(f"{error}; the fused kernels are built for this process only")
        return _keep(_private_folder(), key, library)
    return path


def _cache_folder() -> Path:
    """The user's cache folder if nobody else can write there, else this process's own folder."""
    try:
        return cache_folder()
    except OutputError as error:
        _warn(f"{error}; the fused kernels are built for this process only")
        return _private_folder()


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/gemedge or ~/.cache/gemedge, made where it is missing; OutputError if others can write there."""
    try:
        home = os.environ.get("XDG_CACHE_HOME", "")
        folder = (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "gemedge"
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        reason = _objection(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise OutputError(f"there is no cache folder: {error}") from error
    if reason is not None:
        raise OutputError(reason)
    return folder


def _objection(folder: Path) -> str | None:
    """Why a library in this folder could come from somebody else, or None. Symbolic links are followed first."""
    real = Path(os.path.realpath(folder))
    status = real.stat()
    if status.st_uid != os.geteuid():
        return f"{folder} belongs to user {status.st_uid}, not to {os.geteuid()}"
    if status.st_mode & 0o022:
        return f"{folder} can be written by others (mode {status.st_mode & 0o777:o}; 700 is needed)"
    for parent in real.parents:
        status = parent.stat()
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o1002 == 0o002:
            return f"{folder} can be replaced by others, who can write {parent}"
    return None


@cache
def _private_folder() -> Path:
    return Path(_private().name)


@cache
def _private() -> "tempfile.TemporaryDirectory[str]":
    """Lives as long as the process."""
    return tempfile.TemporaryDirectory(prefix="gemedge-")


# Building


def _build(compiler: Compiler, source: bytes) -> bytes:
    """The library's bytes, after it was loaded once. Raises _BuildError naming the compiler and its last message."""
    name = " ".join(compiler.command)
    with tempfile.TemporaryDirectory(prefix="gemedge-") as folder:
        Path(folder, _SOURCE).write_bytes(source)
        output = Path(folder, "kernel.so")
        command = [*compiler.command, *_FLAGS, "-o", output.name, _SOURCE]
        try:
            result = subprocess.run(  # noqa: S603 - the user's own compiler
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS_TO_BUILD,
                env=os.environ | {"LC_ALL": "C"},
                check=False,
            )
            if result.returncode != 0:
                raise _BuildError(f"{name} failed with status {result.returncode}: {_last_line(result.stderr)}")
            _ = ctypes.CDLL(str(output)).RegisterCustomOps
            return output.read_bytes()
        except subprocess.TimeoutExpired as error:
            raise _BuildError(f"{name} did not end in {_SECONDS_TO_BUILD} seconds") from error
        except (OSError, AttributeError) as error:
            raise _BuildError(f"{name} made no library for this machine: {error}") from error


def _last_line(message: bytes) -> str:
    lines = message.decode(errors="replace").split("\n")
    errors = [line.strip() for line in lines if "error" in line] or [line.strip() for line in lines if line.strip()]
    return errors[-1] if errors else "it gave no message"


def _warn(text: str) -> None:
    """In one line; Python shows a text once in a process."""
    warnings.warn(" ".join(text.split()), GemedgeWarning, stacklevel=2)

"""Zip archives as torch writes them, checked byte for byte, and what kind of file a file is.

torch stores its records as they are, one after the other, and never deflates. So a sound archive leaves
no byte unexplained: the local header, the data and the descriptor of each record follow those of the one
before, then the central directory, then the end. Whatever departs from that is refused, with its reason.
"""

import io
import mmap
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gemedge.errors import ModelError

MAX_RECORDS = 100_000

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_STORED = 0
_HAS_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the central directory."""

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    is_zip64: bool


@dataclass(frozen=True, slots=True)
class Archive:
    """The records of a checked archive, in the file's order, named without the archive's top folder."""

    folder: str
    records: dict[str, memoryview]


def open_bytes(path: Path) -> memoryview:
    """The bytes of a regular file, mapped and not read; an empty view of an empty one.

    Raises ModelError at once for what is missing, not readable or not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ModelError(f"it cannot be opened: {error.strerror}") from error
    try:
        mode, size = os.fstat(descriptor).st_mode, os.fstat(descriptor).st_size
        if not stat.S_ISREG(mode):
            raise ModelError("it is a folder, not a file" if stat.S_ISDIR(mode) else "it is not a regular file")
        if size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise ModelError(f"it cannot be read: {error}") from error
    finally:
        os.close(descriptor)


def read_archive(path: Path) -> Archive:
    """Every record of the torch archive at path, its structure and each CRC-32 checked.

    Raises ModelError with the first thing that is wrong.
    """
    return parse_archive(open_bytes(path))


def parse_archive(data: memoryview | bytes) -> Archive:
    """`read_archive` of bytes at hand."""
    view = memoryview(data).cast("B")
    entries, directory_start = directory(view)
    folder = _common_folder(entries)
    records = {}
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        _check_entry(entry)
        if entry.offset != position:
            what = (
                "overlaps the record before it" if entry.offset < position else f"comes after unused bytes {position}"
            )
            raise ModelError(f"record {entry.name!r} at {entry.offset} {what}")
        content, position = _content(view, entry, directory_start)
        records[entry.name.removeprefix(folder)] = content
    if position != directory_start:
        raise ModelError(f"bytes {position} to {directory_start} belong to no record")
    return Archive(folder.rstrip("/"), records)


def write_archive(records: Mapping[str, bytes | memoryview], folder: str) -> bytes:
    """A stored zip archive of the records in their order: the same records give the same bytes."""
    buffer = io.BytesIO()
    write_into(buffer, records, folder)
    return buffer.getvalue()


def write_into(file: IO[bytes], records: Mapping[str, bytes | memoryview], folder: str) -> None:
    """What write_archive gives, into a file at its beginning."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as writer:
        for name, content in records.items():
            writer.writestr(zipfile.ZipInfo(f"{folder}/{name}", (1980, 1, 1, 0, 0, 0)), content)


# The directory at the end


def directory(view: memoryview) -> tuple[list[Entry], int]:
    """The central directory's entries, and where it starts; the records themselves are not looked at."""
    count, size, start, stop = _end(view)
    if start + size != stop:
        raise ModelError(f"its central directory ends at {start + size}, but its end record is at {stop}")
    if count > MAX_RECORDS:
        raise ModelError(f"it has {count} records; {MAX_RECORDS} are allowed")
    entries = []
    position = start
    for _ in range(count):
        entry, position = _central(view, position, stop)
        entries.append(entry)
    if position != stop:
        raise ModelError(f"its central directory lists {count} records and has {stop - position} bytes more")
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise ModelError(f"it has two records named {entry.name!r}")
        seen.add(entry.name)
    return entries, start


def _end(view: memoryview) -> tuple[int, int, int, int]:
    at = len(view) - _END.size
    if at < 0 or not _has(view, at, b"PK\5\6"):
        raise ModelError("it does not end as a zip archive does: it is cut short, has bytes added, or is none")
    _, disk, start_disk, here, count, size, start, comment = _END.unpack_from(view, at)
    if comment:
        raise ModelError("its end record announces a comment that is not there")
    if at < _LOCATOR.size or not _has(view, at - _LOCATOR.size, b"PK\6\7"):
        if disk or start_disk or here != count:
            raise ModelError("it is a part of a multi-disk archive")
        return count, size, start, at
    wide = _end64(view, at - _LOCATOR.size)
    for narrow, limit, value in zip((count, size, start), (_FULL16, _FULL32, _FULL32), wide, strict=False):
        if narrow not in (value, limit):
            raise ModelError(f"its two end records disagree: {narrow} and {value}")
    return wide


def _end64(view: memoryview, locator_at: int) -> tuple[int, int, int, int]:
    _, disk, at, disks = _LOCATOR.unpack_from(view, locator_at)
    if at + _END64.size != locator_at or not _has(view, at, b"PK\6\6"):
        raise ModelError(f"its zip64 end record is not at {at}, where its locator says")
    _, length, _, _, own_disk, start_disk, here, count, size, start = _END64.unpack_from(view, at)
    if length != _END64.size - 12:
        raise ModelError(f"its zip64 end record claims {length} bytes; it has {_END64.size - 12}")
    if disk or own_disk or start_disk or disks != 1 or here != count:
        raise ModelError("it is a part of a multi-disk archive")
    return count, size, start, at


def _central(view: memoryview, at: int, stop: int) -> tuple[Entry, int]:
    if at + _CENTRAL.size > stop or not _has(view, at, b"PK\1\2"):
        raise ModelError(f"its central directory is damaged at {at}")
    _, _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment, disk, _, _, offset = (
        _CENTRAL.unpack_from(view, at)
    )
    name_at = at + _CENTRAL.size
    end = name_at + n_name + n_extra + n_comment
    if end > stop:
        raise ModelError(f"its central directory is cut short at {at}")
    name = _name(bytes(view[name_at : name_at + n_name]))
    if disk:
        raise ModelError(f"record {name!r} lies on another disk")
    wide = [value == _FULL32 for value in (size, packed, offset)]
    if any(wide):
        extra = bytes(view[name_at + n_name : name_at + n_name + n_extra])
        size, packed, offset = _widened(name, (size, packed, offset), extra)
    return Entry(name, flags, method, crc, packed, size, offset, any(wide)), end


def _widened(name: str, values: tuple[int, int, int], extra: bytes) -> tuple[int, ...]:
    """The values with each saturated one replaced from the zip64 field of `extra`."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            wanted = [index for index, value in enumerate(values) if value == _FULL32]
            if len(field) == length == 8 * len(wanted):
                wide = list(values)
                for index, value in zip(wanted, struct.unpack(f"<{len(wanted)}Q", field), strict=True):
                    wide[index] = value
                return tuple(wide)
        at += 4 + length
    raise ModelError(f"record {name!r} lacks its zip64 sizes")


def _name(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"the record name {raw[:80]!r} is not UTF-8") from error
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise ModelError(f"the record name {name[:80]!r} is not a plain relative path")
    return name


def _common_folder(entries: list[Entry]) -> str:
    folders = {entry.name.partition("/")[0] + "/" for entry in entries}
    outside = next((entry.name for entry in entries if "/" not in entry.name), None)
    if outside is not None:
        raise ModelError(f"record {outside!r} is outside the archive's top folder")
    if len(folders) != 1:
        raise ModelError(f"it has {len(folders)} top folders; torch writes one")
    return folders.pop()


def _has(view: memoryview, at: int, signature: bytes) -> bool:
    return bytes(view[at : at + 4]) == signature


# One record


def _check_entry(entry: Entry) -> None:
    if entry.flags & 1:
        raise ModelError(f"record {entry.name!r} is encrypted")
    if entry.flags & ~(_HAS_DESCRIPTOR | _UTF8):
        raise ModelError(f"record {entry.name!r} has the flags {entry.flags:#x}; torch sets none but 0x808")
    if entry.method != _STORED:
        raise ModelError(
            f"record {entry.name!r} is compressed (method {entry.method}); torch stores records as they are"
        )
    if entry.packed != entry.size:
        raise ModelError(f"record {entry.name!r} is stored in {entry.packed} bytes but claims {entry.size}")


def _content(view: memoryview, entry: Entry, limit: int) -> tuple[memoryview, int]:
    """A record's bytes and where it ends, its local header, descriptor and CRC-32 agreeing with `entry`."""
    if entry.offset + _LOCAL.size > limit or not _has(view, entry.offset, b"PK\3\4"):
        raise ModelError(f"record {entry.name!r} has no local header at {entry.offset}")
    _, _, flags, method, _, _, crc, packed, size, n_name, n_extra = _LOCAL.unpack_from(view, entry.offset)
    name_at = entry.offset + _LOCAL.size
    start = name_at + n_name + n_extra
    stop = start + entry.size
    if stop > limit:
        raise ModelError(f"record {entry.name!r} of {entry.size} bytes reaches beyond the file's records")
    if bytes(view[name_at : name_at + n_name]) != entry.name.encode() or (flags, method) != (entry.flags, entry.method):
        raise ModelError(
            f"record {entry.name!r}: its local header and the central directory disagree in name or method"
        )
    if _FULL32 in (packed, size):
        size, packed, _ = _widened(entry.name, (size, packed, 0), bytes(view[name_at + n_name : start]))
    is_postponed = flags & _HAS_DESCRIPTOR and (crc, packed, size) == (0, 0, 0)
    if not is_postponed and (crc, packed, size) != (entry.crc, entry.packed, entry.size):
        raise ModelError(f"record {entry.name!r}: its local header and the central directory disagree in size or CRC")
    content = view[start:stop]
    actual = zlib.crc32(content)
    if actual != entry.crc:
        raise ModelError(f"record {entry.name!r} is damaged: its CRC-32 is {actual:08x}, not {entry.crc:08x}")
    return content, stop + _descriptor(view, entry, stop, limit)


def _descriptor(view: memoryview, entry: Entry, at: int, limit: int) -> int:
    if not entry.flags & _HAS_DESCRIPTOR:
        return 0
    sizes = "2Q" if entry.is_zip64 else "2L"
    wanted = struct.pack(f"<4sL{sizes}", b"PK\7\10", entry.crc, entry.packed, entry.size)
    if at + len(wanted) > limit or view[at : at + len(wanted)] != wanted:
        raise ModelError(f"record {entry.name!r}: its data descriptor and the central directory disagree")
    return len(wanted)

"""Files told apart by their bytes, and zip archives in which every byte is accounted for."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import bad_models
import pytest

from gemedge.capture.archive import parse_archive, read_archive, write_archive
from gemedge.capture.kind import Kind, kind_of, sniff
from gemedge.errors import ModelError

NO_END = "does not end as a zip archive does: it is cut short"
REASONS = {
    "empty": NO_END,
    "one byte": NO_END,
    "64 bytes": NO_END,
    "cut in half": NO_END,
    "last byte missing": NO_END,
    "random 4 KiB": NO_END,
    "a flipped bit in the pickle": r"record 'archive/data.pkl' is damaged: its CRC-32 is \w{8}, not \w{8}",
    "a flipped bit in a weight": r"record 'archive/data/0' is damaged: its CRC-32",
    "local size disagrees": "disagree in size or CRC",
    "local name disagrees": "disagree in name or method",
    "local method disagrees": "disagree in name or method",
    "local CRC disagrees": "disagree in size or CRC",
    "local offset disagrees": "'archive/data.pkl' at 1 comes after unused bytes 0",
    "descriptor disagrees": "its data descriptor and the central directory disagree",
    "records overlap": "record 'archive/x' at 0 overlaps the record before it",
    "unused bytes": "record 'archive/x' at 56 comes after unused bytes 50",
    "unused bytes at the end": "bytes 50 to 56 belong to no record",
    "size beyond the file": "of 1073741824 bytes reaches beyond the file's records",
    "sizes disagree": "is stored in 4 bytes but claims 5",
    "end record lies on size": "central directory ends at 57, but its end record is at 112",
    "end record lies on count": "central directory is damaged at 112",
    "end record lies with fewer": "lists 1 records and has 55 bytes more",
    "a comment": "announces a comment that is not there",
    "multi-disk": "a part of a multi-disk archive",
    "a record on another disk": "lies on another disk",
    "zip64 sizes missing": "lacks its zip64 sizes",
    "zip64 end lies": "a part of a multi-disk archive",
    "encrypted": "record 'archive/data.pkl' is encrypted",
    "unknown flags": "has the flags 0x20; torch sets none but 0x808",
    "two records of one name": "has two records named 'archive/data.pkl'",
    "two top folders": "has 2 top folders; torch writes one",
    "no top folder": "record 'data.pkl' is outside the archive's top folder",
    "a name that is not UTF-8": r"the record name b'archive/\\xff' is not UTF-8",
    "a folder record": "'archive/data/' is not a plain relative path",
    "deflate bomb": r"is compressed \(method 8\); torch stores records as they are",
    "zip-slip name": "'archive/../../etc/x' is not a plain relative path",
    "absolute name": "'/etc/x' is not a plain relative path",
    "backslash name": "is not a plain relative path",
    "terminal codes in a name": r"'archive/\\x1b\[2J' is not a plain relative path",
}
LATER = {"a data record missing", "no pickle", "big endian"}  # sound archives of unsound models


def test_every_corrupt_archive_has_its_reason():
    assert {*bad_models.CORRUPT, *bad_models.ZIP_HOSTILE} == {*REASONS, *LATER}


@pytest.mark.parametrize(("name", "reason"), REASONS.items())
def test_corrupt_archive_is_refused_with_its_reason(name, reason, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes((bad_models.CORRUPT | bad_models.ZIP_HOSTILE)[name](tmp_path / "marker"))
    with pytest.raises(ModelError, match=reason):
        read_archive(path)


@pytest.mark.parametrize("name", bad_models.KINDS)
def test_kind_is_told_from_the_bytes_without_running_them(name, tmp_path):
    kind, make = bad_models.KINDS[name]
    path, marker = tmp_path / "model.pt", tmp_path / "marker"
    path.write_bytes(make(marker))
    assert sniff(path) is Kind[kind]
    assert not marker.exists()


def test_kind_of_a_zip_cut_short_is_an_error():
    with pytest.raises(ModelError, match=NO_END):
        kind_of(memoryview(bad_models.good_pt()[:500]))


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def _locked(folder: Path) -> Path:
    path = folder / "locked"
    path.write_bytes(b"x")
    path.chmod(0)
    return path


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Root may read everything: act as nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: folder, "it is a folder, not a file"),
        (lambda folder: folder / "none", "it cannot be opened: No such file or directory"),
        (lambda folder: Path("/dev/zero"), "it is not a regular file"),
        (_fifo, "it is not a regular file"),
        (_locked, "it cannot be opened: Permission denied"),
    ],
)
def test_what_is_no_readable_file_is_refused_at_once(make, reason, tmp_path, request):
    path = make(tmp_path)
    if make is _locked:
        request.getfixturevalue("ordinary_user")
    for read in (sniff, read_archive):
        with pytest.raises(ModelError, match=reason):
            read(path)


def test_records_are_the_files_in_their_order_without_the_folder():
    archive = parse_archive(bad_models.zip_of({"name": "m/b", "data": b"12"}, {"name": "m/a/c", "data": b""}))
    assert (archive.folder, {name: bytes(data) for name, data in archive.records.items()}) == (
        "m",
        {"b": b"12", "a/c": b""},
    )


def test_written_archive_is_read_back_and_is_the_same_twice():
    records = bad_models.records_of(bad_models.good_pt())
    written = write_archive(records, "model")
    assert written == write_archive(records, "model")
    assert {name: bytes(data) for name, data in parse_archive(written).records.items()} == records


def test_sizes_and_offsets_in_a_zip64_field_are_read():
    wide = 0xFFFFFFFF
    extra = struct.pack("<2H2Q", 1, 16, 4, 4)
    item = {
        "name": "m/x",
        "data": b"data",
        "size": wide,
        "packed": wide,
        "extra": extra,
        "local": {"size": 4, "packed": 4},
    }
    assert bytes(parse_archive(bad_models.zip_of(item)).records["x"]) == b"data"
    short = item | {"extra": extra[:-8] + b"\0" * 4}
    with pytest.raises(ModelError, match="lacks its zip64 sizes"):
        parse_archive(bad_models.zip_of(short))


def test_every_single_flipped_bit_is_noticed_or_harmless():
    """A flip may hit what no reader uses, such as a time stamp, but never changes a record unseen."""
    good = bad_models.zip_of({"name": "m/x", "data": b"data"}, {"name": "m/y", "data": b"more"})
    records = parse_archive(good).records
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        try:
            assert parse_archive(bytes(bad)).records == records
        except ModelError:
            continue

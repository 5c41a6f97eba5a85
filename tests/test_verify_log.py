"""gemedge verify --log: what a self-test printed somewhere, compared with the simulator."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from c_builds import STRICT, compiled
from test_cli_export_c import gemedge, small_network

from gemedge import model_file
from gemedge.export import selftest_log

LAYERS = 2


@dataclass
class Case:
    """A model, the data of its self-test, and what the self-test prints on this machine."""

    model: Path
    data: Path
    log: Path

    def verify(self, content: bytes | None = None, *arguments: object) -> int:
        if content is not None:
            self.log.write_bytes(content)
        return gemedge("verify", self.model, "--data", self.data, "--log", self.log, *arguments)

    @property
    def printed(self) -> bytes:
        return self.log.read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    model, data, out = folder / "my-net.gemq", folder / "test.npz", folder / "out"
    model.write_bytes(model_file.save(small_network()))
    np.savez(data, input=np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32))
    assert gemedge("export", model, "--format", "c", "--data", data, "-o", out, "-q") == 0
    compiled([*STRICT, "-DGEMEDGE_STDIO", "selftest.c", "-o", "selftest"], out)
    return model, data, subprocess.run([out / "selftest"], capture_output=True, check=True).stdout


def test_a_self_test_without_data_is_verified_without_data(made, tmp_path, capsys):
    model, data, _ = made
    assert gemedge("export", model, "--format", "c", "--vectors", 3, "-o", tmp_path / "out", "-q") == 0
    compiled([*STRICT, "-DGEMEDGE_STDIO", "selftest.c", "-o", "selftest"], tmp_path / "out")
    log = tmp_path / "board.log"
    printed = subprocess.run([tmp_path / "out" / "selftest"], capture_output=True, check=True).stdout
    log.write_bytes(printed)
    assert gemedge("verify", model, "--log", log) == 0
    assert "samples  3" in capsys.readouterr().out
    assert gemedge("verify", model, "--log", log, "--data", data) == 5
    assert "sample 0 of its run is not that of" in capsys.readouterr().err
    log.write_bytes(re.sub(rb"(gemedge begin \w+ \d+) 3", rb"\1 999999999", printed))
    assert gemedge("verify", model, "--log", log) == 5  # and soon


@pytest.fixture
def case(made, tmp_path):
    model, data, printed = made
    (tmp_path / "board.log").write_bytes(printed)
    return Case(model, data, tmp_path / "board.log")


def test_a_log_of_the_same_integers_is_equal(case, capsys):
    assert case.verify() == 0
    assert "the same integers at every layer" in capsys.readouterr().out
    assert case.verify(None, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"samples": 4, "layers": LAYERS, "equal": True, "first_difference": None}


@pytest.mark.parametrize(
    "change",
    [
        lambda log: log.replace(b"\r\n", b"\n"),
        lambda log: log.replace(b"\r\n", b"\r"),
        lambda log: log.replace(b"\r\n", b"\r\r\n\n"),
        lambda log: re.sub(rb"(?m)^", b"[00:00:01.250,000] <inf> app: ", log),
        lambda log: re.sub(rb"(?m)^", b"\xff\xfe\x00\x1b[32m", log),
        lambda log: b"boot\nheap 12345678\n" + log + b"bye\x00" * 1000,
        lambda log: log[: len(log) // 2] + log,  # reset in the middle
        lambda log: log + log[: len(log) // 2],  # starts again after its end
        lambda log: log.replace(b"gemedge 1 ", b"gemedge 1 lay\ngemedge 1 "),
        lambda log: log.replace(b"gemedge end", b"gemedge 7 layer 999999999 00000000\r\ngemedge end"),
    ],
    ids=["lf", "cr", "blank lines", "prefixes", "bytes", "around", "reset", "again", "torn words", "more places"],
)
def test_what_stands_around_the_lines_does_not_matter(case, change):
    assert case.verify(change(case.printed)) == 0


def wrong(log: bytes, place: str) -> bytes:
    """Another digest there."""
    found = re.search(rb"gemedge %b ([0-9a-f]{8})" % place.encode(), log)
    assert found, place
    return log[: found.start(1)] + f"{int(found[1], 16) ^ 1:08x}".encode() + log[found.end(1) :]


@pytest.mark.parametrize(
    ("places", "message", "first"),
    [
        (["2 layer 1", "3 layer 0"], r"sample 2: layer '\S+' \(Activate, number 1\) is the first that differs: ", 1),
        (["3 layer 0"], r"sample 3: layer '\S+' \(Dense, number 0\) is the first that differs: ", 0),
        (["0 out 0"], "sample 0: output 0 is the first that differs: ", 0),
    ],
)
def test_the_first_layer_that_differs_is_named(case, places, message, first, capsys):
    log = case.printed
    for place in places:
        log = wrong(log, place)
    assert case.verify(log) == 1
    told = capsys.readouterr().err
    assert re.search(message + r"[0-9a-f]{8} on the board, [0-9a-f]{8} in the simulator$", told)
    assert case.verify(None, "--json") == 1
    difference = json.loads(capsys.readouterr().out)["first_difference"]
    sample, part, _ = places[0].split()
    assert (difference["sample"], difference["part"], difference["index"]) == (int(sample), part, first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: b"", "it holds no line `gemedge begin ...`, with which a self-test starts"),
        (lambda log: log.replace(b"begin", b"began"), "it holds no line `gemedge begin ...`"),
        (lambda log: log[: log.index(b"gemedge 1 ")], "its run is cut off without a digest of sample 1, in 0"),
        (
            lambda log: log[: log.index(b"gemedge 0 layer 1")],
            "its run is cut off without a digest of sample 0, layer 1",
        ),
        (
            lambda log: re.sub(rb"gemedge 2 layer 0 \S+", b"", log),
            "its run ended without a digest of sample 2, layer 0",
        ),
        (
            lambda log: log[: log.index(b"gemedge 2 out")] + b"gemedge end 4 0\r\n",
            "its run ended with status 4 (index outside its table) without a digest of sample 2, out 0",
        ),
        (lambda log: wrong(log, "begin"), "it is of another model: its digest is "),
        (lambda log: re.sub(rb"(begin \S+ \d+) 4", rb"\1 0", log), "its run has no samples"),
        (lambda log: re.sub(rb"(begin \S+ \d+) 4", rb"\1 999999999", log), "its run has 999999999 samples; "),
        (lambda log: wrong(log, "1 in 0"), "sample 1 of its run is not that of "),
        (lambda log: bytes(selftest_log.LARGEST) + log, "it is larger than 16 MiB, which no log of a self-test is"),
    ],
)
def test_a_log_that_says_too_little_is_bad_data(case, change, message, capsys):
    assert case.verify(change(case.printed)) == 5
    told = capsys.readouterr().err
    assert f"board.log: {message}" in told
    assert told.count("\n") == 1


def test_a_log_that_is_no_file_is_not_waited_for(case, capsys):
    case.log.unlink()
    assert case.verify() == 5
    assert "No such file" in capsys.readouterr().err
    os.mkfifo(case.log)
    assert case.verify() == 5
    assert "board.log: it is not a regular file" in capsys.readouterr().err


def test_a_hostile_log_is_read_in_no_time(case):
    import time

    begin = re.search(rb"gemedge begin [^\r]*", case.printed)[0]
    hostile = [b"gemedge " * 1_500_000, b"gemedge 0 layer " + b"1" * 15_000_000, begin + b"\ngemedge begin" * 1_000_000]
    started = time.monotonic()
    for content in hostile:
        assert case.verify(content) == 5
    assert time.monotonic() - started < 20


def test_samples_are_as_many_as_asked_for(case, tmp_path, capsys):
    folder = tmp_path / "more"
    arguments = ("export", case.model, "--format", "c", "--data", case.data, "-o", folder, "-q")
    assert gemedge(*arguments, "--vectors", "7") == 0
    assert "#define MY_NET_TEST_VECTORS 7\n" in (folder / "test_vectors.h").read_text()
    assert gemedge(*arguments, "--vectors", "10", "--force") == 5
    assert "test.npz: --vectors 10 of 9 samples" in capsys.readouterr().err

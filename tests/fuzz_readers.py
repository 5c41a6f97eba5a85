"""Fuzzes the torch-free readers: `python tests/fuzz_readers.py -max_total_time=60`.

The first byte of an input chooses the reader, the rest is what it reads. An error that gemedge raises on
purpose is an answer; anything else is a crash. The seeds are made at the start from what torch writes.
"""

import io
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gemedge.capture"]):
    from gemedge.capture import archive, fields, graph, kind, pickled, pt2, symbols, tree
    from gemedge.errors import ModelError, UnsupportedError

STORAGES = {f"data/{key}": memoryview(bytes(64)) for key in range(4)}
CONFIG = "data/weights/model_weights_config.json"
PROGRAM: dict[str, memoryview] = {}


def read_zip(data: bytes) -> None:
    kind.kind_of(memoryview(data))
    archive.parse_archive(data)


def read_pickle(data: bytes) -> None:
    tree.classes(pickled.read({"data.pkl": memoryview(data)} | STORAGES))


def read_graph(data: bytes) -> None:
    checked = graph.check_program(fields.read_json(memoryview(data), "graph"))
    assert graph.check_program(fields.read_json(memoryview(fields.write_json(checked)), "copy")) == checked


def read_weights(data: bytes) -> None:
    pt2.check(PROGRAM | {CONFIG: memoryview(data)})


def read_expression(data: bytes) -> None:
    symbols.check_expression(data.decode("latin-1"))


def read_program(data: bytes) -> None:
    pt2.strip(data)


READERS = [read_zip, read_pickle, read_graph, read_weights, read_expression, read_program]


def one_input(data: bytes) -> None:
    if data:
        try:
            READERS[data[0] % len(READERS)](data[1:])
        except (ModelError, UnsupportedError) as error:
            if "\n" in str(error):
                raise RuntimeError("the reason is not one line") from error


def seeds() -> list[bytes]:
    """Inputs made from a small module, its state dict and its exported program."""
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    rows, exported = {0: torch.export.Dim("rows", min=1, max=9)}, io.BytesIO()
    torch.export.save(torch.export.export(model, (torch.ones(2, 3),), dynamic_shapes=(rows,)), exported)
    PROGRAM.update(archive.parse_archive(exported.getvalue()).records)
    found = [b"\5" + exported.getvalue(), b"\2" + PROGRAM["models/model.json"], b"\3" + PROGRAM[CONFIG]]
    for saved in (
        model,
        model.state_dict(),
        [1, (2.5, None, "text")],
        {"size": torch.Size([2]), "on": torch.device("cpu")},
    ):
        for protocol in (2, 4):
            buffer = io.BytesIO()
            torch.save(saved, buffer, pickle_protocol=protocol)
            found += [b"\0" + buffer.getvalue(), b"\1" + archive.parse_archive(buffer.getvalue()).records["data.pkl"]]
    texts = ["Mul(Integer(8), Symbol('s53', positive=True, integer=True))", "Pow(Symbol('u0'), Integer(2))"]
    return found + [b"\4" + text.encode() for text in texts]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for index, seed in enumerate(seeds()):
            Path(folder, str(index)).write_bytes(seed)
        atheris.Setup([*sys.argv, "-max_len=40000", "-timeout=10", folder], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

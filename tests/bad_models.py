"""Makers of model files that must be refused: corrupt, of the wrong kind, hostile, or with tensors that lie.

Each maker takes the path of a marker file and gives the bytes of a bad file; hostile ones would make the
marker if any code of theirs ran. The tables at the end name them as bad-inputs.md does.
"""

import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gemedge.capture.archive import parse_archive, write_archive

Maker = Callable[[Path], bytes]


# Sound files to start from


def saved(value: Any, **options: Any) -> bytes:
    """The bytes of torch.save."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@cache
def good_pt() -> bytes:
    torch.manual_seed(0)
    return saved(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict())


@cache
def good_pt2() -> bytes:
    torch.manual_seed(0)
    rows = torch.export.Dim("rows", min=1, max=64)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, (torch.ones(2, 3),), dynamic_shapes=({0: rows},)), buffer)
    return buffer.getvalue()


def records_of(data: bytes) -> dict[str, bytes]:
    return {name: bytes(content) for name, content in parse_archive(data).records.items()}


def edited(data: bytes, **changes: bytes | None) -> bytes:
    """The archive with records replaced, or removed by None; `__` in a keyword stands for `/`, `_dot_` for `.`."""
    records = records_of(data)
    for key, content in changes.items():
        name = key.replace("__", "/").replace("_dot_", ".")
        records.pop(name, None)
        if content is not None:
            records[name] = content
    return write_archive(records, "archive")


# Pickles by hand


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def whole_tuple(*values: int) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def pt_of(body: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """A torch.save archive whose pickle has this body."""
    records = {"data.pkl": b"\x80\x02" + body + b".", "byteorder": b"little", "version": b"3\n"}
    return write_archive(records | {f"data/{key}": content for key, content in (storages or {}).items()}, "archive")


def command(marker: Path) -> bytes:
    return text(f"touch '{marker}'")


def system_call(marker: Path) -> bytes:
    return b"cos\nsystem\n" + command(marker) + b"\x85R"


def storage(kind: str = "FloatStorage", key: str = "0", numel: int = 4, location: str = "cpu") -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text(location) + whole(numel) + b"tQ"


def tensor(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int = 0,
    *,
    where: bytes | None = None,
    rest: bytes = b"\x89}",
) -> bytes:
    body = (where or storage()) + whole(offset) + whole_tuple(*shape) + whole_tuple(*stride) + rest
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + body + b"tR"


def entry(value: bytes, name: str = "weight") -> bytes:
    """A state dict of one entry."""
    return b"}" + text(name) + value + b"s"


def with_tensor(*arguments: Any, content: bytes = bytes(16), **options: Any) -> Maker:
    return lambda marker: pt_of(entry(tensor(*arguments, **options)), {"0": content})


# Zip archives by hand


def zip_of(*entries: dict[str, Any], end: dict[str, int] | None = None, before_end: bytes = b"") -> bytes:
    """A stored zip of entries {name, data, ...}; further keys lie about what the headers would say."""
    body, directory = b"", b""
    for item in entries:
        name, data = item.get("raw_name", item.get("name", "").encode()), item.get("data", b"")
        truth = {"flags": 0, "method": 0, "crc": zlib.crc32(data), "packed": len(data), "size": len(data), "disk": 0}
        truth |= {"offset": len(body) + item.get("shift", 0)}
        central, local = truth | item, truth | item | item.get("local", {})
        sizes = (local["crc"], local["packed"], local["size"])
        local_name = item.get("local_name", name)
        body += item.get("padding", b"")
        body += struct.pack(
            "<4s5H3L2H", b"PK\3\4", 0, local["flags"], local["method"], 0, 0, *sizes, len(local_name), 0
        )
        body += local_name + data + item.get("descriptor", b"")
        sizes = (central["crc"], central["packed"], central["size"], len(name), len(item.get("extra", b"")))
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 0, 0, central["flags"], central["method"], 0, 0, *sizes, 0, central["disk"], 0, 0,
            central["offset"],
        )  # fmt: skip
        directory += name + item.get("extra", b"")
    body += before_end
    says = {"disk": 0, "start_disk": 0, "here": len(entries), "count": len(entries), "size": len(directory)}
    says |= {"start": len(body), "comment": 0} | (end or {})
    fields = (says[key] for key in ("disk", "start_disk", "here", "count", "size", "start", "comment"))
    return body + directory + struct.pack("<4s4H2LH", b"PK\5\6", *fields)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _flipped_in(record: str) -> Maker:
    def make(marker: Path) -> bytes:
        content = records_of(good_pt())[record]
        return flipped(good_pt(), good_pt().index(content) + len(content) // 2)

    return make


def _bomb(marker: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("archive/data.pkl", bytes(1 << 24))
    return buffer.getvalue()


# Hostile pickles


def _hash_bomb(marker: Path) -> bytes:
    """Tuples nested so that hashing the outermost one takes 2^60 steps."""
    return pt_of(b"})" + b"q\0h\0\x86" * 60 + b"K\1s")


def _unfolding(marker: Path) -> bytes:
    """Lists that share: 2^60 values from 60 lists."""
    body = b"]q\0"
    for index in range(60):
        body += b"](h" + bytes([index]) + b"h" + bytes([index]) + b"eq" + bytes([index + 1])
    return pt_of(b"(" + body + b"t")


def _million_keys(marker: Path) -> bytes:
    keys = b"".join(b"J" + struct.pack("<i", index) + b"N" for index in range(300_000))
    return pt_of(b"}(" + keys + b"u")


def _reducer(marker: Path) -> Any:
    class Reducer:
        def __reduce__(self) -> Any:
            import os

            return os.system, (f"touch '{marker}'",)

    return Reducer()


def _legacy(marker: Path) -> bytes:
    return saved({"weight": _reducer(marker)}, _use_new_zipfile_serialization=False)


# Modules with more than plain data


class Custom(nn.Module):
    """A class of no list."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def module_with(change: Callable[[nn.Module], Any]) -> Maker:
    """A saved nn.Linear(2, 2) after a change."""

    def make(marker: Path) -> bytes:
        module = nn.Linear(2, 2)
        change(module)
        return saved(module)

    return make


def _attributes(**values: Any) -> Maker:
    return module_with(lambda module: module.__dict__.update(values))


def _part(part: str, name: Any, value: Any) -> Maker:
    return module_with(lambda module: module.__dict__[part].update({name: value}))


def _nameless_weights(marker: Path) -> bytes:
    data = saved(nn.LSTM(2, 2))
    renamed = records_of(data)["data.pkl"].replace(b"_flat_weights_names", b"_flat_weights_namez")
    return edited(data, data_dot_pkl=renamed)


MODULES: dict[str, Maker] = {
    "a class that is not allowed": lambda marker: saved(nn.Sequential(Custom(), nn.ReLU())),
    "a class that is no module": lambda marker: pt_of(b"csubprocess\nPopen\n)\x81}b"),
    "a shadowed forward": _attributes(forward=nn.functional.relu),
    "a shadowed property": lambda marker: saved(_with(nn.LSTM(2, 2), all_weights=[])),
    "a forward hook": _part("_forward_hooks", 0, nn.functional.relu),
    "a state dict hook": _part("_state_dict_hooks", 0, nn.functional.relu),
    "a load hook": _part("_load_state_dict_pre_hooks", 0, nn.functional.relu),
    "a function": _attributes(act=torch.hub.load),
    "a function of Python": lambda marker: saved(_with(nn.Linear(2, 2), act=sum)),
    "an attribute of dunder": _attributes(__class__="x"),
    "a parameter that is a number": _part("_parameters", "weight", 3),
    "a buffer that is a text": _part("_buffers", "mean", "x"),
    "a module that is a list": _part("_modules", "sub", [1]),
    "a parameter named forward": _part("_parameters", "forward", None),
    "a module named forward": _part("_modules", "forward", nn.ReLU()),
    "a name with a dot": _part("_parameters", "a.b", None),
    "a name that is a number": _part("_parameters", 3, None),
    "a name that is there twice": _part("_buffers", "weight", torch.ones(2)),
    "training that is a text": _attributes(training="yes"),
    "parameters that are a list": _attributes(_parameters=[1]),
    "no state": lambda marker: pt_of(b"ctorch.nn.modules.linear\nLinear\n)\x81"),
    "weights that do not fit their names": _nameless_weights,
}
TOPS: dict[str, Maker] = {
    "a list": lambda marker: saved([torch.ones(2)]),
    "None": lambda marker: saved(None),
    "a number": lambda marker: saved(3),
    "a tensor": lambda marker: saved(torch.ones(2)),
    "a text": lambda marker: saved("x"),
    "a function": lambda marker: saved(nn.functional.relu),
    "a module": lambda marker: saved(nn.Linear(2, 2)),
    "a number for a tensor": lambda marker: saved({"weight": torch.ones(2), "epoch": 3}),
    "a tensor without a name": lambda marker: saved({1: torch.ones(2)}),
    "two state dicts": lambda marker: saved(
        {"model": {"w": torch.ones(2)}, "state_dict": {"w": torch.ones(2)}, "x": 1}
    ),
}


def _with(module: nn.Module, **values: Any) -> nn.Module:
    module.__dict__.update(values)
    return module


# torch.export archives that lie


def pt2_with(change: Callable[[dict[str, Any]], Any], record: str = "models/model.json") -> bytes:
    """The good archive with the JSON of one record changed in place."""
    records = records_of(good_pt2())
    value = json.loads(records[record])
    change(value)
    return write_archive(records | {record: json.dumps(value).encode()}, "archive")


WEIGHTS = "data/weights/model_weights_config.json"


def graph_with(change: Callable[[dict[str, Any]], Any]) -> Maker:
    return lambda marker: pt2_with(lambda program: change(program["graph_module"]["graph"]))


def target_of(name: str) -> Maker:
    return graph_with(lambda graph: graph["nodes"][0].update(target=name))


def weight_with(change: Callable[[dict[str, Any]], Any]) -> Maker:
    return lambda marker: pt2_with(lambda config: change(config["config"]["0.weight"]), WEIGHTS)


def expression_of(make_text: Callable[[Path], str]) -> Maker:
    def make(marker: Path) -> bytes:
        def change(program: dict[str, Any]) -> None:
            sizes = program["graph_module"]["graph"]["tensor_values"]["input"]["sizes"]
            sizes[0] = {"as_expr": {"expr_str": make_text(marker), "hint": {"as_int": 2}}}

        return pt2_with(change)

    return make


def _python(marker: Path) -> str:
    return f"__import__('os').system(\"touch '{marker}'\")"


def _renamed(marker: Path) -> bytes:
    """A value of the graph named so that torch's generated forward() would run it."""
    name = f"a = {_python(marker)};x"
    return write_archive({k: v.replace(b'"linear"', json.dumps(name).encode()) if k == "models/model.json" else v
                          for k, v in records_of(good_pt2()).items()}, "archive")  # fmt: skip


def _mixed_types(config: dict[str, Any]) -> None:
    first, second = config["config"]["0.weight"], config["config"]["0.bias"]
    second.update(path_name=first["path_name"])
    second["tensor_meta"].update(dtype=4)


def _hostile_samples(marker: Path) -> bytes:
    return edited(good_pt2(), data__sample_inputs__model_dot_pt=saved(_reducer(marker)))


def _pickled_weight(marker: Path) -> bytes:
    data = pt2_with(lambda config: config["config"]["0.weight"].update(use_pickle=True), WEIGHTS)
    return edited(data, data__weights__weight_0=saved(_reducer(marker)))


def _pickled_object(marker: Path) -> bytes:
    def change(config: dict[str, Any]) -> None:
        config["config"]["thing"] = {
            "path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None,
        }  # fmt: skip

    data = pt2_with(change, "data/constants/model_constants_config.json")
    return edited(data, data__constants__opaque_obj_0=pickle.dumps(_reducer(marker)))


def _guarded(marker: Path) -> bytes:
    """Sound but for its guards, which torch executes when the program is unlifted."""
    return pt2_with(lambda program: program.update(guards_code=[f"__import__('os').system('touch {marker}') == 0"]))


# The tables

_PLAIN = {"name": "archive/data.pkl", "data": b"\x80\x02N."}
_OTHER = {"name": "archive/x", "data": b"abc"}

CORRUPT: dict[str, Maker] = {
    "empty": lambda marker: b"",
    "one byte": lambda marker: b"P",
    "64 bytes": lambda marker: bytes(range(128, 192)),
    "cut in half": lambda marker: good_pt()[: len(good_pt()) // 2],
    "last byte missing": lambda marker: good_pt()[:-1],
    "random 4 KiB": lambda marker: random.Random(1).randbytes(4096),
    "a flipped bit in the pickle": _flipped_in("data.pkl"),
    "a flipped bit in a weight": _flipped_in("data/0"),
    "a data record missing": lambda marker: edited(good_pt(), data__0=None),
    "no pickle": lambda marker: edited(good_pt(), data_dot_pkl=None),
    "big endian": lambda marker: edited(good_pt(), byteorder=b"big"),
    "local size disagrees": lambda marker: zip_of(_PLAIN | {"local": {"size": 3, "packed": 3}}),
    "local name disagrees": lambda marker: zip_of(_PLAIN | {"local_name": b"archive/data.pkX"}),
    "local method disagrees": lambda marker: zip_of(_PLAIN | {"local": {"method": 8}}),
    "local CRC disagrees": lambda marker: zip_of(_PLAIN | {"local": {"crc": 7}}),
    "local offset disagrees": lambda marker: zip_of(_PLAIN | {"shift": 1}),
    "descriptor disagrees": lambda marker: zip_of(_PLAIN | {"flags": 8, "descriptor": bytes(16)}),
    "records overlap": lambda marker: zip_of(_PLAIN, _OTHER | {"offset": 0}),
    "unused bytes": lambda marker: zip_of(_PLAIN, _OTHER | {"padding": b"hidden", "shift": 6}),
    "unused bytes at the end": lambda marker: zip_of(_PLAIN, before_end=b"hidden"),
    "size beyond the file": lambda marker: zip_of(_PLAIN | {"size": 1 << 30, "packed": 1 << 30}),
    "sizes disagree": lambda marker: zip_of(_PLAIN | {"size": 5}),
    "end record lies on size": lambda marker: zip_of(_PLAIN, end={"size": 7}),
    "end record lies on count": lambda marker: zip_of(_PLAIN, end={"count": 2, "here": 2}),
    "end record lies with fewer": lambda marker: zip_of(_PLAIN, _OTHER, end={"count": 1, "here": 1}),
    "a comment": lambda marker: zip_of(_PLAIN, end={"comment": 3}),
    "multi-disk": lambda marker: zip_of(_PLAIN, end={"disk": 1}),
    "a record on another disk": lambda marker: zip_of(_PLAIN | {"disk": 1}),
    "zip64 sizes missing": lambda marker: zip_of(_PLAIN | {"size": 0xFFFFFFFF}),
    "zip64 end lies": lambda marker: good_pt()[:-26] + b"\xff" + good_pt()[-25:],
    "encrypted": lambda marker: zip_of(_PLAIN | {"flags": 1}),
    "unknown flags": lambda marker: zip_of(_PLAIN | {"flags": 32}),
    "two records of one name": lambda marker: zip_of(_PLAIN, _PLAIN),
    "two top folders": lambda marker: zip_of(_PLAIN, _OTHER | {"name": "other/x"}),
    "no top folder": lambda marker: zip_of(_PLAIN | {"name": "data.pkl"}),
    "a name that is not UTF-8": lambda marker: zip_of(_PLAIN | {"raw_name": b"archive/\xff"}),
    "a folder record": lambda marker: zip_of(_PLAIN, {"name": "archive/data/"}),
}

ZIP_HOSTILE: dict[str, Maker] = {
    "deflate bomb": _bomb,
    "zip-slip name": lambda marker: zip_of(_PLAIN, _OTHER | {"name": "archive/../../etc/x"}),
    "absolute name": lambda marker: zip_of(_OTHER | {"name": "/etc/x"}),
    "backslash name": lambda marker: zip_of(_OTHER | {"name": "archive/..\\x"}),
    "terminal codes in a name": lambda marker: zip_of(_OTHER | {"name": "archive/\x1b[2J"}),
}

HOSTILE: dict[str, Maker] = {
    "os.system by REDUCE": lambda marker: pt_of(system_call(marker)),
    "os.system nested": lambda marker: pt_of(b"}" + text("a") + b"](" + system_call(marker) + b"es"),
    "os.system by STACK_GLOBAL": lambda marker: pt_of(
        text("os") + text("system") + b"\x93" + command(marker) + b"\x85R"
    ),
    "os.system by INST": lambda marker: pt_of(b"(" + command(marker) + b"ios\nsystem\n"),
    "os.system by OBJ": lambda marker: pt_of(b"(cos\nsystem\n" + command(marker) + b"o"),
    "os.system by NEWOBJ": lambda marker: pt_of(b"cos\nsystem\n" + command(marker) + b"\x85\x81"),
    "os.system by BUILD": lambda marker: pt_of(b"cos\nsystem\n" + command(marker) + b"b"),
    "getattr to builtins": lambda marker: pt_of(b"cbuiltins\ngetattr\n(cos\n__dict__\n" + text("system") + b"tR"),
    "a function called by name": lambda marker: pt_of(b"cbuiltins\neval\n" + text(_python(marker)) + b"\x85R"),
    "an extension code": lambda marker: pt_of(b"\x82\x01"),
    "hash bomb": _hash_bomb,
    "a tuple as key": lambda marker: pt_of(b"})Ns"),
    "deeply nested list": lambda marker: pt_of(b"]" * 100_000 + b"a" * 99_999),
    "a list that unfolds": _unfolding,
    "a list in itself": lambda marker: pt_of(b"]q\0h\0a"),
    "300,000 keys": _million_keys,
    "opcodes without end": lambda marker: pt_of(b"N" * 2_000_001),
    "a huge number": lambda marker: pt_of(b"\x8a\xff" + b"\x7f" * 255),
    "a text as number": lambda marker: pt_of(b"V123\n"),
    "protocol 0": lambda marker: edited(good_pt(), data_dot_pkl=b"(lp0\n."),
    "a memo that is empty": lambda marker: pt_of(b"h\7"),
    "a stack that is empty": lambda marker: pt_of(b"\x85"),
    "a mark that is not there": lambda marker: pt_of(b"t"),
    "two values": lambda marker: pt_of(b"NN"),
    "bytes after the end": lambda marker: pt_of(b"N.N"),
    "a pickle cut short": lambda marker: edited(good_pt(), data_dot_pkl=b"\x80\x02X\xff\0\0\0ab"),
    "appending to a dict": lambda marker: pt_of(b"}Na"),
    "keys of a list": lambda marker: pt_of(b"]NNs"),
    "a set of numbers": lambda marker: pt_of(b"c__builtin__\nset\n](K\1e\x85R"),
    "state for a list": lambda marker: pt_of(b"]}b"),
    "a storage that is no tuple": lambda marker: pt_of(text("0") + b"Q"),
    "backward hooks on a tensor": with_tensor((2, 2), (2, 1), rest=b"\x89}K\1K\1s"),
    "a name with a newline": lambda marker: pt_of(text("os\nx") + text("system") + b"\x93"),
}

TENSORS: dict[str, Maker] = {
    "shape 2^40 on a small storage": with_tensor((1 << 40,), (1,)),
    "shape 2^62 twice": with_tensor((1 << 62, 1 << 62), (0, 0)),
    "stride 0": with_tensor((1 << 40,), (0,)),
    "negative stride": with_tensor((4,), (-1,)),
    "negative size": with_tensor((-4,), (1,)),
    "negative offset": with_tensor((4,), (1,), -1),
    "offset beyond the storage": with_tensor((2,), (1,), 3),
    "overlap": with_tensor((3, 3), (1, 1)),
    "sizes and strides differ in number": with_tensor((4,), (1, 1)),
    "65 dimensions": with_tensor((1,) * 65, (1,) * 65),
    "a size that is no number": lambda marker: pt_of(
        entry(b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + whole(0) + b"N\x85" + whole_tuple(1) + b"\x89}tR"),
        {"0": bytes(16)},
    ),
    "storage count differs from the record": with_tensor((4,), (1,), content=bytes(12)),
    "negative storage count": with_tensor((4,), (1,), where=storage(numel=-4)),
    "a storage outside data/": with_tensor((4,), (1,), where=storage(key="../version")),
    "one storage of two types": lambda marker: pt_of(
        b"(" + tensor((4,), (1,)) + tensor((4,), (1,), where=storage("IntStorage")) + b"t", {"0": bytes(16)}
    ),
    "a bool that is neither": with_tensor((4,), (1,), where=storage("BoolStorage"), content=b"\0\1\2\1"),
}  # fmt: skip

UNSUPPORTED_TENSORS: dict[str, Maker] = {
    "sparse": lambda marker: saved({"weight": torch.eye(3).to_sparse()}),
    "sparse CSR": lambda marker: saved({"weight": torch.eye(3).to_sparse_csr()}),
    "quantised": lambda marker: with_tensor((4,), (1,), where=storage("QInt8Storage"), content=bytes(4))(marker),
    "complex": lambda marker: saved({"weight": torch.zeros(3, dtype=torch.complex64)}),
    "meta": lambda marker: saved({"weight": torch.zeros(3, device="meta")}),
    "meta storage": with_tensor((4,), (1,), where=storage(location="meta")),
    "float8": lambda marker: saved({"weight": torch.zeros(3).to(torch.float8_e4m3fn)}),
    "nested": lambda marker: saved({"weight": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])}),
    "conjugate flags": with_tensor((4,), (1,), rest=b"\x89}" + entry(b"\x88", "neg")),
}

PT2_HOSTILE: dict[str, Maker] = {
    "a pickled weight": _pickled_weight,
    "a pickled object": _pickled_object,
    "a value named as code": _renamed,
    "an expression of code": expression_of(_python),
    "an expression with a lambda": expression_of(lambda marker: "(lambda: 1)()"),
    "an expression of attributes": expression_of(lambda marker: "Integer(1).__class__"),
    "an expression that explodes": expression_of(lambda marker: "Pow(Integer(9), Pow(Integer(9), Integer(9)))"),
    "an expression of large powers": expression_of(lambda marker: "Pow(" * 8 + "Integer(9)" + ", Integer(16))" * 8),
    "an expression too deep": expression_of(lambda marker: "Add(" * 200 + "Integer(1)" + ")" * 200),
    "an expression too long": expression_of(lambda marker: "Add(" + "Integer(1)," * 1000 + "Integer(1))"),
    "a symbol named as code": expression_of(lambda marker: "Symbol('s0.__class__')"),
    "an operator by attributes": target_of("torch.hub.load"),
    "an operator of Python": target_of("_operator.attrgetter"),
    "an operator of the registry": target_of("#torch:x"),
    "an operator with a newline": target_of("torch.ops.aten.relu\n.default"),
    "a parameter named as code": lambda marker: pt2_with(
        lambda program: program["graph_module"]["signature"]["input_specs"][0]["parameter"].update(
            parameter_name=f'0.weight"); {_python(marker)} #'
        )
    ),
    "an argument named as code": lambda marker: pt2_with(
        lambda program: program["graph_module"]["module_call_graph"][0]["signature"].update(
            forward_arg_names=[f"x={_python(marker)}"]
        )
    ),
    "a range of no symbol": lambda marker: pt2_with(
        lambda program: program["range_constraints"].update({"u99999999": {"min_val": 0, "max_val": 1}})
    ),
    "JSON too deep": lambda marker: edited(good_pt2(), models__model_dot_json=b"[" * 100_000),
    "no JSON": lambda marker: edited(good_pt2(), models__model_dot_json=b"{"),
    "a JSON list": lambda marker: edited(good_pt2(), models__model_dot_json=b"[]"),
    "no graph": lambda marker: pt2_with(lambda program: program["graph_module"].pop("graph")),
    "weight strides that leave the record": weight_with(
        lambda weight: weight["tensor_meta"].update(strides=[{"as_int": 1 << 20}, {"as_int": 1}])
    ),
    "a weight of 2^40": weight_with(
        lambda weight: weight["tensor_meta"].update(sizes=[{"as_int": 1 << 40}], strides=[{"as_int": 0}])
    ),
    "a weight of negative stride": weight_with(
        lambda weight: weight["tensor_meta"].update(strides=[{"as_int": -3}, {"as_int": 1}])
    ),
    "a weight of symbolic size": weight_with(
        lambda weight: weight["tensor_meta"]["sizes"].__setitem__(0, {"as_expr": {"expr_str": "Symbol('s0')"}})
    ),
    "a weight elsewhere": weight_with(lambda weight: weight.update(path_name="../constants/x")),
    "a weight of another record": weight_with(lambda weight: weight.update(path_name="weight_99")),
    "a weight without its record": lambda marker: edited(good_pt2(), data__weights__weight_0=None),
    "a weight not in the archive": lambda marker: pt2_with(lambda config: config["config"].pop("0.weight"), WEIGHTS),
    "weights without a list": lambda marker: edited(good_pt2(), data__weights__model_weights_config_dot_json=None),
    "a record of half a number": lambda marker: edited(good_pt2(), data__weights__weight_0=bytes(47)),
    "two types on one record": lambda marker: pt2_with(_mixed_types, WEIGHTS),
}  # fmt: skip

PT2_UNSUPPORTED: dict[str, Maker] = {
    "an operator of files": target_of("torch.ops.aten.from_file.default"),
    "an operator of another library": target_of("torch.ops.torchvision.nms.default"),
    "an operator that moves memory": target_of("torch.ops.aten.set_.source_Storage"),
    "another higher order operator": target_of("torch.ops.higher_order.while_loop.default"),
    "a custom object": graph_with(lambda graph: graph.update(custom_obj_values={"x": {"name": "x", "class_fqn": "y"}})),
    "a weight of complex": weight_with(lambda weight: weight["tensor_meta"].update(dtype=10)),
    "a weight of float8": weight_with(lambda weight: weight["tensor_meta"].update(dtype=29)),
    "a sparse weight": weight_with(lambda weight: weight["tensor_meta"].update(layout=2)),
    "a weight on cuda": weight_with(lambda weight: weight["tensor_meta"].update(device={"type": "cuda", "index": 0})),
    "weights as a pickle": lambda marker: edited(good_pt2(), data__weights__model_dot_pt=b"x"),
    "two programs": lambda marker: edited(good_pt2(), models__other_dot_json=b"{}"),
    "another version": lambda marker: edited(good_pt2(), archive_version=b"9"),
    "another schema": lambda marker: pt2_with(lambda program: program["schema_version"].update(major=99)),
    "inputs of a class": lambda marker: pt2_with(
        lambda program: program["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec='[1, {"type": "os.PathLike", "context": "null", "children_spec": []}]'
        )
    ),
    "an unknown dialect": lambda marker: pt2_with(lambda program: program.update(verifiers=["EDGE"])),
}

# Sound once their code is left out
PT2_DROPPED: dict[str, Maker] = {"a pickled sample input": _hostile_samples, "guards of code": _guarded}


def _legacy_tar(marker: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as writer:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            writer.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def _torchscript(marker: Path) -> bytes:
    buffer = io.BytesIO()
    module = nn.Sequential(nn.Linear(2, 2))
    torch._C._jit_set_profiling_executor(True)
    torch.jit.save(torch.jit.trace(module, torch.ones(1, 2)), buffer)
    return buffer.getvalue()


def _numpy(save: Callable[[Any, Any], None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, np.zeros(3))
    return buffer.getvalue()


def _onnx(marker: Path) -> bytes:
    import onnx

    info = onnx.helper.make_tensor_value_info("x", 1, [1])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [info], [onnx.helper.make_tensor_value_info("y", 1, [1])])
    return onnx.helper.make_model(graph).SerializeToString()


def _safetensors(marker: Path) -> bytes:
    from safetensors.numpy import save

    return save({"weight": np.zeros(3)})


# name -> the Kind's name and a maker
KINDS: dict[str, tuple[str, Maker]] = {
    "empty": ("EMPTY", CORRUPT["empty"]),
    "text": ("TEXT", lambda marker: "# models\n\nDiese Datei ist ein Text: ä.\n".encode()),
    "long text": ("TEXT", lambda marker: "ä€".encode() * 4000),
    "TorchScript": ("TORCHSCRIPT", _torchscript),
    "pt2": ("PT2", lambda marker: good_pt2()),
    "old pt2": ("OLD_PT2", lambda marker: zip_of({"name": "serialized_exported_program.json", "data": b"{}"})),
    "state dict": ("TORCH_ZIP", lambda marker: good_pt()),
    "legacy tar": ("LEGACY_TAR", _legacy_tar),
    "legacy pickle": ("LEGACY_PICKLE", _legacy),
    "a pickle": ("PICKLE", lambda marker: pickle.dumps(_reducer(marker))),
    "onnx": ("ONNX", _onnx),
    "onnx cut short": ("ONNX", lambda marker: _onnx(marker)[:-20]),
    "tflite": ("TFLITE", lambda marker: b"\x1c\0\0\0TFL3" + bytes(64)),
    "safetensors": ("SAFETENSORS", _safetensors),
    "npz": ("NPZ", lambda marker: _numpy(np.savez)),
    "npy": ("NPY", lambda marker: _numpy(np.save)),
    "another zip": ("ZIP", lambda marker: zip_of({"name": "a.txt", "data": b"a"})),
    "random 4 KiB": ("UNKNOWN", CORRUPT["random 4 KiB"]),
    "one byte": ("TEXT", CORRUPT["one byte"]),
    "64 bytes": ("UNKNOWN", CORRUPT["64 bytes"]),
}

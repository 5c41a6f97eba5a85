"""`gemedge export` with bad input: one row for each way, run as a user runs it.

Each row ends with its exit status, one line on stderr that names the file and the cause, in under 10 seconds
of processor time and 2 GB. Nothing that the file holds is run, and its folder is as it was before.
"""

import ctypes
import io
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import bad_models as bad
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from thinned import thinned
from torch import nn

import gemedge.nn

SECONDS = 10
SOUND_MODELS = 2  # on a machine where 10 seconds are too few: as long as so many exports of a sound model
BYTES = 2 << 30
ROOT = Path(__file__).parent.parent
MARKER = "marker"


@dataclass(frozen=True)
class Row:
    """What is run, and what must come of it. {folder} in an argument stands for the row's folder."""

    status: int
    says: str
    make: bad.Maker
    arguments: tuple[str, ...] = ()
    name: str = "model.pt"
    prepare: Callable[[Path], Any] = lambda folder: None
    before: Callable[[], Any] = lambda: None  # in the process, before it becomes gemedge
    environment: dict[str, str | None] = field(default_factory=dict)
    names_the_file: bool = True
    output: str = "out.onnx"
    seconds: int = SECONDS


@dataclass(frozen=True)
class Result:
    status: int
    stdout: str
    stderr: str
    seconds: float
    memory: int


def start(folder: Path, arguments: list, *, before: Callable = lambda: None, **environment: str | None):
    variables = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder.parent),
        "PATH": os.environ["PATH"],
    }
    variables |= environment

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
        before()

    with (folder.parent / "stdout").open("wb") as stdout, (folder.parent / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "gemedge", *arguments],
            cwd=folder,
            env={name: value for name, value in variables.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            preexec_fn=limited,
        )


def ended(process: subprocess.Popen, folder: Path) -> Result:
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    texts = [(folder.parent / name).read_bytes().decode(errors="replace") for name in ("stdout", "stderr")]
    return Result(process.returncode, *texts, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def content_of(folder: Path) -> dict[Path, Any]:
    return {
        path: (os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "")
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


# Makers


def model_of(
    *nodes: Any, inputs=(("x", 1, ["rows", 3]),), outputs=(("y", 1, ["a", "b"]),), opset=18, **rest: Any
) -> Any:
    functions = rest.pop("functions", [])
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs], **rest,
    )  # fmt: skip
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("ai.gemedge", 1)]
    return helper.make_model(graph, opset_imports=domains, functions=functions, ir_version=9)


def onnx_of(*nodes: Any, change: Callable[[Any], Any] = lambda model: None, **rest: Any) -> bad.Maker:
    def make(marker: Path) -> bytes:
        model = model_of(*nodes, **rest)
        change(model)
        return model.SerializeToString()

    return make


RELU = helper.make_node("Relu", ["x"], ["y"])
relu = onnx_of(RELU)
shared = cache(lambda maker: maker(Path(MARKER)))  # for makers that take torch a while


def gem_node(**attributes: Any) -> bad.Maker:
    return onnx_of(helper.make_node("GEM", ["x"], ["y"], domain="ai.gemedge", name="act_7", **attributes))


def gem_module(**attributes: Any) -> bad.Maker:
    def make(marker: Path) -> bytes:
        module = nn.Sequential(nn.Linear(3, 3), gemedge.nn.GEM(1))
        module[1].__dict__.update(attributes)
        return bad.saved(module)

    return make


def weight(name: str, array: np.ndarray) -> Any:
    return numpy_helper.from_array(array, name)


def outside(location: str, where: str = "initializer", **place: int) -> bad.Maker:
    """A model with a weight that lies in another file."""
    tensor = TensorProto(name="w", data_type=1, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **place}.items():
        tensor.external_data.add(key=key, value=str(value))
    add = helper.make_node("Add", ["x", "w"], ["y"])
    if where == "initializer":
        return onnx_of(add, initializer=[tensor])
    constant = helper.make_node("Constant", [], ["w"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    return onnx_of(constant, add)


def lying_dims(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40]


def nested_ifs(depth: int) -> bad.Maker:
    """Graphs in attributes of nodes of graphs, written by hand: onnx itself refuses to make so many."""

    def make(marker: Path) -> bytes:
        graph = b""
        for _ in range(depth):
            for tag in (b"\x32", b"\x2a", b"\x0a"):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
                graph = tag + onnx_length(len(graph)) + graph
        return b"\x08\x09\x3a" + onnx_length(len(graph)) + graph

    return make


def onnx_length(value: int) -> bytes:
    return (bytes([value & 127 | 128]) + onnx_length(value >> 7)) if value > 127 else bytes([value])


def loop(times: int) -> bad.Maker:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Exp", ["v"], ["v_next"])], "body",
        [helper.make_tensor_value_info("i", 7, []), helper.make_tensor_value_info("go", 9, []),
         helper.make_tensor_value_info("v", 1, None)],
        [helper.make_tensor_value_info("go_on", 9, []), helper.make_tensor_value_info("v_next", 1, None)],
    )  # fmt: skip
    return onnx_of(
        helper.make_node("Loop", ["times", "yes", "x"], ["y"], body=body),
        initializer=[weight("times", np.array(times)), weight("yes", np.array(True))],
    )


def function_of(name: str, *nodes: Any) -> Any:
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("ai.gemedge", 1)]
    return helper.make_function("ai.gemedge", name, ["X"], ["Y"], list(nodes), domains)


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def forged(header: str, content: bytes = bytes(12)) -> bytes:
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + content


def npz(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as writer:
        for name, content in entries.items():
            writer.writestr(name, content)
    return buffer.getvalue()


@cache
def npz_bomb() -> bytes:
    header = forged("{'descr': '<f4', 'fortran_order': False, 'shape': (134217728,), }", b"")
    return npz({"x.npy": header + bytes(4 << 27)})


USER_CODE = """
import torch
from torch import nn

class Branching(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1

class Unknown(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)

class Complex(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x)

class Nothing(nn.Module):
    def forward(self, x):
        return None

class NoInput(nn.Module):
    def forward(self):
        return torch.ones(3)

class Number(nn.Module):
    def forward(self, x):
        return 3

class Same(nn.Module):
    def forward(self, x):
        return x

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
    def forward(self, x):
        return self.second(self.first(x))

def net():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

def wider():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))

def lazy():
    return nn.Sequential(nn.LazyLinear(4))

def deeper():
    return nn.Sequential(*net(), nn.ReLU(), nn.Linear(2, 2))

def shallower():
    return nn.Sequential(nn.Linear(3, 4))

def nothing():
    return None

def raises():
    raise RuntimeError("two\\nlines")

def leaves():
    raise SystemExit(0)

def with_arguments(size):
    return nn.Linear(size, size)

text = "a text"
"""


def user_class(name: str) -> bad.Maker:
    """A saved module of a class in user_models.py, which `with_user_code` puts into the folder."""

    def make(marker: Path) -> bytes:
        module = types.ModuleType("user_models")
        sys.modules["user_models"] = module
        try:
            exec(USER_CODE, vars(module))
            return bad.saved(getattr(module, name)())
        finally:
            del sys.modules["user_models"]

    return make


def with_user_code(folder: Path) -> None:
    (folder / "user_models.py").write_text(USER_CODE)
    (folder / "broken_models.py").write_text("1 / 0\n")
    (folder / "torn_models.py").write_text("def (\n")


def state_for(name: str, status: int, says: str, **rest: Any) -> Row:
    return Row(status, says, lambda marker: bad.good_pt(), ("--arch", name, *SHAPE), prepare=with_user_code, **rest)


def class_of(name: str, status: int, says: str, *arguments: str, **rest: Any) -> Row:
    allow = ("--allow", f"user_models.{name}")
    return Row(status, says, user_class(name), (*allow, *(arguments or SHAPE)), prepare=with_user_code, **rest)


def example(content: bytes, status: int, says: str, *arguments: str, name: str = "x.npy", **rest: Any) -> Row:
    return Row(
        status, says, relu, ("--example", name, *arguments),
            prepare=lambda folder: (folder / name).write_bytes(content),
        names_the_file=False, **rest,
    )  # fmt: skip


def drop_root() -> None:
    """Root without the right to pass over permissions; anyone else has none to drop."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# Rows

SHAPE = ("--input-shape", "?,3")
CORRUPT = {
    "empty": "it is empty",
    "one byte": "it is a text",
    "64 bytes": "of an unknown kind",
    "cut in half": "does not end as a zip archive",
    "last byte missing": "does not end as a zip archive",
    "random 4 KiB": "of an unknown kind",
    "a flipped bit in the pickle": "record 'archive/data.pkl' is damaged: its CRC-32 is",
    "a flipped bit in a weight": "record 'archive/data/0' is damaged: its CRC-32 is",
    "a data record missing": "data/0",
    "local size disagrees": "disagree in size or CRC",
    "records overlap": "overlaps",
}
KINDS = {
    "text": "it is a text",
    "old pt2": "a torch.export archive of torch 2.7 or older",
    "TorchScript": "it is a TorchScript archive, which runs code of its own when it is loaded; --trust",
    "a pickle": "it is a Python pickle without torch's archive",
    "onnx cut short": "it is no sound ONNX model",
    "tflite": "it is a TensorFlow Lite model",
    "safetensors": "it is a safetensors file",
    "npz": "it is a NumPy .npz archive",
    "npy": "it is a NumPy .npy array",
}
LEGACY = {"legacy tar": "a torch file of torch 0.1", "legacy pickle": "a torch file of torch 1.5 or older"}
TOPS = {
    "a list": "it holds a list, not",
    "None": "it holds None, not",
    "a number": "it holds the number 3, not",
}
HOSTILE = {
    "os.system by REDUCE": "os.system",
    "os.system nested": "os.system",
    "os.system by STACK_GLOBAL": "os.system",
    "os.system by INST": "os.system",
    "os.system by OBJ": "the opcode OBJ",
    "os.system by BUILD": "a state",
    "a function called by name": "builtins.eval",
    "hash bomb": "dict key of type tuple",
    "deeply nested list": "nests values over 300 deep",
    "a list that unfolds": "unfolds to over",
    "300,000 keys": "a dict of more than 100000 keys",
    "opcodes without end": "more than 2000000 opcodes",
}
TENSORS = {
    "shape 2^40 on a small storage": "shape (1099511627776,)",
    "stride 0": "stride (0,)",
    "negative stride": "a number below 0",
    "storage count differs from the record": "data/0",
    "a bool that is neither": "data/0",
}
UNSUPPORTED_TENSORS = {
    "sparse": "it holds a sparse tensor",
    "sparse CSR": "it holds a sparse tensor",
    "quantised": "QInt8Storage",
    "complex": "ComplexFloatStorage",
    "meta": "meta",
    "float8": "float8",
}
PT2 = {
    "a pickled weight": "is stored as a pickle, which could run code",
    "a value named as code": "is no Python identifier",
    "an expression of code": "is not in the form that torch writes",
    "an operator by attributes": "names 'torch.hub.load' as an operator",
    "a weight of 2^40": "does not fit record 'data/weights/weight_0'",
    "JSON too deep": "is not JSON that torch could have written",
}
PT2_UNSUPPORTED = {
    "an operator of files": "'linear': it uses the operator aten.from_file",
    "a sparse weight": "",
}

ROWS: dict[str, Row] = {
    **{name: Row(3, says, bad.CORRUPT[name]) for name, says in CORRUPT.items()},
    **{f"{name} as .pt": Row(3, says, bad.KINDS[name][1], SHAPE) for name, says in KINDS.items()},
    **{f"{name} as .pt": Row(4, says, bad.KINDS[name][1], SHAPE) for name, says in LEGACY.items()},
    **{f"{name} at the top": Row(3, says, bad.TOPS[name], SHAPE) for name, says in TOPS.items()},
    **{name: Row(3, says, bad.HOSTILE[name], SHAPE) for name, says in HOSTILE.items()},
    **{name: Row(3, says, bad.ZIP_HOSTILE[name]) for name, says in {
        "deflate bomb": "is compressed", "zip-slip name": "../", "terminal codes in a name": "\\x1b[2J"}.items()},
    **{name: Row(3, says, bad.TENSORS[name], SHAPE) for name, says in TENSORS.items()},
    **{name: Row(4, says, bad.UNSUPPORTED_TENSORS[name], SHAPE) for name, says in UNSUPPORTED_TENSORS.items()},
    **{f".pt2: {name}": Row(3, says, bad.PT2_HOSTILE[name]) for name, says in PT2.items()},
    **{f".pt2: {name}": Row(4, says, bad.PT2_UNSUPPORTED[name]) for name, says in PT2_UNSUPPORTED.items()},
    "a pickled sample input is left out": Row(0, "", bad.PT2_DROPPED["a pickled sample input"]),
    # Wrong kind
    "missing": Row(3, "cannot be opened: No such file or directory", relu, name="other.pt"),
    "a folder": Row(3, "it is a folder", relu, name="other", prepare=lambda folder: (folder / "model.pt").mkdir()),
    "/dev/zero": Row(3, "it is not a regular file", relu, name="other.pt",
                     prepare=lambda folder: (folder / "model.pt").symlink_to("/dev/zero")),
    "a pipe": Row(3, "it is not a regular file", relu, name="other.pt",
                  prepare=lambda folder: os.mkfifo(folder / "model.pt")),
    "no permission": Row(3, "cannot be opened: Permission denied", relu, before=drop_root,
                         prepare=lambda folder: (folder / "model.pt").chmod(0)),
    # Modules and weights
    "a class that is not allowed": Row(3, "if you trust their code, add --allow bad_models.Custom",
                                       bad.MODULES["a class that is not allowed"], SHAPE),
    "a shadowed forward": Row(3, "attribute 'forward' of the module hides", bad.MODULES["a shadowed forward"], SHAPE),
    "a hook": Row(3, "_forward_hooks' of the module is not empty", bad.MODULES["a forward hook"], SHAPE),
    "--allow that is unknown": Row(2, "--allow nowhere.Net: importing 'nowhere' raises ModuleNotFoundError",
                                   gem_module(), ("--allow", "nowhere.Net", *SHAPE)),
    "--allow that is no module": Row(2, "--allow os.getcwd: it is not a subclass of torch.nn.Module",
                                     gem_module(), ("--allow", "os.getcwd", *SHAPE)),
    "--allow that is no name": Row(2, "--allow '...' is not of the form", gem_module(), ("--allow", "...", *SHAPE)),
    "--arch without a module": state_for("net", 2, "--arch 'net' is not of the form package.module:name"),
    "--arch that does not exist": state_for("user_models:absent", 2, "has no 'absent'"),
    "--arch of no package": state_for("nowhere:net", 2, "importing 'nowhere' raises ModuleNotFoundError"),
    "--arch relative": state_for(".:net", 2, "importing '.' raises"),
    "--arch that fails at import": state_for("broken_models:net", 2, "raises ZeroDivisionError: division by zero"),
    "--arch that is no Python": state_for("torn_models:net", 2, "raises SyntaxError"),
    "--arch that gives None": state_for("user_models:nothing", 2, "gives a NoneType; it must give a torch.nn.Module"),
    "--arch that raises": state_for("user_models:raises", 2, "calling it raises RuntimeError: two"),
    "--arch that leaves": state_for("user_models:leaves", 2, "calling it raises SystemExit: 0"),
    "--arch that wants arguments": state_for("user_models:with_arguments", 2, "raises TypeError"),
    "--arch that is a text": state_for("user_models:text", 2, "'str' object is not callable"),
    "--arch with lazy layers": state_for("user_models:lazy", 2, "a network with lazy layers"),
    "missing keys": state_for("user_models:deeper", 3, "missing '4.bias', '4.weight'; not in the network nothing"),
    "extra keys": state_for("user_models:shallower", 3, "missing nothing; not in the network '2.bias', '2.weight'"),
    "a weight of another shape": state_for("user_models:wider", 3, "weight '0.weight' has shape [4, 3]"),
    "weights without --arch": Row(2, "name one with --arch package.module:callable", lambda marker: bad.good_pt(),
        SHAPE),
    "--arch and --allow": Row(2, "--arch and --allow exclude each other", relu, ("--arch", "a:b", "--allow", "a.B"),
                              names_the_file=False),
    "tied weights": class_of("Tied", 0, ""),
    "0 layers": Row(0, "", lambda marker: bad.saved(nn.Sequential()), SHAPE),
    "control flow on data": class_of("Branching", 4, "torch.export cannot follow the model"),
    "an operator that ONNX lacks": class_of("Unknown", 4, "node bessel_j0: ONNX has no operator for prims.bessel_j0"),
    "complex outputs": class_of("Complex", 4, "output 'output' is of type complex64"),
    "no output": class_of("Nothing", 4, "the model returns no tensor"),
    "a number as output": class_of("Number", 4, "the model returns no tensor"),
    "the input as output": class_of("Same", 0, ""),
    "no input": class_of("NoInput", 2, "the model has no input number 1; it takes none", "--input-shape", "1,3"),
    **{f"n = {n} in a module": Row(3, f"layer '1': n={n} must be a whole number from 1 to 16", gem_module(n=n), SHAPE)
       for n in (0, -1, 10**6, 1.5)},
    "epsilon = nan in a module": Row(3, "layer '1': epsilon", gem_module(epsilon=float("nan")), SHAPE),
    # ONNX
    **{f"n = {n} in a node": Row(3, f"node 'act_7': n={n} must be a whole number from 1 to 16", gem_node(n=n))
       for n in (0, -1, 10**6)},
    "n = 1.5 in a node": Row(3, "n", gem_node(n=1.5)),
    "epsilon = 0 in a node": Row(3, "node 'act_7': epsilon", gem_node(epsilon=0.0)),
    "an activation with another body": Row(1, "the exported model differs from the original: output 'y'", onnx_of(
        helper.make_node("GEM", ["x"], ["y"], domain="ai.gemedge"),
        functions=[function_of("GEM", helper.make_node("Neg", ["X"], ["Y"]))])),
    "a function that calls itself": Row(3, "Cycle detected in model-local function references", onnx_of(
        helper.make_node("F", ["x"], ["y"], domain="ai.gemedge"),
        functions=[function_of("F", helper.make_node("F", ["X"], ["Y"], domain="ai.gemedge"))])),
    "an unknown operator": Row(3, "No Op registered for Frobnicate", onnx_of(helper.make_node("Frobnicate", ["x"],
        ["y"]))),
    "an operator of an unknown domain": Row(3, "com.example", onnx_of(
        helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example"))),
    "a value that nobody makes": Row(3, "'z'", onnx_of(helper.make_node("Relu", ["z"], ["y"]))),
    "a cycle": Row(3, "'b'", onnx_of(helper.make_node("Add", ["x", "b"], ["y"]), helper.make_node("Relu", ["y"],
        ["b"]))),
    "opset 99": Row(4, "its opset is 99; 1 to", onnx_of(RELU, opset=99)),
    "no opset": Row(0, "", onnx_of(RELU, change=lambda model: model.ClearField("opset_import"))),
    "the long name of the opset": Row(0, "", onnx_of(
        RELU, change=lambda model: setattr(model.opset_import[0], "domain", "ai.onnx"))),
    "an IR of the future": Row(3, "ir_version 999", onnx_of(RELU, change=lambda model: setattr(model, "ir_version",
        999))),
    "no graph outputs": Row(3, "its graph has no output", onnx_of(RELU, outputs=())),
    "an input of 2^40": Row(3, "input 'x' has 1099511627776 elements; 67108864 are allowed", onnx_of(RELU,
        inputs=(("x", 1, [1 << 40]),))),
    "a constant of 2^40": Row(3, "Failed to allocate memory for requested buffer of size 13194139533312", onnx_of(
        helper.make_node("ConstantOfShape", ["shape"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"]),
        initializer=[weight("shape", np.array([1 << 40, 3]))])),
    "dims of 2^40 on 12 bytes": Row(3, "w", onnx_of(
        helper.make_node("Add", ["x", "w"], ["y"]), initializer=[weight("w", np.ones(3, "f"))], change=lying_dims)),
    "a name that is not UTF-8": Row(3, "", lambda marker: relu(marker).replace(b"Relu", b"Rel\xff")),
    "200 nested ifs": Row(3, "it is no sound ONNX model", nested_ifs(200)),
    "a loop without end": Row(3, "it took more than", loop(1 << 60), seconds=12),
    "a text as input": Row(4, "output 'y' is a tensor(string); it must be one of tensor(float)", onnx_of(
        helper.make_node("StringNormalizer", ["x"], ["y"]), inputs=(("x", 8, [3]),), outputs=(("y", 8, ["a"]),))),
    "a sequence as output": Row(4, "output 'y' is a seq(tensor(float))", onnx_of(
        helper.make_node("SequenceConstruct", ["x"], ["y"]), change=lambda model: model.graph.output[0].CopyFrom(
            helper.make_tensor_sequence_value_info("y", 1, None)))),
    "bfloat16 as output": Row(4, "output 'y' is a tensor(bfloat16)", onnx_of(
        helper.make_node("Cast", ["x"], ["y"], to=16), outputs=(("y", 16, ["a", "b"]),))),
    "bool as output": Row(0, "", onnx_of(helper.make_node("IsNaN", ["x"], ["y"]), outputs=(("y", 9, ["a", "b"]),))),
    "no input in ONNX": Row(0, "", onnx_of(helper.make_node("Constant", [], ["y"], value_float=1.0), inputs=(),
        outputs=(("y", 1, []),))),
    "4-bit weights": Row(0, "", onnx_of(
        helper.make_node("Cast", ["w"], ["c"], to=1), helper.make_node("Add", ["x", "c"], ["y"]), opset=21,
        initializer=[helper.make_tensor("w", TensorProto.INT4, [4096, 3], [1] * 12288)]), ("--input-shape", "4096,3")),
    "4-bit weights apart": Row(0, "", onnx_of(
        helper.make_node("Cast", ["w"], ["c"], to=1), helper.make_node("Add", ["x", "c"], ["y"]), opset=21,
        initializer=[helper.make_tensor("w", TensorProto.INT4, [4096, 3], [1] * 12288)]),
        ("--external-data", "--input-shape", "4096,3")),
    "bfloat16 weights apart": Row(0, "", onnx_of(
        helper.make_node("Cast", ["w"], ["c"], to=1), helper.make_node("Add", ["x", "c"], ["y"]),
        initializer=[helper.make_tensor("w", TensorProto.BFLOAT16, [1024, 3], [1.0] * 3072)]),
        ("--external-data", "--input-shape", "1024,3")),
    "texts as weights": Row(0, "", onnx_of(RELU, initializer=[helper.make_tensor("s", TensorProto.STRING, [200], [
        b"label"] * 200)])),
    "sparse weights": Row(4, "it holds a sparse tensor; gemedge reads dense ones", onnx_of(
        helper.make_node("Add", ["x", "s"], ["y"]), change=lambda model: model.graph.sparse_initializer.append(
            helper.make_sparse_tensor(weight("s", np.ones(2, "f")), weight("i", np.array([0, 2])), [3])))),
    "a type of no number": Row(3, "it is no sound ONNX model: ", onnx_of(
        helper.make_node("Add", ["x", "w"], ["y"]), initializer=[weight("w", np.ones(3, "f"))],
        change=lambda model: setattr(model.graph.initializer[0], "data_type", 99))),
    "the long name of the domain": Row(0, "", onnx_of(helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx"))),
    "a size that is not UTF-8": Row(3, "it is no sound ONNX model: Expected str",
                                    lambda marker: relu(marker).replace(b"rows", b"r\xffws")),
    "NaN weights": Row(0, "weight 'w' holds NaN or infinity; it is exported as it is", onnx_of(
        helper.make_node("Add", ["x", "w"], ["y"]), initializer=[weight("w", np.full(3, np.nan, "f"))]),
        names_the_file=False),
    "subnormal and huge weights": Row(0, "", onnx_of(
        helper.make_node("Mul", ["x", "w"], ["y"]), initializer=[weight("w", np.array([1e-42, 0, 1e38], "f"))])),
    "a zero-size dimension": Row(0, "", onnx_of(RELU, inputs=(("x", 1, [0, 3]),))),
    "1,000 layers": Row(0, "", onnx_of(*[helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(1000)],
                                      inputs=(("v0", 1, [1, 3]),), outputs=(("v1000", 1, ["a", "b"]),))),
    "weights in an absolute path": Row(3, "'/etc/passwd', which is no file beside the model", outside("/etc/passwd")),
    "weights in the folder above": Row(3, "'../x', which is no file beside the model", outside("../x"),
                                       prepare=lambda folder: (folder.parent / "x").write_bytes(bytes(12))),
    "weights behind a link": Row(3, "'w.bin', which is no file beside the model", outside("w.bin"),
                                 prepare=lambda folder: (folder / "w.bin").symlink_to("/etc/passwd")),
    "weights in /dev/zero": Row(3, "'/dev/zero', which is no file beside the model", outside("/dev/zero")),
    "weights in a missing file": Row(3, "'w.bin', which is no file beside the model", outside("w.bin")),
    "weights in a constant elsewhere": Row(3, "'/etc/passwd', which is no file beside the model",
                                           outside("/etc/passwd", "constant")),
    "weights beyond their file": Row(3, "weight 'w' lies outside 'w.bin'", outside("w.bin", offset=8, length=12),
                                     prepare=lambda folder: (folder / "w.bin").write_bytes(bytes(12))),
    "weights at no number": Row(3, "offset", outside("w.bin", offset="x"),
                                prepare=lambda folder: (folder / "w.bin").write_bytes(bytes(12))),
    "weights beside the model": Row(0, "", outside("w.bin"),
                                    prepare=lambda folder: (folder / "w.bin").write_bytes(bytes(12))),
    # Usage
    "no such option": Row(2, "--formatt", relu, ("--formatt", "c"), names_the_file=False),
    "opset 16": Row(2, "16 is not in the range 17<=x<=23", relu, ("--opset", "16"), names_the_file=False),
    "opset 24": Row(2, "24 is not in the range 17<=x<=23", relu, ("--opset", "24"), names_the_file=False),
    "a shape of 0": Row(2, "--input-shape '0,3' is not sizes", relu, ("--input-shape", "0,3"), names_the_file=False),
    "a shape of 2^40": Row(2, "has more than", relu, ("--input-shape", str(1 << 40)), names_the_file=False),
    "a shape of text": Row(2, "type 'text' is not one of", relu, ("--input-shape", "x:1,3:text"), names_the_file=False),
    "a shape for no input": Row(2, "the model has no input 'z'; it takes 'x'", relu, ("--input-shape", "z:1,3")),
    "two shapes for one input": Row(2, "the model has no input number 2", relu, (*SHAPE, *SHAPE)),
    "two shapes of one name": Row(2, "the input 'x' has two shapes", relu, ("--input-shape", "x:1,3") * 2),
    "two inputs with one shape": Row(0, "", onnx_of(helper.make_node("Add", ["x", "z"], ["y"]), inputs=(
        ("x", 1, ["a", 3]), ("z", 1, [3]))), SHAPE),
    "two inputs of a module with one shape": Row(2, "missing a required argument: 'input2'", lambda marker: bad.saved(
        nn.Bilinear(3, 3, 2)), SHAPE),
    "a shape against the .pt2's": Row(2, "'input' cannot be [2, 4]; the file holds it as [?, 3]",
                                      lambda marker: bad.good_pt2(), ("--input-shape", "?,4")),
    "no shape": Row(2, "does not say its input's shape; give --input-shape or --example", gem_module()),
    # Data
    "an example without samples": example(npy(np.zeros((0, 3), "f")), 5, "of shape (0, 3) is empty"),
    "an example with NaN": example(npy(np.array([[0, np.nan, 0]], "f")), 5, "element [0, 1] is nan"),
    "an example with infinity": example(npy(np.array([[0, 0, np.inf]], "f")), 5, "element [0, 2] is inf"),
    "an example of one sample": example(npy(np.ones((1, 3), "f")), 0, ""),
    "an example of wrong shape": example(npy(np.ones((2, 4, 4), "f")), 5,
        "the model does not run on the example: Invalid rank for input: x"),
    "an example against --input-shape": example(npy(np.ones((2, 3), "f")), 5, "has shape (2, 3), which is not 2,4",
                                                "--input-shape", "2,4"),
    "an example of objects": example(npy(np.array([{}]), allow_pickle=True), 5, "x.npy: its type is object"),
    "an example of text": example(npy(np.array(["a"])), 5, "x.npy: its type is <U1"),
    "an example of complex": example(npy(np.ones(3, complex)), 5, "x.npy: its type is complex128"),
    "an example of long double": example(npy(np.ones((1, 3), np.longdouble)), 5, "x.npy: its type is"),
    "an example cut short": example(npy(np.ones((2, 3), "f"))[:-1], 5, "which is not the 23 bytes it has"),
    "an example of a header alone": example(npy(np.ones((2, 3), "f"))[:20], 5, "x.npy: "),
    "an empty example": example(b"", 5, "x.npy: "),
    "a forged length": example(forged("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"), 5,
                               "which is not the 12 bytes it has"),
    "a forged shape with a 0": example(forged("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1 << 80), }"), 5,
        "x.npy: "),
    "a forged shape too large": example(
        forged(f"{{'descr': '<f4', 'fortran_order': False, 'shape': (0, {1 << 80}), }}", b""),
                                        5, "x.npy: "),
    "a forged negative shape": example(forged("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -3), }"), 5,
        "x.npy: "),
    "a forged header of code": example(forged("__import__('os').system('touch marker')"), 5, "x.npy: "),
    "a forged header left open": example(forged("{'descr': ('''"), 5, "x.npy: "),
    "a forged header of mixed keys": example(forged("{1: 2, 'a': 3}"), 5, "x.npy: "),
    "a header of Python 2": example(forged("{'descr': '<f4', 'fortran_order': False, 'shape': (3L,), }"), 5, "x.npy: "),
    "big-endian": example(npy(np.ones((2, 3), ">f4")), 0, ""),
    "Fortran order": example(npy(np.asfortranarray(np.arange(6, dtype="f").reshape(2, 3))), 0, ""),
    "an npz bomb": example(npz_bomb(), 5, "x.npz: its arrays claim 536871040 bytes", name="x.npz"),
    "an npz of no arrays": example(npz({}) and b"PK\3\4" + npz({"a.txt": b"a"})[4:], 5, "'a.txt' is no .npy",
        name="x.npz"),
    "an npz that is damaged": example(bad.flipped(npz({"x.npy": npy(np.arange(300.0))}), 300), 5, "x.npz: ",
        name="x.npz"),
    "an npz cut short": example(npz({"x.npy": npy(np.ones(3))})[:-9], 5, "x.npz: ", name="x.npz"),
    "an npz of wrong names": example(npz({"z.npy": npy(np.ones((1, 3), "f")), "w.npy": npy(np.ones(1))}), 5,
                                     "the example has 'z', 'w'; the model takes 'x'", name="x.npz"),
    "no example": Row(5, "x.npy: No such file or directory", relu, ("--example", "x.npy"), names_the_file=False),
    "a pipe as example": Row(5, "x.npy: it is not a regular file", relu, ("--example", "x.npy"), names_the_file=False,
                             prepare=lambda folder: os.mkfifo(folder / "x.npy")),
    "two arrays for one input": Row(2, "the 2 inputs it is given: too many positional arguments", gem_module(),
        ("--example", "x.npz"), prepare=lambda folder: (
        folder / "x.npz").write_bytes(npz({"input.npy": npy(np.ones((1, 3), "f")), "z.npy": npy(np.ones(1))}))),
    # Files and process
    "the output exists": Row(6, "out.onnx exists; --force replaces it", relu, names_the_file=False,
                             prepare=lambda folder: (folder / "out.onnx").write_bytes(b"old")),
    "an old output outlives --force": Row(3, "is damaged", bad.CORRUPT["a flipped bit in a weight"], ("--force",),
                                          prepare=lambda folder: (folder / "out.onnx").write_bytes(b"old")),
    "the output is the input": Row(6, "is the input; name another output", relu, ("--force",), output="model.pt",
                               names_the_file=False),
    "the output is the example": example(npy(np.ones((1, 3), "f")), 6, "x.npy is the input", "--force", output="x.npy"),
    "the output is a folder": Row(6, "sub is a folder", relu, output="sub", names_the_file=False,
                                  prepare=lambda folder: (folder / "sub").mkdir()),
    "the output is a device": Row(6, "/dev/null is a device or pipe", relu, ("--force",), output="/dev/null",
        names_the_file=False),
    "the output's folder is a file": Row(6, "model.pt/out.onnx: Not a directory", relu,
        output="model.pt/out.onnx", names_the_file=False),
    "the output's folder is missing": Row(6, "sub does not exist", relu, output="sub/out.onnx", names_the_file=False),
    "the output's folder is read-only": Row(6, "sub is not writable", relu, output="sub/out.onnx", before=drop_root,
                                            names_the_file=False,
                                                prepare=lambda folder: (folder / "sub").mkdir(mode=0o555)),
    "the output's name is too long": Row(6, "File name too long", relu, output="o" * 251 + ".onnx",
        names_the_file=False),
    "a full disk": Row(6, "there is no room for temporary files", onnx_of(
        helper.make_node("Add", ["x", "w"], ["y"]), initializer=[weight("w", np.ones((99999, 3), "f"))]),
        ("--input-shape", "1,3"), before=partial(limit_files, 1 << 16)),
    "a name with a newline": Row(3, "mo\\ndel.pt: it is empty", bad.CORRUPT["empty"], name="mo\ndel.pt"),
    "a name of 255 bytes": Row(3, "it is empty", bad.CORRUPT["empty"], name="m" * 252 + ".pt"),
    "a name that is no UTF-8": Row(3, "m\\udcff.pt: it is empty", bad.CORRUPT["empty"], name=os.fsdecode(b"m\xff.pt")),
    "a name with terminal codes": Row(3, "m\\x1b[2J.pt: it is empty", bad.CORRUPT["empty"], name="m\x1b[2J.pt"),
    "a name with a dash": Row(3, "-m.pt: it is empty", bad.CORRUPT["empty"], name="-m.pt"),
    "an output that is no UTF-8": Row(0, "", relu, output=os.fsdecode(b"o\xff.onnx")),
    "weights apart for an output that is no UTF-8": Row(
        2, "'o\\udcff.onnx' is not UTF-8", relu, ("--external-data",), output=os.fsdecode(b"o\xff.onnx")),
    "an output named .data": Row(0, "", relu, ("--external-data",), output="out.data"),
    "closed stdout": Row(0, "", relu, before=partial(os.close, 1)),
    "closed stdin and stdout": Row(3, "it is empty", bad.CORRUPT["empty"], before=lambda: (os.close(0), os.close(1))),
    "no HOME": Row(0, "", relu, environment={"HOME": None}),
    "locale C": Row(3, "m\\udcc3\\udca4.pt: it is empty", bad.CORRUPT["empty"], name="mä.pt", names_the_file=False,
                    environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
                        "PYTHONIOENCODING": "ascii"}),
    "Turkish": Row(0, "", relu, environment={"LC_ALL": "tr_TR.UTF-8"}),
    "no TMPDIR": Row(0, "", relu, environment={"TMPDIR": "/nowhere"}),
    # Injection
    **{f"a weight named {name}": Row(0, f"weight {name!r} holds NaN", onnx_of(
        helper.make_node("Add", ["x", name], ["y"]), initializer=[weight(name, np.full(3, np.nan, "f"))]),
            names_the_file=False)
       for name in ("<script>", "%s", "main", "../w", "x*/ int pwned; /*")},
    "a weight named as terminal codes": Row(0, "weight '\\x1b[2J\\n' holds NaN", onnx_of(
        helper.make_node("Add", ["x", "\x1b[2J\n"], ["y"]), initializer=[weight("\x1b[2J\n", np.full(3, np.nan, "f"))]),
        names_the_file=False),
    "a layer named as terminal codes": Row(3, "node '\\x1b[2J\\n<script>': n=0", onnx_of(
        helper.make_node("GEM", ["x"], ["y"], domain="ai.gemedge", name="\x1b[2J\n<script>", n=0))),
    "an input named as terminal codes": Row(0, "", onnx_of(
        helper.make_node("Relu", ["\x1b[2J\n"], ["y"]), inputs=(("\x1b[2J\n", 1, [1, 3]),))),
}  # fmt: skip


@pytest.mark.parametrize("name", thinned(ROWS, 10))
def test_bad_input_is_one_line_and_a_status(name, tmp_path):
    row = ROWS[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / row.name).write_bytes(row.make(folder / MARKER))
    row.prepare(folder)
    model = row.name if not row.name.startswith("other") else "model.pt"
    before = content_of(folder)
    arguments = ["export", "-o", row.output, *row.arguments, "--", model]
    result = ended(start(folder, arguments, before=row.before, **row.environment), folder)
    after = content_of(folder)

    assert "Traceback" not in result.stderr
    assert result.status == row.status, result
    assert row.says in result.stderr
    assert all(character.isprintable() or character == "\n" for character in result.stdout + result.stderr)
    assert not (folder / MARKER).exists()
    assert result.seconds < row.seconds or result.seconds < SOUND_MODELS * seconds_of_a_sound_model()
    assert result.memory < BYTES
    if row.status == 0:
        assert {path: after[path] for path in before} == before
        onnx.checker.check_model(onnx.load(folder / row.output))
        assert all(line.startswith("gemedge: ") for line in result.stderr.splitlines())
    else:
        assert after == before
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith(f"gemedge: {console_form(model)}: " if row.names_the_file else "gemedge: ")


@cache
def seconds_of_a_sound_model() -> float:
    """Processor seconds of an export that traces a module, on this machine as it is."""
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "folder"
        folder.mkdir()
        (folder / "model.pt").write_bytes(gem_module()(folder / MARKER))
        result = run(folder, "export", "model.pt", *SHAPE)
    assert result.status == 0, result.stderr
    return result.seconds


def run(folder: Path, *arguments: str, **rest: Any) -> Result:
    return ended(start(folder, list(arguments), **rest), folder)


@pytest.fixture
def folder(tmp_path):
    """A folder with a sound model.onnx."""
    made = tmp_path / "folder"
    made.mkdir()
    (made / "model.onnx").write_bytes(relu(made / MARKER))
    return made


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_as_output_is_followed(is_there, folder):
    (folder / "sub").mkdir()
    (folder / "out.onnx").symlink_to("sub/target.onnx")
    if is_there:
        (folder / "sub" / "target.onnx").write_bytes(b"old")
    result = run(folder, "export", "model.onnx", "-o", "out.onnx", *["--force"] * is_there)
    assert result.status == 0, result.stderr
    assert (folder / "out.onnx").is_symlink()
    onnx.checker.check_model(onnx.load(folder / "sub" / "target.onnx"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_says_so_and_leaves_nothing(name, folder):
    (folder / "model.onnx").write_bytes(loop(1 << 60)(folder / MARKER))
    before = content_of(folder)
    process = start(folder, ["export", "model.onnx", "-o", "out.onnx"])
    child = child_of(process.pid)
    process.send_signal(getattr(signal, name))
    result = ended(process, folder)
    assert (result.status, result.stderr) == (130, "gemedge: interrupted\n")
    assert content_of(folder) == before
    assert not Path(f"/proc/{child}").exists()


def child_of(pid: int) -> int:
    """The process id of its only child, once that runs."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    deadline = time.monotonic() + 60
    while not children.read_text().split() and time.monotonic() < deadline:
        time.sleep(0.01)
    return int(children.read_text().split()[0])


def test_of_two_runs_to_one_output_one_wins(folder):
    second = folder.parent / "second" / "folder"
    second.mkdir(parents=True)
    arguments = ["export", str(folder / "model.onnx"), "-o", str(folder / "out.onnx")]
    runs = [(start(place, arguments), place) for place in (folder, second)]
    results = [ended(process, place) for process, place in runs]
    assert sorted(result.status for result in results) == [0, 6]
    loser = max(results, key=lambda result: result.status)
    assert loser.stderr == f"gemedge: {folder}/out.onnx exists; --force replaces it\n"
    onnx.checker.check_model(onnx.load(folder / "out.onnx"))
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "out.onnx"}


def test_closed_stderr_keeps_the_status_and_stdout_clean(folder):
    (folder / "model.onnx").write_bytes(b"")
    result = run(folder, "export", "model.onnx", "-o", "out.onnx", before=partial(os.close, 2))
    assert (result.status, result.stdout, result.stderr) == (3, "", "")
    assert not (folder / "out.onnx").exists()


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_full_disk_behind_stdout_is_said(arguments, folder):
    def full() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    result = run(folder, "export", "model.onnx", "-o", "out.onnx", *arguments, before=full)
    assert result.status == 6
    assert result.stderr == "gemedge: cannot write to standard output: No space left on device\n"


def test_a_reader_that_leaves_is_said(folder):
    def unread() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)

    result = run(folder, "export", "model.onnx", "-o", "out.onnx", before=unread)
    assert result.status == 6
    assert result.stderr == "gemedge: cannot write to standard output: Broken pipe\n"


def test_a_full_disk_behind_stderr_keeps_the_status(folder):
    (folder / "model.onnx").write_bytes(b"")
    result = run(
        folder, "export", "model.onnx", "-o", "out.onnx", before=lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
    )
    assert result.status == 3


@pytest.mark.parametrize("name", ["", ".", "/", ".."])
def test_a_model_without_a_name_is_a_folder(name, folder):
    result = run(folder, "export", "--", name)
    assert result.status == 3
    assert result.stderr == f"gemedge: {name or '.'}: it is a folder, not a file\n"


def console_form(name: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)

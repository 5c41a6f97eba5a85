"""Pickles read as plain data: what torch writes comes through, what would run code does not run."""

import pickle
from collections import OrderedDict

import bad_models
import pytest
import torch
from torch import nn

from gemedge.capture import pickled
from gemedge.capture.archive import parse_archive
from gemedge.capture.tree import ITEM_SIZES, MAX_VALUES, Device, Name, ObjectRecord, Size, TensorRecord, classes
from gemedge.errors import ModelError, UnsupportedError

NOT_CALLED = "gemedge calls nothing that a file names"
REASONS = {
    "os.system by REDUCE": f"its pickle calls os.system; {NOT_CALLED}",
    "os.system nested": f"its pickle calls os.system; {NOT_CALLED}",
    "os.system by STACK_GLOBAL": f"its pickle calls os.system; {NOT_CALLED}",
    "os.system by INST": "makes os.system by INST; torch writes none",
    "os.system by OBJ": "has the opcode OBJ at byte",
    "os.system by NEWOBJ": "makes an object of os.system with arguments",
    "os.system by BUILD": "gives a Name a state that is no dict",
    "getattr to builtins": f"calls getattr on os.__dict__; {NOT_CALLED}",
    "a function called by name": f"calls builtins.eval; {NOT_CALLED}",
    "an extension code": "has the opcode EXT1 at byte 2",
    "hash bomb": "a dict key of type tuple; str and int are allowed",
    "a tuple as key": "a dict key of type tuple; str and int are allowed",
    "deeply nested list": "nests values over 300 deep or unfolds to over",
    "a list that unfolds": f"unfolds to over {MAX_VALUES}; no model does",
    "a list in itself": "holds a value that contains itself",
    "300,000 keys": "a dict of more than 100000 keys",
    "opcodes without end": f"has more than {pickled.MAX_OPCODES} opcodes",
    "a huge number": "a number of 255 bytes; 9 are allowed",
    "a text as number": "has the opcode 0x56 at byte 2",
    "protocol 0": "has the opcode 0x6c at byte 1",
    "a memo that is empty": "recalls value 7, which it never stored",
    "a stack that is empty": "takes a value that is not there, at byte 2",
    "a mark that is not there": "takes a mark that is not there, at byte 2",
    "two values": "does not end with exactly one value",
    "bytes after the end": "does not end with exactly one value",
    "a pickle cut short": "its pickle is cut short",
    "appending to a dict": "its pickle appends to a dict",
    "keys of a list": "sets 2 keys and values of a list",
    "a set of numbers": "makes a set of something else than texts",
    "state for a list": "gives a list a state",
    "a storage that is no tuple": "refers to a storage in a way torch does not",
    "backward hooks on a tensor": "gives a tensor backward hooks",
    "a name with a newline": r"names a global 'os\\nx.system', which is no name",
    "a data record missing": "its record 'data/0' is missing",
    "no pickle": "its record 'data.pkl' is missing",
    "shape 2^40 on a small storage": r"shape \(1099511627776,\) .* does not fit record 'data/0' of 4 elements",
    "shape 2^62 twice": r"has a number below 0 or over 2\^62",
    "stride 0": r"with stride \(0,\) .* does not fit record 'data/0'",
    "negative stride": r"stride \(-1,\) and offset 0 in record 'data/0' has a number below 0 or over",
    "negative size": "has a number below 0 or over",
    "negative offset": "has a number below 0 or over",
    "offset beyond the storage": "offset 3 does not fit record 'data/0' of 4 elements",
    "overlap": r"shape \(3, 3\) with stride \(1, 1\) .* does not fit",
    "sizes and strides differ in number": "has 1 sizes and 2 strides",
    "65 dimensions": "has 65 sizes and 65 strides; they must be as many, and 64 at most",
    "a size that is no number": "its offset, sizes and strides must be whole numbers",
    "storage count differs from the record": "'data/0' has 12 bytes; 4 elements of float32 need 16",
    "negative storage count": "-4 elements of float32 need -16",
    "a storage outside data/": "its record 'data/../version' is missing",
    "one storage of two types": "refers to storage '0' as two different ones",
    "a bool that is neither": "holds a bool that is neither 0 nor 1",
}
UNSUPPORTED = {
    "big endian": "its numbers are in big byte order",
    "sparse": "it holds a sparse tensor; gemedge reads dense ones",
    "sparse CSR": "it holds a sparse tensor",
    "quantised": "a storage of torch.QInt8Storage",
    "complex": "a storage of torch.ComplexFloatStorage",
    "meta": "a meta tensor, which has no values",
    "meta storage": "a meta tensor, which has no values",
    "float8": "a tensor of float8_e4m3fn; gemedge reads float16",
    "nested": "it holds a nested tensor",
    "conjugate flags": r"a tensor with flags \(a conjugate or negative view\)",
}
ROWS = bad_models.CORRUPT | bad_models.HOSTILE | bad_models.TENSORS | bad_models.UNSUPPORTED_TENSORS


def read(data: bytes):
    return pickled.read(parse_archive(data).records)


def round_trip(value, protocol=2):
    return read(bad_models.saved(value, pickle_protocol=protocol))


def test_every_hostile_pickle_has_its_reason():
    assert {*bad_models.HOSTILE, *bad_models.TENSORS, *bad_models.UNSUPPORTED_TENSORS} <= {*REASONS, *UNSUPPORTED}


@pytest.mark.parametrize(("name", "reason"), REASONS.items())
def test_hostile_pickle_is_refused_and_runs_nothing(name, reason, tmp_path):
    marker = tmp_path / "marker"
    with pytest.raises(ModelError, match=reason):
        read(ROWS[name](marker))
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "reason"), UNSUPPORTED.items())
def test_tensors_that_gemedge_does_not_read_are_named(name, reason, tmp_path):
    with pytest.raises(UnsupportedError, match=reason):
        read(ROWS[name](tmp_path))


def test_the_hostile_pickles_are_hostile(tmp_path):
    marker = tmp_path / "marker"
    for name in ("os.system by REDUCE", "os.system by STACK_GLOBAL", "os.system by INST", "os.system by OBJ"):
        pickle.loads(bad_models.records_of(bad_models.HOSTILE[name](marker))["data.pkl"])
        assert marker.exists(), name
        marker.unlink()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        255,
        65536,
        -(2**40),
        2**63 - 1,
        1.5,
        "ä€",
        "",
        (),
        (1,),
        [1, [2, (3, 4, 5, 6)]],
        {"a": 1, 2: "b"},
    ],
)
def test_plain_values_come_through(value, protocol):
    got = round_trip(value, protocol)
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.Size([2, 3]), Size((2, 3))),
        (torch.float16, Name("torch", "float16")),
        (torch.device("cpu"), Device("cpu")),
        (nn.functional.relu, Name("torch.nn.functional", "relu")),
        (torch.relu, Name("torch", "relu")),
        ({"x", "y"}, {"x", "y"}),
        (OrderedDict(a=1), OrderedDict(a=1)),
    ],
)
def test_values_of_torch_become_names_and_numbers(value, expected):
    for protocol in (2, 4):
        got = round_trip(value, protocol)
        assert (got, type(got)) == (expected, type(expected))


@pytest.mark.parametrize("dtype", ITEM_SIZES)
def test_tensors_of_every_dtype_come_through(dtype):
    record = round_trip(torch.zeros(4, 3, dtype=getattr(torch, dtype)).t())
    assert (record.dtype, record.shape, record.stride, record.offset) == (dtype, (3, 4), (1, 3), 0)
    assert record.storage.nbytes == 12 * torch.empty(0, dtype=getattr(torch, dtype)).element_size()


def test_a_view_keeps_its_offset_and_shares_its_storage():
    base = torch.zeros(10)
    first, second, empty = round_trip([base[2:6], base[::3], base[:0].reshape(0, 5)])
    assert (first.offset, first.shape, second.stride) == (2, (4,), (3,))
    assert first.storage == second.storage
    assert empty.shape == (0, 5)


def test_tied_parameters_are_one_record():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    tree = round_trip(model)
    first, second = tree.state["_modules"].values()
    assert first.state["_parameters"]["weight"] is second.state["_parameters"]["weight"]
    assert first.state["_parameters"]["weight"].is_parameter


def test_a_module_becomes_a_record_of_its_class():
    tree = round_trip(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    assert isinstance(tree, ObjectRecord)
    assert classes(tree) == {
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.conv.Conv2d",
        "torch.nn.modules.activation.ReLU",
    }
    conv = tree.state["_modules"]["0"].state
    assert (conv["kernel_size"], conv["training"]) == ((3, 3), True)


def test_attributes_on_a_tensor_are_dropped():
    tensor, parameter = torch.ones(2), nn.Parameter(torch.ones(2))
    tensor.note, parameter.note = "x", "y"
    plain, learned = round_trip([tensor, parameter])
    assert isinstance(plain, TensorRecord)
    assert (plain.is_parameter, learned.is_parameter) == (False, True)


class _Tagged(torch.Tensor):
    pass


def test_a_tensor_of_a_subclass_is_named():
    with pytest.raises(UnsupportedError, match=r"a tensor of the subclass test_pickled\._Tagged"):
        round_trip(torch.ones(2).as_subclass(_Tagged))

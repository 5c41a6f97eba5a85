"""Data as streams of batches: what goes through, and one line for each way it can be bad."""

import re
import tracemalloc

import numpy as np
import pytest

from gemedge.errors import DataError, UnsupportedError, UsageError
from gemedge.quant.batches import Input, checked, open_data, samples_of

X = Input("x", (None, 3), np.dtype("float32"))
PAIR = (X, Input("tokens", (None, None), np.dtype("int32")))


def rows(count, dtype=np.float32):
    return np.arange(count * 3).reshape(count, 3).astype(dtype)


def gathered(data, name="x"):
    return np.concatenate([batch[name] for batch in data])


def npy(array):
    return lambda path: np.save(path.with_suffix(".npy"), array, allow_pickle=True) or path.with_suffix(".npy")


def npz(save=np.savez, **arrays):
    return lambda path: save(path.with_suffix(".npz"), **arrays) or path.with_suffix(".npz")


def folder(path):
    path.mkdir()
    np.save(path / "b.npy", rows(10)[4:])
    np.savez(path / "a.npz", x=rows(10)[:4])
    (path / ".hidden").write_text("")
    return path


STORED = {
    "npy": npy(rows(10)),
    "npy in Fortran order": npy(np.asfortranarray(rows(10))),
    "npy big-endian": npy(rows(10, ">f4")),
    "npy of float64": npy(rows(10, np.float64)),
    "npz": npz(x=rows(10)),
    "npz compressed": npz(np.savez_compressed, x=rows(10)),
    "npz compressed in Fortran order": npz(np.savez_compressed, x=np.asfortranarray(rows(10))),
    "npz with labels": npz(x=rows(10), labels=np.arange(10)),
    "npz without names": npz(arr_0=rows(10)),
    "folder, by name": folder,
}


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("batch", [1, 3, 10, 64])
def test_the_same_samples_come_in_order_from_every_kind_of_file(tmp_path, kind, batch):
    data = open_data(STORED[kind](tmp_path / "d"), (X,), batch=batch)
    batches = list(data)
    assert data.samples == 10
    assert [len(b["x"]) for b in batches] == [batch] * (10 // batch) + ([10 % batch] if 10 % batch else [])
    made = gathered(batches)
    assert made.dtype == np.float32
    assert made.dtype.isnative
    assert (made == rows(10)).all()
    assert (gathered(data) == made).all()  # a second time


def test_labels_are_ignored_with_a_note(tmp_path):
    path = npz(x=rows(2), y=np.arange(2))(tmp_path / "d")
    assert open_data(path, (X,)).notes == ("the data's array 'y' is no input of the model and is ignored",)


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (4, 4), (5, 5), (99, 10)])
def test_limit_takes_the_first_samples(tmp_path, limit, expected):
    data = open_data(npy(rows(10))(tmp_path / "d"), (X,), batch=4, limit=limit)
    assert data.samples == expected
    assert (gathered(data) == rows(10)[:expected]).all()


def test_a_model_that_takes_four_samples_gets_four_and_the_rest_is_left_out(tmp_path):
    path = npy(rows(10))(tmp_path / "d")
    data = open_data(path, (Input("x", (4, 3), np.dtype("float32")),), batch=64)
    assert [len(b["x"]) for b in data] == [4, 4]
    assert data.samples == 8
    assert data.notes == ("the model takes 4 samples at a time; the last 2 are left out",)


def test_sizes_that_may_vary_split_batches_instead_of_being_joined(tmp_path):
    inputs = (Input("x", (None, None), np.dtype("float32")),)
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d/a.npy", np.ones((3, 2), np.float32))
    np.save(tmp_path / "d/b.npy", np.ones((3, 5), np.float32))
    assert [b["x"].shape for b in open_data(tmp_path / "d", inputs, batch=4)] == [(3, 2), (3, 5)]


def truncated(path):
    file = npy(rows(10))(path)
    file.write_bytes(file.read_bytes()[:-1])
    return file


def damaged_deflate(path):
    file = npz(np.savez_compressed, x=rows(4000))(path)
    content = bytearray(file.read_bytes())
    content[3000:3100] = b"\xff" * 100
    file.write_bytes(content)
    return file


def with_value(value, dtype=np.float32):
    array = rows(10, dtype)
    array[7, 2] = value
    return array


def text(path):
    path.with_suffix(".npz").write_text("hello, this is no array at all")
    return path.with_suffix(".npz")


BAD = {
    "empty": (npy(rows(0)), "d.npy: it holds no samples"),
    "wrong shape": (npy(np.ones((5, 4), np.float32)), r"array 'x' of shape \[5, 4\] does not fit input 'x', which"),
    "no sample axis": (
        npy(np.float32(1)),
        r"array 'x' of shape \[\] does not fit input 'x', which takes float32 \[\?, 3",
    ),
    "integers": (npy(rows(5, np.uint8)), "of type uint8 does not fit input 'x', which takes float32"),
    "complex": (
        npy(rows(5, np.complex64)),
        "its type is complex64; it must be bool, or an integer or float of up to 64 bits",
    ),
    "object": (
        npy(np.array([{}], object)),
        "its type is object; it must be bool, or an integer or float of up to 64 bits",
    ),
    "nan": (npy(with_value(np.nan)), r"d.npy: array 'x', sample 7, element \[2\] is nan; every number must be finite"),
    "inf": (npz(x=with_value(-np.inf)), r"d.npz: array 'x', sample 7, element \[2\] is -inf; every number must be"),
    "too large": (npy(with_value(1e39, np.float64)), r"sample 7, element \[2\] is 1e\+39; it does not fit float32"),
    "truncated": (truncated, "d.npy: its header says shape"),
    "damaged": (damaged_deflate, r"d.npz: Error -3 while decompressing"),
    "text": (text, "d.npz: the magic string is not correct"),
    "another array": (npz(x=rows(3), extra=rows(3)), "d.npz: it has 'x', 'extra'; the model takes 'x'"),
    "a name missing": (npz(z=rows(3)), "d.npz: it has 'z'; the model takes 'x'"),
    "empty folder": (lambda path: path.mkdir() or path, "d: the folder has no .npy or .npz files"),
    "missing": (
        lambda path: path,
        "d: it is not there; name a .npy or .npz file, a folder of them, or module:callable",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_is_refused_by_name_and_cause(tmp_path, kind):
    make, message = BAD[kind]
    with pytest.raises(DataError, match=message):
        list(open_data(make(tmp_path / "d"), (X,), batch=4))


def test_bad_files_in_a_folder_are_named(tmp_path):
    path = folder(tmp_path / "d")
    np.save(path / "c.npy", with_value(np.nan))
    with pytest.raises(DataError, match=r"d/c\.npy: array 'x', sample 7"):
        list(open_data(path, (X,)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": rows(4), "tokens": np.ones((3, 5), np.int64)}, "different numbers of samples: 'x' 4, 'tokens' 3"),
        ({"x": rows(4), "tokens": np.full((4, 1), 2**40)}, r"'tokens', sample 0, element \[0\] is 1099511627776; it"),
        ({"x": rows(4), "tokens": rows(4)}, "array 'tokens' of type float32 does not fit input 'tokens'"),
    ],
)
def test_two_inputs_must_agree(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        list(open_data(npz(**arrays)(tmp_path / "d"), PAIR))


def test_inputs_that_fix_different_batches_are_unsupported(tmp_path):
    inputs = (Input("a", (2, 3), np.dtype("float32")), Input("b", (4, 3), np.dtype("float32")))
    with pytest.raises(UnsupportedError, match=re.escape("fix different numbers of samples: [2, 4]")):
        open_data(tmp_path, inputs)


CODE = """
import numpy as np
def good():
    for i in range(3): yield {"x": np.full((2, 3), i)  * 1.0}
def bare(): return [np.ones((5, 3))]
def empty(): return []
def pair(): yield np.ones((2, 3)), np.ones(2)
def fails(): yield np.ones((2, 3)); raise KeyError("oops")
def late(): yield np.ones((2, 3)); yield np.array([[0, 0, 0], [0, np.nan, 0]])
print("imported")
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    name = f"user_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return name


@pytest.mark.parametrize(("function", "sizes"), [("good", [4, 2]), ("bare", [4, 1])])
def test_a_callable_yields_batches_of_any_size(code, function, sizes):
    data = open_data(f"{code}:{function}", (X,), batch=4)
    assert data.samples is None
    assert [len(b["x"]) for b in data] == sizes


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        ("empty", DataError, "no samples"),
        ("pair", DataError, "pair: batch 0 is a tuple; it must be an array or a dict of them by input name"),
        ("fails", DataError, "fails failed: KeyError: 'oops'"),
        ("late", DataError, r"late: array 'x', sample 3, element \[1\] is nan"),
        ("none", UsageError, "has no 'none'"),
    ],
)
def test_bad_callables_are_named(code, function, kind, message):
    with pytest.raises(kind, match=message):
        list(open_data(f"{code}:{function}", (X,)))


def test_asking_for_the_number_of_samples_imports_nothing(code, capsys):
    assert samples_of(f"{code}:good", (X,)) == (None, ())
    assert "imported" not in capsys.readouterr().out


def test_batches_given_directly_are_checked():
    with pytest.raises(DataError, match=r"the data: batch 1: array of shape \[2, 4\] does not fit input 'x'"):
        list(checked([rows(2), np.ones((2, 4))], (X,)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_is_a_batch_and_not_the_file(tmp_path, save):
    inputs = (Input("x", (None, 1000), np.dtype("float32")),)
    save(tmp_path / "d.npz", x=np.ones((10_000, 1000), np.float32))  # 40 MB
    tracemalloc.start()
    assert sum(len(batch["x"]) for batch in open_data(tmp_path / "d.npz", inputs, batch=16)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000

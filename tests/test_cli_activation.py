"""`gemedge activation` and `gemedge inspect`, as a user meets them."""

import builtins
import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gemedge.cli import main


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs the command line in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


def test_certificate_and_comparison_are_printed(run):
    status, out, err = run("activation", "egem(n=1, epsilon=0.01)", "--in", "Q3.12", "--out", "Q3.12")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "egem(n=1, epsilon=0.01) from Q3.12 to Q3.12"
    assert lines[1].startswith("all 65,536 inputs: 0 misrounded, largest error 0.499992 LSB at raw 3355")
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == ["method", "max error, LSB", "misrounded", "flash bytes", "multiplies", "look-ups"]
    assert rows[1] == ["reciprocal kernel", "0.499992", "0", "184", "10", "1"]
    assert rows[2] == ["513-entry table, linear", "17.3746", "402", "1,026", "1", "2"]
    assert rows[3][0] == "513-entry table, nearest"
    assert rows[4] == ["256-byte table", "254.949", "32,631", "256", "0", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["egem(n=1, epsilon=1e-6)"],
            "gemedge: epsilon 1e-06 is below one LSB of Q3.12 (0.0002441): GEM is ReLU there, and the kernel too",
        ),
        (
            ["egem(n=1, epsilon=0.003)", "--out", "Q7.8"],
            "gemedge: epsilon 0.003 is below one LSB of Q7.8 (0.003906): GEM is within one LSB of ReLU there;"
            " 2,068 of 65,536 codes differ",
        ),
        (
            ["segem(n=1, epsilon=1e-6)"],
            "gemedge: epsilon 1e-06 is below half an LSB of Q3.12 (0.0002441): SE-GEM is ReLU there",
        ),
        (
            ["egem(n=1, epsilon=1000)", "--in", "Q0.15"],
            "gemedge: every output from Q0.15 to Q3.12 is 0: nothing of egem(n=1, epsilon=1000.0) is left there",
        ),
        (["gem(n=4)", "--in", "Q15.0", "--out", "Q0.15"], "gemedge: 50% of the inputs checked saturate Q0.15"),
    ],
)
def test_formats_that_leave_little_are_done_with_one_line_about_it(run, arguments, message):
    status, out, err = run("activation", *arguments)
    assert (status, err.strip()) == (0, message)
    assert "0 misrounded" in out
    assert run("activation", *arguments, "--quiet")[2] == ""


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["gelu"], 2, "activation 'gelu': 'gelu' is not a number"),
        (["gem(n=0)"], 2, "n=0 must be a whole number from 1 to 16"),
        (["egem(n=1, epsilon=-1)"], 2, "epsilon=-1 must be positive and finite in float32"),
        (["gem(n=1if 1 else 2)"], 2, "activation 'gem(n=1if 1 else 2)': it cannot be read"),
        (["gem(n=1)", "--ns", "1"], 2, "--ns is for --sweep"),
        (["gem(n=1)", "--sweep", "--in", "Q3.12"], 2, "--in is not for --sweep, which takes --formats"),
        (["gem(n=1)", "-o", "a.png", "--plot", "./a.png"], 2, "-o and --plot both name a.png"),
        (["gem(n=1)", "--in", "Q3.13"], 2, "Q3.13 is 17 bits wide with its sign; it must be 8, 16 or 32"),
        (["gem(n=1)", "--in", "float"], 2, "format 'float' cannot be read; write Q3.12 or int8(scale=0.1"),
        (["gem(n=1)", "--out", "int8(scale=--1)"], 2, "format 'int8(scale=--1)': scale=--1 is not a number"),
        (["gem(n=1)", "--out", "int8(scale=0)"], 2, "scale=0.0 must be positive and finite in float32"),
        (["gem(n=1)", "--out", "int16(scale=1, zero_point=3)"], 2, "zero_point=3 at 16 bits; only 8-bit integers"),
        (["gem(n=1)", "--plot", "a.txt"], 2, "--plot a.txt: it must end in .png, .svg or .pdf"),
        (["gem(n=1)", "-o", "missing/k.json"], 6, "missing/k.json: the folder"),
        (["gem(n=1)", "--sweep", "--ns", "0"], 2, "n=0 must be a whole number from 1 to 16"),
        (["gem(n=1)", "--sweep", "--ns", "1,x"], 2, "--ns: 'x' is not a whole number"),
        (["gem(n=1)", "--sweep", "--epsilons", "x"], 2, "--epsilons: 'x' is not a number"),
        (["gem(n=1)", "--sweep", "--epsilons", ","], 2, "--epsilons is empty; write its values with commas"),
        (["gem(n=1)", "--sweep", "--epsilons", "-1"], 2, "epsilon=-1.0 must be positive and finite"),
        (["gem(n=1)", "--sweep", "--formats", "Q3.4"], 2, "--formats Q3.4: --sweep compares 16-bit formats"),
        (
            ["rational(negative=branch(), positive=branch(slope=1))", "--sweep"],
            2,
            "--sweep varies n and epsilon of GEM or SE-GEM; rational(",
        ),
    ],
)
def test_what_makes_no_sense_gets_one_line(run, arguments, status, message):
    got, out, err = run("activation", *arguments)
    assert (got, out) == (status, "")
    assert err.startswith(f"gemedge: {message}") or message in err
    assert err.count("\n") == 1


def test_8_bit_and_32_bit_formats_are_certified(run):
    status, out, _ = run("activation", "gem(n=1)", "--in", "int8(scale=0.05, zero_point=-3)", "--out", "Q3.4")
    assert status == 0
    assert "gem(n=1) from int8(scale=0.05, zero_point=-3) to Q3.4" in out
    assert "all 256 inputs: 0 misrounded" in out
    assert "256-entry table" in out
    status, out, _ = run("activation", "gem(n=1)", "--in", "Q3.28", "--out", "Q3.28")
    assert status == 0
    assert "inputs of 2^32: 0 misrounded" in out


def test_saved_kernel_is_inspected_from_its_file_alone(run):
    assert run("activation", "segem(n=2, epsilon=0.3)", "--out", "Q1.14", "-o", "k.json")[0] == 0
    status, out, err = run("inspect", "k.json")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "gemedge kernel: segem(n=2, epsilon=0.3) from Q3.12 to Q1.14"
    assert out.splitlines()[1].startswith("certificate checked again and the same: all 65,536 inputs: 0 misrounded")
    status, out, _ = run("inspect", "k.json", "--json")
    report = json.loads(out)
    assert (status, report["kind"], report["out"]) == (0, "gemedge kernel", "Q1.14")
    assert report["certificate"]["misrounded"] == 0


def test_json_is_a_file_that_inspect_reads(run):
    status, out, _ = run("activation", "gem(n=1)", "--json")
    stored = json.loads(out)
    assert status == 0
    assert [row["misrounded"] for row in stored["comparison"]][:2] == [0, 7092]
    Path("printed.json").write_text(out)
    assert run("inspect", "printed.json")[0] == 0


def test_saving_twice_gives_the_same_bytes_and_needs_force(run):
    assert run("activation", "gem(n=1)", "-o", "a.json")[0] == 0
    first = Path("a.json").read_bytes()
    status, _, err = run("activation", "gem(n=1)", "-o", "a.json")
    assert (status, err) == (6, "gemedge: a.json exists; --force replaces it\n")
    assert run("activation", "gem(n=1)", "-o", "a.json", "--force")[0] == 0
    assert Path("a.json").read_bytes() == first


def tampered(change) -> str:
    stored = json.loads(Path("k.json").read_text())
    change(stored)
    return json.dumps(stored)


def a_side(stored):
    return stored["constants"]["sides"][1]


@pytest.mark.parametrize(
    ("make", "status", "message"),
    [
        (lambda: "", 3, "this is no file of ours"),
        (
            lambda: "x",
            3,
            "this is no file of ours; inspect reads what `gemedge quantize` and `gemedge activation -o` save",
        ),
        (lambda: "{}", 3, "this is no file of ours"),
        (lambda: '{"format": 7}', 3, "this is no file of ours"),
        (lambda: Path("k.json").read_text()[:300], 3, "it is not JSON: "),
        (lambda: '{"a":' * 100_000, 3, "it is not JSON: "),
        (lambda: '{"format": "gemedge kernel"}', 3, "the kernel has no 'version'"),
        (lambda: tampered(lambda s: s.pop("constants")), 3, "the kernel has no 'constants'"),
        (lambda: tampered(lambda s: s["certificate"].update(misrounded=1)), 1, "the certificate does not hold: mis"),
        (lambda: tampered(lambda s: s["certificate"].update(outputs="0")), 1, "outputs differ; outputs is stored as 0"),
        (lambda: tampered(lambda s: s.update(activation="gem(n=2)")), 1, "the positive side's tail is 32263; proven"),
        (lambda: tampered(lambda s: a_side(s).update(head=1)), 1, "the positive side's head is 1; proven is 0 alone"),
        (
            lambda: tampered(lambda s: a_side(s)["pieces"][0]["above"]["mantissas"].pop()),
            1,
            "above number of mantissas is 2; proven is 3 alone",
        ),
        (
            lambda: tampered(lambda s: a_side(s)["pieces"][0]["above"].update(mantissas=[1 << 43, 0, (1 << 43) + 1])),
            1,
            "the certificate does not hold: constants differ",
        ),
    ],
)
def test_a_file_that_is_damaged_or_does_not_hold_is_named(run, make, status, message):
    assert run("activation", "gem(n=1)", "-o", "k.json")[0] == 0
    Path("bad.json").write_text(make())
    got, out, err = run("inspect", "bad.json")
    assert (got, out) == (status, "")
    assert err.startswith("gemedge: bad.json: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere is not there; name a file of ours"),
        (".", ". is a folder; name a file of ours"),
        ("/dev/zero", "/dev/zero is not a regular file; name a file of ours"),
    ],
)
def test_a_path_that_is_no_file_is_named(run, path, message):
    assert run("inspect", path) == (3, "", f"gemedge: {message}\n")


def test_a_file_that_is_too_large_is_refused_unread(run):
    with Path("large").open("wb") as file:
        file.truncate((16 << 20) + 1)
    assert run("inspect", "large") == (3, "", "gemedge: large is larger than 16 MiB, which no kernel of ours is\n")


SWEEP = ["activation", "gem(n=1)", "--sweep", "--ns", "1,2", "--epsilons", "1e-6,0.01", "--formats", "Q3.12,Q0.15"]


def test_sweep_certifies_a_grid_and_writes_csv_and_heat_map(run):
    status, out, err = run(*SWEEP, "-o", "s.csv", "--plot", "s.png", "--jobs", "2")
    assert (status, err) == (0, "")
    rows = list(csv.DictReader(Path("s.csv").read_text().splitlines()))
    assert len(rows) == 16
    assert {(row["n"], row["epsilon"], row["in"], row["out"]) for row in rows} == {
        (n, e, i, o) for n in "12" for e in ("1e-06", "0.01") for i in ("Q3.12", "Q0.15") for o in ("Q3.12", "Q0.15")
    }
    assert {row["misrounded"] for row in rows} == {"0"}
    assert max(float(row["table_max_error"]) for row in rows) > 20
    assert Path("s.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "Q3.12 to Q0.15" in out


def test_sweep_prints_its_rows_as_json(run):
    status, out, _ = run(*SWEEP[:3], "--ns", "1", "--epsilons", "0.5", "--formats", "Q3.12", "--jobs", "1", "--json")
    rows = json.loads(out)["sweep"]
    assert status == 0
    assert [(row["family"], row["misrounded"], row["exceptions"], row["refused"]) for row in rows] == [
        ("egem", 0, 0, "")
    ]


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_plot_is_drawn_and_is_the_same_bytes_each_time(run, suffix, begins):
    for name in ("a", "b"):
        assert run("activation", "egem(n=2, epsilon=0.01)", "--plot", f"{name}.{suffix}")[0] == 0
    data = Path(f"a.{suffix}").read_bytes()
    assert data.startswith(begins)
    assert data == Path(f"b.{suffix}").read_bytes()


def test_missing_matplotlib_is_named_before_any_work(run, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    expected = (4, "", "gemedge: a figure needs matplotlib: pip install gemedge[report]\n")
    assert run("activation", "gem(n=1)", "--plot", "f.png") == expected
    assert not Path("f.png").exists()


def test_core_loads_numpy_only():
    code = (
        "import sys, gemedge, gemedge.stored, gemedge.table;"
        "print(sorted({'onnx', 'torch', 'click', 'rich', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_activation_becomes_one_header(run, tmp_path):
    status, out, err = run("activation", "segem(n=2, epsilon=0.5)", "--emit-c", "my-act.h")
    assert (status, err) == (0, "")
    assert "all 65,536 inputs: 0 misrounded" in out
    text = (tmp_path / "my-act.h").read_text()
    assert text.startswith("/* segem(n=2, epsilon=0.5) in integers")
    assert "void my_act(const int16_t *in, int16_t *out, uint32_t count)" in text
    assert run("activation", "gem(n=1)", "--in", "Q3.4", "--emit-c")[0] == 0
    assert "void gem_n_1_q3_4(const int8_t *in, int16_t *out" in (tmp_path / "gem_n_1_q3_4.h").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--emit-c", "act.txt"], 2, "--emit-c act.txt: the file of a C header ends in .h"),
        (["--emit-c", "same.h", "-o", "same.h"], 2, "-o and --emit-c both name same.h; give each a file"),
        (["--emit-c", "there.h"], 6, "there.h exists; --force replaces it"),
        (["--emit-c", "a.h", "--sweep"], 2, "--emit-c is not for --sweep, which makes many kernels"),
        (["--emit-c", "a.h", "--out", "Q3.28"], 4, "in C: it takes 8 and 16 bits"),
    ],
)
def test_a_header_that_cannot_be_written_is_one_line(run, tmp_path, arguments, status, message):
    (tmp_path / "there.h").write_text("mine")
    code, _, err = run("activation", "gem(n=1)", *arguments)
    assert (code, message in err) == (status, True), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.h"]
    assert (tmp_path / "there.h").read_text() == "mine"

"""gemedge report as a user runs it, and its page in a browser."""

import errno
import html
import json
import os
import re
import shutil
import subprocess

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import gemedge.nn as gnn
from gemedge.cli import _status

HOSTILE = ["<script>alert(1)</script>", "\"'><img src=x onerror=boom()>", "\x1b[31mred\x1b[0m\u202egpj", "]]>`--><!--"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def gemedge(*arguments) -> int:
    return _status([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small CNN with GEM, its integers, those of another training, data and labels."""
    folder = tmp_path_factory.mktemp("report")
    for seed, name in ((0, "model"), (1, "other")):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), gnn.GEM(1), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), gnn.EGEM(1, 0.5),
            nn.Flatten(), nn.Linear(32, 10),
        ).eval()  # fmt: skip
        x = torch.rand(40, 1, 8, 8)
        gnn.save(model, folder / f"{name}.pt", x[:1])
        np.savez(folder / "test.npz", x.numpy())
        quantize = ("--data", folder / "test.npz", "-o", folder / f"{name}.gemq", "--quiet")
        assert gemedge("quantize", folder / f"{name}.pt", *quantize) == 0
    np.save(folder / "labels.npy", np.arange(40) % 10)
    np.save(folder / "few.npy", np.arange(7))
    np.save(folder / "float.npy", np.zeros(40))
    np.save(folder / "high.npy", np.full(40, 10))
    np.savez(folder / "two.npz", np.arange(40), np.arange(40))
    np.savez(folder / "empty.npz", np.zeros((0, 1, 8, 8), np.float32))
    return folder


def report(folder, *more, model="model.pt", made="model.gemq", data="test.npz"):
    return gemedge("report", folder / model, folder / made, "--data", folder / data, *more)


KEYS = [
    "headline", "scheme", "rounding", "samples", "layers", "operators", "sqnr", "worst", "classes", "tensors",
    "attribution", "probed", "advice", "choices", "activations", "notes",
]  # fmt: skip


def test_json_is_strict_and_says_all_of_it(folder, capsys):
    assert report(folder, "--labels", folder / "labels.npy", "--json") == 0
    refuse = lambda name: pytest.fail(f"{name} in JSON")  # noqa: E731
    told = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert list(told) == KEYS
    assert [told["samples"], told["layers"], told["probed"]] == [40, 7, 16]
    assert told["headline"] == told["advice"][0]["text"]
    assert [tensor["sqnr"] for tensor in told["tensors"]] == sorted(tensor["sqnr"] for tensor in told["tensors"])
    ways = {choice["layer"]: [way["name"] for way in choice["ways"]] for choice in told["choices"]}
    assert set(ways) == {"1", "4"}
    assert all(names[-1] == "ReLU instead" and len(names) > 1 for names in ways.values())
    assert all(sum(tensor["exact"]) == sum(tensor["found"]) > 0 for tensor in told["tensors"])


def test_the_terminal_shows_the_headline_first(folder, capsys):
    assert report(folder, "--limit", "20", "--labels", folder / "labels.npy") == 0
    first, outputs, classes, worst, causes, *_ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"first    `.*` .*: .* gains \d+\.\d dB", first)
    assert re.fullmatch(r"outputs  \d\d\.\d dB SQNR over 20 samples", outputs)
    assert re.fullmatch(r"top-1    \d+\.\d\d% the same as float; right \d+\.\d\d%, float \d+\.\d\d%", classes)
    assert re.fullmatch(r"worst    sample \d+, \d+\.\d dB", worst)
    assert re.fullmatch(
        r"causes   kernel -?\d+%, saturation -?\d+%, rounding -?\d+%, weights -?\d+%, multipliers -?\d+%", causes
    )


def test_the_report_says_where_a_learned_epsilon_went(tmp_path, capsys):
    learned = [gnn.EGEM(1, 0.5, learnable=True) for _ in range(2)]
    model = nn.Sequential(nn.Linear(4, 8), learned[0], nn.Linear(8, 4), learned[1]).eval()
    gnn.save(model, tmp_path / "model.pt", torch.zeros(1, 4))
    np.save(tmp_path / "test.npy", np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32))
    files = tmp_path / "model.pt", tmp_path / "model.gemq"
    data = "--data", tmp_path / "test.npy"
    assert gemedge("quantize", files[0], *data, "-o", files[1], "--quiet") == 0
    capsys.readouterr()
    assert gemedge("report", *files, *data, "--html", tmp_path / "page.html", "--json") == 0
    printed = capsys.readouterr()
    notes = json.loads(printed.out)["notes"]
    assert [re.sub("'.*'", "it", note) for note in notes] == [
        "epsilon 0.5 of it, learned, folded into the weights around it",
        "epsilon 0.5 of it, learned, kept in the activation, where it costs nothing",
    ]
    assert printed.err.splitlines() == [f"gemedge: {note}" for note in notes]
    assert "".join(f"<li>{html.escape(note)}</li>" for note in notes) in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--labels", "few.npy"], 5, "few.npy: labels of shape [7] for 40 samples"),
        (["--labels", "float.npy"], 5, "float.npy: labels of type float64; they must be whole numbers"),
        (["--labels", "high.npy"], 5, "high.npy: label 10 of sample 0; the classes are 0 to 9"),
        (["--labels", "two.npz"], 5, "two.npz: it holds 2 arrays; labels are one"),
        (["--labels", "none.npy"], 5, "none.npy: No such file"),
        (["--html", "test.npz", "--force"], 6, "test.npz is the input; name another output with --html"),
        (["--html", "model.gemq", "--force"], 6, "model.gemq is the input; name another output with --html"),
        (["--html", "few.npy"], 6, "few.npy exists; --force replaces it"),
        (["--html", "nowhere/p.html"], 6, "nowhere does not exist"),
        (["--html", "."], 6, "is a folder; name a file with --html"),
        ({"made": "other.gemq"}, 3, "the quantized model is of another network: weights of layer '0' differ"),
        ({"made": "model.pt"}, 3, "model.pt: it is no .gemq file"),
        ({"data": "empty.npz"}, 5, "empty.npz"),
        ({"data": "none.npz"}, 5, "none.npz: it is not there"),
        ({"model": "none.pt"}, 3, "none.pt"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_written(folder, more, status, message, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    page = folder / "page.html"
    found = report(folder, "--html", page, **more) if isinstance(more, dict) else report(folder, *more)
    out, err = capsys.readouterr()
    assert (found, out, err.count("\n")) == (status, "", 1), err
    assert message in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_leaves_no_page(folder, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert report(folder, "--html", tmp_path / "page.html") == 6
    assert capsys.readouterr() == ("", f"gemedge: cannot write {tmp_path / 'page.html'}: No space left on device\n")
    assert list(tmp_path.iterdir()) == []


def onnx_chain(path, names):
    """Products and functions in a row, each named as given; for deep networks and hostile names."""
    rng, nodes, weights, x = np.random.default_rng(0), [], [], "x"
    for index, name in enumerate(names):
        kind = ("MatMul", "Tanh", "MatMul", "Relu")[index % 4]
        inputs = [x, f"w{index}"] if kind == "MatMul" else [x]
        if kind == "MatMul":
            weights.append(numpy_helper.from_array(rng.normal(0, 0.5, (8, 8)).astype(np.float32), f"w{index}"))
        x = f"t{index}"
        nodes.append(helper.make_node(kind, inputs, [x], name=name))
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", 8]) for end in ("x", x)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


def page_of_chain(folder, names):
    model, made, page, data = (folder / name for name in ("c.onnx", "c.gemq", "c.html", "c.npz"))
    onnx_chain(model, names)
    np.savez(data, np.random.default_rng(1).normal(size=(32, 8)).astype(np.float32))
    assert gemedge("quantize", model, "--data", data, "-o", made, "--quiet") == 0
    assert gemedge("report", model, made, "--data", data, "--html", page) == 0
    return page


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return page_of_chain(tmp_path_factory.mktemp("hostile"), HOSTILE)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """The page of 1,050 layers: a Relu is part of the product before it."""
    return page_of_chain(tmp_path_factory.mktemp("deep"), [f"block{i // 4}.{i % 4}" for i in range(1400)])


def test_hostile_names_stay_text(tmp_path, capsys):
    page = page_of_chain(tmp_path, HOSTILE).read_text()
    printed = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in printed + page.replace("\u200b", "?"))
    assert page.count("<script>") == 1
    assert "<img" not in page
    assert "]]>" not in page
    for name in HOSTILE[:2]:
        assert html.escape(name) in page
    assert "\\x1b[31mred\\x1b[0m\\u202egpj" in page


def test_a_network_of_one_product_has_no_activation_to_compare(tmp_path, capsys):
    page = page_of_chain(tmp_path, ["only"]).read_text()
    assert "first " in capsys.readouterr().out
    assert "Layer <code>only</code> (Dense) loses the most" in page or "<code>input</code> (input) loses" in page
    assert "Activations, and the other ways" not in page


def test_the_page_needs_nothing_from_elsewhere(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("PATH", "")  # no browser
    page = tmp_path / "page.html"
    assert report(folder, "--html", page, "--quiet") == 0
    text = page.read_text()
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')]*)", text) == ["data:,"]
    assert "://" not in text
    assert "@import" not in text


@pytest.mark.long
def test_a_deep_network_has_a_small_page_with_histograms_of_the_worst(deep):
    text = deep.read_text()
    assert deep.stat().st_size < 5_000_000
    assert "Histograms are kept of the worst 100 of 1,050 layers." in text
    assert text.count("<svg") == 100
    assert text.count("data-v=") == 10 * 1050
    assert 48 < text.count('class="column"') <= 96


def browser(page, tmp_path, script=""):
    """The page's DOM once a script of ours has run in it. A JavaScript error fails."""
    copy = tmp_path / "opened.html"
    catch = "<script>window.errors=[];window.onerror=(...e)=>{errors.push(e.join(' '))}</script>"
    end = f"<script>window.onload=()=>setTimeout(()=>{{{script};document.title=JSON.stringify([errors,window.told])}})"
    copy.write_text(page.read_text().replace("<head>", "<head>" + catch) + end + "</script>")
    profile = tmp_path / "profile"
    run = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            f"--user-data-dir={profile}", "--enable-logging=stderr", "--dump-dom", f"file://{copy}",
        ], capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in run.stderr
    (title,) = re.findall(r"<title>(.*?)</title>", run.stdout, re.DOTALL)[:1]
    errors, told = json.loads(html.unescape(title))
    assert errors == []
    return run.stdout, told


@in_browser
def test_the_page_opens_sorts_and_unfolds_in_a_browser(folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert report(folder, "--html", page, "--labels", folder / "labels.npy", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    script = """
    const names=()=>[...document.querySelectorAll('table.sorted tbody')].map(b=>b.rows[0].cells[0].textContent);
    const before=names(),heads=document.querySelectorAll('table.sorted th button');
    const row=document.querySelector('table.sorted tbody');
    const shut=row.rows[1].hidden;row.querySelector('button').click();const open=!row.rows[1].hidden;
    heads[1].click();const up=names();heads[1].click();
    window.told=[before,shut,open,row.querySelector('svg').getBoundingClientRect().height>50,up,names(),
      document.querySelector('h1').getBoundingClientRect().top<100,
      document.querySelector('.chart').getBoundingClientRect().bottom<800,
      document.documentElement.scrollWidth<=innerWidth]
    """
    dom, seen = browser(page, tmp_path, script)
    order = [tensor["layer"] for tensor in told["tensors"]]
    sqnr = {tensor["layer"]: float(f"{tensor['sqnr']:.6g}") for tensor in told["tensors"]}
    down = sorted(order, key=lambda name: -sqnr[name])
    assert seen == [order, True, True, True, order, down, True, True, True]
    (headline,) = re.findall(r"<h1>(.*?)</h1>", dom)
    assert re.sub("<.*?>", "", headline).lower() == html.escape(told["headline"].replace("`", "")).lower()
    largest = max(told["attribution"]["layers"], key=lambda share: share["forward"] + share["reverse"])
    (lead,) = re.findall(r'<p class="lead">Layer <code>(.*?)</code> \(\w+\) loses the most: \d+ % of the error', dom)
    assert [lead] == largest["layers"]
    (label,) = re.findall(r"<u style.*?>(.*?): \d+ %</u>", dom)
    assert [label] == largest["layers"]


@in_browser
def test_hostile_names_run_nothing_in_a_browser(hostile, tmp_path):
    script = "window.told=[...document.querySelectorAll('script,img')].length"
    _, elements = browser(hostile, tmp_path, script)
    assert elements == 3  # ours, and two of the test's


@in_browser
@pytest.mark.long
def test_the_page_of_a_deep_network_opens_in_two_seconds(deep, tmp_path):
    script = "document.body.getBoundingClientRect();window.told=performance.now()"
    _, milliseconds = browser(deep, tmp_path, script)
    assert milliseconds < 2000


def test_integers_that_equal_the_floats_have_no_causes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = """<ir_version: 8, opset_import: ["": 18]>
g (float[batch, 4] x) => (float[batch, 4] z) <float[4] b = {-50, -50, -50, -50}> { a = Add(x, b) z = Relu(a) }"""
    onnx.save(onnx.parser.parse_model(text), "dead.onnx")
    np.save("d.npy", np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32))
    assert gemedge("quantize", "dead.onnx", "--data", "d.npy", "--quiet") == 0
    capsys.readouterr()
    assert gemedge("report", "dead.onnx", "dead.gemq", "--data", "d.npy") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^causes +none$", printed, re.MULTILINE), printed

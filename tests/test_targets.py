"""What a network costs on a target: counted figures against a count by hand, and gemedge report --target."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from float_runs import float_tensors, ranges_of
from torch import nn

import gemedge.nn as gnn
from gemedge import arena, model_file, storage
from gemedge.capture import capture_module
from gemedge.cli import _status, emulate, report_targets
from gemedge.costs import MEASURED, TARGETS
from gemedge.errors import FormatError, PromiseError, UsageError
from gemedge.export import to_c as exporting
from gemedge.fixed import Rounding
from gemedge.moving import Constant
from gemedge.operators import Tensor
from gemedge.quant.prepare import prepare
from gemedge.quant.quantize import quantize
from gemedge.targets import Figure, Measured, estimate, fits, parse_size, plan_for, target_named

NAMES = ["cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "rv32imc", "avr"]


class Net(nn.Module):
    """3 -> 8 channels on 10 x 10, depthwise, twice the same activation, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(3, 8, 3, padding=1), gnn.GEM(1)
        self.deep, self.second = nn.Conv2d(8, 8, 3, groups=8), gnn.SEGEM(1, 1.0)
        self.head = nn.Linear(8 * 8 * 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.deep(self.first(self.conv(x)))).flatten(1))


def made(module: nn.Module, x: torch.Tensor, scheme: str):
    model = prepare(capture_module(module.eval(), (x,)).model).model
    return quantize(model, ranges_of(float_tensors(model, {model.graph.inputs[0].name: x.numpy()})),
                    scheme=scheme, rounding=Rounding.SINGLE)  # fmt: skip


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(4, 3, 10, 10)
    return {scheme: made(net, x, scheme) for scheme in ("int8", "int16x8", "q15")}


def by_kind(found):
    return {layer.kind: layer for layer in found.layers} | {layer.name: layer for layer in found.layers}


@pytest.mark.parametrize("name", NAMES)
def test_counted_figures_are_the_count_by_hand_on_every_target(models, name):
    found = estimate(models["int8"], target_named(name))
    convs = [layer for layer in found.layers if layer.kind == "Convolution"]
    (head,) = (layer for layer in found.layers if layer.kind == "Dense")
    assert [layer.macs for layer in (*convs, head)] == [10 * 10 * 8 * 27, 8 * 8 * 8 * 9, 512 * 5]
    assert [layer.weights for layer in (*convs, head)] == [8 * 27, 8 * 9, 512 * 5]
    assert [layer.constants for layer in convs] == [8 * 4 + 8 * 4 + 1] * 2  # bias, mantissas, one shift for all
    assert [layer.tables for layer in found.layers if layer.kind == "Activate"] == [256, 256]
    totals = found.totals()
    assert totals["macs"] == Figure(28_768, "counted")
    assert totals["weights"] == Figure(216 + 72 + 2560, "counted")
    assert totals["tables"] == Figure(512, "counted")
    assert found.flash.value == sum(totals[part].value for part in ("weights", "tables", "constants", "code"))
    assert {totals[part].how for part in ("code", "flash", "stack", "ram", "instructions")} == {"estimated"}
    columns, taps = 4 * 28, 4 * 9 + 8
    assert found.arena == Figure(max(300 + 800 + columns, 800 + 512 + taps, 512 + 8), "counted")


def test_sixteen_bits_double_what_they_widen(models):
    m0 = target_named("cortex-m0plus")
    narrow, wide, weights = (estimate(models[scheme], m0) for scheme in ("int8", "int16x8", "q15"))
    taps = 4 * 9
    assert wide.arena.value - taps == 2 * (narrow.arena.value - taps)
    assert wide.weights == narrow.weights
    assert weights.weights.value == 2 * narrow.weights.value
    kernels = [layer.tables for layer in wide.layers if layer.kind == "Activate"]
    assert 128 < kernels[0] < 400
    assert kernels[1] < 256  # the reciprocals belong to the first
    assert wide.instructions.value > narrow.instructions.value


@pytest.mark.parametrize("target", ["cortex-m0plus", "cortex-m3", "cortex-m4", "rv32imc"])
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_estimates_are_near_what_is_counted(models, scheme, target):
    x = np.random.default_rng(0).normal(size=(1, 3, 10, 10)).astype(np.float32)
    counted, _ = emulate.measured(models[scheme], target_named(target), {"x": x})
    guessed = estimate(models[scheme], target_named(target))
    assert guessed.instructions.value == pytest.approx(counted.all_instructions, rel=0.4)
    assert guessed.flash.value == pytest.approx(counted.flash, rel=0.4)
    assert guessed.stack.value == pytest.approx(counted.stack, rel=0.6)


def test_what_was_not_counted_is_not_said_to_be():
    assert ("cortex-m4", "convolve") in MEASURED
    assert ("cortex-m55", "gem") in MEASURED
    assert ("cortex-m55", "convolve") not in MEASURED
    assert not any(name == "avr" for name, _ in MEASURED)


def test_the_same_numbers_are_stored_once(models):
    model = models["int8"]
    codes = np.arange(64, dtype=np.int8)
    twice = [Constant(f"again {i}", (), f"again {i}", codes) for i in range(2)]
    params = model.tensors[model.inputs[0]].params
    tensors = dict(model.tensors) | {layer.output: Tensor(layer.output, (64,), params) for layer in twice}
    stored = storage.count(replace(model, tensors=tensors, layers=(*model.layers, *twice)))
    assert [stored[f"again {i}"].weights for i in range(2)] == [64, 0]


def test_measured_figures_replace_estimates(models):
    model, target = models["int8"], target_named("cortex-m4")
    names = [layer.name for layer in model.layers]
    some = estimate(model, target, Measured({names[0]: 1234}, code=5000))
    assert some.layers[0].instructions == Figure(1234, "emulated")
    assert (some.code, some.stack.how, some.instructions.how) == (Figure(5000, "emulated"), "estimated", "estimated")
    every = estimate(model, target, Measured(dict.fromkeys(names, 10), code=5000, stack=300))
    assert every.instructions == Figure(10 * len(names), "emulated")
    assert every.flash.how == "emulated"
    with pytest.raises(FormatError, match="instructions of 'nothing', which is no layer"):
        estimate(model, target, Measured({"nothing": 1}))


def test_what_does_not_fit_says_by_how_much_and_why(models):
    found = estimate(models["int8"], target_named("avr"))
    assert fits(found, found.flash.value, found.ram.value).holds
    assert fits(found, None, None).holds
    tight = fits(found, found.flash.value - 1, found.ram.value - 100)
    assert (tight.flash_over, tight.ram_over, tight.holds) == (1, 100, False)
    head = next(layer for layer in found.layers if layer.kind == "Dense")
    assert (
        f"flash: {found.flash.value:,} bytes (estimated), 1 too many; most at {head.name!r} {head.flash:,}"
        in tight.text
    )
    widest = max(found.layers, key=lambda layer: layer.live)
    assert f"RAM: {found.ram.value:,} bytes (estimated), 100 too many; most at {widest.name!r} 1,356" in tight.text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536), ("64k", 65536), ("64K", 65536), ("64 KB", 65536), ("64KiB", 65536),
        ("1M", 1 << 20), (" 2m ", 2 << 20),
    ],
)  # fmt: skip
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "-1k", "0", "0k", "1.5M", "64G", "sixty", "1e6", "9" * 13])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="must be a positive whole number of bytes, such as 65536, 64k or 1M"):
        parse_size(text)


def test_an_unknown_target_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="target 'z80' is not one of cortex-m0plus, cortex-m3, cortex-m4, "):
        target_named("z80")
    assert list(TARGETS) == NAMES


# The picture and the page


def test_the_picture_has_a_box_for_every_tensor_where_the_plan_puts_it(models):
    plan = plan_for(models["int8"])
    boxes = ET.fromstring(report_targets.arena_svg(plan)).findall(".//{*}g")
    placed = [*plan.placements, *plan.scratch]
    assert len(boxes) == len(placed) > 5
    for box, place in zip(boxes, placed, strict=True):
        assert box.find("{*}title").text.startswith(f"{place.tensor}: {place.size:,} bytes at {place.offset:,}")
    heights = [float(box.find("{*}rect").get("height")) for box in boxes]
    pixels = [place.size * heights[0] / placed[0].size for place in placed]
    np.testing.assert_allclose(heights, pixels, atol=0.3)


def test_hostile_names_stay_text(models):
    model, evil = models["int8"], '"><script>alert(1)</script>\x1b[2J'
    plan = plan_for(model)
    plan = replace(plan, placements=tuple(replace(placed, tensor=evil) for placed in plan.placements))
    found = estimate(model, target_named("avr"))
    found = replace(found, layers=tuple(replace(layer, name=evil) for layer in found.layers))
    html = report_targets.section(found, plan, fits(found, 1, 1))
    tags = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.add(tag)
    parser.feed(html)
    assert "script" not in tags
    assert "svg" in tags
    assert "\x1b" not in html
    assert "&lt;script&gt;" in html
    ET.fromstring(report_targets.arena_svg(plan))


def test_a_thousand_layers_are_a_small_picture():
    placements = tuple(arena.Placement(f"t{i}", 0, 64, i, i + 1) for i in range(1000))
    svg = report_targets.arena_svg(arena.Plan(placements, (), {}, 128, 128, 4, 1000))
    assert len(svg) < 500_000


# The command


def gemedge(*arguments: object) -> int:
    return _status([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets")
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(8, 3, 10, 10)
    gnn.save(net, folder / "net.pt", x[:1])
    np.savez(folder / "data.npz", x=x.numpy())
    assert gemedge("quantize", folder / "net.pt", "--data", folder / "data.npz", "--quiet") == 0
    return folder / "net.pt", folder / "net.gemq", "--data", folder / "data.npz"


def test_report_says_what_the_target_needs(files, capsys):
    assert gemedge("report", *files, "--target", "cortex-m4", "--flash", "256k", "--ram", "64k", "--json") == 0
    told = json.loads(capsys.readouterr().out)["target"]
    model = model_file.load(files[1].read_bytes())
    assert told["known"] == "one sample, emulated"
    assert {told["totals"][name]["how"] for name in ("code", "flash", "arena", "stack", "instructions")} == {"emulated"}
    assert told["totals"]["flash"]["value"] == sum(told["sections"][name] for name in (".text", ".rodata"))
    assert told["cycles"]["low"] < told["cycles"]["high"]
    assert all(layer["instructions"]["how"] == "emulated" for layer in told["layers"])
    assert told["totals"]["macs"] == {"value": 28_768, "how": "counted"}
    assert told["fits"] is True
    assert {placed["tensor"] for placed in told["plan"]["placements"]} == set(model.tensors)
    assert gemedge("report", *files, "--target", "cortex-m4") == 0
    shown = capsys.readouterr().out
    assert "28,768" in shown
    assert "counted" in shown
    assert f"{told['cycles']['low']:,} to {told['cycles']['high']:,}, by Arm's timing tables" in shown


@pytest.mark.skipif(not all(map(shutil.which, ("avr-gcc", "simavr"))), reason="avr-gcc and simavr are not installed")
def test_a_report_shows_the_exact_cycles_of_an_avr(files, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert gemedge("report", *files, "--target", "avr", "--html", page, "--json") == 0
    told = json.loads(capsys.readouterr().out)["target"]
    assert (told["known"], told["timed"]) == ("one sample, emulated", "exact, emulated by simavr")
    assert all(layer["cycles"]["low"] == layer["cycles"]["high"] > 0 for layer in told["layers"])
    assert {layer["instructions"]["how"] for layer in told["layers"]} == {"estimated"}
    assert f"<td>{told['cycles']['low']:,}</td><td>exact, emulated by simavr</td>" in page.read_text()
    assert gemedge("report", *files, "--target", "avr") == 0
    assert f"{told['cycles']['low']:,}, exact, emulated by simavr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "spoil", "words"),
    [
        ("cortex-m55", None, "estimated: cortex-m55 is not emulated"),
        ("avr", ("shutil.which", lambda tool: None), "estimated: an emulated avr needs avr-gcc, "),
        ("cortex-m4", ("gemedge.cli.emulate._INSTRUCTIONS", 1000), "instructions are too many to emulate for a report"),
        (
            "cortex-m4",
            ("importlib.util.find_spec", lambda name: None),
            "estimated: building for a target needs the comp",
        ),
        (
            "cortex-m4",
            ("gemedge.export.emulated.FLASH_SIZE", 1000),
            "estimated: it does not fit what is emulated of a c",
        ),
    ],
)
def test_what_cannot_be_measured_is_estimated_and_says_why(models, monkeypatch, target, spoil, words):
    if spoil is not None:
        monkeypatch.setattr(*spoil)
    model = models["int8"]
    found, known = emulate.measured(model, target_named(target), {"x": np.zeros((2, 3, 10, 10), np.float32)})
    assert found is None
    assert words in known


def test_c_that_gives_other_integers_is_no_measure(models, monkeypatch):
    to_c = exporting.to_c
    monkeypatch.setattr(exporting, "to_c", lambda *given: spoiled(to_c(*given)))
    x = np.random.default_rng(0).normal(size=(1, 3, 10, 10)).astype(np.float32)
    with pytest.raises(PromiseError, match=r"its C on cortex-m4: Convolution 'conv' at \["):
        emulate.measured(models["int8"], target_named("cortex-m4"), {"x": x})


def spoiled(sources: dict[str, bytes]) -> dict[str, bytes]:
    changed, count = re.subn(rb"(#else\n.*_bias\[8\] = \{\s*)-?\d+", rb"\g<1>3000000", sources["model.c"], count=1)
    assert count
    return sources | {"model.c": changed}


def test_report_ends_with_1_where_it_does_not_fit(files, capsys):
    assert gemedge("report", *files, "--target", "avr", "--flash", "2k", "--ram", "32k", "--json") == 1
    streams = capsys.readouterr()
    told = json.loads(streams.out)["target"]
    assert told["fits"] is False
    assert told["over"] == {"flash": told["totals"]["flash"]["value"] - 2048, "ram": 0}
    (line,) = streams.err.splitlines()
    assert f"net.gemq does not fit: flash: {told['totals']['flash']['value']:,} bytes" in line
    assert "most at 'head' 2," in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--flash", "1k"), "--flash and --ram need --target"),
        (("--target", "z80"), "target 'z80' is not one of cortex-m0plus"),
        (("--target", "avr", "--ram", "lots"), "size 'lots' must be a positive whole number of bytes"),
    ],
)
def test_bad_options_are_refused_before_any_work(files, options, message, capsys):
    assert gemedge("report", *files, *options) == 2
    assert message in capsys.readouterr().err

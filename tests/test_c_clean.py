"""Exported C is clean: two compilers' warnings, sanitizers, cppcheck, and no MISRA rule outside docs/misra.md."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from c_builds import STRICT, written
from test_c_avr import assert_simulates
from test_to_c import captured_of

from gemedge.export.selftest_log import read_log
from gemedge.export.to_c import Vectors
from gemedge.fixed import Rounding
from gemedge.quant.quantize import quantize
from gemedge.quant.simulate import border, entered, simulate

DOCS = Path(__file__).parents[1] / "docs/misra.md"
SANITIZED = ["-g", "-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover=all"]
NETWORKS = ["cnn", "vit", "gpt", "mobilenet"]  # every runtime header, and most kernels' calls


def tool(name: str) -> str:
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    return name


def exported(name: str, scheme: str, folder: Path):
    graph, ranges, given = captured_of(name)
    model = quantize(graph, ranges, scheme=scheme, rounding=Rounding.SINGLE)
    vectors = Vectors(entered(model, border(model, given), Counter()), simulate(model, given, raw=True))
    written(model, folder, vectors=vectors)
    (folder / "float.c").write_text('#include "net_model_float.h"\n#include "net_model.h"\n')
    return model, given


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NETWORKS)
def test_clang_has_nothing_to_say_and_its_sanitizers_neither(name, tmp_path):
    model, given = exported(name, "int16x8", tmp_path)
    for source in ("model.c", "float.c"):
        subprocess.run([tool("clang"), *STRICT, "-O2", "-c", source], cwd=tmp_path, check=True)
    flags = [*STRICT, *SANITIZED, "-DGEMEDGE_STDIO"]
    subprocess.run(["clang", *flags, "selftest.c", "-o", "selftest"], cwd=tmp_path, check=True)
    log = subprocess.run([tmp_path / "selftest"], capture_output=True, check=True).stdout
    assert_simulates(read_log(log), model, given)


def cppcheck(folder: Path, *arguments: str) -> list[str]:
    """What cppcheck reports of the sources: each as the name of its rule and its file."""
    command = [tool("cppcheck"), "--std=c99", "--quiet", "--template={id} {file}:{line}", *arguments]
    sources = ["model.c", "selftest.c", "float.c"]
    return subprocess.run([*command, *sources], cwd=folder, capture_output=True, text=True, check=True).stderr.split(
        "\n"
    )


def listed() -> dict[str, str]:
    """Where each rule of the table is reported."""
    rows = re.findall(r"^\| ([0-9., ]+) \| ([^|]+) \|", DOCS.read_text(), re.MULTILINE)
    return {rule: where for rules, where in rows for rule in rules.split(", ")}


@pytest.mark.long
def test_cppcheck_reports_no_rule_but_those_with_a_reason(tmp_path):
    reported: dict[str, str] = {}
    for scheme in ("int8", "int16x8"):
        exported("cnn", scheme, tmp_path / scheme)
        for line in cppcheck(tmp_path / scheme, "--addon=misra"):
            if rule := re.match(r"misra-c2012-([0-9.]+) (.*)", line):
                reported.setdefault(rule[1], rule[2])
    assert {rule: where for rule, where in reported.items() if rule not in listed()} == {}
    always = {rule for rule, where in listed().items() if "some models" not in where}
    assert always - set(reported) == set()  # no row without a cause


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NETWORKS)
def test_cppcheck_finds_no_error(name, tmp_path):
    exported(name, "int8", tmp_path)
    found = cppcheck(tmp_path, "--enable=warning,performance,portability", "-DGEMEDGE_STDIO")
    assert [line for line in found if line and not line.startswith("missingInclude")] == []

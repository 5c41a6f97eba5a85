"""What README and the site say: every command and program runs and prints what is shown; the site builds, strict.

Each page is run in a folder of its own, the pages of tasks in a copy of the one where Getting started has run. A block
with a title is the file of that name. A command's output is shown line by line, in any order, `...` for what varies.
"""

import html
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
START = DOCS / "getting-started.md"
PAGES = sorted(DOCS.rglob("*.md"))
TASKS = [page for page in PAGES if page.parent.name == "tasks"]
QUICK = ("rational.md",)  # the others take long for what getting-started.md and README.md run of them, too
BLOCK = re.compile(r'^```(\S*)(?: title="([^"\n]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
QUIET = {"NO_MKDOCS_2_WARNING": "1"}
KINDS = {"python", "console", "toml", "c", "text"}


@dataclass(frozen=True)
class Block:
    kind: str
    title: str
    text: str

    def run(self, folder: Path) -> None:
        if self.title:
            (folder / self.title).write_text(self.text)
        elif self.kind == "python":
            done([sys.executable, "-W", "ignore", "-c", self.text], folder)
        elif self.kind == "console":
            first, *commands = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
            assert not first
            assert commands
            for command in commands:
                run_command(*command.split("\n", 1), folder)


def run_command(command: str, shown: str, folder: Path) -> None:
    words = shlex.split(command)
    assert words[0] in ("gemedge", "cc"), command
    printed = done([sys.executable, "-m", *words] if words[0] == "gemedge" else words, folder)
    for line in shown.splitlines():
        assert re.search(re.escape(line).replace(r"\.\.\.", ".*"), printed), (line, printed)


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text())]


def done(command: list[str], folder: Path) -> str:
    """What it prints; an assertion with its complaint where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), **QUIET}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, (command, run.stderr)
    return run.stdout


def run_page(page: Path, folder: Path) -> None:
    found = blocks(page)
    assert found
    for block in found:
        block.run(folder)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The folder where Getting started has run."""
    folder = tmp_path_factory.mktemp("started")
    run_page(START, folder)
    return folder


@pytest.mark.long
def test_every_block_of_the_readme_runs_and_prints_what_it_shows(tmp_path):
    run_page(ROOT / "README.md", tmp_path)
    assert (tmp_path / "model.onnx").exists()


@pytest.mark.long
def test_every_block_of_getting_started_runs_and_leaves_its_files(started):
    made = {"model.pt", "model.onnx", "model.gemq", "out.npz", "report.html", "out"}
    assert made <= {path.name for path in started.iterdir()}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=() if page.name in QUICK else pytest.mark.long, id=page.stem) for page in TASKS],
)
def test_every_block_of_a_task_runs_and_prints_what_it_shows(page, request, tmp_path):
    folder = tmp_path
    if page.name not in QUICK:
        folder = tmp_path / "copy"
        shutil.copytree(request.getfixturevalue("started"), folder)
    run_page(page, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_no_page_has_a_block_that_is_not_run(page):
    found = blocks(page)
    assert len(found) == page.read_text().count("```") / 2
    assert {block.kind for block in found} <= KINDS
    assert page in (START, *TASKS) or {block.kind for block in found} <= {"text"}
    assert not any("$ " in block.text for block in found if block.kind == "text")


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_a_page_outside_of_the_site_links_to_files_that_are_there(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()] == []


def test_the_readme_names_every_example_and_what_make_can_do():
    readme, made = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    named = set(re.findall(r"^\| `examples/(\w+\.py)` \|", readme, re.MULTILINE)) | {"demo.py"}  # make demo runs it
    scripts = [path for path in (ROOT / "examples").glob("*.py") if "__main__" in path.read_text()]
    assert named == {path.name for path in scripts}
    assert "examples/demo.py" in made
    targets = re.findall(r"\bmake ([a-z][a-z-]*)\b(?=[ `\n])", "".join(BLOCK.findall(readme)[0][2]))
    assert len(targets) == 3
    assert [target for target in targets if not re.search(rf"^{target}:", made, re.MULTILINE)] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; mkdocs.yml is strict, so a broken link fails it."""
    folder = tmp_path_factory.mktemp("site")
    done([sys.executable, "-m", "mkdocs", "build", "-f", str(ROOT / "mkdocs.yml"), "-d", str(folder)], folder)
    return folder


def test_the_site_needs_nothing_from_the_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    loads = re.compile(
        r'<(?:script|img|iframe)[^>]*\ssrc="(http[^"]*|//[^"]*)"|<link[^>]*rel="(?!canonical)[^>]*href="(http[^"]*)"'
    )
    assert {str(page.name): loads.findall(page.read_text()) for page in pages} == {page.name: [] for page in pages}


def test_the_reference_lists_every_command_with_its_options(site):
    from gemedge.cli import gemedge

    page = html.unescape((site / "reference/commands.html").read_text())
    commands = {name: gemedge.get_command(click.Context(gemedge), name) for name in gemedge.list_commands(None)}
    assert len(commands) >= 9
    for name, command in commands.items():
        section = page[page.index(f'id="gemedge-{name}"') :]
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert [option for option in options if option not in section.partition("<h2")[0]] == []


def test_the_reference_documents_every_public_name(site):
    import gemedge
    import gemedge.nn as gnn

    page = (site / "reference/python.html").read_text()
    names = [f"gemedge.nn.{name}" for name in gnn.__all__]
    names += [f"gemedge.errors.{n}" if n.endswith(("Error", "Warning")) else f"gemedge.{n}" for n in gemedge.__all__]
    assert [name for name in names if f'id="{name}"' not in page] == []

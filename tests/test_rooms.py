"""Who may import whom, which third-party package, and who writes files (docs: the rooms, in CONTRIBUTING)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "gemedge"
FILES = sorted(ROOT.rglob("*.py"))

# room: the rooms it may import, the third-party packages it may import
ROOMS = {
    "core": ({"core"}, {"numpy"}),
    "nn": ({"core", "nn", "capture"}, {"numpy", "torch"}),
    "capture": (
        {"core", "nn", "capture"},
        {"numpy", "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors", "google"},
    ),
    "quant": (
        {"core", "capture", "quant"},
        {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "safetensors", "dask"},
    ),
    "export": (
        {"core", "capture", "export"},
        {"numpy", "onnx", "onnx_ir", "onnxruntime", "safetensors", "unicorn", "elftools", "capstone", "flatbuffers"}
        | {"ai_edge_litert", "tflite_micro"},
    ),
    "cli": ({"core", "nn", "capture", "quant", "export", "cli"}, {"numpy", "click", "rich", "matplotlib"}),
}
WRITERS = {"cli", "nn"}
CACHE = "export/run.py"
FILE_WRITERS = {  # the one that writes, the one that hands over unnamed files, those whose compiler writes
    "files.py",
    "confined.py",
    "export/build.py",
    CACHE,
}
WRITING_CALLS = {"write_text", "write_bytes", "savez", "savez_compressed", "save_model", "savefig", "tofile", "mkstemp"}
# into memory
NAMES_THAT_PACK_BYTES = {"tensors.save", "torch.export.save", "torch.onnx.export", "figure.savefig", "np.savez"}


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if len(parts) > 1:
        return parts[0]
    return {"nn.py": "nn", "__main__.py": "cli"}.get(parts[0], "core")


def imported(tree: ast.AST) -> set[str]:
    names = set()
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in set(ast.walk(tree)) - typing_only:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room_of_module(name: str) -> str | None:
    inner = name.split(".")[1:]
    for path in (ROOT.joinpath(*inner, "__init__.py"), ROOT.joinpath(*inner[:-1], f"{(inner or [''])[-1]}.py")):
        if path.exists():
            return room(path)
    return None  # a name within a module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    names = imported(ast.parse(path.read_text()))
    allowed_rooms, allowed_packages = ROOMS[room(path)]
    packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"gemedge"}
    assert packages <= allowed_packages
    rooms = {room_of_module(name) for name in names if name.split(".")[0] == "gemedge"} - {None}
    assert rooms <= allowed_rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_written_in_one_place(path):
    relative = str(path.relative_to(ROOT))
    if relative in FILE_WRITERS:
        return
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            name = called.rpartition(".")[2]
            assert name not in WRITING_CALLS or called in NAMES_THAT_PACK_BYTES, called
            if name == "open" and called not in ("os.open", "archive.open"):
                modes = [ast.unparse(argument) for argument in [*node.args, *(k.value for k in node.keywords)]]
                assert not any(mode in ("'w'", "'wb'", "'a'", "'ab'", "'x'", "'xb'", "'r+b'") for mode in modes), called
    if "gemedge.files" in imported(tree):
        assert room(path) in WRITERS or relative == CACHE


def modules_after(code: str) -> set[str]:
    loaded = "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    script = f"import sys; before = set(sys.modules)\n{code}\n{loaded}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    names = set(run.stdout.splitlines()[-1].split()) - set(sys.stdlib_module_names)
    return {name for name in names if "cython" not in name}  # parts of NumPy


def test_importing_gemedge_loads_numpy_only():
    assert modules_after("import gemedge") <= {"gemedge", "numpy", "_distutils_hack"}


def test_help_loads_click_and_numpy_only():
    code = "from gemedge.cli import _status; assert _status(['--help']) == 0"
    assert modules_after(code) <= {"gemedge", "numpy", "click", "_distutils_hack"}


def test_every_room_has_a_rule():
    assert {room(path) for path in FILES} <= set(ROOMS)

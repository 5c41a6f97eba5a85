"""Exported C as a CMake project, an Arduino library and a Zephyr module: each builds, runs and says every layer."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from c_builds import STRICT, compiled
from test_c_avr import assert_simulates, built
from test_cli_export_c import small_network
from test_to_c import HOSTILE

from gemedge.errors import UsageError
from gemedge.export.c_project import PROJECTS
from gemedge.export.selftest_log import read_log
from gemedge.export.to_c import Vectors, symbol, to_c
from gemedge.quant.simulate import border, entered, simulate

GIVEN = {"input": np.random.default_rng(2).normal(size=(3, 3)).astype(np.float32)}
ARDUINO = """#pragma once
#include <stdio.h>
struct Port {
    void begin(long) {}
    void write(char c) { PUT(c); }
    operator bool() { return true; }
};
static Port Serial;
"""


@pytest.fixture(scope="module")
def model():
    return small_network()


def exported(model, name: str, project: str, folder: Path) -> dict[str, bytes]:
    vectors = Vectors(entered(model, border(model, GIVEN), Counter()), simulate(model, GIVEN, raw=True))
    files = to_c(model, name, vectors, project)
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    return files


def cmake(folder: Path, *targets: str) -> Path:
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    for arguments in (["-S", ".", "-B", "build"], ["--build", "build", *(f"--target={target}" for target in targets)]):
        done = subprocess.run(["cmake", *arguments], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build"


def output(program: Path) -> bytes:
    return subprocess.run([program], capture_output=True, check=True).stdout


@pytest.mark.exhaustive
def test_the_cmake_project_has_a_self_test(model, tmp_path):
    exported(model, "net", "cmake", tmp_path)
    build = cmake(tmp_path, "gemedge_net_selftest")
    assert_simulates(read_log(output(build / "gemedge_net_selftest")), model, GIVEN)


@pytest.mark.exhaustive
def test_a_cmake_program_links_two_models_and_turns_floats(model, tmp_path):
    for name in ("one", "two"):
        exported(model, name, "cmake", tmp_path / name)
    (tmp_path / "CMakeLists.txt").write_text("""cmake_minimum_required(VERSION 3.13)
project(both C CXX)
add_subdirectory(one)
add_subdirectory(two)
add_executable(both main.cc)
target_link_libraries(both gemedge_one gemedge_two)
""")
    numbers = ", ".join(f"{x}f" for x in GIVEN["input"][0])
    (tmp_path / "main.cc").write_text(f"""#include "one_model_float.h"
#include "two_model_float.h"
#include "one_model.h"
#include <cstdio>
int main() {{
    static uint32_t arena[(ONE_ARENA_SIZE + TWO_ARENA_SIZE) / 4];
    float x[] = {{{numbers}}}, y[ONE_OUTPUT_SIZE], z[TWO_OUTPUT_SIZE];
    int16_t in[ONE_INPUT_SIZE], out[ONE_OUTPUT_SIZE];
    one_quantize_input(x, in);
    if (one_run(arena, sizeof arena, in, out)) return 1;
    one_dequantize_output(out, y);
    two_quantize_input(x, in);
    if (two_run(arena, sizeof arena, in, out)) return 2;
    two_dequantize_output(out, z);
    for (int i = 0; i < ONE_OUTPUT_SIZE; i++) std::printf("%.9g %.9g\\n", y[i], z[i]);
    return 0;
}}
""")
    printed = np.array(output(cmake(tmp_path, "both") / "both").split(), np.float32).reshape(-1, 2)
    (wanted,) = simulate(model, {"input": GIVEN["input"][:1]}).values()
    np.testing.assert_array_equal(printed, np.stack([wanted[0]] * 2, axis=1))


def sketch(folder: Path, put: str, main: str) -> None:
    """The sketch as Arduino builds it: C++ with Arduino.h before its first line, and a main that calls setup."""
    inner = folder / "examples/selftest"
    (inner / "Arduino.h").write_text(f"#define PUT(c) {put}\n{ARDUINO}")
    (inner / "selftest.ino.cpp").write_text(f'#include "Arduino.h"\n{(inner / "selftest.ino").read_text()}\n{main}')


def test_the_arduino_library_has_a_sketch_that_is_a_self_test(model, tmp_path):
    files = exported(model, "net", "arduino", tmp_path)
    properties = dict(line.split("=", 1) for line in files["library.properties"].decode().splitlines())
    assert set(properties) >= {"name", "version", "author", "maintainer", "sentence", "category", "architectures"}
    assert f"src/{properties['includes']}" in files
    sketch(tmp_path, "putchar(c)", "int main() { setup(); loop(); return 0; }\n")
    compiled([*STRICT, "-Isrc", "-DARDUINO", "-c", "src/model.c", "-o", "model.o"], tmp_path)
    compiled([*STRICT, "-Isrc", "-DARDUINO", "-c", "examples/selftest/selftest.c", "-o", "selftest.o"], tmp_path)
    cpp = ["-x", "c++", "-Wall", "-Wextra", "-Werror", "-Isrc", "-c", "examples/selftest/selftest.ino.cpp"]
    compiled([*cpp, "-o", "sketch.o"], tmp_path)
    compiled(["model.o", "selftest.o", "sketch.o", "-lstdc++", "-o", "sketch"], tmp_path)
    assert_simulates(read_log(output(tmp_path / "sketch")), model, GIVEN)


@pytest.mark.exhaustive
def test_the_arduino_sketch_runs_on_avr(model, tmp_path):
    exported(model, "net", "arduino", tmp_path)
    sketch(tmp_path, "(GPIOR0 = (uint8_t)c)", "int main() { setup(); cli(); sleep_enable(); sleep_cpu(); }\n")
    headers = "".join(f"#include <{h}>\n" for h in ("avr/interrupt.h", "avr/io.h", "avr/sleep.h"))
    arduino = tmp_path / "examples/selftest/Arduino.h"
    arduino.write_text(f"#pragma once\n{headers}{arduino.read_text()}")
    console = '#include <avr/io.h>\n#include <avr_mcu_section.h>\nAVR_MCU(16000000, "atmega1284p");\n'
    (tmp_path / "console.c").write_text(f"{console}AVR_MCU_SIMAVR_CONSOLE(&GPIOR0);\n")
    sources = ["src/model.c", "examples/selftest/selftest.c", "examples/selftest/selftest.ino.cpp", "console.c"]
    done = built(tmp_path, sources, ["-Os", "-Isrc", "-ffunction-sections", "-fdata-sections"])
    assert done.returncode == 0, done.stderr
    ran = subprocess.run(
        ["simavr", "net.elf"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
    )
    assert_simulates(read_log(ran.stdout), model, GIVEN)


ZEPHYR = """cmake_minimum_required(VERSION 3.13)
project(zephyr C)
set(CONFIG_GEMEDGE_NET {on})
set(CONFIG_GEMEDGE_NET_SELFTEST y)
add_library(zephyr INTERFACE)
macro(zephyr_library_named name)
  set(current ${{name}})
  add_library(${{name}} STATIC)
  target_link_libraries(${{name}} zephyr)
endmacro()
macro(zephyr_library_sources)
  target_sources(${{current}} PRIVATE ${{ARGN}})
endmacro()
macro(zephyr_library_sources_ifdef option)
  if(${{option}})
    target_sources(${{current}} PRIVATE ${{ARGN}})
  endif()
endmacro()
macro(zephyr_include_directories)
  target_include_directories(zephyr INTERFACE ${{ARGN}})
endmacro()
add_subdirectory(${{CMAKE_SOURCE_DIR}}/module/{folder} module)
add_executable(app app.c)
target_link_libraries(app zephyr)
if(TARGET gemedge_net)
  target_link_libraries(app gemedge_net)
endif()
"""


@pytest.mark.exhaustive
def test_the_zephyr_module_builds_where_its_option_is_set(model, tmp_path):
    files = exported(model, "net", "zephyr", tmp_path / "module")
    module = dict(re.findall(r"^ *(\w+): (\S+)$", files["zephyr/module.yml"].decode(), re.MULTILINE))
    assert module == {"name": "gemedge_net", "cmake": "zephyr", "kconfig": "zephyr/Kconfig"}
    options = re.findall(r"^config (\w+)$", files[module["kconfig"]].decode(), re.MULTILINE)
    assert options == ["GEMEDGE_NET", "GEMEDGE_NET_SELFTEST"]
    (tmp_path / "CMakeLists.txt").write_text(ZEPHYR.format(on="y", folder=module["cmake"]))
    (tmp_path / "app.c").write_text(
        '#include <stdio.h>\n#include "net_model.h"\n'
        "void gemedge_put_char(char c);\nvoid gemedge_put_char(char c) { putchar(c); }\n"
    )
    assert_simulates(read_log(output(cmake(tmp_path, "app") / "app")), model, GIVEN)
    (tmp_path / "CMakeLists.txt").write_text(ZEPHYR.format(on="n", folder=module["cmake"]))
    (tmp_path / "app.c").write_text("int main(void) { return 0; }\n")
    shutil.rmtree(tmp_path / "build")
    assert not list(cmake(tmp_path, "app").rglob("libgemedge_net.a"))


@pytest.mark.parametrize("project", PROJECTS)
@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_of_hostile_names_only_letters_digits_and_underscores_get_into_a_project(model, project, name):
    files = to_c(model, name, None, project)
    assert re.fullmatch("[a-z][a-z0-9_]{0,39}", symbol(name))
    assert files == to_c(model, symbol(name), None, project)
    assert all(re.fullmatch(r"([a-z]+/)*[A-Za-z_0-9.]+", file) for file in files)


@pytest.mark.parametrize("name", ["model", "gemedge", "main", "int", "selftest", "in", "arena", "size", "status"])
def test_a_name_that_means_something_in_c_still_builds(model, name, tmp_path):
    exported(model, name, "cmake", tmp_path)
    compiled([*STRICT, "-DGEMEDGE_STDIO", "selftest.c", "-o", "selftest"], tmp_path)
    assert_simulates(read_log(output(tmp_path / "selftest")), model, GIVEN)
    (tmp_path / "float.c").write_text(f'#include "{name}_model.h"\n#include "{name}_model_float.h"\n')
    compiled([*STRICT, "-c", "float.c"], tmp_path)


def test_a_self_test_and_its_model_live_in_one_program(model, tmp_path):
    exported(model, "net", "cmake", tmp_path)
    compiled([*STRICT, "-DGEMEDGE_STDIO", "-DGEMEDGE_OBSERVE", "model.c", "selftest.c", "-o", "both"], tmp_path)
    assert_simulates(read_log(output(tmp_path / "both")), model, GIVEN)


def test_the_readme_says_how_to_build_and_verify(model, tmp_path):
    for project in PROJECTS:
        text = exported(model, "net", project, tmp_path / project)["README.md"].decode()
        assert "gemedge verify MODEL.gemq --data DATA.npz --log board.log" in text
        assert "## Two models in one program" in text
        assert max(map(len, text.splitlines())) <= 120
    command = re.search(r"cc -DGEMEDGE_STDIO .*", (tmp_path / "cmake/README.md").read_text())
    subprocess.run(command[0], shell=True, cwd=tmp_path / "cmake", check=True)
    assert_simulates(read_log((tmp_path / "cmake/board.log").read_bytes()), model, GIVEN)


@pytest.mark.parametrize("missing", range(3))
def test_a_null_pointer_is_an_error_code_and_nothing_is_written(model, missing, tmp_path):
    exported(model, "net", "cmake", tmp_path)
    names = ["arena", "in", "out"]
    arena, given, made = ("0" if i == missing else name for i, name in enumerate(names))
    (tmp_path / "main.c").write_text(f"""#include <string.h>
#include "model.h"
int main(void) {{
    static uint32_t arena[(NET_ARENA_SIZE + 3) / 4], old[(NET_ARENA_SIZE + 3) / 4];
    static int16_t in[NET_INPUT_SIZE], out[NET_OUTPUT_SIZE];
    memset(arena, 90, sizeof arena);
    memset(old, 90, sizeof old);
    memset(in, 1, sizeof in);
    memset(out, 90, sizeof out);
    (void)in;
    if (net_run({arena}, sizeof arena, {given}, {made}) != GEMEDGE_NULL_POINTER) return 1;
    return memcmp(arena, old, sizeof arena) != 0 || out[0] != 90 * 257;
}}
""")
    compiled(["-std=c99", "-fsanitize=undefined,address", "model.c", "main.c", "-o", "main"], tmp_path)
    subprocess.run([tmp_path / "main"], check=True)


def test_a_project_that_is_none_is_named(model):
    with pytest.raises(UsageError, match="project 'make' is not one of cmake, arduino, zephyr"):
        to_c(model, "net", None, "make")

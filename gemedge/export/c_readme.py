"""README.md of a folder of generated C: how to build it, run it, and check it on a board."""

from gemedge.export.c_borders import Border, Interface, described

_BUILDING = {
    "cmake": """Compile `model.c` beside your code, or with CMake:

    add_subdirectory(this_folder)
    target_link_libraries(your_program gemedge_{name})
""",
    "arduino": """Put this folder into the `libraries` folder of your sketchbook; a sketch includes `{name}_model.h`.
""",
    "zephyr": """Add this folder to `ZEPHYR_EXTRA_MODULES` or to the manifest, and to `prj.conf`
`CONFIG_GEMEDGE_{upper}=y`.
""",
}
_UNTESTED = """`gemedge export` writes a self-test, too, which prints a digest of every layer.
"""
_BY_HAND = """Build `selftest.c` alone (it includes `model.c`) with a function `void gemedge_put_char(char)` of yours,
which sends a character to a serial line; `-DGEMEDGE_STDIO` makes it `putchar`. On a PC:

    cc -DGEMEDGE_STDIO selftest.c -o selftest && ./selftest > board.log
"""
_TESTING = {
    "cmake": f"{_BY_HAND}\nWith CMake that is the target `gemedge_{{name}}_selftest`.\n",
    "arduino": "Upload the example `selftest`, and save what its serial monitor shows at 115200 baud as `board.log`.\n",
    "zephyr": f"{_BY_HAND}\nWith `CONFIG_GEMEDGE_{{upper}}_SELFTEST=y` its `main` is the application's.\n",
}
_VERIFYING = """
It prints a CRC-32 of each input, layer and output (the bytes of each number with the low one first). The log of a
board, whatever else stands in it, goes to

    gemedge verify MODEL.gemq --data DATA.npz --log board.log

with the model and the data that this folder was exported from, or no `--data` where it had none: same integers at every
layer, or the first that differs.
"""


def readme(interface: Interface, project: str, tested: bool) -> str:
    """The text for a project of this kind; tested: there is a self-test."""
    name, upper = interface.name, interface.upper
    rows = "".join(f"- `{b.declaration}`: {described(b)}\n" for b in interface.borders)
    testing = (_TESTING[project] + _VERIFYING).format(name=name, upper=upper) if tested else _UNTESTED
    return f"""# {name}

C99 without malloc, float or division in its kernels, exported by gemedge. It gives the integers of gemedge's simulator
at every layer.

## Build

{_BUILDING[project].format(name=name, upper=upper)}
On AVR constants stay in flash where `model.c` is C with GNU extensions, avr-gcc's default; all of them may take 64 KB,
and each 32 KB, which the compiler checks.

## Run

    #include "{name}_model.h"

    static uint32_t arena[({upper}_ARENA_SIZE + 3) / 4]; /* {interface.arena_size} bytes */
    int status = {name}_run(arena, sizeof arena, {interface.arguments});

The status is `GEMEDGE_OK` or an error code of `gemedge_status.h`; `{name}_arena_size()` gives `{upper}_ARENA_SIZE` to
programs that are compiled without these headers. A run keeps nothing: one arena serves several models
in turn, and each thread can have one of its own. Numbers lie in the order of these shapes, the last axis side by side:

{rows}{_floats(interface)}
## Switches

- `-DGEMEDGE_OBSERVE`: there is also `{name}_run_observed`, which shows each layer's numbers.
- `-DGEMEDGE_USE_CMSIS_NN`: 8-bit convolutions and dense layers are CMSIS-NN's, whose headers and sources you add. The
  integers stay the same; where its rounding macro is not the model's law it does not compile.
- `-DGEMEDGE_CONSTANT_TIME`: activations take the same instructions for every input, or do not compile.

Arm's DSP instructions, Helium, AVX2 and AVX-512 are used where the compiler says that the CPU has them.

## Two models in one program

Symbols and macros begin with the model's name, and `{name}_model.h` is `model.h` under a name that no other model has.
Compile each folder's `model.c`; `gemedge_*.h` are the same in every folder that one version of gemedge exported.

## Check it on a board

{testing}"""


def _floats(interface: Interface) -> str:
    calls = [_float_call(interface.name, b) for b in interface.borders if b.tensor.params is not None]
    if not calls:
        return ""
    return f"""
Floats become these integers and integers floats by `{interface.name}_model_float.h`, the only header here with floats:

{"".join(calls)}
An input's integers are the simulator's for every finite number; infinity saturates, and NaN stands for 0. Without
floats: an integer q stands for `SCALE * (q - ZERO_POINT)`, macros of `model.h`.
"""


def _float_call(name: str, border: Border) -> str:
    floats = f"{border.parameter}_floats"
    given, made = (floats, border.parameter) if border.direction == "INPUT" else (border.parameter, floats)
    return f"    {name}_{border.float_helper}({given}, {made});\n"

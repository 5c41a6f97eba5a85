"""How a kernel of 16-bit input is written as C: which of its forms, and the function that runs it.

All forms give the same integers; they differ in instructions and flash. A form other than the certified kernel
itself is written only where it was found right at all 65,536 codes.
"""

from dataclasses import fields
from typing import Literal

from gemedge import compact, tabulated
from gemedge.compact import Compact
from gemedge.export.c_constants import Constants, number, numbers, wrapped
from gemedge.kernel import FixedActivation
from gemedge.tabulated import Tabulated

Choice = Literal["auto", "reciprocal", "table"]
CHOICES: tuple[Choice, ...] = ("auto", "reciprocal", "table")
Form = Compact | Tabulated | None
_WORDS = {
    Compact: "reciprocal of 32 bits",
    Tabulated: "table of the fraction and remainder",
    type(None): "reciprocal of 44 bits and remainder",
}
_REFUSED = '#error "no form of this activation takes the same instructions for every input on this CPU"'
_ARGUMENTS = "(const void *in, void *out, uint32_t count)"


def described(kernel: FixedActivation, choice: Choice) -> str:
    """What runs, in words; `auto` takes a table of the fraction only where products of 64 bits are slow."""
    if kernel.constants.table:
        return "table of 256 outputs"
    short, long = _forms(kernel, choice)
    if short and short is not long:
        return f"{_WORDS[type(long)]}; where products are short, {_WORDS[type(short)]}"
    return _WORDS[type(long)]


def function(constants: Constants, kernel: FixedActivation, choice: Choice) -> str:
    """The name of the C function that runs the kernel from `in` to `out`, count numbers of 16 bits."""
    short, long = _forms(kernel, choice)
    body = _body(constants, kernel, long)
    if short is not long:
        body = f"#if GEMEDGE_SHORT_PRODUCTS\n{_body(constants, kernel, short)}#else\n{body}#endif\n"
    return constants.function("activate", _ARGUMENTS, body)


def _forms(kernel: FixedActivation, choice: Choice) -> tuple[Form, Form]:
    """What runs where products of 64 bits are slow, and what runs elsewhere; None is the certified kernel itself."""
    words = compact.find(kernel)
    table = tabulated.find(kernel) if choice != "reciprocal" else None
    return table or words, (table or words) if choice == "table" else (words or table)


def _body(constants: Constants, kernel: FixedActivation, form: Form) -> str:
    if isinstance(form, Compact):
        return _compact(form)
    return _generic(constants, kernel) if form is None else _tabulated(form)


def _compact(found: Compact) -> str:
    written = {field.name: number(int(getattr(found, field.name))) for field in fields(found)}
    written["is_wide"] = str(int(found.is_wide))
    written |= {name: f"{getattr(found, name)}u" for name in ("square", "linear", "numerator", "slope")}
    written["power"] = f"UINT64_C({found.power})"
    values = wrapped(", ".join(written[name] for name in _COMPACT_FIELDS))
    refused = ""
    if found.is_wide or found.saturates:  # compilers for a CPU without conditional instructions make branches of these
        refused = f"#if defined(GEMEDGE_CONSTANT_TIME) && GEMEDGE_SHORT_PRODUCTS\n{_REFUSED}\n#endif\n"
    return (
        f"{refused}    static const struct gemedge_compact by = {{{values}}};\n"
        "    gemedge_activate_compact(in, out, count, &by);\n"
    )


# The order of struct gemedge_compact.
_COMPACT_FIELDS = (
    "is_segem",
    "order",
    "is_wide",
    "square",
    "linear",
    "power",
    "numerator",
    "up",
    "down",
    "slope",
    "half",
    "offset",
    "bits",
    "bits_below",
    "saturates",
)


def _tabulated(found: Tabulated) -> str:
    entries = numbers(found.entries)
    return (
        f"    static const GEMEDGE_FLASH uint16_t entries[{len(found.entries)}] = {{{entries}}};\n"
        f"    static const struct gemedge_tabulated by = {{entries, {found.square}u, {found.step}}};\n"
        "    gemedge_activate_tabulated(in, out, count, &by);\n"
    )


def _generic(constants: Constants, kernel: FixedActivation) -> str:
    address = constants.kernel(kernel.constants)
    run = f"gemedge_activate(in, {address}, out, {kernel.out_params.bits // 8}u, count);"
    return f"#ifdef GEMEDGE_CONSTANT_TIME\n{_REFUSED}\n#endif\n    {run}\n"

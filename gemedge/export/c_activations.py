"""How a kernel of 16-bit input is written as C: which of its forms, and the function that runs it.

All forms give the same integers; they differ in instructions and flash. A form other than the certified kernel
itself is written only where it was found right at all 65,536 codes.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

from gemedge import compact, tabulated
from gemedge.compact import Compact
from gemedge.export.c_constants import Constants, number, wrapped
from gemedge.kernel import FixedActivation
from gemedge.tabulated import Tabulated

Choice = Literal["auto", "reciprocal", "table"]
CHOICES: tuple[Choice, ...] = ("auto", "reciprocal", "table")
RUNTIME = ("gemedge_numbers.h", "gemedge_activation.h", "gemedge_rational.h")  # what a function needs
_ARGUMENTS = "(const void *in, void *out, uint32_t count)"


@dataclass(frozen=True)
class Forms:
    """A kernel's other forms, each found when it is asked for."""

    kernel: FixedActivation

    @cached_property
    def compact(self) -> Compact | None:
        return compact.find(self.kernel)

    @cached_property
    def tabulated(self) -> Tabulated | None:
        return tabulated.find(self.kernel)

    def chosen(self, choice: Choice) -> str:
        """What runs, in words: `auto` is the compact kernel, and where products of 64 bits are slow the tabulated."""
        if choice != "reciprocal" and self.tabulated and (choice == "table" or not self.compact):
            return "table of the fraction, remainder"
        if not self.compact:
            return "reciprocal of 44 bits, remainder"
        return "reciprocal of 32 bits" + (
            ", or table of the fraction where products are short" if choice == "auto" and self.tabulated else ""
        )


def function(constants: Constants, forms: Forms, choice: Choice) -> str:
    """The name of the C function that runs the kernel from `in` to `out`, count numbers of 16 bits."""
    table = forms.tabulated if choice != "reciprocal" else None
    if table and (choice == "table" or not forms.compact):
        return constants.function("activate", _ARGUMENTS, _tabulated(table))
    if not forms.compact:
        return constants.function("activate", _ARGUMENTS, _generic(constants, forms.kernel))
    body = _compact(forms.compact)
    if table:
        body = f"#if GEMEDGE_SHORT_PRODUCTS\n{_tabulated(table)}#else\n{body}#endif\n"
    return constants.function("activate", _ARGUMENTS, body)


def _compact(found: Compact) -> str:
    written = {field.name: number(int(getattr(found, field.name))) for field in fields(found)}
    written["is_wide"] = str(int(found.is_wide))
    written |= {name: f"{getattr(found, name)}u" for name in ("square", "linear", "numerator", "slope")}
    written["power"] = f"UINT64_C({found.power})"
    values = wrapped(written[name] for name in _COMPACT_FIELDS)
    return f"    static const struct gemedge_compact by = {{{values}}};\n    gemedge_compact(in, out, count, &by);\n"


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
    entries = wrapped(map(number, found.entries))
    return (
        f"    static const GEMEDGE_FLASH uint16_t entries[{len(found.entries)}] = {{{entries}}};\n"
        f"    static const struct gemedge_tabulated by = {{entries, {found.square}u, {found.step}}};\n"
        "    gemedge_tabulated(in, out, count, &by);\n"
    )


def _generic(constants: Constants, kernel: FixedActivation) -> str:
    address = constants.kernel(kernel.constants)
    return (
        '#ifdef GEMEDGE_CONSTANT_TIME\n#error "this kernel has no form that takes the same time for every input"\n'
        f"#endif\n    gemedge_activate(in, {address}, out, {kernel.out_params.bits // 8}u, count);\n"
    )

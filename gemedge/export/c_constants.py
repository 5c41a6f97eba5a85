"""The constants of a generated C file: each array written once, however many layers use it."""

from collections.abc import Iterable
from hashlib import sha256

import numpy as np

from gemedge.construct import Constants as KernelConstants
from gemedge.construct import Side
from gemedge.export.layout import Loops
from gemedge.rational import NormalPolynomial, Piece

_WIDTH = 110
_AT_ONCE = 1 << 20  # numbers of an array that are Python's own at a time
_REACH = 65000  # of 64 KB, some of which is the interrupt vectors
_STORED = "static const GEMEDGE_FLASH"


def number(value: int) -> str:
    """A C integer constant: with INT64_C where it may be beyond an int of 32 bits."""
    if value == -(1 << 63):
        return "(-INT64_C(9223372036854775807) - 1)"
    if value == -(1 << 31):
        return "(-INT32_C(2147483647) - 1)"
    return str(value) if -(1 << 31) < value < 1 << 31 else f"INT64_C({value})"


def numbers(values: np.ndarray | Iterable[int], ctype: str = "int64_t") -> str:
    """C constants for an array of ctype, comma-separated in lines of bounded width."""
    flat = values.reshape(-1) if isinstance(values, np.ndarray) else np.array(list(values), np.int64)
    pieces = (flat[i : i + _AT_ONCE] for i in range(0, flat.size, _AT_ONCE))
    return ",\n    ".join(wrapped(_in_a_row(piece, ctype)) for piece in pieces)


def _in_a_row(values: np.ndarray, ctype: str) -> str:
    if ctype == "uint32_t":
        return ", ".join([f"{value}u" for value in values.tolist()])
    if values.min() > -(1 << 31) and values.max() < 1 << 31:
        return str(values.tolist())[1:-1]
    return ", ".join(map(number, values.tolist()))


def wrapped(text: str) -> str:
    """What is comma-separated, in lines of bounded width; no piece is wider."""
    lines, start = [], 0
    while len(text) - start > _WIDTH:
        end = text.rfind(", ", start, start + _WIDTH + 1) + 1
        lines.append(text[start:end])
        start = end + 1
    return "\n    ".join([*lines, text[start:]])


def listed(ctype: str, values: np.ndarray) -> str:
    """The definition of an array of these numbers, @ for its name."""
    return f"{ctype} @[{values.size}] = {{{numbers(values, ctype)}}}"


class Constants:
    """Definitions in the order in which they were asked for. prefix: of the layer's names, `L3_dense`."""

    def __init__(self) -> None:
        self.prefix = ""
        self.definitions: list[bytes] = []
        self._names: dict[bytes, str] = {}  # by the digest of the definition, which may be as large as the weights
        self._stored: list[str] = []
        self._taken: set[str] = set()

    @property
    def text(self) -> str:
        return b"\n".join(self.definitions).decode("ascii")

    @property
    def reached(self) -> str:
        """A check that the 16-bit addresses of AVR reach them all: what they do not would be read elsewhere."""
        sizes = "".join(f"\n    + sizeof {name}" for name in self._stored)
        return f"""
#if defined(__FLASH) && !defined(__STRICT_ANSI__)
typedef char constants_are_within_{_REACH}_bytes[(uint32_t)0{sizes} <= {_REACH}u ? 1 : -1];
#endif
"""

    def array(self, role: str, ctype: str, values: np.ndarray | Iterable[int]) -> str:
        """The name of an array of these numbers in their order."""
        array = values if isinstance(values, np.ndarray) else np.array(list(values), np.int64)
        return self._place(role, f"{_STORED} {listed(ctype, array)};")

    def either(self, role: str, macro: str, one: str, other: str) -> str:
        """The name that stands for @ in two definitions: one where the macro is defined, and otherwise the other."""
        return self._place(role, f"#ifdef {macro}\n{_STORED} {one};\n#else\n{_STORED} {other};\n#endif")

    def structure(self, role: str, kind: str, value: str) -> str:
        """The name of a `struct gemedge_<kind>` of this value."""
        return self._define(role, f"struct gemedge_{kind}", "", value)

    def function(self, role: str, arguments: str, body: str) -> str:
        """The name of a function without a result that is kept apart, however many layers call it."""
        return self._place(role, f"\nGEMEDGE_APART void @{arguments} {{\n{body}}}\n")

    def loops(self, role: str, loops: Loops) -> str:
        """The address of the loops."""
        sizes = self.array(f"{role}_size", "uint32_t", loops.sizes)
        moves = self.array(f"{role}_step", "uint32_t", [s for operand in loops.steps for s in operand])
        value = f"{{{len(loops.sizes)}, {len(loops.steps)}, {sizes}, {moves}}}"
        return "&" + self.structure(role, "loops", value)

    def kernel(self, constants: KernelConstants) -> str:
        """The address of the constants of an activation of 16-bit numbers."""
        sides = [self._side(name, side) for name, side in zip(("below", "above"), constants.sides, strict=True)]
        pairs = [f"{{{code}, {value}}}" for code, value in constants.exceptions]
        exceptions = self._define(
            "exceptions", "struct gemedge_exception", f"[{len(pairs)}]", "{" + ", ".join(pairs) + "}"
        ) if pairs else "0"  # fmt: skip
        return "&" + self.structure("kernel", "kernel", f"{{{', '.join(sides)}, {exceptions}, {len(pairs)}}}")

    def _side(self, name: str, side: Side) -> str:
        written = [self._piece(f"{name}{i}", piece) for i, piece in enumerate(side.pieces)]
        pieces = self._define(
            name, "struct gemedge_piece", f"[{len(written)}]", "{" + ",\n    ".join(written) + "}"
        ) if written else "0"  # fmt: skip
        return f"{{{side.stop}, {side.head}, {side.tail}, {pieces}, {len(written)}}}"

    def _piece(self, name: str, piece: Piece) -> str:
        parts = ("plus", "minus", "above", "below")
        polynomials = [self._polynomial(f"{name}_{part}", getattr(piece, part)) for part in parts]
        affine = (piece.start, piece.stop, piece.slope, piece.offset, piece.affine_bits)
        return f"{{{', '.join(map(number, affine))}, {', '.join(polynomials)}}}"

    def _polynomial(self, name: str, polynomial: NormalPolynomial | None) -> str:
        if polynomial is None:
            return "{0, 0}"
        terms = zip(polynomial.mantissas, polynomial.exponents, strict=True)
        written = [f"{{{number(mantissa)}, {exponent}}}" for mantissa, exponent in terms]
        array = self._define(name, "struct gemedge_term", f"[{len(written)}]", "{" + wrapped(", ".join(written)) + "}")
        return f"{{{array}, {len(written)}}}"

    def _define(self, role: str, ctype: str, size: str, value: str) -> str:
        return self._place(role, f"{_STORED} {ctype} @{size} = {value};")

    def _place(self, role: str, definition: str) -> str:
        """The name that stands for @ in the definition, the same one for the same definition."""
        written = definition.encode("ascii")
        key = sha256(written).digest()
        if key not in self._names:
            name = f"{self.prefix}_{role}"
            while name in self._taken:
                name += "_"
            self._taken.add(name)
            self._names[key] = name
            self.definitions.append(written.replace(b"@", name.encode("ascii")))
            if _STORED in definition:
                self._stored.append(name)
        return self._names[key]

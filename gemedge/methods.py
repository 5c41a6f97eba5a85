"""The ways to compute an activation in integers, each judged on the same inputs and counted."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gemedge.certificate import Certificate, certify, inputs_to_check
from gemedge.fixed import QuantParams
from gemedge.kernel import FixedActivation
from gemedge.rational import Arithmetic
from gemedge.table import Table

SHARED_BYTES = 128  # the reciprocals, once in a program


@dataclass(frozen=True, slots=True)
class Method:
    """One way to compute the activation, judged on the same inputs."""

    name: str
    certificate: Certificate
    outputs: np.ndarray
    flash_bytes: int
    multiplies: int
    look_ups: int

    def as_json(self) -> dict[str, Any]:
        return {
            "method": self.name,
            "max_error": self.certificate.max_error,
            "misrounded": self.certificate.misrounded,
            "flash_bytes": self.flash_bytes,
            "multiplies": self.multiplies,
            "look_ups": self.look_ups,
        }


def compare(kernel: FixedActivation) -> list[Method]:
    """The kernel first; beside it the usual tables, where they exist for its input."""
    certificate = kernel.certify()
    name = "256-entry table" if kernel.constants.table else "reciprocal kernel"
    first = Method(name, certificate, all_outputs(kernel), *_costs(kernel))
    if kernel.in_params.bits != 16 or kernel.out_params.bits == 32:
        return [first]
    return [first, *(_table_method(kernel, *row) for row in _TABLES), byte_table(kernel)]


_TABLES = (("513-entry table, linear", 513, "linear", 1), ("513-entry table, nearest", 513, "nearest", 0))


def all_outputs(kernel: FixedActivation | Table) -> np.ndarray:
    return kernel(inputs_to_check(kernel.in_params))


@dataclass(frozen=True, slots=True)
class _Counting(Arithmetic):
    """Counts the multiplies of a run."""

    calls: list[int] = field(default_factory=list)

    def times(self, a: Any, b: Any) -> Any:
        self.calls.append(1)
        return a * b


def _costs(kernel: FixedActivation) -> tuple[int, int, int]:
    """Flash bytes of the constants, multiplies and look-ups of the dearest element."""
    if kernel.constants.table:
        return constant_bytes(kernel), 0, 1
    pieces = [piece for side in kernel.constants.sides for piece in side.pieces]
    multiplies = 0
    for piece in pieces:
        counting = _Counting()
        piece.rounded(np.array([piece.start]), counting)
        multiplies = max(multiplies, len(counting.calls))
    fractions = shares_reciprocals(kernel)
    return constant_bytes(kernel) + SHARED_BYTES * fractions, multiplies, int(fractions)


def constant_bytes(kernel: FixedActivation) -> int:
    """Flash bytes of a kernel's own constants: its table, or the terms, pieces, sides and exceptions of its code."""
    if kernel.constants.table:
        return 256 * kernel.out_params.bits // 8
    pieces = [piece for side in kernel.constants.sides for piece in side.pieces]
    polynomials = [p for piece in pieces for p in (piece.plus, piece.minus, piece.above, piece.below) if p]
    terms = sum(1 for p in polynomials for mantissa in p.mantissas if mantissa)
    return 8 * terms + 16 * len(pieces) + 8 * len(kernel.constants.sides) + 6 * len(kernel.constants.exceptions)


def shares_reciprocals(kernel: FixedActivation) -> bool:
    """Whether the kernel reads the table of reciprocals, SHARED_BYTES, that a program holds once."""
    return any(piece.form != "affine" for side in kernel.constants.sides for piece in side.pieces)


def _table_method(kernel: FixedActivation, name: str, entries: int, interpolation: Any, multiplies: int) -> Method:
    parts = kernel.activation, kernel.in_params, kernel.out_params
    table = Table(*parts, entries=entries, interpolation=interpolation)
    look_ups = 2 if interpolation == "linear" else 1
    return Method(name, certify(table, *parts, ""), all_outputs(table), table.flash_bytes, multiplies, look_ups)


def byte_table(kernel: FixedActivation) -> Method:
    """The top 8 bits of the input choose one of 256 bytes, which are the top 8 bits of the output."""
    out = kernel.out_params
    shift = out.bits - 8
    coarse = QuantParams(out.scale * 2**shift, 0, 8) if shift else out
    table = Table(kernel.activation, kernel.in_params, coarse, entries=256, interpolation="nearest")

    def outputs(raw: np.ndarray) -> np.ndarray:
        return table(raw).astype(np.int32) << shift

    certificate = certify(outputs, kernel.activation, kernel.in_params, out, "")
    raw = np.arange(kernel.in_params.raw_min, kernel.in_params.raw_max + 1)
    return Method("256-byte table", certificate, outputs(raw), 256, 0, 1)

"""The bytes of flash that each layer's numbers take, counted exactly, and which layers share them.

Weights, tables and kernels with the same bytes are stored once in a program and belong to the first layer that has
them. Of a rescaling: a mantissa takes 4 bytes and a shift 1, for each output channel, or once where all are equal;
a bias takes 4 bytes, or 8 where 32 bits do not hold it. A place of a Take takes 2 bytes, or 4 from 65,536 on, and none
where the places are evenly spaced.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gemedge.methods import SHARED_BYTES, constant_bytes, shares_reciprocals
from gemedge.model import Op, QuantizedModel
from gemedge.moving import Constant, Embed, Take
from gemedge.operators import (
    Activate,
    Choose,
    Convolution,
    Dense,
    Interpolate,
    LayerNormalization,
    Lookup,
    Softmax,
)

Role = Literal["weights", "tables", "constants"]


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes of flash that a layer adds to those before it."""

    weights: int = 0
    tables: int = 0
    constants: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.tables + self.constants


def count(model: QuantizedModel) -> dict[str, Stored]:
    """What each layer adds to the flash, by its name, in order."""
    seen: set[tuple[Role, str]] = set()
    found = {}
    for layer in model.layers:
        bytes_by_role: dict[Role, int] = {"weights": 0, "tables": 0, "constants": 0}
        for role, key, size in _pieces(layer, model):
            if (role, key) not in seen:
                bytes_by_role[role] += size
                seen.add((role, key))
        found[layer.name] = Stored(**bytes_by_role)
    return found


def _pieces(layer: Op, model: QuantizedModel) -> Iterator[tuple[Role, str, int]]:
    """What a layer reads from flash: its role, what makes it the same as another, and its bytes."""
    match layer:
        case Convolution() | Dense():
            yield _array("weights", layer.weight)
            yield "constants", f"bias of {layer.name}", _bias_bytes(layer.bias)
        case Constant(value=array) | Embed(table=array):
            yield _array("weights", array)
        case Lookup(table=array) | Interpolate(table=array):
            yield _array("tables", array)
        case Activate():
            kernel = model.kernels[layer.name]
            yield "tables", layer.digest, constant_bytes(kernel)
            if shares_reciprocals(kernel):
                yield "tables", "reciprocals", SHARED_BYTES
        case Softmax():
            for table in (layer.fine, layer.coarse):
                yield _array("tables", table.astype(np.int32 if int(table.max()) < 1 << 31 else np.int64))
            yield _array("constants", layer.mask)
        case LayerNormalization():
            yield "constants", f"weights of {layer.name}", 4 * layer.mantissa.size + _bias_bytes(layer.bias) + 9
        case Choose():
            yield _array("constants", layer.condition)
        case Take() if np.unique(np.diff(layer.places)).size > 1:
            yield _array("constants", layer.places.astype(np.uint16 if int(layer.places.max()) < 1 << 16 else np.int32))
    if not isinstance(layer, LayerNormalization):
        for name, width in (("mantissa", 4), ("shift", 1)):
            numbers = getattr(layer, name, None)
            if isinstance(numbers, np.ndarray) and numbers.size:
                yield "constants", f"{name} of {layer.name}", width * (numbers.size if np.ptp(numbers) else 1)


def _array(role: Role, array: np.ndarray) -> tuple[Role, str, int]:
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return role, f"{array.dtype} {digest}", array.nbytes


def _bias_bytes(bias: np.ndarray) -> int:
    largest = int(np.abs(bias).max(initial=0))
    return bias.size * (4 if largest < 1 << 31 else 8)

"""What the caller of generated C hands over and is given."""

import math
from dataclasses import dataclass

import numpy as np

from gemedge.export.c_writer import bytes_per
from gemedge.operators import Shape, Tensor


@dataclass(frozen=True, slots=True)
class Border:
    """A tensor that the caller hands over or is given: its C parameter, and what its macros begin with."""

    tensor: Tensor
    order: Shape
    parameter: str
    macro: str
    direction: str
    offset: int

    @property
    def ctype(self) -> str:
        return f"int{8 * bytes_per(self.tensor)}_t"

    @property
    def declaration(self) -> str:
        return f"{'const ' if self.direction == 'INPUT' else ''}{self.ctype} *{self.parameter}"

    @property
    def macros(self) -> list[str]:
        params = self.tensor.params
        shape = [self.tensor.shape[axis] for axis in self.order]
        values = {"SIZE": str(math.prod(shape)), "BITS": str(8 * bytes_per(self.tensor)), "RANK": str(len(shape))}
        values["SHAPE"] = f"{{{', '.join(map(str, shape))}}}"
        values["AXES"] = f"{{{', '.join(map(str, self.order))}}}"
        if params is not None:
            scale = str(np.float32(params.scale))
            values["SCALE"] = f"{scale}f"
            values["ZERO_POINT"] = f"({params.zero_point})"
        return [f"#define {self.macro}_{key} {value}" for key, value in values.items()]


def described(border: Border) -> str:
    """Its shape in memory, which axes those are, and what its numbers stand for."""
    shape = [border.tensor.shape[axis] for axis in border.order]
    axes = "" if border.order == tuple(range(len(shape))) else f", which is axes {list(border.order)} of the model's"
    params = border.tensor.params
    meaning = "indices" if params is None else f"each stands for {np.float32(params.scale)} * (q - {params.zero_point})"
    return f"{shape}{axes}; {meaning}"

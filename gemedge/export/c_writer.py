"""What the C of every layer is made of: addresses, formats, loops, operands and windows.

Addresses are C expressions: `memory + 96` in the arena, or the name of an array in flash.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from gemedge.arena import Plan
from gemedge.errors import UnsupportedError
from gemedge.export.c_activations import Choice
from gemedge.export.c_constants import Constants, number
from gemedge.export.layout import Loops, broadcast_steps, in_memory, loops, steps
from gemedge.model import Op, QuantizedModel, uses_gemmlowp
from gemedge.moving import Constant
from gemedge.operators import Activate, Lookup, Shape, Tensor

MOST_AXES, MOST_OPERANDS = 8, 8  # GEMEDGE_MOST_AXES, GEMEDGE_MOST_OPERANDS
Numbers = Sequence[int] | np.ndarray
_INDEX_BYTES = 4


class Writer:
    """One model's tensors and constants as C; constants collects what the layers need.

    fused: the table that each layer applies itself, by its name. activation: the form of 16-bit activations.
    """

    def __init__(
        self,
        model: QuantizedModel,
        orders: dict[str, Shape],
        plan: Plan,
        fused: Mapping[str, Activate | Lookup],
        activation: Choice,
    ) -> None:
        self.model, self.orders, self.plan, self.activation = model, orders, plan, activation
        self.constants = Constants()
        self.fused = fused
        self._scratch = {placement.tensor: placement.offset for placement in plan.scratch}
        self._placed = {placement.tensor: placement for placement in plan.placements}
        self._values = {layer.output: layer.value for layer in model.layers if isinstance(layer, Constant)}

    def address(self, tensor: str) -> str:
        if tensor in self._placed:
            return f"memory + {self._placed[tensor].offset}"
        value = self._values[self.plan.stored[tensor]]
        laid = in_memory(value.reshape(self.model.tensors[tensor].shape), self.orders[tensor])
        return self.constants.array("value", f"int{8 * bytes_per(self.model.tensors[tensor])}_t", laid)

    def place(self, tensor: str) -> str:
        """What a gemedge_place of this tensor is made with."""
        return f"GEMEDGE_{'TENSOR' if tensor in self._placed else 'CONSTANT'}({self.address(tensor)})"

    def scratch(self, layer: Op) -> str:
        """Memory that the layer asked for, or a null pointer."""
        return f"(void *)(memory + {self._scratch[layer.name]})" if layer.name in self._scratch else "0"

    def tensors(self, layer: Op) -> tuple[list[Tensor], Tensor]:
        return [self.model.tensors[name] for name in layer.inputs], self.model.tensors[layer.output]

    def steps(self, tensor: Tensor) -> Shape:
        return steps(tensor.shape, self.orders[tensor.name])

    def format(self, tensor: Tensor) -> str:
        return self.constants.structure("format", "format", format_of(tensor))

    def law(self, layer: Op) -> str:
        gemmlowp = uses_gemmlowp(layer, self.tensors(layer)[0], self.model.rounding)
        return "GEMEDGE_DOUBLE" if gemmlowp else "GEMEDGE_SINGLE"

    def loops(self, role: str, found: Loops) -> str:
        if len(found.sizes) > MOST_AXES or len(found.steps) > MOST_OPERANDS:
            raise UnsupportedError(
                f"{len(found.steps)} operands in {len(found.sizes)} loops; {MOST_OPERANDS} in {MOST_AXES} at most"
            )
        return self.constants.loops(role, found)

    def elementwise(self, layer: Op, *others: Shape) -> str:
        """Loops over the output's numbers: operands are the inputs, others by their shapes as written, the output."""
        given, made = self.tensors(layer)
        axes = len(made.shape)
        operands = [broadcast_steps(t.shape, self.orders[t.name], axes) for t in given]
        operands += [broadcast_steps(shape, tuple(range(len(shape))), axes) for shape in others]
        return self.loops("loops", loops(made.shape, [*operands, self.steps(made)], self.orders[made.name]))

    def rows(self, layer: Op, *others: Shape) -> tuple[str, list[int]]:
        """Loops over rows along the last axis of input, output and others, and the step of each along it."""
        (given,), made = self.tensors(layer)
        operands = [self.steps(given), self.steps(made)]
        operands += [broadcast_steps(shape, tuple(range(len(shape))), len(given.shape)) for shape in others]
        last = len(given.shape) - 1
        order = [axis for axis in self.orders[made.name] if axis != last]
        found = loops((*given.shape[:-1], 1), operands, tuple(order), rows=True)
        return self.loops("rows", found), [operand[last] for operand in operands]

    def operands(self, layer: Op, mantissas: Numbers, shifts: Numbers, condition: str = "") -> str:
        given, _ = self.tensors(layer)
        written = [
            f"{{{self.place(t.name)}, {format_of(t)}, {number(int(m))}, {int(s)}}}"
            for t, m, s in zip(given, mantissas, shifts, strict=True)
        ]
        written += [f"{{GEMEDGE_CONSTANT({condition}), {{1, 0}}, 0, 0}}"] if condition else []
        return f"const struct gemedge_operand of[{len(written)}] = {{{', '.join(written)}}};\n        "

    def window(self, layer: Op, kernel: Shape, dilations: Shape | None = None) -> str:
        (given,), made = self.tensors(layer)
        axes = len(layer.strides)  # type: ignore[union-attr]
        fields = (
            given.shape[1:],
            made.shape[1:],
            kernel,
            layer.strides,  # type: ignore[union-attr]
            layer.pads[:axes],  # type: ignore[union-attr]
            dilations or (1,) * axes,
        )
        alone = (1, 1, 1, 1, 0, 1)  # along the axis that a signal does not have
        pairs = [f"{{{a if axes == 1 else f[0]}, {f[-1]}}}" for f, a in zip(fields, alone, strict=True)]
        return "&" + self.constants.structure("window", "window", f"{{{', '.join(pairs)}, {given.shape[0]}}}")


def kind(layer: Op) -> str:
    """The operator's name in an identifier: `max_pool`."""
    name = type(layer).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def bytes_per(tensor: Tensor) -> int:
    return _INDEX_BYTES if tensor.params is None else tensor.params.bits // 8


def format_of(tensor: Tensor) -> str:
    return f"{{{bytes_per(tensor)}, {0 if tensor.params is None else tensor.params.zero_point}}}"


def table_of(to: Writer, layer: Op, table: np.ndarray | Sequence[int]) -> str:
    """A table of the output's integers."""
    return to.constants.array("table", f"int{8 * bytes_per(to.tensors(layer)[1])}_t", table)

"""Targets, and the coefficients from which a network's instructions, code and stack there are estimated.

Coefficients are instructions for one multiply-accumulate, one window element or one number made. Those marked
MEASURED were counted, instruction by instruction, on an emulated CPU (gcc 12 -O2) with other code than ours:
convolution and dense layers with CMSIS-NN of July 2026, activations with prototypes of the reciprocal kernel on inputs
from N(0, 1), tables with a plain loop. All others are stated guesses, from the instructions that an inner loop needs.
Cortex-M7 and M33 execute the M4's instructions, so its numbers stand for them; they say nothing about cycles. So does
the M3 but for those that multiply two pairs at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gemedge.model import Op, QuantizedModel, accumulator_bits
from gemedge.moving import Clamp, Concatenate, Constant, Embed, Pad, Reshape, Spread, Take, Transpose
from gemedge.operators import (
    Activate,
    AveragePool,
    Choose,
    Combine,
    Convolution,
    Dense,
    GemmlowpSum,
    Interpolate,
    LayerNormalization,
    Lookup,
    MatrixMultiply,
    MaxPool,
    Multiply,
    RawAveragePool,
    Softmax,
)

Step = Literal[
    "convolve", "dense", "depthwise", "wide",  # a multiply-accumulate: of 8 by 8 bits, and of wider numbers
    "rescale", "rescale wide",  # a sum of 32 bits or more becomes an output
    "move", "pool", "add", "multiply", "softmax", "normalise",
    "table", "interpolate", "gem", "gem step", "segem", "segem step", "rational",  # step: for each n more
]  # fmt: skip
_STEPS: tuple[Step, ...] = (
    "convolve", "dense", "depthwise", "wide", "rescale", "rescale wide", "move", "pool", "add", "multiply",
    "softmax", "normalise", "table", "interpolate", "gem", "gem step", "segem", "segem step", "rational",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """A CPU. density: bytes of its code over those of a Cortex-M4's. word: bytes of a register."""

    name: str
    costs: Mapping[Step, float]
    density: float
    word: int


def _target(name: str, costs: tuple[float, ...], density: float, word: int = 4) -> Target:
    return Target(name, dict(zip(_STEPS, costs, strict=True)), density, word)


_M4 = (2.33, 2.37, 5, 3, 12, 25, 3, 4, 14, 12, 45, 40, 5.0, 14.0, 24.3, 11.3, 24.2, 11.3, 60)
_M3 = (4, 4, 5, 5, 12, 25, 3, 4, 14, 12, 45, 40, 5.0, 14.0, 24.3, 11.3, 24.2, 11.3, 60)
_M0 = (6, 6, 8, 11, 40, 90, 4, 6, 60, 45, 130, 150, 6.0, 21.0, 61, 57, 66, 57, 180)
_M55 = (0.45, 0.45, 1.2, 0.9, 2, 12, 0.5, 0.6, 2.5, 2, 15, 12, 1.2, 4, 8, 4, 8, 4, 20)
_RV32 = (4.5, 4.5, 6, 7, 16, 35, 4, 5, 20, 16, 60, 50, 5, 16, 32, 14, 32, 14, 75)
_AVR = (18, 18, 22, 45, 180, 450, 12, 20, 250, 190, 700, 800, 14, 110, 600, 400, 600, 400, 1500)
TARGETS = {
    target.name: target
    for target in (
        _target("cortex-m0plus", _M0, 1.1),
        _target("cortex-m3", _M3, 1.0),
        _target("cortex-m4", _M4, 1.0),
        _target("cortex-m7", _M4, 1.0),
        _target("cortex-m33", _M4, 1.0),
        _target("cortex-m55", _M55, 1.2),
        _target("rv32imc", _RV32, 1.15),
        _target("avr", _AVR, 2.2, 2),
    )
}
MEASURED: frozenset[tuple[str, Step]] = frozenset(
    (name, step)
    for name, steps in {
        "cortex-m4": ("convolve", "dense", "table", "interpolate", "gem", "gem step", "segem"),
        "cortex-m0plus": ("table", "interpolate", "gem", "gem step", "segem"),  # counted on a Cortex-M0
    }.items()
    for step in _STEPS
    if step in steps
)

# Bytes of code on a Cortex-M4. Measured: GEM 160 (n=1) to 216 (n=2), SE-GEM 148, interpolation 72, a table's loop 30.
_CODE = {
    "convolution": 900, "depthwise": 500, "dense": 400, "matrix": 400, "gem": 216, "segem": 216, "rational": 400,
    "table": 30, "interpolate": 72, "Combine": 160, "GemmlowpSum": 220, "Multiply": 120, "Choose": 120,
    "Concatenate": 140, "MaxPool": 220, "AveragePool": 260, "RawAveragePool": 260, "Softmax": 420,
    "LayerNormalization": 520, "Embed": 60, "Transpose": 180, "Take": 90, "Pad": 140, "Spread": 120, "Clamp": 40,
}  # fmt: skip
_RUNTIME = 300  # of what all networks need
_CALL = 44  # of calling one layer with its constants
_STACK = {"convolution": 160, "depthwise": 120, "dense": 112, "matrix": 120, "Softmax": 96, "LayerNormalization": 120}
_STACK_OTHERS, _STACK_CALLS = 72, 64


def multiply_accumulates(layer: Op, model: QuantizedModel) -> int:
    """Of one sample; those that meet padding count."""
    numbers = math.prod(model.tensors[layer.output].shape)
    match layer:
        case Convolution() | Dense():
            return numbers * math.prod(layer.weight.shape[1:])
        case MatrixMultiply():
            return numbers * model.tensors[layer.inputs[0]].shape[-1]
    return 0


def instructions(layer: Op, model: QuantizedModel, target: Target) -> int:
    """Of one sample, by the coefficients."""
    cost = target.costs
    numbers = math.prod(model.tensors[layer.output].shape)
    match layer:
        case Convolution() | Dense() | MatrixMultiply():
            tensors = [model.tensors[name] for name in layer.inputs]
            wide = accumulator_bits(layer, tensors) > 32
            rescale = cost["rescale wide" if wide else "rescale"]
            return _up(multiply_accumulates(layer, model) * cost[_mac(layer, wide)] + numbers * rescale)
        case Activate():
            return _up(numbers * _activation(layer, model, target))
        case Lookup():
            return _up(numbers * cost["table"])
        case Interpolate():
            return _up(numbers * cost["interpolate"])
        case Combine() | GemmlowpSum():
            return _up(numbers * cost["add"] * max(1, len(layer.inputs) - 1))
        case Multiply() | Choose():
            return _up(numbers * cost["multiply"])
        case Concatenate():
            return _up(numbers * cost["rescale"])
        case MaxPool():
            return _up(numbers * math.prod(layer.kernel) * cost["pool"])
        case AveragePool() | RawAveragePool():
            return _up(numbers * (math.prod(layer.kernel) * cost["pool"] + cost["rescale"]))
        case Softmax():
            return _up(numbers * cost["softmax"])
        case LayerNormalization():
            return _up(numbers * cost["normalise"])
        case Embed() | Transpose() | Take() | Pad() | Spread() | Clamp():
            return _up(numbers * cost["move"])
        case Reshape() | Constant():
            return 0


def scratch_bytes(layer: Op, model: QuantizedModel) -> int:
    """Of a convolution, two windows as 16-bit numbers; of a depthwise one, where a window's taps lie, and a blank spot.

    A dense layer may need a row more in C, where the numbers of its input do not lie side by side.
    """
    if not isinstance(layer, Convolution):
        return 0
    given = model.tensors[layer.inputs[0]]
    if layer.groups == given.shape[0] == len(layer.weight):
        return 4 * math.prod(layer.weight.shape[2:]) + given.shape[0] * given.quantized.bits // 8
    return 2 * 2 * (-(-math.prod(layer.weight.shape[1:]) // 4) * 4)


def code_bytes(model: QuantizedModel, target: Target) -> float:
    """Of each kind of kernel and width that the network uses, once, and of its calls."""
    kinds = {(kind, _width(layer, model)) for layer in model.layers if (kind := _kind(layer, model))}
    calls = sum(1 for layer in model.layers if _kind(layer, model))
    return target.density * (_RUNTIME + _CALL * calls + sum(_CODE[kind] for kind, _ in kinds))


def stack_bytes(model: QuantizedModel, target: Target) -> float:
    """Of the call with the deepest kernel."""
    deepest = max((_STACK.get(_kind(layer, model), _STACK_OTHERS) for layer in model.layers), default=0)
    return (_STACK_CALLS + deepest) * (0.75 if target.word == 2 else 1.0)


def _mac(layer: Convolution | Dense | MatrixMultiply, wide: bool) -> Step:
    if wide:
        return "wide"
    if isinstance(layer, Convolution):
        return "depthwise" if _depthwise(layer) else "convolve"
    return "dense"


def _depthwise(layer: Convolution) -> bool:
    return layer.groups > 1 and layer.weight.shape[1] == 1


def _activation(layer: Activate, model: QuantizedModel, target: Target) -> float:
    cost = target.costs
    if model.kernels[layer.name].constants.table:
        return cost["table"]
    n = layer.activation.n or 1
    match layer.activation.family:
        case "gem":
            return cost["gem"] + (n - 1) * cost["gem step"]
        case "segem":
            return cost["segem"] + (n - 1) * cost["segem step"]
    return cost["rational"]


def _kind(layer: Op, model: QuantizedModel) -> str:
    """The kind of kernel that runs it; none for what takes no code."""
    match layer:
        case Reshape() | Constant():
            return ""
        case Convolution():
            return "depthwise" if _depthwise(layer) else "convolution"
        case Dense():
            return "dense"
        case MatrixMultiply():
            return "matrix"
        case Lookup():
            return "table"
        case Interpolate():
            return "interpolate"
        case Activate():
            return "table" if model.kernels[layer.name].constants.table else layer.activation.family
    return type(layer).__name__


def _width(layer: Op, model: QuantizedModel) -> tuple[int, ...]:
    """What tells two kernels of one kind apart: the bits of what it reads and makes, and of its weights."""
    tensors = [model.tensors[name] for name in (*layer.inputs, layer.output)]
    bits = {tensor.params.bits for tensor in tensors if tensor.params is not None}
    weight = 8 * layer.weight.dtype.itemsize if isinstance(layer, Convolution | Dense) else 0
    return (*sorted(bits), weight)


def _up(numbers: float) -> int:
    return math.ceil(numbers)

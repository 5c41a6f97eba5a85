"""Targets, and the coefficients from which a network's instructions, code and stack there are estimated.

Coefficients are instructions for one multiply-accumulate, one window element or one number made. Those marked
MEASURED were counted on emulated CPUs that ran gemedge's own C (ziglang 0.17 -O2; Cortex-M55 arm-none-eabi-gcc 12 -O2):
MLP, CNN, DS-CNN and ViT with GEM in int8, int16x8 and q15, sums fitted by multiply-accumulates and outputs together.
All others are stated guesses, from the instructions that an inner loop needs. Cortex-M7 and M33 execute the M4's
instructions, so its numbers stand for them; they say nothing about cycles.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from gemedge import compact, tabulated
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
    "convolve", "dense", "depthwise", "halves",  # a multiply-accumulate in 32 bits; halves: of 16-bit numbers
    "wide", "depthwise wide", "matrix",  # in 64 bits
    "rescale", "rescale halves",  # a sum becomes an output; halves: of 16-bit numbers
    "move", "pool", "add", "multiply", "softmax", "normalise",
    "table", "interpolate", "gem", "gem step", "segem", "segem step", "fraction", "rational",  # step: for each n more
]  # fmt: skip
_STEPS: tuple[Step, ...] = get_args(Step)


@dataclass(frozen=True, slots=True)
class Target:
    """A CPU. density: bytes of its code over those of a Cortex-M4's. word: bytes of a register."""

    name: str
    costs: Mapping[Step, float]
    density: float
    word: int


def _target(name: str, costs: tuple[float, ...], density: float, word: int = 4) -> Target:
    return Target(name, dict(zip(_STEPS, costs, strict=True)), density, word)


# In the order of the steps.
_M4 = (1.3, 1.3, 6.2, 1.8, 1.6, 18, 17, 36, 100, 2.4, 3.8, 29, 30, 270, 95, 3.5, 12.8, 15, 4, 14.7, 4.5, 15, 270)
_M3 = (3.1, 2.6, 6.4, 2.9, 6, 20, 17, 68, 100, 2.4, 3.8, 29, 30, 270, 95, 3.5, 12.8, 16, 4, 15.5, 4.5, 15, 270)
_M0 = (7.1, 6.3, 16.7, 7.1, 10.8, 36, 21, 105, 170, 4.5, 5, 66, 70, 440, 230, 4.3, 18.9, 75, 45, 66, 45, 22.6, 500)
_M55 = (0.5, 0.5, 6.2, 0.5, 0.6, 18, 17, 36, 100, 2.4, 3.8, 29, 30, 270, 95, 3.5, 12.8, 7.4, 2.3, 8.1, 12, 15, 270)
_RV32 = (4, 3.9, 9.5, 4, 8.4, 24, 15, 60, 105, 3.5, 3.6, 26, 30, 405, 120, 4.3, 16, 24.5, 5.4, 25, 10, 20, 275)
_AVR = (18, 18, 40, 30, 60, 120, 60, 250, 500, 12, 20, 250, 190, 1500, 800, 14, 110, 600, 400, 600, 400, 250, 1500)
TARGETS = {
    target.name: target
    for target in (
        _target("cortex-m0plus", _M0, 1.0),
        _target("cortex-m3", _M3, 1.0),
        _target("cortex-m4", _M4, 1.0),
        _target("cortex-m7", _M4, 1.0),
        _target("cortex-m33", _M4, 1.0),
        _target("cortex-m55", _M55, 1.0),
        _target("rv32imc", _RV32, 0.6),
        _target("avr", _AVR, 1.7, 2),
    )
}
_GUESSED = ("multiply", "fraction", "rational")
_MEASURED: Mapping[str, tuple[Step, ...]] = {
    **{name: tuple(s for s in _STEPS if s not in _GUESSED) for name in ("cortex-m3", "cortex-m4", "rv32imc")},
    "cortex-m0plus": tuple(s for s in _STEPS if s != "multiply"),
    "cortex-m55": ("gem", "gem step", "segem"),
}
MEASURED: frozenset[tuple[str, Step]] = frozenset((name, step) for name, steps in _MEASURED.items() for step in steps)
_SHORT_PRODUCTS = ("cortex-m0plus", "avr")  # a table of the fraction is faster there

# Bytes of code on a Cortex-M4, as the same programs have them; of an activation of 16 bits, for each.
_CODE = {
    "convolution": 3300, "depthwise": 1000, "dense": 1100, "matrix": 1000, "table": 150, "interpolate": 150,
    "Combine": 500, "GemmlowpSum": 600, "Multiply": 500, "Choose": 500, "Concatenate": 500, "MaxPool": 500,
    "AveragePool": 300, "RawAveragePool": 300, "Softmax": 900, "LayerNormalization": 1300, "Embed": 100,
    "Transpose": 400, "Take": 250, "Pad": 300, "Spread": 250, "Clamp": 100,
}  # fmt: skip
_SUMS, _SUMS_WIDE = 2700, 900  # of what makes outputs of sums
_ACTIVATION, _FRACTION, _RATIONAL = 260, 620, 3300
_RUNTIME = 300  # of what all networks need
_CALL = 40  # of calling one layer with its constants
_STACK = {"convolution": 390, "depthwise": 390, "dense": 300, "matrix": 390, "Softmax": 300, "LayerNormalization": 300}
_STACK_WIDE, _STACK_OTHERS, _STACK_CALLS = 150, 150, 100


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
            halves = accumulator_bits(layer, tensors) > 32
            rescale = 0.0 if _is_depthwise(layer) else cost["rescale halves" if halves else "rescale"]
            each = cost[_mac(layer, halves, _is_wide(layer, model))]
            return _up(multiply_accumulates(layer, model) * each + numbers * rescale)
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
            return _up(numbers * 2 * cost["add"])
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
    """Of each kind of kernel and width that the network uses, once, of each activation, and of the calls."""
    kinds = {(kind, _width(layer, model)) for layer in model.layers if (kind := _kind(layer, model))}
    calls = sum(1 for layer in model.layers if _kind(layer, model))
    sums = {_is_wide(layer, model) for layer in model.layers if isinstance(layer, Convolution | Dense)}
    forms = [_form(layer, model, target) for layer in model.layers if isinstance(layer, Activate)]
    of_forms = {"gem": _ACTIVATION, "segem": _ACTIVATION, "fraction": _FRACTION, "table": 0, "rational": 0}
    return target.density * (
        _RUNTIME
        + _CALL * calls
        + sum(_CODE.get(kind, 0) for kind, _ in kinds)
        + sum(_SUMS_WIDE if wide else _SUMS for wide in sums)
        + sum(of_forms[form] for form in forms)
        + (_RATIONAL if "rational" in forms else 0)
    )


def stack_bytes(model: QuantizedModel, target: Target) -> float:
    """Of the call with the deepest kernel."""
    deepest = max((_stack(layer, model) for layer in model.layers), default=0)
    return (_STACK_CALLS + deepest) * (0.75 if target.word == 2 else 1.0)


def _stack(layer: Op, model: QuantizedModel) -> int:
    wide = isinstance(layer, Convolution | Dense) and _is_wide(layer, model)
    return _STACK.get(_kind(layer, model), _STACK_OTHERS) + (_STACK_WIDE if wide else 0)


def _is_wide(layer: Convolution | Dense | MatrixMultiply, model: QuantizedModel) -> bool:
    """Whether its sums were not proven to stay in 32 bits."""
    return layer.accumulator_bound([model.tensors[name] for name in layer.inputs]) >= 1 << 31


def _mac(layer: Convolution | Dense | MatrixMultiply, halves: bool, wide: bool) -> Step:
    if isinstance(layer, MatrixMultiply):
        return "matrix"
    if _is_depthwise(layer):
        return "depthwise wide" if wide else "depthwise"
    if wide or halves:
        return "wide" if wide else "halves"
    return "convolve" if isinstance(layer, Convolution) else "dense"


def _is_depthwise(layer: Convolution | Dense | MatrixMultiply) -> bool:
    return isinstance(layer, Convolution) and layer.groups > 1 and layer.weight.shape[1] == 1


def _activation(layer: Activate, model: QuantizedModel, target: Target) -> float:
    form, cost, n = _form(layer, model, target), target.costs, layer.activation.n or 1
    match form:
        case "gem":
            return cost["gem"] + (n - 1) * cost["gem step"]
        case "segem":
            return cost["segem"] + (n - 1) * cost["segem step"]
    return cost[form]


def _form(layer: Activate, model: QuantizedModel, target: Target) -> Step:
    """What computes the activation, in exported C."""
    kernel = model.kernels[layer.name]
    if kernel.constants.table:
        return "table"
    if target.name in _SHORT_PRODUCTS and tabulated.find(kernel):
        return "fraction"
    if found := compact.find(kernel):
        return "segem" if found.is_segem else "gem"
    return "fraction" if tabulated.find(kernel) else "rational"


def _kind(layer: Op, model: QuantizedModel) -> str:
    """The kind of kernel that runs it; none for what takes no code."""
    match layer:
        case Reshape() | Constant():
            return ""
        case Convolution():
            return "depthwise" if _is_depthwise(layer) else "convolution"
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

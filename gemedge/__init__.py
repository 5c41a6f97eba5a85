"""gemedge takes a network trained with GEM activations to a microcontroller, with integers only.

Importing this package loads NumPy and nothing else.
"""

from gemedge.activation import Activation, Branch, epsilon_from_denominator
from gemedge.errors import (
    ActivationError,
    DataError,
    FormatError,
    GemedgeError,
    GemedgeWarning,
    ModelError,
    OutputError,
    PromiseError,
    QuantizationError,
    UnsupportedError,
    UsageError,
)
from gemedge.fixed import QFormat, QuantParams, Rounding
from gemedge.kernel import FixedActivation

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "ActivationError",
    "Branch",
    "DataError",
    "FixedActivation",
    "FormatError",
    "GemedgeError",
    "GemedgeWarning",
    "ModelError",
    "OutputError",
    "PromiseError",
    "QFormat",
    "QuantParams",
    "QuantizationError",
    "Rounding",
    "UnsupportedError",
    "UsageError",
    "epsilon_from_denominator",
]

"""A kernel as plain JSON values, and back: what is exported, inspected and certified again.

Reading checks the type and the range of every value and runs nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gemedge.activation import Activation
from gemedge.certificate import Certificate
from gemedge.construct import MAX_EXCEPTIONS, Constants, Side
from gemedge.errors import GemedgeError, ModelError
from gemedge.fixed import QuantParams
from gemedge.kernel import FixedActivation
from gemedge.rational import NormalPolynomial, Piece

FORMAT = "gemedge kernel"
VERSION = 1
_POLYNOMIALS = ("plus", "minus", "above", "below")


def to_json(kernel: FixedActivation, certificate: Certificate) -> dict[str, Any]:
    """The kernel and its certificate as values that `json.dumps` takes."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "activation": str(kernel.activation),
        "in": asdict(kernel.in_params),
        "out": asdict(kernel.out_params),
        "certificate": asdict(certificate),
        "constants": asdict(kernel.constants),
    }


def as_bytes(value: Mapping[str, Any]) -> bytes:
    """The file of a stored kernel: JSON, one field a line, the same bytes for the same kernel."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def from_json(value: Mapping[str, Any]) -> tuple[FixedActivation, Certificate]:
    """The kernel with the stored constants and its stored certificate; ModelError names what is wrong."""
    try:
        if value["format"] != FORMAT or value["version"] != VERSION:
            raise ModelError(f"format {value['format']!r:.40} version {value['version']!r:.20} is not a kernel of ours")
        activation = Activation.parse(_text(value["activation"]))
        in_params, out_params = (QuantParams(**value[name]) for name in ("in", "out"))
        kernel = FixedActivation(activation, in_params, out_params, _constants(value["constants"]))
        return kernel, _certificate(value["certificate"])
    except KeyError as error:
        raise ModelError(f"the kernel has no {error.args[0]!r}") from error
    except (TypeError, AttributeError) as error:
        raise ModelError(f"the kernel is not well formed: {error}") from error
    except GemedgeError as error:
        raise ModelError(str(error)) from error


def _constants(value: Mapping[str, Any]) -> Constants:
    table = _integers("table", value["table"], 32, 256)
    sides = tuple(_side(side) for side in _list("sides", value["sides"], 2))
    if (len(table), len(sides)) not in ((256, 0), (0, 2)):
        raise ModelError(f"a kernel has a table of 256 or two sides, not {len(table)} and {len(sides)}")
    pairs = [_integers("exception", pair, 33, 2) for pair in _list("exceptions", value["exceptions"], MAX_EXCEPTIONS)]
    if any(len(pair) != 2 for pair in pairs):
        raise ModelError("an exception is a pair of an input and an output")
    return Constants(table, sides, tuple((pair[0], pair[1]) for pair in pairs))


def _side(value: Mapping[str, Any]) -> Side:
    start, stop, head, tail = (_integer(name, value[name], 33) for name in ("start", "stop", "head", "tail"))
    return Side(start, stop, head, tail, tuple(_piece(piece) for piece in _list("pieces", value["pieces"], 2)))


def _piece(value: Mapping[str, Any]) -> Piece:
    numbers: dict[str, Any] = {
        name: _integer(name, value[name], 63) for name in ("start", "stop", "slope", "offset", "affine_bits")
    }
    if type(value["wide"]) is not bool:
        raise ModelError(f"wide={value['wide']!r:.40} must be true or false")
    polynomials: dict[str, Any] = {name: _polynomial(name, value[name]) for name in _POLYNOMIALS}
    return Piece(form=_text(value["form"]), wide=value["wide"], **numbers, **polynomials)


def _polynomial(name: str, value: Mapping[str, Any] | None) -> NormalPolynomial | None:
    if value is None:
        return None
    parts = (_integers(name, value[part], bits, 200) for part, bits in (("mantissas", 45), ("exponents", 20)))
    return NormalPolynomial(*parts)


def _certificate(value: Mapping[str, Any]) -> Certificate:
    certificate = Certificate(**value)
    for name, wanted in Certificate.__annotations__.items():
        if type(getattr(certificate, name)) is not wanted:
            raise ModelError(f"certificate {name}={getattr(certificate, name)!r:.40} must be {wanted.__name__}")
    return certificate


def _integers(name: str, values: Any, bits: int, most: int) -> tuple[int, ...]:
    return tuple(_integer(name, value, bits) for value in _list(name, values, most))


def _integer(name: str, value: Any, bits: int) -> int:
    if type(value) is not int or not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        raise ModelError(f"{name}={value!r:.40} must be a whole number of {bits} bits")
    return value


def _list(name: str, values: Any, most: int) -> list[Any]:
    if not isinstance(values, list | tuple) or len(values) > most:
        raise ModelError(f"{name} must be a list of {most} values at most")
    return list(values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ModelError(f"{value!r:.40} must be text")
    return value

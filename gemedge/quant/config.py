"""Layers that are quantized otherwise than the rest: a TOML file of rules by name.

    scheme = "int8"              # of the layers that no rule names; --scheme on the command line wins
    rounding = "single"          # likewise

    [[layer]]
    name = "features.0*"         # of a node (or its output, if it has none) or an input; * ? [abc] as in a shell
    scheme = "int16x8"           # of its weights and of what it makes
    range = [-4, 4]              # of what it makes, or instead
    method = "percentile"        # how its range is found
    percentile = 99.9

Where several rules name a layer, each key is taken from the last that has it; of range and method the later one. A
layer that only moves numbers keeps its input's format, and a Relu or Clip of its producer's scheme lends its range to
its producer: a rule that none of the layers it names took is told by `unheeded`.
"""

import math
import tomllib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import onnx_ir as ir

from gemedge.capture.reading import layer_name
from gemedge.errors import DataError, UsageError
from gemedge.fixed import Rounding
from gemedge.model import SCHEMES, QuantizedModel, Scheme
from gemedge.quant.choose import Choice, Method
from gemedge.quant.formats import Formats
from gemedge.quant.ranges import Range

MOST_BYTES = 1 << 20
_SHOWN = 8
_KEYS = {"name": str, "scheme": str, "range": list, "method": str, "percentile": float}


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for the layers whose name is `name` or fits it as a pattern; None leaves a thing as it is."""

    name: str
    scheme: Scheme | None = None
    range: Range | None = None
    method: Method | None = None
    percentile: float | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise UsageError("name: it must not be empty")
        if self.scheme is None and self.range is None and self.method is None:
            raise UsageError("it sets neither scheme nor range nor method")
        if self.scheme is not None and self.scheme not in SCHEMES:
            raise UsageError(f"scheme: {self.scheme!r} is not one of {', '.join(SCHEMES)}")
        if self.range is not None and self.method is not None:
            raise UsageError("range and method exclude each other: a range is given or found")
        if self.percentile is not None and self.method != "percentile":
            raise UsageError('percentile: it needs method = "percentile"')
        if self.method is not None:
            Choice(self.method, 99.99 if self.percentile is None else self.percentile)

    def names(self, layer: str) -> bool:
        """Whether it holds for the layer of this name."""
        return layer == self.name or fnmatchcase(layer, self.name)


@dataclass(frozen=True, slots=True)
class Config:
    """The rules in their order, later ones winning, and the scheme and rounding of all other layers."""

    rules: tuple[Rule, ...] = ()
    scheme: Scheme | None = None
    rounding: Rounding | None = None

    @classmethod
    def from_toml(cls, text: bytes) -> "Config":
        """What a file says. UsageError names the table, the key and what is allowed."""
        if len(text) > MOST_BYTES:
            raise UsageError(f"it is larger than {MOST_BYTES >> 20} MiB, which no configuration is")
        try:
            value = tomllib.loads(text.decode())
        except (ValueError, RecursionError) as error:
            raise UsageError(f"it is not TOML: {str(error).splitlines()[0][:120]}") from error
        _refuse_unknown(value, ("scheme", "rounding", "layer"))
        for key, allowed in (("scheme", SCHEMES), ("rounding", tuple(r.value for r in Rounding))):
            if key in value and value[key] not in allowed:
                raise UsageError(f"{key}: {str(value[key])[:40]!r} is not one of {', '.join(allowed)}")
        tables = value.get("layer", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise UsageError("layer: it must be tables, each begun by [[layer]]")
        rules = tuple(_rule(number, table) for number, table in enumerate(tables, 1))
        return cls(rules, value.get("scheme"), Rounding(value["rounding"]) if "rounding" in value else None)

    def scheme_of(self, layer: str) -> Scheme | None:
        """The scheme that the last rule with one gives a layer; None where there is none."""
        return next((rule.scheme for rule in reversed(self.rules) if rule.scheme and rule.names(layer)), None)

    def check_names(self, model: ir.Model) -> None:
        """UsageError for the first rule that names no node and no input of the model."""
        layers = list(_made_by(model))
        for number, rule in enumerate(self.rules, 1):
            if not any(map(rule.names, layers)):
                shown = ", ".join(map(repr, layers[:_SHOWN])) + (
                    f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
                )
                raise UsageError(f"{_title(number, rule.name)}: name: no layer has it; there are {shown}")

    def choices(self, model: ir.Model, choice: Choice, scheme: Scheme) -> dict[str, Choice]:
        """How the range of a tensor is found, for those where it is otherwise than `choice` of `scheme` says."""
        found: dict[str, Choice] = {}
        for layer, tensors in _made_by(model).items():
            rule, formats = self._ranging(layer), Formats(self.scheme_of(layer) or scheme)
            method = rule.method if rule is not None and rule.method else choice.method
            percentile = rule.percentile if rule is not None and rule.percentile else choice.percentile
            try:
                wanted = Choice(method, percentile, formats.bits, not formats.affine)
            except UsageError as error:
                raise UsageError(f"layer {layer!r}, {formats.scheme}: {error}") from error
            if wanted != choice:
                found |= dict.fromkeys(tensors, wanted)
        return found

    def ranges(self, model: ir.Model) -> dict[str, Range]:
        """The ranges given, by tensor."""
        given: dict[str, Range] = {}
        for layer, tensors in _made_by(model).items():
            rule = self._ranging(layer)
            if rule is not None and rule.range is not None:
                given |= dict.fromkeys(tensors, rule.range)
        return given

    def unheeded(self, model: ir.Model, quantized: QuantizedModel, asked: Set[str]) -> tuple[str, ...]:
        """A remark for each rule that changed nothing. asked: the layers whose scheme `quantize` asked for."""
        made, remarks = _made_by(model), []
        for number, rule in enumerate(self.rules, 1):
            layers = [layer for layer in made if rule.names(layer)]
            if rule.scheme is not None and not asked & set(layers):
                remarks.append(f"{_title(number, rule.name)}: scheme: {_MOVES}")
            tensors = {tensor for layer in layers if layer in asked for tensor in made[layer]}
            if (rule.range or rule.method) and not tensors & quantized.tensors.keys():
                remarks.append(f"{_title(number, rule.name)}: {'range' if rule.range else 'method'}: {_NO_RANGE}")
        return tuple(remarks)

    def _ranging(self, layer: str) -> Rule | None:
        having = (rule for rule in reversed(self.rules) if rule.range or rule.method)
        return next((rule for rule in having if rule.names(layer)), None)


_MOVES = "no layer of this name has a format of its own; name the layer that makes its numbers"
_NO_RANGE = "no layer of this name has a range of its own; name the Relu or Clip that follows, or what makes its input"


def _made_by(model: ir.Model) -> Mapping[str, list[str]]:
    """The tensors that each node makes, by the node's name; each input makes itself."""
    made: dict[str, list[str]] = {value.name or "": [value.name or ""] for value in model.graph.inputs}
    for node in model.graph:
        made.setdefault(layer_name(node), []).extend(value.name or "" for value in node.outputs)
    return made


def _title(number: int, name: str) -> str:
    return f"layer table {number} ({name!r})"


def _rule(number: int, table: dict[str, Any]) -> Rule:
    where = _title(number, table["name"]) if isinstance(table.get("name"), str) else f"layer table {number}"
    try:
        _refuse_unknown(table, tuple(_KEYS))
        if "name" not in table:
            raise UsageError("name: it is missing")
        for key, value in table.items():
            fits = type(value) in (int, float) if key == "percentile" else isinstance(value, _KEYS[key])
            if not fits:
                wanted = {"percentile": "number", "range": "list"}.get(key, "text")
                raise UsageError(f"{key}: {str(value)[:40]!r} is not a {wanted}")
        return Rule(**{**table, **({"range": _range(table["range"])} if "range" in table else {})})
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _range(ends: list[Any]) -> Range:
    numbers = len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    try:
        if not numbers or not all(math.isfinite(float(end)) for end in ends):
            raise UsageError(f"range: {str(ends)[:60]} is not [low, high] of finite numbers")
        return Range(float(ends[0]), float(ends[1]))
    except (DataError, OverflowError) as error:
        raise UsageError(f"range: {str(error)[:120]}") from error


def _refuse_unknown(table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise UsageError(f"key {key[:40]!r} is not one of {', '.join(known)}")

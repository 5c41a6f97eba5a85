"""How a program's inputs and outputs are nested: torch's pytree specs, as JSON within the JSON.

torch looks the types up among those registered with it, and lets some of them decode their own contexts. Tuples,
lists and dicts with plain keys are let through, and nothing else.
"""

import json
from typing import Any

from gemedge.capture.fields import identifier, list_of, read_json, struct, text
from gemedge.errors import ModelError, UnsupportedError

_NESTS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def check_nesting(value: Any) -> str:
    """The text of a nesting of tuples, lists and dicts, written anew."""
    spec = read_json(memoryview(text(value).encode("utf-8", "replace")), "the nesting of its inputs or outputs")
    match spec:
        case [1, dict(root)]:
            return json.dumps([1, _nest(root, 50)])
    raise UnsupportedError("the nesting of its inputs or outputs is of an unknown version")


def _nest(value: Any, depth: int) -> dict[str, Any]:
    checked = struct({"type": lambda kind: kind, "context": lambda context: context, "children_spec": list_of(_same)})(
        value
    )
    kind, context, children = checked["type"], checked["context"], checked["children_spec"]
    if depth == 0:
        raise ModelError("its inputs or outputs are nested over 50 deep")
    if kind is None:
        if context is not None or children:
            raise ModelError("a leaf of its inputs or outputs has parts")
    elif kind not in _NESTS:
        raise UnsupportedError(f"its inputs or outputs are nested in a {kind!r:.80}; tuple, list and dict are allowed")
    elif kind in ("builtins.tuple", "builtins.list"):
        context = "null"
    else:
        context = json.dumps(list_of(identifier)(read_json(memoryview(text(context).encode()), "a dict's keys")))
    return {"type": kind, "context": context, "children_spec": [_nest(child, depth - 1) for child in children]}


def _same(value: Any) -> Any:
    return value

"""The graph of a torch.export archive: JSON held to torch's schema, copied field by field.

What is not in the schema is dropped. What torch would turn into Python source (names of values, arguments and
weights) must be an identifier; what it would import, evaluate or execute (operators, shape expressions, guards)
is checked against a list or a grammar, or left out.
"""

import json
import keyword
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from gemedge.capture.operators import check_operator
from gemedge.capture.symbols import check_expression, check_symbol
from gemedge.capture.tree import MAX_DIMENSIONS
from gemedge.errors import ModelError, UnsupportedError

MAX_BYTES = 1 << 25
_INT64 = 1 << 63
_MAX_SIZE = 1 << 48

DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    34: "uint32",
    35: "uint64",
}
_OTHER_DTYPES = {9: "complex32", 10: "complex64", 11: "complex128"} | dict.fromkeys(range(29, 34), "float8")
_STRIDED = 7

Check: TypeAlias = Callable[[Any], Any]


def read_json(data: memoryview, what: str) -> Any:
    """The JSON value in data. ModelError where it is none, or longer or deeper than any model's."""
    if len(data) > MAX_BYTES:
        raise ModelError(f"{what} has {len(data)} bytes; {MAX_BYTES} are allowed")
    try:
        return json.loads(bytes(data).decode())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what} is not JSON that torch could have written") from error


def write_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# Small checks: each returns the checked value, copied


def struct(required: dict[str, Check], optional: dict[str, Check] | None = None) -> Check:
    """A dict with these fields; others are dropped."""

    def check(value: Any) -> dict[str, Any]:
        _is(value, dict)
        missing = required.keys() - value.keys()
        if missing:
            raise ModelError(f"it lacks the field {min(missing)!r}")
        fields = required | (optional or {})
        return {name: inner(value[name]) for name, inner in fields.items() if name in value}

    return check


def union(cases: dict[str, Check], what: str) -> Check:
    """A dict with exactly one of these fields."""

    def check(value: Any) -> dict[str, Any]:
        _is(value, dict)
        if len(value) != 1:
            raise ModelError(f"{what} has {len(value)} fields instead of one")
        ((name, content),) = value.items()
        if name not in cases:
            raise UnsupportedError(f"{what} of the kind {name[:40]!r} is not what gemedge reads")
        return {name: cases[name](content)}

    return check


def list_of(inner: Check, longest: int = 1_000_000) -> Check:
    def check(value: Any) -> list[Any]:
        _is(value, list)
        if len(value) > longest:
            raise ModelError(f"it has a list of {len(value)} values; {longest} are allowed")
        return [inner(item) for item in value]

    return check


def dict_of(key: Check, inner: Check) -> Check:
    def check(value: Any) -> dict[str, Any]:
        _is(value, dict)
        return {key(name): named(name, inner, item) for name, item in value.items()}

    return check


def named(name: str, inner: Check, value: Any) -> Any:
    """inner(value), with the name before the reason where it raises."""
    try:
        return inner(value)
    except (ModelError, UnsupportedError) as error:
        raise type(error)(f"{name!r:.80}: {error}") from error


def optional(inner: Check) -> Check:
    return lambda value: None if value is None else inner(value)


def boolean(value: Any) -> bool:
    return _is(value, bool)


def whole(value: Any) -> int:
    if type(value) is not int or not -_INT64 <= value < _INT64:
        raise ModelError(f"{value!r:.60} is not a whole number of 64 bits")
    return value


def size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_SIZE:
        raise ModelError(f"{value!r:.60} is not a size or stride from 0 to 2^48")
    return value


def number(value: Any) -> float | str:
    if value in ("Infinity", "-Infinity", "NaN"):  # torch writes these as texts, and reads them with float()
        return str(value)
    return value if type(value) is float else float(whole(value))


def text(value: Any) -> str:
    if type(value) is not str or len(value) > 10_000:
        raise ModelError("it has a text argument that is no text of up to 10000 characters")
    return value


def identifier(value: Any) -> str:
    """A name that torch puts into Python source as it is."""
    if type(value) is not str or not _IDENTIFIER.fullmatch(value) or keyword.iskeyword(value):
        raise ModelError(f"{value!r:.80} is no Python identifier; torch writes no other names into a graph")
    return value


def path(value: Any) -> str:
    """The dotted name of a parameter or buffer."""
    if type(value) is not str or not _PATH.fullmatch(value):
        raise ModelError(f"{value!r:.80} is no name of a parameter; it is made of letters, digits, '_', '-' and dots")
    return value


def _is(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ModelError(f"{value!r:.60} stands where torch writes a {kind.__name__}")
    return value


_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,250}")
_PATH = re.compile(r"[A-Za-z0-9_-]{1,250}(?:\.[A-Za-z0-9_-]{1,250}){0,60}")
_STACK = re.compile(r"(?:[\w@.\[\]']*,[\w@.\[\]']*,[\w.<>]*)(?:;[\w@.\[\]']*,[\w@.\[\]']*,[\w.<>]*)*", re.ASCII)


def dtype(value: Any) -> int:
    if type(value) is not int or value not in DTYPES:
        name = _OTHER_DTYPES.get(value, f"dtype {value!r:.20}") if type(value) is int else f"dtype {value!r:.20}"
        raise UnsupportedError(f"it holds a tensor of {name}; gemedge reads {', '.join(DTYPES.values())}")
    return value


def _layout(value: Any) -> int:
    if type(value) is not int or value != _STRIDED:
        raise UnsupportedError("it holds a sparse tensor; gemedge reads dense ones")
    return value


def _device(value: Any) -> dict[str, Any]:
    kind = _is(value, dict).get("type")
    if kind != "cpu":
        raise UnsupportedError(f"it was exported on the device {kind!r:.20}; export it on the CPU")
    return {"type": "cpu", "index": None}


def _memory_format(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 4:
        raise ModelError(f"{value!r:.20} is no memory format")
    return value


# torch's schema (torch/_export/serde/schema.py), major version 8


def _expression(hint: Check) -> Check:
    return struct({"expr_str": check_expression}, {"hint": optional(hint)})


_hint = union({"as_int": whole, "as_bool": boolean, "as_float": number}, "a hint")
_sym_int = union({"as_expr": _expression(_hint), "as_int": size}, "a size")
_sym_float = union({"as_expr": _expression(_hint), "as_float": number}, "a number")
_sym_bool = union({"as_expr": _expression(_hint), "as_bool": boolean}, "a condition")
_sizes = list_of(_sym_int, MAX_DIMENSIONS)
_meta_fields = struct(
    {
        "dtype": dtype,
        "sizes": _sizes,
        "requires_grad": boolean,
        "device": _device,
        "strides": _sizes,
        "storage_offset": _sym_int,
        "layout": _layout,
    }
)


def tensor_meta(value: Any) -> dict[str, Any]:
    """dtype, sizes, strides, ... of a tensor; sizes may be expressions."""
    checked: dict[str, Any] = _meta_fields(value)
    if len(checked["sizes"]) != len(checked["strides"]):
        raise ModelError(f"a tensor has {len(checked['sizes'])} sizes and {len(checked['strides'])} strides")
    return checked


_tensor = struct({"name": identifier})
_int_argument = union({"as_name": identifier, "as_int": whole}, "a size argument")
_float_argument = union({"as_name": identifier, "as_float": number}, "a number argument")
_bool_argument = union({"as_name": identifier, "as_bool": boolean}, "a condition argument")
_optional_tensor = union({"as_tensor": _tensor, "as_none": boolean}, "an optional tensor")


def _nested_graph(value: Any) -> Any:
    return struct({"name": identifier, "graph": _graph})(value)


_argument = union(
    {
        "as_none": boolean,
        "as_tensor": _tensor,
        "as_tensors": list_of(_tensor),
        "as_int": whole,
        "as_ints": list_of(whole),
        "as_float": number,
        "as_floats": list_of(number),
        "as_string": text,
        "as_strings": list_of(text),
        "as_sym_int": _int_argument,
        "as_sym_ints": list_of(_int_argument),
        "as_scalar_type": dtype,
        "as_memory_format": _memory_format,
        "as_layout": _layout,
        "as_device": _device,
        "as_bool": boolean,
        "as_bools": list_of(boolean),
        "as_sym_bool": _bool_argument,
        "as_sym_bools": list_of(_bool_argument),
        "as_graph": _nested_graph,
        "as_optional_tensors": list_of(_optional_tensor),
        "as_optional_tensor": _optional_tensor,
        "as_sym_float": _float_argument,
        "as_sym_floats": list_of(_float_argument),
        "as_nested_tensors": list_of(list_of(_tensor)),
        "as_int_lists": list_of(list_of(whole)),
        "as_float_lists": list_of(list_of(number)),
    },
    "an argument",
)


def _argument_name(value: Any) -> str:
    return "" if value == "" else identifier(value)


def _argument_kind(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 2:
        raise ModelError(f"{value!r:.20} is no kind of argument")
    return value


def _metadata(value: Any) -> dict[str, str]:
    """Where the node stood in the module, for layer names; source paths and the rest are dropped."""
    stack = _is(value, dict).get("nn_module_stack")
    is_plain = type(stack) is str and len(stack) < 10_000 and _STACK.fullmatch(stack)
    return {"nn_module_stack": stack} if is_plain else {}


_named_argument = struct({"name": _argument_name, "arg": _argument}, {"kind": optional(_argument_kind)})
_node_fields = struct(
    {
        "target": check_operator,
        "inputs": list_of(_named_argument),
        "outputs": list_of(_argument),
        "metadata": _metadata,
    },
    {"is_hop_single_tensor_return": optional(boolean), "name": optional(identifier)},
)


def _node(value: Any) -> Any:
    name = value.get("name") if isinstance(value, dict) else None
    return named(str(name), _node_fields, value) if name else _node_fields(value)


def _nothing(value: Any) -> dict[str, Any]:
    if value != {}:
        raise UnsupportedError("it holds a custom object, which only running its code would restore")
    return {}


_graph = struct(
    {
        "inputs": list_of(_argument),
        "outputs": list_of(_argument),
        "nodes": list_of(_node),
        "tensor_values": dict_of(identifier, tensor_meta),
        "sym_int_values": dict_of(identifier, _sym_int),
        "sym_bool_values": dict_of(identifier, _sym_bool),
    },
    {
        "is_single_tensor_return": boolean,
        "custom_obj_values": _nothing,
        "sym_float_values": dict_of(identifier, _sym_float),
    },
)

_constant = union(
    {"as_none": boolean, "as_int": whole, "as_float": number, "as_string": text, "as_bool": boolean}, "a constant"
)
_input_spec = union(
    {
        "user_input": struct({"arg": _argument}),
        "parameter": struct({"arg": _tensor, "parameter_name": path}),
        "buffer": struct({"arg": _tensor, "buffer_name": path, "persistent": boolean}),
        "tensor_constant": struct({"arg": _tensor, "tensor_constant_name": path}),
        "constant_input": struct({"name": identifier, "value": _constant}),
    },
    "an input",
)
_output_spec = union(
    {
        "user_output": struct({"arg": _argument}),
        "buffer_mutation": struct({"arg": _tensor, "buffer_name": path}),
    },
    "an output",
)
_signature = struct({"input_specs": list_of(_input_spec), "output_specs": list_of(_output_spec)})


# How inputs and outputs are nested, as JSON within the JSON

_NESTS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def _tree_spec(value: Any) -> str:
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


_call_signature = struct(
    {"inputs": list_of(_argument), "outputs": list_of(_argument), "in_spec": _tree_spec, "out_spec": _tree_spec},
    {"forward_arg_names": optional(list_of(identifier))},
)


def _root_call(value: Any) -> list[dict[str, Any]]:
    """The entry of the whole model; those of its parts only serve to take it apart again."""
    for entry in _is(value, list)[:1]:
        if _is(entry, dict).get("fqn") == "":
            return [{"fqn": "", "signature": optional(_call_signature)(entry.get("signature"))}]
    raise ModelError("its module call graph does not begin with the whole model")


def _verifier(value: Any) -> str:
    if value not in ("TRAINING", "ATEN", ""):
        raise UnsupportedError(f"it is of the dialect {value!r:.40}; TRAINING and ATEN are allowed")
    return str(value)


_range = struct({"min_val": optional(whole), "max_val": optional(whole)})
_graph_module = struct({"graph": _graph, "signature": _signature, "module_call_graph": _root_call})
_program = struct(
    {
        "graph_module": _graph_module,
        "opset_version": dict_of(identifier, whole),
        "range_constraints": dict_of(check_symbol, _range),
        "schema_version": struct({"major": whole, "minor": whole}),
    },
    {"verifiers": list_of(_verifier)},
)


def check_program(value: Any) -> dict[str, Any]:
    """A copy of an exported program's JSON that torch may read: nothing in it is imported, evaluated or executed.

    Guards are left out, which torch would execute; so are custom metadata and the torch version.
    """
    try:
        checked: dict[str, Any] = _program(value)
    except RecursionError as error:
        raise ModelError("its graphs are nested too deeply") from error
    major = checked["schema_version"]["major"]
    if major != SCHEMA_MAJOR:
        raise UnsupportedError(f"its graph has the schema version {major}; gemedge reads {SCHEMA_MAJOR}")
    return checked | {"guards_code": []}


SCHEMA_MAJOR = 8

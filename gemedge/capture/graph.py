"""The graph of a torch.export archive: JSON held to torch's schema, copied field by field.

What is not in the schema is dropped. What torch would turn into Python source (names of values, arguments and
weights) must be an identifier; what it would import, evaluate or execute (operators, shape expressions, guards)
is checked against a list or a grammar, or left out.
"""

import re
from typing import Any

from gemedge.capture.fields import (
    Check,
    boolean,
    dict_of,
    exactly,
    identifier,
    list_of,
    named,
    number,
    optional,
    path,
    size,
    struct,
    text,
    union,
    whole,
)
from gemedge.capture.nesting import check_nesting
from gemedge.capture.operators import check_operator
from gemedge.capture.symbols import check_expression, check_symbol
from gemedge.capture.tree import MAX_DIMENSIONS
from gemedge.errors import ModelError, UnsupportedError

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
    kind = exactly(value, dict).get("type")
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


_STACK = re.compile(r"(?:[\w@.\[\]']*,[\w@.\[\]']*,[\w.<>]*)(?:;[\w@.\[\]']*,[\w@.\[\]']*,[\w.<>]*)*", re.ASCII)


def _metadata(value: Any) -> dict[str, str]:
    """Where the node stood in the module, for layer names; source paths and the rest are dropped."""
    stack = exactly(value, dict).get("nn_module_stack")
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


_call_signature = struct(
    {"inputs": list_of(_argument), "outputs": list_of(_argument), "in_spec": check_nesting, "out_spec": check_nesting},
    {"forward_arg_names": optional(list_of(identifier))},
)


def _root_call(value: Any) -> list[dict[str, Any]]:
    """The entry of the whole model; those of its parts only serve to take it apart again."""
    for entry in exactly(value, list)[:1]:
        if exactly(entry, dict).get("fqn") == "":
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

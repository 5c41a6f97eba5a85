"""The three ways an activation is written into an ONNX file.

function   a node of domain ai.gemedge with a model-local function body of standard operators: any runtime runs it,
           and one that knows the node uses its own kernel;
primitive  the standard operators themselves;
custom     the node alone, for runtimes that have a kernel.

The formulas are those of gemedge.activation, operation for operation. A function's body chooses its power by a
chain of If on the attribute n, which a runtime folds away because n is a constant.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import onnx
import onnx.parser
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from gemedge.activation import MAX_N, Activation, Family, segem_limit
from gemedge.capture import schema

Form = Literal["function", "primitive", "custom"]
FORMS: tuple[Form, ...] = get_args(Form)
_FLOAT_TYPES = {ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double", ir.DataType.FLOAT16: "float16"}


def activation_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if schema.is_activation(node)]


def to_form(model: ir.Model, form: Form) -> ir.Model:
    """Write every activation node of the model, in place, in this form; the model is returned.

    The model-local functions of the domain that the model brought are replaced by ours.
    """
    nodes = activation_nodes(model)
    for key in [key for key in model.functions if key[0] == schema.DOMAIN]:
        del model.functions[key]
    opset = model.graph.opset_imports[""]
    if form == "primitive":
        return _inlined(model, nodes, opset)
    for node in nodes:  # kernels want both attributes written
        activation = schema.activation_of(node)
        node.attributes["n"] = ir.AttrInt64("n", activation.n or 1)
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", activation.epsilon)
    if nodes:
        model.graph.opset_imports[schema.DOMAIN] = schema.VERSION
    if form == "function":
        for body in bodies({node.op_type for node in nodes}, opset):
            function = ir.serde.deserialize_function(body)
            model.functions[function.identifier()] = function
    return model


def bodies(op_types: Iterable[str], opset: int) -> list[onnx.FunctionProto]:
    """The functions of these nodes of the domain, quantized or not, and of the operators in their bodies."""
    wanted = set(op_types)
    quantized = sorted(wanted - set(schema.OP_TYPES))
    floating = sorted(wanted - set(quantized) | {schema.QUANTIZED[op_type] for op_type in quantized})
    texts = [_general_body(op_type, opset) for op_type in floating]
    texts += [_quantized_body(op_type, opset) for op_type in quantized]
    return [onnx.parser.parse_function(text) for text in texts]


def _inlined(model: ir.Model, nodes: Iterable[ir.Node], opset: int) -> ir.Model:
    for index, node in enumerate(nodes):
        activation, source = schema.activation_of(node), node.inputs[0]
        dtype = _FLOAT_TYPES.get(source.dtype) if source is not None and source.dtype is not None else None
        body = onnx.parser.parse_function(_special_body(f"Body{index}", activation, dtype, opset))
        for part in body.node:
            part.name = f"{node.name}/{part.output[0]}"
        function = ir.serde.deserialize_function(body)
        model.functions[function.identifier()] = function
        node.op_type = function.name
        node.attributes.clear()
    model.graph.opset_imports[schema.DOMAIN] = schema.VERSION
    InlinePass()(model)
    model.graph.opset_imports.pop(schema.DOMAIN, None)
    return model


def _special_body(name: str, activation: Activation, dtype: str | None, opset: int) -> str:
    """The body for one n, one epsilon and, where it is known, one type."""
    n, family = activation.n or 1, activation.family
    constants = [*_constant("zero", 0.0, dtype), *_constant("one", 1.0, dtype)]
    constants += _constant("scale", activation.epsilon, dtype)
    return _function(name, "", opset, [*constants, *_START[family], *_power(family, n, "p", "", dtype), *_END[family]])


def _general_body(op_type: str, opset: int) -> str:
    """The body for any n and epsilon, any float type."""
    family: Family = "segem" if op_type == "SEGEM" else "gem"
    constants = [*_constant("zero", 0.0), *_constant("one", 1.0)]
    constants += ["scale_f = Constant <value_float: float = @epsilon> ()", "scale = CastLike(scale_f, X)"]
    constants += ["n_value = Constant <value_int: int = @n> ()"]
    chain = ["p = Div(zero, zero)"]  # an impossible n gives NaN
    for n in range(MAX_N, 0, -1):
        chain = _choice(n, _power(family, n, f"p{n}", f"_{n}"), chain)
    return _function(
        op_type, "<n: int = 1, epsilon: float = 1.0>", opset, [*constants, *_START[family], *chain, *_END[family]]
    )


def _quantized_body(op_type: str, opset: int) -> str:
    """The operator between DequantizeLinear and QuantizeLinear; onnxruntime_kernel.c makes a table of the three."""
    return f"""
    <domain: "{schema.DOMAIN}", opset_import: ["": {opset}, "{schema.DOMAIN}": {schema.VERSION}]>
    {op_type} <n: int = 1, epsilon: float = 1.0> (x, x_scale, x_zero_point, y_scale, y_zero_point) => (y) {{
        X = DequantizeLinear(x, x_scale, x_zero_point)
        Y = {schema.DOMAIN}.{schema.QUANTIZED[op_type]} <n: int = @n, epsilon: float = @epsilon> (X)
        y = QuantizeLinear(Y, y_scale, y_zero_point)
    }}"""


def _choice(n: int, taken: Sequence[str], otherwise: Sequence[str]) -> list[str]:
    """Lines that give p the last value of `taken` if n_value is n, else that of `otherwise`."""
    *before, last = otherwise
    other = " ".join([*before, f"other{n} = {last.partition(' = ')[2]}"])
    return [
        f"k{n} = Constant <value_int: int = {n}> ()",
        f"is{n} = Equal(n_value, k{n})",
        f"p = If (is{n}) <then_branch: graph = then{n} () => (p{n}) {{ {' '.join(taken)} }},"
        f" else_branch: graph = else{n} () => (other{n}) {{ {other} }}>",
    ]


_START = {
    "gem": ["r = Max(X, zero)", "q = Div(scale, r)"],
    "segem": ["minus = Neg(X)", "below = Max(minus, zero)", "t_far = Div(below, scale)"],
}
_END = {
    "gem": ["d = Add(one, p)", "Y = Div(r, d)"],
    "segem": [
        "d = Add(one, p)",
        "g = Div(p, d)",
        "floor = Mul(scale, g)",
        "above = Max(X, zero)",
        "Y = Sub(above, floor)",
    ],
}


def _power(family: Family, n: int, result: str, tag: str, dtype: str | None = None) -> list[str]:
    """Lines that give `result` q^(2n) for GEM, and t + ... + t^(2n) for SE-GEM; tag keeps other names apart."""
    if family == "segem":
        return [*_constant(f"limit{tag}", segem_limit(n), dtype), *_rising_sum(n, result, tag)]
    return _even_power(n, result, tag)


def _even_power(n: int, result: str, tag: str) -> list[str]:
    """Multiplied in the order of gemedge.activation.even_power."""
    lines, square, power = [], "q", ""
    for bit in range(n.bit_length()):
        lines.append(f"q{2 << bit}{tag} = Mul({square}, {square})")
        square = f"q{2 << bit}{tag}"
        if n >> bit & 1:
            if power:
                lines.append(f"m{bit}{tag} = Mul({power}, {square})")
            power = f"m{bit}{tag}" if power else square
    return [*lines[:-1], f"{result} = {lines[-1].partition(' = ')[2]}"]


def _rising_sum(n: int, result: str, tag: str) -> list[str]:
    """Horner's rule as in gemedge.activation.rising_sum."""
    lines, total = [f"t{tag} = Min(t_far, limit{tag})"], f"t{tag}"
    for step in range(1, 2 * n):
        product = result if step == 2 * n - 1 else f"h{step}{tag}"
        lines += [f"a{step}{tag} = Add({total}, one)", f"{product} = Mul(a{step}{tag}, t{tag})"]
        total = product
    return lines


def _constant(name: str, value: float, dtype: str | None = None) -> list[str]:
    if dtype is None:
        return [f"{name}_f = Constant <value_float: float = {value!r}> ()", f"{name} = CastLike({name}_f, X)"]
    return [f"{name} = Constant <value: tensor = {dtype} {{ {value!r} }}> ()"]


def _function(name: str, attributes: str, opset: int, lines: Sequence[str]) -> str:
    body = "\n".join(lines)
    return f'<domain: "{schema.DOMAIN}", opset_import: ["": {opset}]> {name} {attributes} (X) => (Y) {{\n{body}\n}}'

"""A second reading of a quantized model's file, from docs/file-format.md alone: NumPy and exact rationals.

Nothing here imports gemedge. Slow and plain on purpose: integers in Python or int64, no BLAS, no tables.
"""

import json
import re
from fractions import Fraction
from math import floor, prod

import numpy as np
import oracle


def read(content: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    graph = json.loads(header.pop("__metadata__")["graph"])
    kinds = {"I8": np.int8, "I16": np.int16, "I64": np.int64}
    arrays = {}
    for name, entry in header.items():
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        arrays[name] = (
            np.frombuffer(content[start:stop], kinds[entry["dtype"]]).reshape(entry["shape"]).astype(np.int64)
        )
    return graph, arrays


def run(content: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor's integers, by name, for float inputs [batch, ...]."""
    graph, arrays = read(content)
    tensors = {tensor["name"]: tensor for tensor in graph["tensors"]}
    known = {}
    for name, x in inputs.items():
        t = tensors[name]
        codes = np.rint(x.astype(np.float64) / t["scale"]) + t["zero_point"]
        known[name] = np.clip(codes, -(2 ** (t["bits"] - 1)), 2 ** (t["bits"] - 1) - 1).astype(np.int64)
    for layer in graph["layers"]:
        constants = {key: arrays[value["tensor"]] for key, value in layer.items() if isinstance(value, dict)}
        given = [known[name] for name in layer["inputs"]]
        given_tensors = [tensors[name] for name in layer["inputs"]]
        function = EVALUATE[layer["operator"]]
        known[layer["output"]] = function(layer | constants, given, given_tensors, tensors[layer["output"]], graph)
    return known


def rescaled(values, mantissa, shift, made, graph) -> np.ndarray:
    """saturate(zero_point + rounded(values * mantissa / 2^shift))."""
    out = np.empty(values.shape, np.int64)
    mantissa, shift = np.broadcast_to(mantissa, values.shape), np.broadcast_to(shift, values.shape)
    for index, value in np.ndenumerate(values):
        m, s = int(mantissa[index]), int(shift[index])
        if graph["rounding"] == "double" and m >= 2**30:
            exponent = 31 - s
            high = floor(Fraction(int(value) * 2 ** max(exponent, 0) * m, 2**31) + Fraction(1, 2))
            part = Fraction(high, 2 ** max(-exponent, 0))
            rounded = floor(abs(part) + Fraction(1, 2)) * (1 if part >= 0 else -1)
        else:
            rounded = floor(Fraction(int(value) * m, 2**s) + Fraction(1, 2))
        out[index] = rounded
    return saturated(out + made["zero_point"], made)


def saturated(values, made):
    limit = 2 ** (made["bits"] - 1)
    return np.clip(values, -limit, limit - 1)


def real_zero_padded(layer, x, tensor, value=None):
    axes = len(layer["strides"])
    pads = [(0, 0), (0, 0)] + [(layer["pads"][a], layer["pads"][a + axes]) for a in range(axes)]
    return np.pad(x, pads, constant_values=tensor["zero_point"] if value is None else value)


def windows(x, spots, kernel, strides, dilations):
    """For each place in the kernel, the slice of x that it meets."""
    for place in np.ndindex(*kernel):
        cut = [
            slice(p * d, p * d + (n - 1) * s + 1, s)
            for p, d, n, s in zip(place, dilations, spots, strides, strict=True)
        ]
        yield place, x[(slice(None), slice(None), *cut)]


def convolution(layer, given, tensors, made, graph):
    padded = real_zero_padded(layer, given[0], tensors[0]) - tensors[0]["zero_point"]
    weight, groups, spots = layer["weight"], layer["groups"], made["shape"][1:]
    outputs, per_group = weight.shape[:2]
    sums = np.zeros((len(padded), outputs, *spots), np.int64)
    for place, x in windows(padded, spots, weight.shape[2:], layer["strides"], layer["dilations"]):
        for o in range(outputs):
            first = o // (outputs // groups) * per_group
            for i in range(per_group):
                sums[:, o] += weight[(o, i, *place)] * x[:, first + i]
    shape = (-1, *[1] * len(spots))
    sums += layer["bias"].reshape(shape)
    return rescaled(sums, layer["mantissa"].reshape(shape), layer["shift"].reshape(shape), made, graph)


def dense(layer, given, tensors, made, graph):
    sums = np.einsum("...i,oi->...o", given[0] - tensors[0]["zero_point"], layer["weight"]) + layer["bias"]
    return rescaled(sums, layer["mantissa"], layer["shift"], made, graph)


def activate(layer, given, tensors, made, graph):
    value = function_of(layer["activation"])
    scale_in, scale_out = Fraction(tensors[0]["scale"]), Fraction(made["scale"])
    codes, places = np.unique(given[0], return_inverse=True)
    exact = [value(scale_in * (int(code) - tensors[0]["zero_point"])) / scale_out for code in codes]
    rounded = np.array([floor(v + Fraction(1, 2)) for v in exact]) + made["zero_point"]
    return saturated(rounded, made)[places].reshape(given[0].shape)


def function_of(text):
    family, numbers = re.match(r"(\w+)\((.*)\)$", text).groups()
    if family == "rational":
        slopes = [Fraction(s) for s in re.findall(r"slope=([-\d/]+)", numbers)]
        return lambda x: x * (slopes[1] if x > 0 else -slopes[0])  # relu and leaky relu
    named = dict(part.split("=") for part in numbers.split(", "))
    n, epsilon = int(named["n"]), Fraction(float(np.float32(named.get("epsilon", "1"))))
    function = oracle.segem if family == "segem" else oracle.gem
    return lambda x: function(n, epsilon, x)


def lookup(layer, given, tensors, made, graph):
    return layer["table"][given[0] + 128]


def interpolate(layer, given, tensors, made, graph):
    index, fraction = np.divmod(given[0] + 32768, 128)
    low, high = layer["table"][index], layer["table"][index + 1]
    return low + np.floor_divide((high - low) * fraction + 64, 128)


def combine(layer, given, tensors, made, graph):
    parts = [(x - t["zero_point"]) * m for x, t, m in zip(given, tensors, layer["mantissa"], strict=True)]
    return rescaled(sum(parts), np.int64(1), layer["shift"], made, {"rounding": "single"})


def multiply(layer, given, tensors, made, graph):
    product = prod([x - t["zero_point"] for x, t in zip(given, tensors, strict=True)])
    return rescaled(product, layer["mantissa"], layer["shift"], made, graph)


def concatenate(layer, given, tensors, made, graph):
    parts = [
        rescaled(x - t["zero_point"], m, s, made, graph)
        for x, t, m, s in zip(given, tensors, layer["mantissa"], layer["shift"], strict=True)
    ]
    return np.concatenate(parts, layer["axis"] + 1)


def max_pool(layer, given, tensors, made, graph):
    padded = real_zero_padded(layer, given[0], tensors[0], value=-(2 ** (tensors[0]["bits"] - 1)))
    parts = windows(padded, made["shape"][1:], layer["kernel"], layer["strides"], [1] * len(layer["kernel"]))
    return np.max([x for _, x in parts], axis=0)


def average_pool(layer, given, tensors, made, graph):
    spots, kernel, ones = made["shape"][1:], layer["kernel"], [1] * len(layer["kernel"])
    padded = real_zero_padded(layer, given[0], tensors[0]) - tensors[0]["zero_point"]
    inside = np.ones_like(given[0][:1, :1])
    counted = real_zero_padded(layer, inside, tensors[0], value=int(layer["count_padding"]))
    sums = sum(x for _, x in windows(padded, spots, kernel, layer["strides"], ones))
    counts = sum(x for _, x in windows(counted, spots, kernel, layer["strides"], ones)) - 1
    return rescaled(sums, layer["mantissa"][counts], layer["shift"][counts], made, graph)


def reshape(layer, given, tensors, made, graph):
    return given[0].reshape(len(given[0]), *layer["shape"])


def transpose(layer, given, tensors, made, graph):
    return given[0].transpose(0, *(axis + 1 for axis in layer["order"]))


def pad(layer, given, tensors, made, graph):
    axes = len(layer["pads"]) // 2
    margins = [(0, 0)] + [(layer["pads"][a], layer["pads"][a + axes]) for a in range(axes)]
    return np.pad(given[0], margins, constant_values=layer["value"])


def constant(layer, given, tensors, made, graph):
    return layer["value"][None]


EVALUATE = {
    "Activate": activate,
    "AveragePool": average_pool,
    "Combine": combine,
    "Concatenate": concatenate,
    "Constant": constant,
    "Convolution": convolution,
    "Dense": dense,
    "Interpolate": interpolate,
    "Lookup": lookup,
    "MaxPool": max_pool,
    "Multiply": multiply,
    "Pad": pad,
    "Reshape": reshape,
    "Transpose": transpose,
}

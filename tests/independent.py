"""A second reading of a quantized model's file, from docs/file-format.md alone: NumPy and exact rationals.

Nothing here imports gemedge. Slow and plain on purpose: integers in Python or int64, no BLAS, no tables.
"""

import json
import re
from fractions import Fraction
from math import floor, isqrt, prod

import numpy as np
import oracle


def read(content: bytes) -> tuple[dict, dict[str, np.ndarray], dict[str, int]]:
    """The graph, its arrays as int64, and the bits in which each was stored."""
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
    widths = {name: int(entry["dtype"][1:]) for name, entry in header.items()}
    return graph, arrays, widths


def run(content: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor's integers, by name, for float inputs [batch, ...]."""
    graph, arrays, widths = read(content)
    tensors = {tensor["name"]: tensor for tensor in graph["tensors"]}
    known = {}
    for name, x in inputs.items():
        t = tensors[name]
        if "scale" not in t:
            known[name] = x.astype(np.int64)
            continue
        codes = np.rint(x.astype(np.float64) / t["scale"]) + t["zero_point"]
        known[name] = np.clip(codes, -(2 ** (t["bits"] - 1)), 2 ** (t["bits"] - 1) - 1).astype(np.int64)
    for layer in graph["layers"]:
        constants = {key: arrays[value["tensor"]] for key, value in layer.items() if isinstance(value, dict)}
        if "weight" in layer:
            constants["weight_bits"] = widths[layer["weight"]["tensor"]]
        given = [known[name] for name in layer["inputs"]]
        given_tensors = [tensors[name] for name in layer["inputs"]]
        function = EVALUATE[layer["operator"]]
        known[layer["output"]] = function(layer | constants, given, given_tensors, tensors[layer["output"]], graph)
    return known


def rescaled(values, mantissa, shift, made, double) -> np.ndarray:
    """saturate(zero_point + rounded(values * mantissa / 2^shift))."""
    return saturated(rounded(values, mantissa, shift, double) + made["zero_point"], made)


def rounded(values, mantissa, shift, double) -> np.ndarray:
    """values * mantissa / 2^shift, rounded once or as gemmlowp does."""
    out = np.empty(values.shape, np.int64)
    mantissa, shift = np.broadcast_to(mantissa, values.shape), np.broadcast_to(shift, values.shape)
    for index, value in np.ndenumerate(values):
        m, s = int(mantissa[index]), int(shift[index])
        if double:
            high = floor(Fraction(int(value) * 2 ** max(31 - s, 0) * m, 2**31) + Fraction(1, 2))
            out[index] = away_from_zero(Fraction(high, 2 ** max(s - 31, 0)))
        else:
            out[index] = floor(Fraction(int(value) * m, 2**s) + Fraction(1, 2))
    return out


def away_from_zero(x: Fraction) -> int:
    """The integer nearest to x, ties away from zero."""
    return floor(abs(x) + Fraction(1, 2)) * (1 if x >= 0 else -1)


def doubled(graph, *bits) -> bool:
    """Whether an operator marked D (no bits given) or d rescales twice."""
    return graph["rounding"] == "double" and all(b == 8 for b in bits)


def by_sample(given):
    """Inputs that broadcast against each other on their shapes without the batch."""
    axes = max(x.ndim for x in given)
    return [x.reshape(len(x), *[1] * (axes - x.ndim), *x.shape[1:]) for x in given]


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
    double = doubled(graph, tensors[0]["bits"], layer["weight_bits"])
    return rescaled(sums, layer["mantissa"].reshape(shape), layer["shift"].reshape(shape), made, double)


def dense(layer, given, tensors, made, graph):
    sums = np.einsum("...i,oi->...o", given[0] - tensors[0]["zero_point"], layer["weight"]) + layer["bias"]
    double = doubled(graph, tensors[0]["bits"], layer["weight_bits"])
    return rescaled(sums, layer["mantissa"], layer["shift"], made, double)


def matrix_multiply(layer, given, tensors, made, graph):
    left, right = by_sample([x - t["zero_point"] for x, t in zip(given, tensors, strict=True)])
    sums = sum(left[..., :, k, None] * right[..., None, k, :] for k in range(left.shape[-1]))
    double = doubled(graph, *(t["bits"] for t in tensors))
    return rescaled(sums, layer["mantissa"], layer["shift"], made, double)


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
    return rescaled(sum(by_sample(parts)), np.int64(1), layer["shift"], made, False)


def gemmlowp_sum(layer, given, tensors, made, graph):
    mantissa, shift, double = layer["mantissa"], layer["shift"], doubled(graph)
    parts = [
        np.sign(mantissa[i]) * rounded((x - t["zero_point"]) * 2 ** layer["left"], abs(mantissa[i]), shift[i], double)
        for i, (x, t) in enumerate(zip(given, tensors, strict=True))
    ]
    return rescaled(sum(by_sample(parts)), mantissa[2], shift[2], made, double)


def multiply(layer, given, tensors, made, graph):
    product = prod(by_sample([x - t["zero_point"] for x, t in zip(given, tensors, strict=True)]))
    return rescaled(product, layer["mantissa"], layer["shift"], made, doubled(graph))


def choose(layer, given, tensors, made, graph):
    condition = layer["condition"][None]
    parts = each_rescaled(layer, given, tensors, made, graph)
    condition, first, second = by_sample([condition, *parts])
    return np.where(condition == 1, first, second)


def each_rescaled(layer, given, tensors, made, graph):
    return [
        rescaled(x - t["zero_point"], m, s, made, doubled(graph))
        for x, t, m, s in zip(given, tensors, layer["mantissa"], layer["shift"], strict=True)
    ]


def concatenate(layer, given, tensors, made, graph):
    parts = each_rescaled(layer, given, tensors, made, graph)
    samples = max(map(len, parts))  # a constant is there once
    parts = [np.broadcast_to(part, (samples, *part.shape[1:])) for part in parts]
    return np.concatenate(parts, layer["axis"] + 1)


def max_pool(layer, given, tensors, made, graph):
    padded = real_zero_padded(layer, given[0], tensors[0], value=-(2 ** (tensors[0]["bits"] - 1)))
    parts = windows(padded, made["shape"][1:], layer["kernel"], layer["strides"], [1] * len(layer["kernel"]))
    return np.max([x for _, x in parts], axis=0)


def average_pool(layer, given, tensors, made, graph):
    spots, kernel, ones = made["shape"][1:], layer["kernel"], [1] * len(layer["kernel"])
    padded = real_zero_padded(layer, given[0], tensors[0]) - tensors[0]["zero_point"]
    sums = sum(x for _, x in windows(padded, spots, kernel, layer["strides"], ones))
    entry = 0
    if any(layer["pads"]) and not layer["count_padding"]:
        entry = insides(layer, given[0], tensors[0], made) - 1
    return rescaled(sums, layer["mantissa"][entry], layer["shift"][entry], made, False)


def insides(layer, x, tensor, made):
    """How many numbers of the input each window holds."""
    inside = real_zero_padded(layer, np.ones_like(x[:1, :1]), tensor, value=0)
    return sum(
        cut for _, cut in windows(inside, made["shape"][1:], layer["kernel"], layer["strides"], [1] * (x.ndim - 2))
    )


def raw_average_pool(layer, given, tensors, made, graph):
    padded = real_zero_padded(layer, given[0], tensors[0], value=0)
    sums = sum(
        x for _, x in windows(padded, made["shape"][1:], layer["kernel"], layer["strides"], [1] * (padded.ndim - 2))
    )
    counts = np.broadcast_to(insides(layer, given[0], tensors[0], made), sums.shape)
    out = np.empty(sums.shape, np.int64)
    for index, total in np.ndenumerate(sums):
        out[index] = away_from_zero(Fraction(int(total), int(counts[index])))
    return out


def softmax(layer, given, tensors, made, graph):
    x = given[0]
    mask = np.broadcast_to(layer["mask"] if layer["mask"].size else 1, x.shape)
    out = np.empty(x.shape, np.int64)
    shift = layer["shift"]
    for row in np.ndindex(x.shape[:-1]):
        largest = max(int(q) for q, there in zip(x[row], mask[row], strict=True) if there)
        e = []
        for q, there in zip(x[row], mask[row], strict=True):
            d = largest - int(q)
            product = int(layer["coarse"][d >> 8]) * int(layer["fine"][d & 255]) if there else 0
            e.append((product + (2 ** (shift - 1) if shift else 0)) >> shift if there else 0)
        out[row] = [floor(Fraction(one * layer["one"], sum(e)) + Fraction(1, 2)) for one in e]
    return saturated(out + made["zero_point"], made)


def layer_normalization(layer, given, tensors, made, graph):
    x = given[0]
    out = np.empty(x.shape, np.int64)
    for row in np.ndindex(x.shape[:-1]):
        q = [int(value) for value in x[row]]
        n, s = len(q), sum(q)
        w = n * sum(value * value for value in q) - s * s + layer["epsilon"]
        u = next(u for u in range(-5, 31) if 2**60 <= Fraction(w) * Fraction(4) ** u < 2**62)
        r = isqrt(floor(Fraction(w) * Fraction(4) ** u))
        v = 2**61 // r
        z = [floor(Fraction((n * value - s) * v) / Fraction(2) ** (41 - u) + Fraction(1, 2)) for value in q]
        out[row] = [
            floor(
                Fraction(z[i] * int(layer["mantissa"][i]) + int(layer["bias"][i]), 2 ** layer["shift"]) + Fraction(1, 2)
            )
            for i in range(n)
        ]
    return saturated(out + made["zero_point"], made)


def embed(layer, given, tensors, made, graph):
    return layer["table"][given[0]]


def take(layer, given, tensors, made, graph):
    return np.take(given[0], layer["places"], layer["axis"] + 1)


def spread(layer, given, tensors, made, graph):
    out = np.full((len(given[0]), *made["shape"]), layer["value"], np.int64)
    out[(slice(None), slice(None), *(slice(None, None, stride) for stride in layer["strides"]))] = given[0]
    return out


def clamp(layer, given, tensors, made, graph):
    return np.minimum(np.maximum(given[0], layer["low"]), layer["high"])


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
    "Choose": choose,
    "Clamp": clamp,
    "Combine": combine,
    "Concatenate": concatenate,
    "Constant": constant,
    "Convolution": convolution,
    "Dense": dense,
    "Embed": embed,
    "GemmlowpSum": gemmlowp_sum,
    "Interpolate": interpolate,
    "LayerNormalization": layer_normalization,
    "Lookup": lookup,
    "MatrixMultiply": matrix_multiply,
    "MaxPool": max_pool,
    "Multiply": multiply,
    "Pad": pad,
    "RawAveragePool": raw_average_pool,
    "Reshape": reshape,
    "Softmax": softmax,
    "Spread": spread,
    "Take": take,
    "Transpose": transpose,
}

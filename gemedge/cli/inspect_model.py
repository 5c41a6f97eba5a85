"""What `gemedge inspect` says of a .gemq file: the network in integers, and its activations certified again."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from gemedge import model_file
from gemedge.errors import FormatError, ModelError, PromiseError
from gemedge.kernel import FixedActivation
from gemedge.model import Op, QuantizedModel
from gemedge.operators import Tensor

HEADER = ("layer", "operator", "output", "weights, bytes")


def is_model(data: bytes) -> bool:
    """That a file begins with a length of 8 bytes and a JSON object, as .gemq does; no text holds a zero byte."""
    return data[8:9] == b"{" and b"\0" in data[:8]


def report(data: bytes | memoryview) -> dict[str, Any]:
    """The model's scheme, borders, layers and kernels, for JSON, and `lines` to print.

    Every distinct kernel is compared with the exact values again. Raises ModelError for a damaged file or a kernel
    that is not the file's, and PromiseError where a kernel rounds an input wrongly.
    """
    model = model_file.load(data)
    try:
        kernels = _certified(model.kernels)
    except FormatError as error:
        raise ModelError(str(error)) from error
    weights = [_weights(layer) for layer in model.layers]
    return {
        "kind": model_file.FORMAT,
        "bytes": len(data),
        "scheme": model.scheme,
        "rounding": model.rounding.value,
        "inputs": [_tensor(name, model.tensors[name]) for name in model.inputs],
        "outputs": [_tensor(name, model.tensors[tensor]) for name, tensor in model.outputs.items()],
        "layers": [
            {
                "name": layer.name,
                "operator": type(layer).__name__,
                "shape": list(model.tensors[layer.output].shape),
                "weight_bytes": size,
            }
            for layer, size in zip(model.layers, weights, strict=True)
        ],
        "kernels": [kernel | {"certificate": asdict(kernel["certificate"])} for kernel in kernels],
        "notes": list(model.notes),
        "lines": _lines(model, kernels, len(data), sum(weights)),
    }


def rows(told: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The layers of a report as cells under HEADER."""
    return [
        (layer["name"], layer["operator"], _shape(layer["shape"]), f"{layer['weight_bytes']:,}")
        for layer in told["layers"]
    ]


def _certified(kernels: Mapping[str, FixedActivation]) -> list[dict[str, Any]]:
    """Each distinct kernel once, with the layers that use it and what certify finds."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for layer, kernel in kernels.items():
        key = (str(kernel.activation), str(kernel.in_params), str(kernel.out_params), kernel.digest)
        if key not in found:
            certificate = kernel.certify()
            if certificate.misrounded:
                raise PromiseError(f"layer {layer!r}: {kernel.activation}: {certificate}")
            found[key] = {"layers": [], "activation": key[0], "in": key[1], "out": key[2], "certificate": certificate}
        found[key]["layers"].append(layer)
    return list(found.values())


def _weights(layer: Op) -> int:
    """Bytes of all numbers that the layer holds: weights, biases, rescalings, tables."""
    return sum(value.nbytes for value in vars(layer).values() if isinstance(value, np.ndarray))


def _tensor(name: str, tensor: Tensor) -> dict[str, Any]:
    told: dict[str, Any] = {"name": name, "shape": ["batch", *tensor.shape]}
    if tensor.params is not None:
        told |= {"params": str(tensor.params), "scale": tensor.params.scale, "zero_point": tensor.params.zero_point}
    return told


def _lines(model: QuantizedModel, kernels: list[dict[str, Any]], size: int, weights: int) -> list[str]:
    borders = [("input", name, model.tensors[name]) for name in model.inputs]
    borders += [("output", name, model.tensors[tensor]) for name, tensor in model.outputs.items()]
    lines = [
        f"{model_file.FORMAT}: {model.scheme}, rounding {model.rounding.value}, {len(model.layers)} layers,"
        f" {weights:,} bytes of weights in {size:,}"
    ]
    lines += [
        f"{kind:<7} {name}: {_shape(['batch', *tensor.shape])} {tensor.params or 'indices'}"
        for kind, name, tensor in borders
    ]
    for kernel in kernels:
        lines.append(
            f"kernel  {kernel['activation']} from {kernel['in']} to {kernel['out']}, {len(kernel['layers'])} x"
        )
        lines.append(f"        certified again: {kernel['certificate']}")
    return [*lines, *(f"note    {note}" for note in model.notes)]


def _shape(sizes: list[Any]) -> str:
    return f"[{', '.join(map(str, sizes))}]"

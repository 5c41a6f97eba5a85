"""What the original model gives on probes: the figures that every exported form is held to."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from gemedge.capture import Captured
from gemedge.capture.inputs import Arrays, probes
from gemedge.errors import DataError, UnsupportedError, reason

Run = Callable[[Arrays], Sequence[np.ndarray]]


def captured(model: ir.Model, example: Arrays, run: Run, notes: Sequence[str] = ()) -> Captured:
    """The model with the outputs that `run`, the original, gives on probes made from the example.

    run takes inputs by name and gives the outputs in the order of the model's. A probe on which the original
    itself fails is left out with a note; DataError where that is the example.
    """
    names = [value.name or "" for value in model.graph.outputs]
    made, expected, remarks = probes(example, _batch_is_free(model)), {}, [*notes, *_weight_notes(model)]
    for name, inputs in made.items():
        try:
            results = run(inputs)
        except Exception as error:
            if name == "example":
                raise DataError(f"the model does not run on the example: {reason(error)}") from error
            remarks.append(f"not compared on {name}: the model itself fails there ({reason(error)})")
        else:
            expected[name] = dict(zip(names, map(np.asarray, results), strict=True))
            _check_types(expected[name])
    return Captured(model, {name: made[name] for name in expected}, expected, tuple(remarks))


def _check_types(outputs: Arrays) -> None:
    for name, array in outputs.items():
        if array.dtype.kind not in "biuf":
            raise UnsupportedError(f"output {name!r} is of type {array.dtype}; it must be bool, integer or float")


def _batch_is_free(model: ir.Model) -> bool:
    firsts = [value.shape[0] if value.shape else None for value in model.graph.inputs]
    return bool(firsts) and len({str(size) for size in firsts}) == 1 and isinstance(firsts[0], ir.SymbolicDim)


def _weight_notes(model: ir.Model) -> list[str]:
    return [
        f"weight {name!r} holds NaN or infinity; it is exported as it is"
        for name, value in model.graph.initializers.items()
        if (tensor := value.const_value) is not None
        and tensor.dtype.is_floating_point()
        and not np.isfinite(tensor.numpy()).all()
    ]

"""A float TensorFlow Lite file against the original: every runtime's outputs beside the original's, on every probe."""

import numpy as np

from gemedge.capture import Captured
from gemedge.errors import UnsupportedError
from gemedge.export import tflite_run
from gemedge.export.check import Difference, badness, compare
from gemedge.export.to_tflite import Written, laid


def check(written: Written, original: Captured) -> list[Difference]:
    """The worst element of every output on every probe in every runtime that takes the file, worst first.

    UnsupportedError where no runtime is installed or none takes it.
    """
    differences: list[Difference] = []
    refused = []
    for runtime in tflite_run.required():
        try:
            differences += _in(runtime, written, original)
        except UnsupportedError as error:
            refused.append(str(error))
    if not differences:
        raise UnsupportedError("; ".join(refused))
    return sorted(differences, key=badness, reverse=True)


def _in(runtime: tflite_run.Runtime, written: Written, original: Captured) -> list[Difference]:
    """All probes in one run, one after another."""
    probes = list(original.probes)
    sizes = [len(next(iter(original.probes[probe].values()))) for probe in probes]
    joined = [np.concatenate([original.probes[probe][value.name] for probe in probes]) for value in written.inputs]
    outputs = tflite_run.run(runtime, written.content, laid(written.inputs, joined), dynamic=written.dynamic)
    found = []
    for value, output, named in zip(written.outputs, outputs, original.model.graph.outputs, strict=True):
        parts = np.split(value.from_memory(output), np.cumsum(sizes)[:-1])
        for probe, part in zip(probes, parts, strict=True):
            expected = original.expected[probe][named.name or ""]
            found.append(compare(f"{probe} in {runtime}", named.name or "", expected, part))
    return found

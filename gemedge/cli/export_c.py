"""gemedge export --format c: a quantized model in, a folder of C sources out."""

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from gemedge.cli import console
from gemedge.errors import DataError, about

if TYPE_CHECKING:
    import numpy as np

    from gemedge.export.c_activations import Choice
    from gemedge.export.c_selftest import Vectors
    from gemedge.model import QuantizedModel

_SAMPLES, _NUMBERS = 4, 1 << 14  # of a self-test where nobody says how many: so few that they fit beside a model


def write(
    model: Path,
    output: Path | None,
    activation: "Choice",
    project: str,
    data: Path | None,
    samples: int | None,
    *,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the sources of a .gemq file into a folder, all or none.

    data: what a self-test's samples come from; None is seeded numbers, the same for each export of the model.
    """
    from gemedge import files, model_file
    from gemedge.capture.archive import open_bytes
    from gemedge.cli import known_code
    from gemedge.export import c_activations, to_c
    from gemedge.export.folder import MODEL, Folder, compiled

    folder = output or model.with_name(f"{model.stem}_c")
    files.refuse_folder(folder, (), force=force)
    with about(model):
        quantized = model_file.load(open_bytes(model))
    given = _given(quantized, data, samples)
    with about(data or model):
        vectors = _vectors(quantized, given)
    with about(model):
        sources = to_c.to_c(quantized, model.stem, vectors, project, activation)  # type: ignore[arg-type]
    runnable = "model.c" in sources  # gemedge run reads folders that hold it themselves
    sources |= {MODEL: model_file.save(quantized)} if runnable else {}
    files.refuse_folder(folder, sources, force=force, inputs=(model, data) if data else (model,))
    name, arena = to_c.symbol(model.stem), to_c.arena_size(quantized)
    files.write_folder(folder, sources, force=force)
    if runnable:
        known_code.remember(Folder(quantized, compiled(sources), name, arena).digest)
    sizes = {str(folder / file): len(content) for file, content in sources.items()}
    forms = dict(Counter(c_activations.described(kernel, activation) for kernel in quantized.kernels.values()))
    if as_json:
        console.print_json({"files": sizes, "format": "c", "symbol": name, "arena": arena, "activations": forms})
    elif not quiet:
        rows = [("function", f"{name}_run"), ("layers", str(len(quantized.layers))), ("arena", f"{arena:,} bytes")]
        rows += [("activations" if i == 0 else "", f"{n} x {form}") for i, (form, n) in enumerate(forms.items())]
        console.print_fields(rows + [("file", f"{path}, {size:,} bytes") for path, size in sizes.items()])


def _given(model: "QuantizedModel", data: Path | None, samples: int | None) -> "dict[str, np.ndarray]":
    """What a self-test runs: the first samples of the data, or seeded ones."""
    import numpy as np

    from gemedge.cli.simulate import open_batches
    from gemedge.probes import probe

    ends = (*model.inputs, *model.outputs.values())
    numbers = sum(math.prod(model.tensors[name].shape) for name in ends)
    wanted = samples or min(_SAMPLES, max(1, _NUMBERS // max(numbers, 1)))
    if data is None:
        made = [probe(model, number) for number in range(wanted)]
        return {name: np.concatenate([one[name] for one in made]) for name in model.inputs}
    batches = open_batches(model, data, batch=wanted, limit=wanted)
    if samples and batches.samples != samples:
        raise DataError(f"{data}: --vectors {samples} of {batches.samples} samples")
    return next(iter(batches))


def _vectors(model: "QuantizedModel", given: "dict[str, np.ndarray]") -> "Vectors":
    """The integers of these samples, and what the simulator gives for them."""
    from gemedge.export.c_selftest import Vectors
    from gemedge.quant.simulate import border, entered, simulate

    return Vectors(entered(model, border(model, given), Counter()), simulate(model, given, raw=True))

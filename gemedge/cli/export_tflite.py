"""gemedge export --format tflite: a quantized model in, a file for LiteRT and TensorFlow Lite Micro out, checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gemedge.cli import console, engines
from gemedge.errors import PromiseError, UnsupportedError, about

if TYPE_CHECKING:
    from gemedge.cli.engines import LayerDifference
    from gemedge.export.tflite_activations import Form
    from gemedge.export.tflite_run import Runtime
    from gemedge.export.to_tflite import Written
    from gemedge.model import QuantizedModel

    Checked = dict[str, list[LayerDifference] | str]  # why, where a runtime is not there or does not take the file

_MOST_LSB = 1  # a layer's, where a runtime rounds by a law of its own


def write(
    model: Path, output: Path | None, gem: str | None, *, check: bool, force: bool, as_json: bool, quiet: bool
) -> None:
    """Write a .gemq file as TensorFlow Lite, after every layer was compared with simulate."""
    from gemedge import files, model_file
    from gemedge.capture.archive import open_bytes
    from gemedge.export import tflite_custom, to_tflite

    target = output or model.with_suffix(".tflite")
    form = cast("Form | None", gem)
    with about(model):
        content = open_bytes(model)
    sources = tflite_custom.FILES if form == "custom" else ()
    for path in (target, *map(target.with_name, sources)):
        files.refuse_existing(path, force=force, inputs=(model,))
    with about(model):
        quantized = model_file.load(content)
        with console.phases(f"gemedge export {model.name}", quiet=quiet or as_json) as on_phase:
            on_phase("writing")
            written = to_tflite.to_tflite(quantized, gem=form)
            on_phase("comparing")
            checked = _checked(quantized, written, form) if check else {}
    contents = {target: written.content}
    if form == "custom":
        contents |= {target.with_name(name): c for name, c in tflite_custom.sources(written.kernels).items()}
    files.write(contents, force=force)
    sizes = {str(path): len(content) for path, content in contents.items()}
    if as_json:
        console.print_json(_summary(quantized, written, sizes, checked))
    elif not quiet:
        console.print_fields(_fields(quantized, written, sizes, checked, form))


def _checked(model: "QuantizedModel", written: "Written", gem: "Form | None") -> "Checked":
    """Each runtime's layers against simulate; PromiseError where one is further off than its law allows.

    No runtime here knows our operator: in place of it the same file with tables is run.
    """
    from gemedge.export import tflite_run, to_tflite

    observed = to_tflite.to_tflite(model, gem="table" if gem == "custom" else gem, observed=True)
    integers = engines.random_integers(model)
    found: Checked = {}
    for runtime in tflite_run.required():
        try:
            made = engines.made_in_tflite(runtime, observed, integers)
            layers = engines.differences(model, integers | made)
            _check_layers(model, runtime, layers, gem)
            if gem != "custom":
                _check_outputs(runtime, engines.made_in_tflite(runtime, written, integers), made)
            found[str(runtime)] = layers
        except UnsupportedError as error:
            found[str(runtime)] = str(error)
    if all(isinstance(layers, str) for layers in found.values()):
        raise UnsupportedError("; ".join(str(why) for why in found.values()))
    return found | {name: f"not compared, as it is not installed: {install}" for name, install in tflite_run.missing()}


def _check_layers(
    model: "QuantizedModel", runtime: "Runtime", layers: "list[LayerDifference]", gem: "Form | None"
) -> None:
    exact = engines.has_our_law(model, runtime)
    for difference in layers:
        most = 0 if exact and not (difference.kind == "Activate" and gem == "float") else _MOST_LSB
        if difference.max_lsb > most:
            raise PromiseError(
                f"layer {difference.layer!r} is off by {difference.max_lsb} LSB in {runtime}; {most} allowed"
            )


def _check_outputs(runtime: "Runtime", own: dict[str, np.ndarray], observed: dict[str, np.ndarray]) -> None:
    """The file has no layers among its outputs; those it has are to be the same as beside the layers."""
    for name, array in own.items():
        if most := int(np.abs(array.astype(np.int64) - observed[name]).max(initial=0)):
            raise PromiseError(f"output {name!r} is off by {most} LSB in {runtime} where no layer is shown beside it")


def _fields(
    model: "QuantizedModel", written: "Written", sizes: dict[str, int], checked: "Checked", gem: "Form | None"
) -> list[tuple[str, str]]:
    rows = border_rows(written)
    rows.append(("integers", f"{model.scheme}, rounding {model.rounding.value}, {len(model.layers)} layers"))
    rows += [("file", f"{path}, {size:,} bytes") for path, size in sizes.items()]
    for runtime, layers in checked.items():
        rows.append((runtime, layers if isinstance(layers, str) else told(layers)))
    if not checked:
        rows.append(("integers in", "not compared (--no-check)"))
    elif gem == "custom":
        rows.append(("", "compared with tables in place of the operator of ours"))
    return rows


def border_rows(written: "Written") -> list[tuple[str, str]]:
    """Name, type, shape and order of axes of each input and output."""
    from gemedge.export.to_tflite import layout_name

    borders = [("input", value) for value in written.inputs] + [("output", value) for value in written.outputs]
    batch = "?" if written.dynamic else "1"
    return [
        (side, f"{value.name}: {value.dtype} [{', '.join([batch, *map(str, value.laid)])}], {layout_name(value)}")
        for side, value in borders
    ]


def borders(written: "Written") -> dict[str, Any]:
    """The same as JSON: axes lists which axis of the model's tensor each axis is."""
    sides = {"inputs": written.inputs, "outputs": written.outputs}
    return {
        side: [{"name": v.name, "type": v.dtype, "shape": [1, *v.laid], "axes": list(v.axes)} for v in values]
        for side, values in sides.items()
    } | {"dynamic": written.dynamic}


def told(layers: "list[LayerDifference]") -> str:
    """How the layers of a runtime compare with simulate's."""
    off = [layer for layer in layers if layer.max_lsb]
    if not off:
        return f"simulate's integers at all {len(layers)} layers"
    worst = off[0]
    return (
        f"{worst.max_lsb} LSB at most, at {len(off)} of {len(layers)} layers; at {worst.layer!r} in"
        f" {worst.share:.2%} of the numbers"
    )


def _summary(model: "QuantizedModel", written: "Written", sizes: dict[str, int], checked: "Checked") -> dict[str, Any]:
    return {
        "files": sizes,
        "format": "tflite",
        "scheme": model.scheme,
        "rounding": model.rounding.value,
        **borders(written),
        "compared": {
            runtime: layers
            if isinstance(layers, str)
            else [{"layer": d.layer, "operator": d.kind, "max_lsb": d.max_lsb, "share": d.share} for d in layers]
            for runtime, layers in checked.items()
        },
    }

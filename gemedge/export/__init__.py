"""Models written for other people's runtimes, each compared with the original before it is handed over."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from gemedge.capture import Captured, Source, capture, capture_module
from gemedge.errors import PromiseError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from gemedge.export.check import Difference
    from gemedge.export.to_tflite import Written

__all__ = ["Exported", "export", "export_checked"]

OPSET_OF_TFLITE = 20  # has Gelu and HardSwish as single operators, as TensorFlow Lite has

Format = Literal["onnx", "tflite"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True, slots=True)
class Exported:
    """The files, by name, with what is known of them. differences is empty where nothing was compared.

    written: of a TensorFlow Lite file, how its inputs and outputs lie in it.
    """

    files: dict[str, bytes]
    captured: Captured
    differences: "tuple[Difference, ...]"
    written: "Written | None" = None


def export(
    model: "nn.Module | str | Path | Source",
    format: Format = "onnx",
    *,
    example: Any = None,
    gem: str | None = None,
    opset: int | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    external_data: bool = False,
    name: str | None = None,
    check: bool = True,
) -> dict[str, bytes]:
    """The files of the exported model, {name: bytes}, compared with the original first.

    model: a torch module (with `example`: a tensor, array, sequence or dict of them), or the path of a model
    file, which is read in a child process with nothing trusted, or a Source. dynamic: {input: {axis: name}},
    the dimensions that may vary; None lets the first one. gem: function, primitive or custom in ONNX, which begins
    with the default; float in TensorFlow Lite. name: of the file, model.onnx or model.tflite by default. Raises
    PromiseError where the comparison fails.
    """
    if isinstance(model, str | Path):
        model = Source(Path(model))
    if not isinstance(model, Source) and example is None:
        raise UsageError("a module does not say its input's shape; give an example")
    opset = opset or OPSET_OF_TFLITE if format == "tflite" else opset
    captured = (
        capture(model, opset=opset)
        if isinstance(model, Source)
        else capture_module(model, example, dynamic=dynamic, opset=opset)
    )
    return export_checked(
        captured,
        format,
        gem=gem,
        external_data=external_data,
        name=name or f"model.{format}",
        check=check,
        confined=isinstance(model, Source),
    ).files


def export_checked(
    captured: Captured,
    format: Format,
    *,
    gem: str | None,
    external_data: bool,
    name: str,
    check: bool,
    confined: bool,
    trust: bool = False,
    on_phase: Callable[[str], None] = lambda _: None,
) -> Exported:
    """The files of a captured model. PromiseError names the worst output where one is out of tolerance."""
    if format not in FORMATS:
        raise UsageError(f"format {format!r} is not one of {', '.join(FORMATS)}")
    if format == "tflite":
        return _tflite(captured, gem=gem, external_data=external_data, name=name, check=check, on_phase=on_phase)
    from gemedge.capture import forms
    from gemedge.export import check as checking
    from gemedge.export.to_onnx import to_onnx

    form = next((form for form in forms.FORMS if form == (gem or "function")), None)
    if form is None:
        raise UsageError(f"gem={gem!r} is not one of {', '.join(forms.FORMS)}")
    on_phase("writing")
    files = to_onnx(captured.model, name, gem=form, external_data=external_data)
    differences: list[Difference] = []
    if check:
        on_phase("comparing")
        differences = (
            checking.check_confined(files, captured, trust=trust) if confined else checking.check(files, captured)
        )
        _refuse_worst(differences)
    return Exported(files, captured, tuple(differences))


def _tflite(
    captured: Captured,
    *,
    gem: str | None,
    external_data: bool,
    name: str,
    check: bool,
    on_phase: Callable[[str], None],
) -> Exported:
    """The float model as a TensorFlow Lite file, compared in every runtime that is installed."""
    from gemedge.export import tflite_check
    from gemedge.export.tflite_float import to_tflite_float

    if gem not in (None, "float"):
        raise UsageError(f"gem={gem!r} is for quantized models; a float model takes float")
    if external_data:
        raise UsageError("a TensorFlow Lite file holds its weights; external data is for ONNX")
    on_phase("writing")
    written = to_tflite_float(captured.model)
    differences: list[Difference] = []
    if check:
        on_phase("comparing")
        differences = tflite_check.check(written, captured)
        _refuse_worst(differences)
    return Exported({name: written.content}, captured, tuple(differences), written)


def _refuse_worst(differences: "list[Difference]") -> None:
    if differences and not differences[0].passes:
        raise PromiseError(f"the exported model differs from the original: {differences[0]}")

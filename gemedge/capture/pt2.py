"""torch.export archives without the parts that could run code.

`torch.export.load` unpickles sample inputs and some weights, evaluates shape expressions, looks operators up by
any dotted name, writes names into Python source and executes guards. So each record is checked here, and only
what was checked, written anew, reaches torch. Everything but `load` is free of torch.
"""

import importlib
import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gemedge.capture import archive, pickled
from gemedge.capture.archive import Archive
from gemedge.capture.calls import check_bools
from gemedge.capture.fields import boolean, dict_of, optional, path, read_json, struct, text, write_json
from gemedge.capture.graph import DTYPES, check_program, tensor_meta
from gemedge.capture.tree import ITEM_SIZES, Tree, check_extent
from gemedge.errors import GemedgeError, ModelError, UnsupportedError

if TYPE_CHECKING:
    import torch

_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_PAYLOADS = {"weights": "weight", "constants": "tensor"}

Records = Mapping[str, memoryview]


def strip(data: bytes | memoryview) -> bytes:
    """The same archive with no pickled part; the same bytes for the same model. `torch.export.load` reads it.

    Raises ModelError for what is damaged or hostile, UnsupportedError for sound archives gemedge does not read.
    """
    return archive.write_archive(check(archive.parse_archive(data).records), "model")


def check(records: Records) -> dict[str, bytes | memoryview]:
    """The records of `strip`: checked, the JSON written anew, what torch would unpickle left out."""
    _check_format(records)
    program = check_program(read_json(records[_MODEL], _MODEL))
    checked: dict[str, bytes | memoryview] = {}
    names: set[str] = set()
    for kind, prefix in _PAYLOADS.items():
        config_name = f"data/{kind}/model_{kind}_config.json"
        if config_name not in records:
            raise ModelError(f"its record {config_name!r} is missing")
        config = _payload_config(read_json(records[config_name], config_name))["config"]
        for name, payload in config.items():
            record = f"data/{kind}/{payload['path_name']}"
            checked[record] = _payload(name, payload, record, prefix, records)
        _check_shared(config)
        names |= config.keys()
        checked[config_name] = write_json({"config": config})
    _check_weights_exist(program, names)
    checked |= {_MODEL: write_json(program), _SAMPLES: b"", "byteorder": b"little", ".data/version": b"6\n"}
    return checked | {"archive_format": b"pt2", "archive_version": b"0"}


def sample_inputs(records: Records) -> tuple[Tree, Records] | None:
    """The example inputs that torch saved, as the tree of a pickle and its records; None where they are not plain."""
    if not len(records.get(_SAMPLES, b"")):
        return None
    try:
        inner = archive.parse_archive(records[_SAMPLES]).records
        tree = pickled.read(inner)
    except GemedgeError:
        return None
    match tree:
        case (tuple(), dict()):
            return tree, inner
    return None


def load(model: Archive, *, on_checked: Callable[[], None] = lambda: None) -> "torch.export.ExportedProgram":
    """The exported program in an archive, with its example inputs where they are plain tensors.

    on_checked is called between our checks and torch. Raises ModelError or UnsupportedError as `strip` does, and
    ModelError with torch's reason where torch refuses.
    """
    checked = check(model.records)
    on_checked()
    import torch

    if b'"torch.ops.gemedge.' in bytes(checked[_MODEL]):
        importlib.import_module("gemedge.nn")  # registers the operators
    watcher = _Watcher()
    logger = logging.getLogger("torch.export")
    logger.addFilter(watcher)
    try:
        with tempfile.TemporaryFile() as file:  # in memory it would be the weights a third time
            archive.write_into(file, checked, "model")
            file.seek(0)
            program = torch.export.load(file)
        program.example_inputs = _example(model.records)
    except Exception as error:
        raise ModelError(f"torch cannot read it: {_reason(watcher.error or error)}") from error
    finally:
        logger.removeFilter(watcher)
    return program


class _Watcher(logging.Filter):
    """Keeps the error that torch.export.load logs and replaces by a worse one."""

    error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        self.error = record.exc_info[1] if record.exc_info else None
        return False


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _example(records: Records) -> Any:
    from gemedge.capture import rebuild

    found = sample_inputs(records)
    try:
        return None if found is None else rebuild.values(*found)
    except GemedgeError:
        return None


def _check_format(records: Records) -> None:
    if bytes(records.get("archive_format", b"")[:10]) != b"pt2":
        raise ModelError("its record 'archive_format' is not 'pt2'")
    version = bytes(records.get("archive_version", b"")[:10])
    if version != b"0":
        raise UnsupportedError(f"it is a torch.export archive of version {version.decode(errors='replace')!r}, not '0'")
    order = bytes(records.get("byteorder", b"little")[:10])
    if order != b"little":
        raise UnsupportedError(
            f"its numbers are in {order.decode(errors='replace')!r} byte order; gemedge reads little"
        )
    models = sorted(name for name in records if name.startswith("models/"))
    if models != [_MODEL]:
        raise UnsupportedError(f"it holds {len(models)} exported programs; gemedge reads one, {_MODEL}")
    for kind in _PAYLOADS:
        if f"data/{kind}/model.pt" in records:
            raise UnsupportedError(f"its {kind} are a pickle, as torch 2.8 and older wrote; export the model again")


_payload_config = struct(
    {
        "config": dict_of(
            path,
            struct(
                {"path_name": text, "is_param": boolean, "use_pickle": boolean, "tensor_meta": optional(tensor_meta)}
            ),
        )
    }
)


def _payload(name: str, payload: dict[str, Any], record: str, prefix: str, records: Records) -> memoryview:
    """The bytes of one weight, which its sizes, strides and offset do not leave."""
    meta = payload["tensor_meta"]
    if payload["use_pickle"] or meta is None or not re.fullmatch(rf"{prefix}_\d{{1,9}}", payload["path_name"]):
        raise ModelError(
            f"its weight {name!r} is stored as a pickle, which could run code; export it as a plain tensor"
        )
    if record not in records:
        raise ModelError(f"its record {record!r} is missing")
    content, dtype = records[record], DTYPES[meta["dtype"]]
    if len(content) % ITEM_SIZES[dtype]:
        raise ModelError(f"its record {record!r} of {len(content)} bytes holds no whole number of {dtype}")
    offset, shape, stride = (_plain(name, meta[field]) for field in ("storage_offset", "sizes", "strides"))
    check_extent(f"record {record!r}", len(content), dtype, offset[0], shape, stride)
    if dtype == "bool":
        check_bools(record, content)
    return content


def _plain(name: str, sizes: Any) -> tuple[int, ...]:
    sizes = sizes if isinstance(sizes, list) else [sizes]
    if not all("as_int" in value for value in sizes):
        raise ModelError(f"its weight {name!r} has a size that is no number")
    return tuple(value["as_int"] for value in sizes)


def _check_shared(config: dict[str, Any]) -> None:
    """Weights of one record must agree on its dtype: torch reads it as that of the first."""
    dtypes: dict[str, int] = {}
    for name, payload in config.items():
        if dtypes.setdefault(payload["path_name"], payload["tensor_meta"]["dtype"]) != payload["tensor_meta"]["dtype"]:
            raise ModelError(f"its weight {name!r} shares a record with one of another dtype")


def _check_weights_exist(program: dict[str, Any], names: set[str]) -> None:
    for spec in program["graph_module"]["signature"]["input_specs"]:
        for field in ("parameter_name", "buffer_name", "tensor_constant_name"):
            for content in spec.values():
                if field in content and content[field] not in names:
                    raise ModelError(f"its graph uses the weight {content[field]!r}, which is not in the archive")

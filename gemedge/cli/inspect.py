"""`gemedge inspect`: what a file of ours is; its certificates are made again and compared."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from gemedge import intervals, stored
from gemedge.cli import inspect_model
from gemedge.cli.console import one_line, print_json, print_table
from gemedge.errors import ModelError, PromiseError, about

LARGEST = 16 << 20
_FOREIGN = "this is no file of ours; inspect reads what `gemedge quantize` and `gemedge activation -o` save"


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path, as_json: bool) -> None:
    """Say what FILE is, and check its certificates again from the file alone."""
    data = _read(file)
    with about(file):
        report = _kind(data)(data)
    if as_json:
        print_json(report)
        return
    for line in report["lines"]:
        click.echo(one_line(line))
    if "layers" in report:
        print_table(inspect_model.HEADER, inspect_model.rows(report))


def _read(file: Path) -> bytes:
    try:
        if not file.is_file():
            found = "a folder" if file.is_dir() else "not a regular file" if file.exists() else "not there"
            raise ModelError(f"{file} is {found}; name a file of ours")
        with file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
            if inspect_model.is_model(data):
                return data + stream.read()
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    if len(data) > LARGEST:
        raise ModelError(f"{file} is larger than {LARGEST >> 20} MiB, which no kernel of ours is")
    return data


def _kind(data: bytes) -> Callable[[bytes], dict[str, Any]]:
    if inspect_model.is_model(data):
        return inspect_model.report
    for begins, reader in READERS.items():
        if data.lstrip()[:1] == begins:
            return reader
    raise ModelError(_FOREIGN)


def _kernel(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"it is not JSON: {one_line(str(error))[:80]}") from error
    if not isinstance(value, dict) or value.get("format") != stored.FORMAT:
        raise ModelError(_FOREIGN)
    kernel, certificate = stored.from_json(value)
    intervals.check(kernel.activation, kernel.in_params, kernel.out_params, kernel.constants)
    again = kernel.certify()
    differing = [name for name, is_now in asdict(again).items() if is_now != getattr(certificate, name)]
    if differing:
        first = differing[0]
        raise PromiseError(
            f"the certificate does not hold: {', '.join(differing)} differ; {first} is stored as"
            f" {getattr(certificate, first)} and is {getattr(again, first)}"
        )
    title = f"{stored.FORMAT}: {kernel.activation} from {kernel.in_params} to {kernel.out_params}"
    return {
        "kind": stored.FORMAT,
        "activation": str(kernel.activation),
        "in": str(kernel.in_params),
        "out": str(kernel.out_params),
        "certificate": asdict(certificate),
        "lines": [title, f"certificate checked again and the same: {certificate}"],
    }


READERS: dict[bytes, Callable[[bytes], dict[str, Any]]] = {b"{": _kernel}

"""How the commands print: tables, one-line messages, and text that came from a file made harmless."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click

from gemedge.errors import OutputError, reason


def one_line(text: str) -> str:
    """The text with every control and unencodable character escaped, on one line."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    encoding = sys.stderr.encoding or "ascii"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def note(message: str, *, quiet: bool) -> None:
    """A line about progress or a warning, on standard error."""
    if not quiet:
        with suppress(OSError):  # nobody reads it, or its disk is full
            click.echo(f"gemedge: {one_line(message)}", err=True)


@contextmanager
def phases(title: str, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Shows what long work is doing: a spinner on a terminal, nothing elsewhere."""
    if quiet or not (sys.stderr and sys.stderr.isatty()):
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status(one_line(title)) as status:
        yield lambda phase: status.update(one_line(f"{title}: {phase}"))


@contextmanager
def progress(title: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Takes how many samples are done: a bar with rate and time left on a terminal, nothing elsewhere."""
    if quiet or not (sys.stderr and sys.stderr.isatty()):
        yield lambda _: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = ("{task.description}", bars.BarColumn(), "{task.completed:,} of", "{task.fields[of]} samples")
    left = (bars.TextColumn("{task.fields[rate]}"), bars.TimeRemainingColumn())
    with bars.Progress(*columns, *left, console=Console(stderr=True)) as shown:
        of = "?" if total is None else f"{total:,}"
        task = shown.add_task(one_line(title).replace("[", r"\["), total=total, of=of, rate="")

        def done(samples: int) -> None:
            shown.update(task, completed=samples)
            speed = shown.tasks[0].speed
            shown.update(task, rate="" if speed is None else f"{speed:,.0f}/s")

        yield done


def print_json(value: Mapping[str, Any]) -> None:
    _print(json.dumps(value, indent=2, allow_nan=False))


def print_fields(rows: Sequence[tuple[str, str]]) -> None:
    """Names and values, one pair a line."""
    width = max(len(name) for name, _ in rows)
    _print("\n".join(f"{name:<{width}}  {one_line(value)}" for name, value in rows))


def _print(text: str) -> None:
    try:
        click.echo(text)
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {reason(error)}") from error


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on standard output; plain text where that is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD if sys.stdout.isatty() else box.ASCII2)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    console.print(table)

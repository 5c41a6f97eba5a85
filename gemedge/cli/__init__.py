"""The command line: the only room that prints, asks, or writes files.

A command lives in its own module, imported when it is called, so that `gemedge --help` is quick.
"""

import importlib
import os
import signal
import sys
import traceback
from contextlib import suppress
from types import FrameType
from typing import Any

import click

from gemedge import __version__
from gemedge.errors import GemedgeError

INTERRUPTED = 130
OUR_BUG = 70

COMMANDS = {
    "activation": "Certify an activation in integers and compare it with the usual tables.",
    "calibrate": "Find the range of every tensor of a model from data.",
    "export": "Write a model as ONNX or TensorFlow Lite, checked, or as C.",
    "inspect": "Say what a file of ours is, and check its certificates again.",
    "quantize": "Turn a model into integers, with data to find its ranges.",
    "report": "Say how far integers are from the float model, why, and what to change.",
    "run": "Run exported C on an emulated target and compare every layer.",
    "simulate": "Run a quantized model with integers only.",
    "verify": "Run a quantized model in every engine there is, and compare every layer.",
}


class _Commands(click.Group):
    """Lists COMMANDS without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"gemedge.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gemedge")
def gemedge() -> None:
    """Take a network trained with GEM activations to a microcontroller, with integers only.

    Exit status: 0 done, 1 a promise was not kept, 2 usage, 3 bad model, 4 unsupported, 5 bad data,
    6 output, 130 interrupted.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    _open_closed_streams()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    status = _status(arguments)
    _flush_streams()
    sys.exit(status)


def _status(arguments: list[str] | None) -> int:
    try:
        gemedge.main(arguments, prog_name="gemedge", standalone_mode=False)
    except GemedgeError as error:
        return _fail(str(error), error.exit_status)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (_Interrupted, KeyboardInterrupt, click.Abort):
        return _fail("interrupted", INTERRUPTED)
    except Exception:
        traceback.print_exc()
        return OUR_BUG
    return 0


def _fail(message: str, status: int) -> int:
    from gemedge.cli.console import one_line

    with suppress(OSError):  # nobody reads it, or its disk is full; the status still says it
        print(f"gemedge: {one_line(message)}", file=sys.stderr, flush=True)
    return status


def _open_closed_streams() -> None:
    """Give the null device to standard streams that are closed: a file of ours must not become one of them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _flush_streams() -> None:
    """What could not be printed is let go: Python would complain at exit and change the status."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


class _Interrupted(BaseException):
    """SIGINT or SIGTERM; click would print an empty line at a KeyboardInterrupt."""


def _interrupt(signum: int, frame: FrameType | None) -> Any:  # noqa: ARG001
    raise _Interrupted

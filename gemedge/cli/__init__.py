"""The command line: the only room that prints, asks, or writes files.

A command lives in its own module, imported when it is called, so that `gemedge --help` is quick.
"""

import importlib
import os
import signal
import sys
import traceback
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
    "export": "Write a model as ONNX, checked against the original.",
    "inspect": "Say what a file of ours is, and check its certificates again.",
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
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(_status(arguments))


def _status(arguments: list[str] | None) -> int:
    try:
        gemedge.main(arguments, prog_name="gemedge", standalone_mode=False)
        sys.stdout.flush()
    except GemedgeError as error:
        return _fail(str(error), error.exit_status)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; nothing was written", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would complain again when it flushes at exit
        return 6
    except Exception:
        traceback.print_exc()
        return OUR_BUG
    return 0


def _fail(message: str, status: int) -> int:
    from gemedge.cli.console import one_line

    print(f"gemedge: {one_line(message)}", file=sys.stderr)
    return status


def _interrupt(signum: int, frame: FrameType | None) -> Any:  # noqa: ARG001
    raise KeyboardInterrupt

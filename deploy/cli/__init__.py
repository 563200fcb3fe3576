"""The command line: one small file a verb, and one place that turns errors into exit codes.

Exit codes: 0 done, 1 a check failed, 2 usage or bad input, 3 a bug of ours, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType

import click

import segdeploy
from segdeploy.cli.adopt import adopt
from segdeploy.cli.bench import bench
from segdeploy.cli.build_engine import build_engine
from segdeploy.cli.calibrate import calibrate
from segdeploy.cli.console import say
from segdeploy.cli.data import data
from segdeploy.cli.deploy import deploy
from segdeploy.cli.doctor import doctor
from segdeploy.cli.evaluate import evaluate
from segdeploy.cli.export import export
from segdeploy.cli.inspect import inspect
from segdeploy.cli.models import models
from segdeploy.cli.optimize import optimize
from segdeploy.cli.predict import predict
from segdeploy.cli.self_test import selftest
from segdeploy.cli.serve_repo import serve_repo
from segdeploy.cli.train import train
from segdeploy.models.errors import first_line
from segdeploy.models.files import unfinished_listeners
from segdeploy.supervisor import INTERRUPTED, complained, heeded_signals, unfinished

_BUG = 3


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(segdeploy.__version__, prog_name="segdeploy")
@click.option("--debug", is_flag=True, help="Show the trace of an error.")
def cli(debug: bool) -> None:
    """Take a dilated-convolution segmentation network from PyTorch to a TensorRT engine."""


for command in (
    *(models, data, train, evaluate, export, optimize, calibrate, build_engine, bench, predict),
    *(deploy, inspect, selftest, adopt, serve_repo, doctor),
):
    cli.add_command(command)


class _Notes(logging.Handler):
    """What was found out on the way, a line each on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record as a note."""
        say(f"note: {record.getMessage()}", err=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:  # as a program
        unfinished_listeners.append(unfinished)
        if "--debug" not in given[:1]:  # libraries warn of what they do for us, not of the user's
            warnings.simplefilter("ignore")
            logging.lastResort = None
        for number in heeded_signals():
            signal.signal(number, _interrupt)
    log, notes = logging.getLogger("segdeploy"), _Notes()
    log.setLevel(logging.INFO)
    log.addHandler(notes)
    try:
        code = _run(given)
    finally:
        log.removeHandler(notes)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head` has read enough; nothing is left to write for
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if arguments is None and code == INTERRUPTED:
        # Libraries' threads may take seconds to end, and what was begun is cleaned up by now.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Clean up as after Ctrl-C, and once: a second signal must not stop the cleaning."""
    for one in heeded_signals():
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments[:1]
    try:
        result = cli.main(arguments, prog_name="segdeploy", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message(), err=True)
        return 2
    except (click.Abort, KeyboardInterrupt) as error:
        # click's Abort stands for a KeyboardInterrupt, which may say what stays.
        told = str(error.__cause__ or error)
        stays = f"; {told}" if told else ""
        return _complain(f"interrupted; nothing was left half-written{stays}", INTERRUPTED)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "segdeploy"
        return _complain(f"{error.format_message()} (see {path} --help)", error.exit_code)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except SystemExit as end:
        # click and rich exit with 1 where a reader, as `head`, has read enough.
        is_pacified = "PacifyFlushWrapper" in type(sys.stdout).__name__  # of click
        if is_pacified or isinstance(end.__context__, BrokenPipeError):
            return 0
        raise
    except BrokenPipeError:
        return 0
    except MemoryError as error:
        return _complain(_out_of_memory(error), 2)
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", 2)
    except Exception as error:
        if debug:
            raise
        if "allocate memory" in str(error):  # PyTorch's allocator has no error of its own
            return _complain(_out_of_memory(error), 2)
        # Input errors and failed checks of all three packages carry their exit code.
        code = getattr(error, "exit_code", None)
        if isinstance(code, int):
            return _complain(str(error), code)
        return _complain(
            f"a bug in segdeploy ({type(error).__name__}: {error}); "
            "`segdeploy --debug ...` shows where; please report it",
            _BUG,
        )
    return result if isinstance(result, int) else 0


def _out_of_memory(error: BaseException) -> str:
    told = f" ({first_line(error)})" if str(error) else ""
    return (
        f"out of memory{told}; give smaller images or a smaller --size, fewer --threads, or more "
        "memory"
    )


def _complain(message: str, code: int) -> int:
    # One line, whatever a library put into its reason.
    say(f"error: {' '.join(message.split())}", err=True)
    complained()
    return code

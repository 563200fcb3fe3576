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
from segdeploy.cli.contract import contract
from segdeploy.cli.data import data
from segdeploy.cli.deploy import deploy
from segdeploy.cli.doctor import doctor
from segdeploy.cli.evaluate import evaluate
from segdeploy.cli.export import export
from segdeploy.cli.headings import Group
from segdeploy.cli.inspect import inspect
from segdeploy.cli.models import models
from segdeploy.cli.optimize import optimize
from segdeploy.cli.predict import predict
from segdeploy.cli.self_test import self_test
from segdeploy.cli.serve_repo import serve_repo
from segdeploy.cli.train import train
from segdeploy.models.errors import first_line
from segdeploy.models.files import unfinished_listeners
from segdeploy.supervisor import INTERRUPTED, heeded_signals, reported_error, unfinished

_BUG = 3
_received: list[int] = []  # signals that ask this process to end


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(segdeploy.__version__, prog_name="segdeploy")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Deploy a semantic-segmentation network: from PyTorch through ONNX to a TensorRT engine.

    Each step checks that its output is still the same network, and writes one self-describing
    file. A typical sequence is train, export, calibrate, build-engine, bench.
    """


for command in (
    *(models, data, train, evaluate, export, optimize, calibrate, build_engine, bench, predict),
    *(deploy, inspect, self_test, adopt, serve_repo, doctor, contract),
):
    cli.add_command(command)


class _Notes(logging.Handler):
    """Print what the library logs, one note a line, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record as a note."""
        say(f"note: {record.getMessage()}", err=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:  # as a program
        unfinished_listeners.append(unfinished)
        if "--debug" not in given[:1]:  # they concern our code
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
    except BrokenPipeError:  # the reader of the pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if arguments is None and code == INTERRUPTED:
        # Threads of libraries may take seconds to end. Unfinished files are removed by now.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Clean up as after Ctrl-C. Further signals are ignored, so that they cannot stop that."""
    _received.append(number)
    for one in heeded_signals():
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run(arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name="segdeploy", standalone_mode=False)
    except (click.Abort, click.ClickException, KeyboardInterrupt) as error:
        return _end_of_click(error)
    except SystemExit as end:
        # click and rich exit with 1 where the reader of a pipe, such as `head`, has closed it.
        is_pacified = "PacifyFlushWrapper" in type(sys.stdout).__name__  # of click
        if is_pacified or isinstance(end.__context__, BrokenPipeError):
            return 0
        raise
    except BrokenPipeError:
        return 0
    except Exception as error:
        if _received:  # a module that was being imported hides the KeyboardInterrupt
            return _print_error("interrupted; nothing was left half-written", INTERRUPTED)
        if "--debug" in arguments[:1] and not isinstance(error, MemoryError):
            raise
        return _print_error(*_message_of(error))
    return result if isinstance(result, int) else 0


def _end_of_click(error: BaseException) -> int:
    """Print why click ended the command: wrong usage, help, or an interruption."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        say(error.format_message(), err=True)
        return 2
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "segdeploy"
        return _print_error(f"{error.format_message()} (see {path} --help)", error.exit_code)
    if isinstance(error, click.ClickException):
        return _print_error(error.format_message(), error.exit_code)
    # click turns a KeyboardInterrupt into Abort; its cause may name the files that stay.
    message = str(error.__cause__ or error)
    stays = f"; {message}" if message else ""
    return _print_error(f"interrupted; nothing was left half-written{stays}", INTERRUPTED)


def _message_of(error: Exception) -> tuple[str, int]:
    """The line and the exit code for an error of a command."""
    # PyTorch's CPU allocator raises RuntimeError.
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return _out_of_memory(error), 2
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", 2
    # Input errors and failed checks of all three packages carry their exit code.
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return str(error), code
    return (
        f"a bug in segdeploy ({type(error).__name__}: {error}); "
        "`segdeploy --debug ...` shows where; please report it",
        _BUG,
    )


def _out_of_memory(error: BaseException) -> str:
    message = f" ({first_line(error)})" if str(error) else ""
    return (
        f"out of memory{message}; give smaller images or a smaller --size, fewer --threads, or "
        "more memory"
    )


def _print_error(message: str, code: int) -> int:
    # One line, whatever a library put into its reason.
    say(f"error: {' '.join(message.split())}", err=True)
    reported_error()
    return code

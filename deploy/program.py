"""The program `segdeploy`: the command line, which runs in a supervised child process."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line, and exit with its code."""
    # Before the command line is loaded, an interrupt needs neither a message nor a cleanup.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from segdeploy.supervisor import supervised

    sys.exit(supervised(_command_line))


def _command_line() -> None:
    from segdeploy.cli import main as command_line

    command_line()

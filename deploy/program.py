"""The program `segdeploy`: the command line, in a process that another one watches over."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line, and exit with its code."""
    # Until the command line is loaded there is nothing to tell, and nothing to clean up.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from segdeploy.supervisor import supervised

    sys.exit(supervised(_command_line))


def _command_line() -> None:
    from segdeploy.cli import main as command_line

    command_line()

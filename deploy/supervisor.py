"""Supervision of a command in a child process, with time and memory limits for untrusted files.

An untrusted graph may loop forever inside a runtime, request all memory, or crash. Python regains
control only when the runtime returns. Every command therefore runs in a child process. The parent
kills the child if it makes no progress for too long, if it uses too much memory, or if it does not
end by itself after an interrupt. The parent then removes the child's unfinished files. This module
imports no third-party package.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from segdeploy.models.memory import free_memory
from segdeploy.models.names import escaped

INTERRUPTED = 130  # the exit code of a command that a signal ended
_BAD_INPUT = 2
_PATIENCE = 1.5  # seconds that an interrupted child has to clean up
_GRACE = 0.2  # seconds to wait for the terminal's own signal to reach the child
_STEP = 0.05  # seconds between two checks
_ENDING = 0.001  # seconds between two checks of a child that has closed its pipe
_ASLEEP = 2.0  # a longer gap in seconds between two checks means that Ctrl-Z suspended us
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHARE = 0.5  # default memory limit as a share of the free memory, without --max-memory

_channel: int | None = None  # the child's end of the pipe; None without a supervising parent


def limit(what: str, timeout: float, max_memory: float | None) -> None:
    """Ask the supervising parent to kill this process beyond these limits; no effect without one.

    `what` is the file that is executed. `timeout` is the longest time between two progress signals,
    in seconds. `max_memory` limits this process and its descendants, in GiB; None means half of the
    free memory.
    """
    most = max_memory if max_memory is not None else _SHARE * free_memory() / 2**30
    _tell("limit", f"{timeout} {most} {what}")


def progressed() -> None:
    """Signal progress to the parent, which restarts the timeout."""
    _tell("progress", "")


def reported_error() -> None:
    """Tell the parent that this process has already printed its error message."""
    _tell("reported_error", "")


def unfinished(path: Path) -> None:
    """Register a temporary file or folder, which the parent removes after this process ends."""
    _tell("unfinished", str(path))


def _tell(kind: str, text: str) -> None:
    if _channel is None:
        return
    line = f"{kind} {text}".replace("\n", "\\n").encode(errors="surrogateescape") + b"\n"
    with contextlib.suppress(OSError):
        os.write(_channel, line)


def supervised(command: Callable[[], None]) -> int:
    """Run `command` in a child process, and return its exit code.

    In the child process this function does not return.
    """
    # Signals are blocked until the handlers that clean up are installed.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    read_end, write_end = os.pipe()
    folder = tempfile.mkdtemp(prefix="segdeploy.")
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _become_child(parent, write_end, folder)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        command()
        sys.exit(0)
    os.close(write_end)
    try:
        watch = _Watch(child, read_end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return watch.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _become_child(parent: int, write_end: int, folder: str) -> None:
    global _channel
    _channel = write_end
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    end_with_parent()
    if os.getppid() != parent:
        os._exit(INTERRUPTED)


def heeded_signals() -> list[signal.Signals]:
    """Return the signals that end a command, except those that `nohup` or the shell ignores."""
    return [one for one in _SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends for any reason (Linux, `prctl`)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _Watch:
    """The parent's view of its child: received messages, limits and exit code."""

    def __init__(self, child: int, read_end: int):
        self._child, self._read_end = child, read_end
        self._pending = b""
        self._what = ""
        self._timeout = self._most = float("inf")
        self._moved = time.monotonic()
        self._stopped: float | None = None
        self._forwards = False
        self._left: list[Path] = []
        self._reason: str | None = None
        self._has_reported = False
        for one in heeded_signals():
            signal.signal(one, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._stopped is None:
            self._stopped = time.monotonic()
            # A terminal signals both processes. Another sender may signal only the parent.
            self._forwards = True

    def wait(self) -> int:
        """Wait until the child ends, and return the exit code for the user."""
        looked = time.monotonic()
        while True:
            done, status = os.waitpid(self._child, os.WNOHANG)
            if done:
                self._read()
                return self._code(status)
            self._read(_STEP)
            now = time.monotonic()
            if now - looked > _ASLEEP:  # Ctrl-Z suspended this process and the child
                self._moved += now - looked
            looked = now
            self._enforce()

    def _read(self, seconds: float = 0.0) -> None:
        with contextlib.suppress(InterruptedError):
            readable, _, _ = select.select([self._read_end], [], [], seconds)
            content = os.read(self._read_end, 1 << 16) if readable else b""
            if readable and not content:  # closed: the child is about to end
                time.sleep(_ENDING)
            lines = (self._pending + content).split(b"\n")
            self._pending = lines.pop()
            for line in lines:
                self._take(*line.decode(errors="surrogateescape").partition(" ")[::2])

    def _take(self, kind: str, text: str) -> None:
        self._moved = time.monotonic()
        if kind == "limit":
            timeout, most, self._what = text.split(" ", 2)
            self._timeout, self._most = float(timeout), float(most) * 2**30
        elif kind == "reported_error":
            self._has_reported = True
        elif kind == "unfinished":
            self._left.append(Path(text))

    def _enforce(self) -> None:
        now = time.monotonic()
        if self._stopped is not None:
            if self._forwards and now - self._stopped > _GRACE:
                _send(self._child, signal.SIGINT)
                self._forwards = False
            if now - self._stopped > _PATIENCE:
                self._end("interrupted; nothing was left half-written")
        elif now - self._moved > self._timeout:
            self._end(
                f"{self._what}: made no progress in {self._timeout:g} s and was stopped; raise the "
                "limit with --timeout, or give another file"
            )
        elif self._most < float("inf") and (taken := _memory_of(self._child)) > self._most:
            self._end(
                f"{self._what}: used {taken / 2**30:.1f} GiB of memory and was stopped; the "
                f"limit is {self._most / 2**30:.1f} GiB; raise it with --max-memory, or give "
                "smaller images or another file"
            )

    def _end(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
            for process in reversed(_family(self._child)):
                _send(process, signal.SIGKILL)

    def _code(self, status: int) -> int:
        os.close(self._read_end)
        code = os.waitstatus_to_exitcode(status)
        for path in self._left:  # finished files were renamed before
            _remove(path)
        if code >= 0 and self._reason is None:
            return code
        if self._stopped is not None:
            message = self._reason or "interrupted"
            return INTERRUPTED if self._has_reported else _print_error(message, INTERRUPTED)
        if self._reason is not None:
            return _print_error(self._reason, _BAD_INPUT)
        name = signal.Signals(-code).name
        where = f"{self._what}: " if self._what else ""
        guess = "the system may be out of memory" if name == "SIGKILL" else (
            "a library crashed on this input; `segdeploy inspect` and ONNX's checker may say more"
        )  # fmt: skip
        return _print_error(f"{where}the process was killed by {name}: {guess}", _BAD_INPUT)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if another run holds it
            path.unlink()
        finally:
            os.close(handle)


def _print_error(message: str, code: int) -> int:
    print(f"error: {escaped(message)}", file=sys.stderr)
    return code


def _send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _family(process: int) -> list[int]:
    """Return the ids of a process and all its descendants, parents first."""
    found = [process]
    for one in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _memory_of(process: int) -> float:
    """Return the memory of a process and its descendants in bytes, without mapped files."""
    total = 0.0
    for one in _family(process):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{one}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total += 1024.0 * int(line.split()[1])
    return total

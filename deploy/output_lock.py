"""Locks on outputs: a second run on a locked output is refused, and the error names the first run.

A single file is written atomically even without a lock. The lock protects content that belongs
together: an engine and its manifest, the steps in a folder, the lines of a ledger.
"""

from __future__ import annotations

import fcntl
import functools
import inspect
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import ParamSpec, TypeVar

from segdeploy.errors import InputError
from segdeploy.models.files import mark_unfinished, short_name
from segdeploy.models.names import escaped

_LONGEST_COMMAND = 200
P = ParamSpec("P")
R = TypeVar("R")


def one_writer(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that it holds `output_lock` on its argument `out` while it runs.

    With `dry_run=True` nothing is written, so no lock is taken.

    Raises:
        InputError: when the decorated function is called while another run holds `out`.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        with nullcontext() if given.get("dry_run") else output_lock(Path(given["out"])):
            return function(*args, **kwargs)

    return alone


@contextmanager
def output_lock(out: Path) -> Iterator[None]:
    """Lock the output `out`, a file or a folder, against other runs while the context is active.

    The lock is a file beside `out` (`.NAME.lock`), locked with `flock`. The kernel releases the
    lock when the process ends, and the lock file is removed on exit. A link and its target share
    one lock. If the lock file's folder is not writable, no lock is taken, and the later write
    reports the error. Under `torchrun` only the first process writes and takes the lock.

    Raises:
        InputError: if another run holds `out`; the message names its process and command.
    """
    path = _lock_path(out) if os.environ.get("RANK", "0") == "0" else None
    handle = _acquired(path, out) if path is not None else None
    try:
        yield
    finally:
        if path is not None and handle is not None:
            path.unlink(missing_ok=True)  # before the release: no run may lock a deleted file
            os.close(handle)


def _lock_path(out: Path) -> Path | None:
    try:
        target = out.resolve()
    except (OSError, RuntimeError, ValueError):
        return None
    name = f".{short_name(target)}.lock"
    if target.parent.is_dir() and os.access(target.parent, os.W_OK):
        return target.parent / name
    # The parent of a mounted folder may not be writable: the lock file then lies in the folder.
    return target / name if target.is_dir() and os.access(target, os.W_OK) else None


def _acquired(path: Path, out: Path) -> int:
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            handle = os.open(path, flags, 0o666)
        except OSError as error:
            raise InputError(f"{path}: cannot be opened as a lock ({error.strerror})") from error
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise InputError(f"{path}: is not a regular file; remove it")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{out}: is being written by {_holder(handle)}; wait for its end, or give "
                    "another output"
                ) from None
            mark_unfinished(path)
            if _is_still(path, handle):
                os.ftruncate(handle, 0)
                os.write(handle, _described().encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the previous holder removed the file between our open and flock


def _is_still(path: Path, handle: int) -> bool:
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (os.fstat(handle).st_dev, os.fstat(handle).st_ino)


def _described() -> str:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:_LONGEST_COMMAND]
    return f"process {os.getpid()} ({command}) since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def _holder(handle: int) -> str:
    message = os.pread(handle, 4 * _LONGEST_COMMAND, 0).decode(errors="replace").strip()
    return escaped(message) or "another process"

"""Safe file access for every command: regular files only, and atomic writes.

The old file stays until the new file is complete. A crash, Ctrl-C or a full disk therefore leaves
either the old or the new file. A device, a FIFO or a socket is never read and never replaced.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from segdeploy.models.errors import ModelInputError


def check_regular(path: Path) -> Path:
    """Refuse an input that is not a regular file (links are followed), before it is opened.

    Opening a FIFO would wait for a writer that may never come.

    Raises:
        ModelInputError: if the input is missing, unreadable, a folder, FIFO, device or socket.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ModelInputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # a loop of links, no permission, a NUL in the name
        raise ModelInputError(f"{path}: cannot be read ({_reason(error)})") from error
    if stat.S_ISDIR(mode):
        raise ModelInputError(f"{path}: is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise ModelInputError(f"{path}: is {_kind(mode)}, not a regular file")
    return path


def check_replaceable(path: Path) -> Path:
    """Return the file that writing to `path` replaces, with links followed.

    Raises:
        ModelInputError: for a device, a FIFO, a socket, a folder, or a loop of links.
    """
    try:
        target = path.resolve()
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelInputError(f"{path}: cannot be written ({_reason(error)})") from error
    if stat.S_ISDIR(mode):
        raise ModelInputError(f"{path}: is a folder; give a file name")
    if not stat.S_ISREG(mode):
        raise ModelInputError(
            f"{path}: is {_kind(mode)}, which is never replaced; give the name of a regular file"
        )
    return target


def mark_unfinished(path: str | Path) -> None:
    """Report a temporary file or folder to the listeners, for removal if this process is killed."""
    for listener in unfinished_listeners:
        listener(Path(path))


unfinished_listeners: list[Callable[[Path], None]] = []


def short_name(path: Path) -> str:
    """Return a path's name, cut to 200 bytes to leave room for a prefix and a suffix."""
    return os.fsencode(path.name)[:200].decode(errors="ignore")


def temporary_folder(beside: Path) -> str:
    """Create a folder with a hidden name beside a path; the caller renames or removes it."""
    folder = tempfile.mkdtemp(prefix=f".{short_name(beside)}.", dir=beside.parent)
    mark_unfinished(folder)
    return folder


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data`, or its pieces, to `path`; a crash leaves either the old or the new file.

    Raises:
        ModelInputError: if `path` exists and is not a regular file.
        OSError: if the disk is full; the old file stays.
    """
    write_together({path: data})


def write_together(contents: Mapping[Path, bytes | Iterable[bytes]]) -> None:
    """Write several files completely, then rename them into place one after another.

    Only a crash between two renames leaves some old and some new files. Every file is complete.

    Raises:
        ModelInputError, OSError: as `write_atomically`.
    """
    waiting: list[tuple[Path, Path]] = []
    targets = {check_replaceable(path): data for path, data in contents.items()}
    try:
        for path, data in targets.items():
            temporary = path.with_name(f".{short_name(path)}.{secrets.token_hex(4)}")
            mark_unfinished(temporary)
            waiting.append((temporary, path))
            _fill(temporary, path, data)
        while waiting:
            temporary, path = waiting[0]
            temporary.replace(path)
            waiting.pop(0)
    finally:
        for temporary, _ in waiting:
            temporary.unlink(missing_ok=True)


def _fill(temporary: Path, path: Path, data: bytes | Iterable[bytes]) -> None:
    try:
        with temporary.open("xb") as file:
            for piece in (data,) if isinstance(data, bytes) else data:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)  # an error from write() does not name the file
        raise


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((name for is_one, name in kinds if is_one(mode)), "something else")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

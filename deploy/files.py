"""Writing files whole or not at all, and naming them by their content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from segdeploy.errors import InputError


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data`, or its pieces, to `path`: a crash leaves the old file or the new one whole."""
    write_together({path: data})


def write_together(contents: Mapping[Path, bytes | Iterable[bytes]]) -> None:
    """Write several files whole, and put them in their places one right after the other.

    Only a crash between two renames leaves some old and some new; each is whole.
    """
    waiting: list[tuple[str, Path]] = []
    try:
        for path, data in contents.items():
            path = path.resolve()  # through a link, to what it points at
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            waiting.append((temporary, path))
            _fill(handle, temporary, path, data)
        while waiting:
            temporary, path = waiting[0]
            Path(temporary).replace(path)
            waiting.pop(0)
    finally:
        for temporary, _ in waiting:
            Path(temporary).unlink(missing_ok=True)


def _fill(handle: int, temporary: str, path: Path, data: bytes | Iterable[bytes]) -> None:
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in (data,) if isinstance(data, bytes) else data:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)  # writing says what went wrong, but not where
        raise
    # mkstemp makes files private; give this one what an ordinary new file would have.
    umask = os.umask(0)
    os.umask(umask)
    Path(temporary).chmod(0o666 & ~umask)


def check_output(
    path: Path, suffix: str | tuple[str, ...] | None = None, *, read_from: Path | None = None
) -> Path:
    """Refuse an output path that could not be written, before any work is done for it.

    Raises:
        InputError: if the folder is missing, the path is a folder, the suffix is another, or it is
            the file `read_from`, which would be lost.
    """
    if read_from is not None and path.exists() and read_from.exists() and path.samefile(read_from):
        raise InputError(f"{path}: is the input itself; give another output")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a file name")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.parent} cannot be written to")
    if suffix is not None and not path.name.endswith(suffix):
        wanted = suffix if isinstance(suffix, str) else " or ".join(suffix)
        raise InputError(f"{path}: the output's name must end in {wanted}")
    return path


def check_input(path: Path) -> Path:
    """Refuse an input file that does not exist.

    Raises:
        InputError: if `path` is no file.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not a file")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

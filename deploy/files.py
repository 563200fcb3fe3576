"""Checks of the user's input and output paths before any work, and content hashes of files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from segdeploy.errors import InputError
from segdeploy.models.files import check_regular as check_input
from segdeploy.models.files import check_replaceable, write_atomically, write_together
from segdeploy.models.names import is_line

__all__ = [
    "check_folder",
    "check_input",
    "check_output",
    "sha256_of_file",
    "write_atomically",
    "write_together",
]

_PIECE = 1 << 20


def check_output(
    path: Path, suffix: str | tuple[str, ...] | None = None, *, read_from: Path | None = None
) -> Path:
    """Refuse an output path that cannot be written, before any work is done.

    Raises:
        InputError: if the folder is missing or not writable, the path is a folder, a device, a FIFO
            or a socket, the suffix is wrong, or the path is the input file `read_from`, which would
            be overwritten.
    """
    if not is_line(path.name):
        raise InputError(f"{path}: its name holds a control character; give another name")
    if read_from is not None and path.exists() and read_from.exists() and path.samefile(read_from):
        raise InputError(f"{path}: is the input itself; give another output")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    folder = check_replaceable(path).parent  # the target's folder, if the path is a link
    if not folder.is_dir():
        raise InputError(f"{path}: is a link into the folder {folder}, which does not exist")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path}: the folder {folder} cannot be written to")
    if suffix is not None and not path.name.endswith(suffix):
        wanted = suffix if isinstance(suffix, str) else " or ".join(suffix)
        raise InputError(f"{path}: the output's name must end in {wanted}")
    return path


def check_folder(folder: Path) -> Path:
    """Refuse an output folder that cannot be created or written to, before any work is done.

    Raises:
        InputError: if the parent folder is missing, the path is a file or a broken link, or the
            folder is not writable.
    """
    if not folder.parent.is_dir():
        raise InputError(f"{folder}: the folder {folder.parent} does not exist; make it first")
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"{folder}: is a broken link; remove it, or give another folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder")
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise InputError(f"{folder}: cannot be written to")
    return folder


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a regular file, which is read in pieces of 1 MiB.

    Raises:
        InputError: if `path` is not a regular file.
    """
    digest = hashlib.sha256()
    with check_input(path).open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()

"""TensorRT's timing cache in a file that several builds may share."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segdeploy.errors import InputError
from segdeploy.files import write_atomically


@contextlib.contextmanager
def shared_timing_cache(path: Path | None, config: Any) -> Iterator[None]:
    """Load the measurements in `path` into a build, and save the build's new measurements there.

    If another build has written the file meanwhile, its measurements are merged under a file lock.

    Raises:
        InputError: if the file is not a timing cache of this TensorRT version and GPU.
    """
    if path is None:
        yield
        return
    held = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(held)
    if cache is None or not config.set_timing_cache(cache, False):
        raise InputError(
            f"{path}: is not a timing cache of this TensorRT and GPU; give another file"
        )
    yield
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        now = path.read_bytes() if path.exists() else b""
        if now != held:
            other = config.create_timing_cache(now)
            if other is not None:
                cache.combine(other, False)
        write_atomically(path, bytes(cache.serialize()))

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
    """Give a build the measurements in `path`, and put there what it adds.

    Another build may write meanwhile: what is in the file by then is merged, under a lock.

    Raises:
        InputError: if the file is no timing cache of this TensorRT and GPU.
    """
    if path is None:
        yield
        return
    held = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(held)
    if cache is None or not config.set_timing_cache(cache, False):
        raise InputError(
            f"{path}: is no timing cache of this TensorRT on this GPU; give another file"
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

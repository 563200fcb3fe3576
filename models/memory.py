"""How much memory there is to have; Python's own means alone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def free_memory() -> float:
    """Bytes that can still be had: of the machine, or of the container that this process is in."""
    free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024.0 * int(next(one for one in lines if one.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        most = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, most - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(free, 0.0)

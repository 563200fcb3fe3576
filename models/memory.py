"""Free memory of the machine or the container, with the Python standard library alone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def free_memory() -> float:
    """Return the free memory in bytes: of the machine, or of the container if that is less."""
    free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024.0 * int(next(one for one in lines if one.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(OSError, ValueError):  # "max" means no limit
        most = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, most - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(free, 0.0)

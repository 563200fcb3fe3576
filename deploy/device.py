"""The GPU of this machine, if there is one."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass

_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")


@dataclass(frozen=True)
class Gpu:
    """A GPU: name, compute capability (such as `sm86`) and, if known, driver version."""

    name: str
    compute_capability: str
    driver: str | None = None


def current_gpu() -> Gpu | None:
    """Return the GPU that a runtime of this process would use; None without a GPU or a driver.

    PyTorch's current device comes first, since PyTorch respects CUDA_VISIBLE_DEVICES. If PyTorch
    sees no GPU, it is the first GPU that nvidia-smi lists.
    """
    listed = _listed()
    try:
        import torch

        if torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            driver = listed.driver if listed else None
            return Gpu(torch.cuda.get_device_name(), f"sm{major}{minor}", driver)
    except Exception:  # a broken PyTorch may raise any exception; nvidia-smi is the fallback
        pass
    return listed


def _listed() -> Gpu | None:
    try:
        ran = subprocess.run(_QUERY, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = ran.stdout.strip().splitlines()
    parts = [part.strip() for part in lines[0].split(",")] if lines else []
    if len(parts) != 3 or not parts[1].replace(".", "").isdigit():
        return None
    return Gpu(parts[0], "sm" + parts[1].replace(".", ""), parts[2])


def host_platform() -> str:
    """Return the operating system and CPU architecture of an engine, such as `linux-x86_64`."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"

"""The GPU of this machine, if there is one."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass

_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, compute capability (`sm86`), and its driver's version if that is known."""

    name: str
    compute_capability: str
    driver: str | None = None


def current_gpu() -> Gpu | None:
    """The GPU that a runtime of this process would use; None without a GPU or a driver.

    That is PyTorch's current device where PyTorch sees one (it knows CUDA_VISIBLE_DEVICES), else
    the first that the driver lists.
    """
    listed = _listed()
    try:
        import torch

        if torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            driver = listed.driver if listed else None
            return Gpu(torch.cuda.get_device_name(), f"sm{major}{minor}", driver)
    except Exception:  # a PyTorch that is half there raises anything: the driver knows, too
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
    """Operating system and processor, which an engine is bound to: `linux-x86_64`."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"

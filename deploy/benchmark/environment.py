"""Description of the machine and packages with which a verdict was measured."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from segdeploy.benchmark.machine import GpuState
from segdeploy.packages import versions

_PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt_rtx_cu13", "tensorrt", "numpy")


@dataclass(frozen=True)
class Environment:
    """Machine and package versions of one run.

    `threads` is None if each runtime chose its own number. `gpu` holds the NVML readings, None
    without a GPU or without `nvidia-ml-py`.
    """

    measured_at: str
    system: str
    cpu: str
    cores: int
    threads: int | None
    python: str
    packages: dict[str, str]
    gpu: GpuState | None = None


def describe_environment(threads: int | None) -> Environment:
    """Describe the current machine and packages."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Environment(
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_name(),
        cores=cores or 1,
        threads=threads,
        python=platform.python_version(),
        packages=versions(*_PACKAGES),
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"

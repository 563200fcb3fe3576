"""Machine state around a measurement, and warnings about conditions that distort latencies."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu/cpu0")
_BUSY = 0.5  # load average per core before the measurement
_STOLEN = 0.02  # fraction of the CPU time
_SLOW = 0.9  # fraction of the highest clock
_REASONS = (
    "SwPowerCap",
    "HwSlowdown",
    "HwThermalSlowdown",
    "SwThermalSlowdown",
    "HwPowerBrakeSlowdown",
)


@dataclass(frozen=True)
class GpuState:
    """NVML readings of one GPU: clocks in MHz, power in W, temperature in degrees Celsius.

    `reasons` are the NVML reasons for a throttled clock. `others` is the number of other compute
    processes on the GPU.
    """

    name: str
    clock: int
    highest_clock: int
    temperature: int
    power: float
    power_limit: float
    default_limit: float
    reasons: tuple[str, ...]
    others: int


@dataclass(frozen=True)
class MachineState:
    """Counters and settings at one moment; None where the system does not provide them.

    `load` is the load average per core. `throttled` counts the scheduler periods throttled by a
    container's CPU limit. `overheated` counts thermal throttling events. `steal` and `ticks` are
    steal time and total time in ticks, from /proc/stat.
    """

    load: float | None
    governor: str | None
    throttled: int | None
    overheated: int | None
    steal: int
    ticks: int
    gpu: GpuState | None


def machine_state() -> MachineState:
    """Read the current state of this machine."""
    cores = os.cpu_count() or 1
    steal, ticks = _stolen()
    return MachineState(
        load=os.getloadavg()[0] / cores if hasattr(os, "getloadavg") else None,
        governor=_text(_CPU / "cpufreq/scaling_governor"),
        throttled=_throttled(),
        overheated=_number(_CPU / "thermal_throttle/package_throttle_count"),
        steal=steal,
        ticks=ticks,
        gpu=_gpu(),
    )


class Watch:
    """Recorder of the machine's state before a measurement, and of the GPU's state during it."""

    def __init__(self) -> None:
        self._before = machine_state()
        self._gpus: list[GpuState] = []

    def during(self, on_burst: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """Wrap `on_burst` to read the GPU's state after each burst, while its clock is raised."""

        def look(done: int, total: int) -> None:
            if self._before.gpu is not None and (state := _gpu()) is not None:
                self._gpus.append(state)
            on_burst(done, total)

        return look

    @property
    def gpu(self) -> GpuState | None:
        """The GPU's state at its lowest clock, with all throttling reasons of the measurement."""
        if not self._gpus:
            return self._before.gpu
        reasons = {reason for state in self._gpus for reason in state.reasons}
        slowest = min(self._gpus, key=lambda state: state.clock)
        return replace(slowest, reasons=tuple(sorted(reasons)))

    def warnings(self) -> list[str]:
        """Return one sentence for each condition that distorts the latencies."""
        return warnings(self._before, replace(machine_state(), gpu=self.gpu))


def warnings(before: MachineState, after: MachineState) -> list[str]:
    """Return one sentence for each condition that distorts the latencies."""
    found = []
    if before.load is not None and before.load > _BUSY:
        found.append(
            f"the machine was busy before the bench (load {before.load:.1f} per core), so the "
            "latencies are not those of an idle machine"
        )
    if before.governor not in (None, "performance"):
        found.append(
            f"the CPU clock is not fixed (governor {before.governor}); set the governor to "
            "performance for repeatable latencies"
        )
    if _grew(before.throttled, after.throttled):
        found.append("the container was throttled by its CPU limit during the bench")
    if _grew(before.overheated, after.overheated):
        found.append("the CPU was thermally throttled during the bench")
    stolen = (after.steal - before.steal) / max(1, after.ticks - before.ticks)
    if stolen > _STOLEN:
        found.append(f"the host took {stolen:.0%} of this machine's CPU time during the bench")
    if after.gpu is not None:
        found += _gpu_warnings(after.gpu)
    return found


def _gpu_warnings(gpu: GpuState) -> list[str]:
    found = []
    if gpu.reasons:
        message = ", ".join(gpu.reasons)
        found.append(f"{gpu.name}: the GPU clock was throttled ({message}) at {gpu.temperature} C")
    elif gpu.clock < _SLOW * gpu.highest_clock:
        found.append(
            f"{gpu.name}: the GPU clock is not locked ({gpu.clock} of {gpu.highest_clock} MHz at "
            "the lowest); lock it with nvidia-smi --lock-gpu-clocks for repeatable latencies"
        )
    if gpu.power_limit < gpu.default_limit:
        found.append(
            f"{gpu.name}: the power limit is {gpu.power_limit:.0f} W instead of the default "
            f"{gpu.default_limit:.0f} W"
        )
    if gpu.others:
        found.append(f"{gpu.name}: {gpu.others} other processes use the GPU")
    return found


def _grew(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def _stolen() -> tuple[int, int]:
    """Return steal ticks and total ticks since the machine started; zeros if unknown."""
    line = (_text(Path("/proc/stat")) or "").partition("\n")[0].split()[1:9]
    ticks = [int(one) for one in line]
    return (ticks[7], sum(ticks)) if len(ticks) == 8 else (0, 0)


def _throttled() -> int | None:
    for path in (Path("/sys/fs/cgroup/cpu.stat"), Path("/sys/fs/cgroup/cpu/cpu.stat")):
        for line in (_text(path) or "").splitlines():
            name, _, value = line.partition(" ")
            if name == "nr_throttled" and value.isdecimal():
                return int(value)
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdecimal() else None


def _gpu() -> GpuState | None:
    """Return the NVML readings of the first visible GPU; None without NVML or a GPU."""
    try:
        import pynvml as nvml
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        handle = nvml.nvmlDeviceGetHandleByIndex(int(visible) if visible.isdecimal() else 0)
        held = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
        others = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return GpuState(
            name=nvml.nvmlDeviceGetName(handle),
            clock=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            highest_clock=nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            temperature=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            power=nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            power_limit=nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
            default_limit=nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1e3,
            reasons=tuple(
                name for name in _REASONS if held & getattr(nvml, f"nvmlClocksEventReason{name}")
            ),
            others=len([one for one in others if one.pid != os.getpid()]),
        )
    except nvml.NVMLError:  # a Jetson or a MIG slice lacks some readings
        return None
    finally:
        nvml.nvmlShutdown()

"""The machine's state before and after a measurement, and what in it makes a latency doubtful."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu/cpu0")
_BUSY = 0.5  # load average a core, before we add ours
_STOLEN = 0.02  # of the time
_SLOW = 0.9  # of the highest clock
_REASONS = (
    "SwPowerCap",
    "HwSlowdown",
    "HwThermalSlowdown",
    "SwThermalSlowdown",
    "HwPowerBrakeSlowdown",
)


@dataclass(frozen=True)
class GpuState:
    """What NVML says of one GPU: clocks in MHz, power in W, temperature in degrees Celsius.

    `reasons` are those for which its clock was held down; `others` how many other processes
    compute on it.
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
    """Counters and settings at one moment; None where the system does not tell.

    `load` is the load average a core; `throttled` counts scheduler periods that a container's CPU
    limit cut short, `overheated` thermal events; `steal` and `ticks` are those of /proc/stat.
    """

    load: float | None
    governor: str | None
    throttled: int | None
    overheated: int | None
    steal: int
    ticks: int
    gpu: GpuState | None


def machine_state() -> MachineState:
    """Read the state of this machine, now."""
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
    """The machine's state when a measurement began, and its GPU's while it ran."""

    def __init__(self) -> None:
        self._before = machine_state()
        self._gpus: list[GpuState] = []

    def during(self, on_burst: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """Look at the GPU after each burst: an idle one says nothing."""

        def look(done: int, total: int) -> None:
            if self._before.gpu is not None and (state := _gpu()) is not None:
                self._gpus.append(state)
            on_burst(done, total)

        return look

    @property
    def gpu(self) -> GpuState | None:
        """The GPU at its slowest, with every reason for which its clock was held down."""
        if not self._gpus:
            return self._before.gpu
        reasons = {reason for state in self._gpus for reason in state.reasons}
        slowest = min(self._gpus, key=lambda state: state.clock)
        return replace(slowest, reasons=tuple(sorted(reasons)))

    def doubts(self) -> list[str]:
        """What a reader of the latencies should know, a sentence each."""
        return doubts(self._before, replace(machine_state(), gpu=self.gpu))


def doubts(before: MachineState, after: MachineState) -> list[str]:
    """What a reader of the latencies should know, a sentence each."""
    found = []
    if before.load is not None and before.load > _BUSY:
        found.append(
            f"the machine was busy before this began (load {before.load:.1f} a core); its "
            "latencies are not those of an idle one"
        )
    if before.governor not in (None, "performance"):
        found.append(
            f"the CPU's clock is not held (governor {before.governor}); set it to performance for "
            "latencies that repeat"
        )
    if _grew(before.throttled, after.throttled):
        found.append("the container's CPU limit cut in while this ran")
    if _grew(before.overheated, after.overheated):
        found.append("the CPU was throttled by heat while this ran")
    stolen = (after.steal - before.steal) / max(1, after.ticks - before.ticks)
    if stolen > _STOLEN:
        found.append(f"the host gave {stolen:.0%} of this machine's time to others while this ran")
    if after.gpu is not None:
        found += _gpu_doubts(after.gpu)
    return found


def _gpu_doubts(gpu: GpuState) -> list[str]:
    found = []
    if gpu.reasons:
        told = ", ".join(gpu.reasons)
        found.append(f"{gpu.name}: its clock was held down ({told}) at {gpu.temperature} C")
    elif gpu.clock < _SLOW * gpu.highest_clock:
        found.append(
            f"{gpu.name}: its clock is not locked ({gpu.clock} of {gpu.highest_clock} MHz at its "
            "slowest); nvidia-smi --lock-gpu-clocks makes latencies repeat"
        )
    if gpu.power_limit < gpu.default_limit:
        found.append(
            f"{gpu.name}: its power limit is {gpu.power_limit:.0f} W, by default "
            f"{gpu.default_limit:.0f} W"
        )
    if gpu.others:
        found.append(f"{gpu.name}: {gpu.others} other processes compute on it")
    return found


def _grew(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def _stolen() -> tuple[int, int]:
    """Ticks that the host took, and all ticks, since the machine started."""
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
    """What NVML says of the first GPU that this process may see; None without NVML or a GPU."""
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
    except nvml.NVMLError:  # a Jetson's, or a MIG slice's, tells only a part
        return None
    finally:
        nvml.nvmlShutdown()

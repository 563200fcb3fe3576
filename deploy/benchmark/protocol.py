"""Measurement settings of a bench."""

from __future__ import annotations

from dataclasses import dataclass, field

from segdeploy.benchmark.latency import SECONDS
from segdeploy.benchmark.sweep import Sweep
from segdeploy.errors import InputError

_SLOWEST = 0.1  # calls per second


@dataclass(frozen=True)
class Protocol:
    """Measurement settings of a bench.

    `seconds` is the total timing duration of each candidate. `fps` paces the calls. `threads` is
    the number of intra-operator threads; where the system allows it, a process is pinned to as many
    cores. `layers` compares one frame layer by layer. `ece` adds the expected calibration error.
    `scales` are measured both as a loop and as one graph. `sweep` varies batch size, threads and
    clients.
    """

    seconds: float = SECONDS
    threads: int | None = None
    fps: float | None = None
    layers: bool = False
    ece: bool = False
    scales: tuple[float, ...] = ()
    sweep: Sweep = field(default_factory=Sweep)

    def check(self) -> None:
        """Refuse settings that cannot be measured.

        Raises:
            InputError: for a duration or pace out of range, or for scale 1 alone.
        """
        if not 0 < self.seconds <= 3600:
            raise InputError(f"--seconds {self.seconds}: must be above 0 and at most 3600")
        if self.fps is not None and not _SLOWEST <= self.fps <= 1000:
            raise InputError(f"--fps {self.fps}: must be {_SLOWEST:g} to 1000 calls per second")
        if self.scales == (1.0,):
            raise InputError("--scales 1: scale 1 is always measured; give several scales")

"""How a bench measures."""

from __future__ import annotations

from dataclasses import dataclass, field

from segdeploy.benchmark.latency import SECONDS
from segdeploy.benchmark.sweep import Sweep
from segdeploy.errors import InputError

_SLOWEST = 0.1  # calls a second


@dataclass(frozen=True)
class Protocol:
    """How a bench measures: `seconds` are each candidate's in all; `fps` paces the calls.

    `threads` are those inside an operator, and as many cores where a process can be pinned.
    `layers` follows a frame layer by layer; `ece` adds the expected calibration error. `scales`
    are run as a loop and as one graph, side by side. `sweep` varies batch, threads and clients.
    """

    seconds: float = SECONDS
    threads: int | None = None
    fps: float | None = None
    layers: bool = False
    ece: bool = False
    scales: tuple[float, ...] = ()
    sweep: Sweep = field(default_factory=Sweep)

    def check(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            InputError: for a pace or scales that mean nothing.
        """
        if not 0 < self.seconds <= 3600:
            raise InputError(f"--seconds {self.seconds}: is above 0, to 3600")
        if self.fps is not None and not _SLOWEST <= self.fps <= 1000:
            raise InputError(f"--fps {self.fps}: is calls a second, {_SLOWEST:g} to 1000")
        if self.scales == (1.0,):
            raise InputError("--scales 1: is what is measured anyway; give several")

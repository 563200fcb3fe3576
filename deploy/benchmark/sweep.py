"""Latency and throughput over batch sizes, threads and concurrent clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from segdeploy.benchmark.failure import Failure
from segdeploy.benchmark.process import Candidate, Process, started
from segdeploy.benchmark.rounds import Answers, burst, first_error, take_turns
from segdeploy.errors import InputError
from segdeploy.ledger import Ledger

KINDS = ("batch", "threads", "clients")
_ROUNDS = 10
_MOST = 256


@dataclass(frozen=True)
class Sweep:
    """Values to vary, one parameter at a time.

    The other parameters stay at 1; threads stay as in the rest of the bench.
    """

    batch: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    clients: tuple[int, ...] = ()

    @staticmethod
    def of(options: Sequence[str]) -> Sweep:
        """Parse options such as `batch=1,2,4`, `threads=1,2` and `clients=1,2`.

        Raises:
            InputError: for an unknown or repeated parameter, or an invalid number.
        """
        found: dict[str, tuple[int, ...]] = {}
        for one in options:
            kind, _, numbers = one.partition("=")
            values = [number for number in numbers.split(",") if number.isdecimal()]
            counts = tuple(sorted({int(value) for value in values}))
            whole = values and len(values) == len(numbers.split(","))
            if kind not in KINDS or not whole or not 1 <= counts[0] <= counts[-1] <= _MOST:
                raise InputError(
                    f"--sweep {one}: give batch=1,2,4 or threads=1,2 or clients=1,2, with numbers "
                    f"from 1 to {_MOST}"
                )
            if kind in found:
                raise InputError(f"--sweep {one}: {kind} is given twice; give it once")
            found[kind] = counts
        return Sweep(**found)


@dataclass(frozen=True)
class Point:
    """Result of one candidate at one value: median latency of a call, and throughput.

    `images_per_second` is the median over the rounds. `failure` is the reason for missing figures,
    such as a static batch.
    """

    candidate: str
    kind: str
    value: int
    median_ms: float | None = None
    images_per_second: float | None = None
    failure: str | None = None


def run_sweep(
    candidates: Sequence[Candidate],
    sweep: Sweep,
    *,
    seconds: float,
    threads: int | None,
    ledger: Ledger,
    identities: Sequence[str],
    on_burst: Callable[[int, int], None] = lambda done, total: None,
) -> list[Point]:
    """Measure all candidates at each value in interleaved rounds, for `seconds` each in total."""
    groups = [(threads, [(kind, n) for kind in ("batch", "clients") for n in getattr(sweep, kind)])]
    groups += [(cores, [("threads", cores)]) for cores in sweep.threads]
    points: list[Point] = []
    total = sum(len(settings) for _, settings in groups)
    done = 0
    for cores, settings in groups:
        with started(candidates if settings else (), cores) as workers:
            for kind, value in settings:
                varied = {} if kind == "threads" else {kind: value}
                answers = take_turns(
                    workers,
                    _ROUNDS,
                    burst(seconds / _ROUNDS, **varied),
                    ledger=ledger,
                    identities=[f"{one} on {cores} threads" for one in identities],
                )
                points += [
                    _point(candidate.name, kind, value, worker, held)
                    for candidate, worker, held in zip(candidates, workers, answers, strict=True)
                ]
                done += 1
                on_burst(done, total)
    return points


def _point(name: str, kind: str, value: int, worker: Process | Failure, held: Answers) -> Point:
    if isinstance(worker, Failure):
        return Point(name, kind, value, failure=worker.reason)
    if (refused := first_error(held)) is not None:
        return Point(name, kind, value, failure=refused)
    calls = np.concatenate([one["times"]["network"] for one in held])
    batch = value if kind == "batch" else 1
    speeds = [batch * len(one["times"]["network"]) / one["wall"] for one in held]
    return Point(name, kind, value, float(np.median(calls) * 1e3), float(np.median(speeds)))

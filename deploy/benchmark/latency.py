"""Latency: each candidate in its own process, bursts interleaved, so that noise hits all alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.benchmark.worker import STAGES, START, spec_to_json
from segdeploy.errors import InputError
from segdeploy.network import ModelSpec

ROUNDS = 7
SECONDS = 5.0
_DRAWS = 2000


@dataclass(frozen=True)
class Candidate:
    """A network to bench, and the runtime to bench it with."""

    name: str
    spec: ModelSpec
    backend: str


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the reference; 95 % of resampled rounds lie in between.

    `is_clear` is False where the interval holds 1: this run can see no difference.
    """

    speedup: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether one of the two is faster."""
        return self.low > 1 or self.high < 1


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call of the network at batch 1, its stages apart, and what loading cost.

    The figures are of the network's call alone; `stages_ms` are medians of preprocessing, that
    call, and postprocessing to labels. `standard_error_ms` is that of the rounds' medians.
    `stable` is False where warming up ended by its bound. With `fps` the calls were paced.
    """

    median_ms: float
    p90_ms: float
    p99_ms: float
    standard_error_ms: float
    calls: int
    round_medians_ms: tuple[float, ...]
    stages_ms: dict[str, float]
    load_s: float
    first_ms: float
    peak_mib: int
    stable: bool
    fps: float | None = None
    ratio: Ratio | None = None


@dataclass(frozen=True)
class Failure:
    """Why a candidate has no latency: its process could not load it, or ended."""

    reason: str


def measure_latencies(
    candidates: Sequence[Candidate],
    *,
    rounds: int = ROUNDS,
    burst_seconds: float = SECONDS / ROUNDS,
    threads: int | None = None,
    fps: float | None = None,
    on_burst: Callable[[int, int], None] = lambda done, total: None,
) -> list[Latency | Failure]:
    """Time all candidates in `rounds` rounds of one burst each; the first is the reference.

    With `threads` a process is pinned to as many cores, where the system allows it. A candidate
    whose process fails is left out of the rounds that follow.
    """
    workers: list[_Worker | Failure] = [_started(one, threads) for one in candidates]
    bursts: list[list[dict[str, list[float]]]] = [[] for _ in candidates]
    try:
        for turn in range(rounds):
            for index, worker in enumerate(workers):
                if isinstance(worker, Failure):
                    continue
                try:
                    answer = worker.ask({"seconds": burst_seconds, "fps": fps})
                    bursts[index].append(answer["times"])
                except InputError as error:
                    workers[index] = Failure(str(error))
                on_burst(turn * len(workers) + index + 1, rounds * len(workers))
        found: list[Latency | Failure] = []
        for worker, held in zip(workers, bursts, strict=True):
            if isinstance(worker, _Worker):
                found.append(_summary(held, worker, bursts[0], fps, worker.ask({"end": True})))
            else:
                found.append(worker)
        return found
    finally:
        for worker in workers:
            if isinstance(worker, _Worker):
                worker.close()


def _started(candidate: Candidate, threads: int | None) -> _Worker | Failure:
    try:
        return _Worker(candidate, threads)
    except InputError as error:
        return Failure(str(error))


def _summary(
    bursts: list[dict[str, list[float]]],
    worker: _Worker,
    reference: list[dict[str, list[float]]],
    fps: float | None,
    ended: dict[str, Any],
) -> Latency:
    medians = _medians(bursts)
    calls = np.concatenate([np.asarray(burst["network"]) for burst in bursts]) * 1e3
    stages = {
        stage: float(np.median(np.concatenate([burst[stage] for burst in bursts])) * 1e3)
        for stage in STAGES
    }
    ratio = None
    if len(reference) == len(bursts) and reference is not bursts:
        ratio = ratio_of(_medians(reference), medians)
    return Latency(
        median_ms=float(np.median(calls)),
        p90_ms=float(np.percentile(calls, 90)),
        p99_ms=float(np.percentile(calls, 99)),
        standard_error_ms=float(medians.std(ddof=1) / np.sqrt(len(medians)))
        if len(medians) > 1
        else 0.0,
        calls=len(calls),
        round_medians_ms=tuple(float(one) for one in medians),
        stages_ms=stages,
        load_s=worker.ready["load_s"],
        first_ms=worker.ready["first_ms"],
        peak_mib=ended["peak_mib"],
        stable=worker.ready["stable"],
        fps=fps,
        ratio=ratio,
    )


def _medians(bursts: Sequence[dict[str, list[float]]]) -> NDArray[np.float64]:
    return np.array([np.median(burst["network"]) * 1e3 for burst in bursts])


def ratio_of(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> Ratio:
    """The median over rounds of a speed-up, and its bootstrap interval.

    Within a round both ran seconds apart, under the same clock and load, which a ratio takes out.
    """
    ratios = reference / candidate
    rng = np.random.default_rng(0)
    draws = np.median(ratios[rng.integers(0, len(ratios), (_DRAWS, len(ratios)))], axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(low), float(high))


class _Worker:
    """One candidate's process."""

    def __init__(self, candidate: Candidate, threads: int | None):
        self._name = candidate.name
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
        )
        if threads is not None and hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))[:threads]
            with suppress(OSError):
                os.sched_setaffinity(self._process.pid, cores)
        self.ready = self.ask(
            {
                "spec": spec_to_json(candidate.spec),
                "backend": candidate.backend,
                "threads": threads,
            }
        )

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a line, and read the answer.

        Raises:
            InputError: if the process says an error, or has ended; it is closed then.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise InputError(self._ended())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.close()
            raise InputError(f"{self._name}: cannot be timed: {answer['error']}")
        return answer

    def _ended(self) -> str:
        self._process.kill()
        code = self._process.wait()
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip().splitlines()
        self.close()
        reason = said[-1] if said else "it said nothing; out of memory?"
        return f"{self._name}: its process ended with code {code} while it was timed: {reason}"

    def close(self) -> None:
        """End the process, kindly if it listens."""
        self._complaints.close()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

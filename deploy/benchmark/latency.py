"""Latency: each candidate in its own process, bursts interleaved, so that noise hits all alike."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from segdeploy.benchmark.worker import START, spec_to_json
from segdeploy.errors import InputError
from segdeploy.network import ModelSpec

ROUNDS = 5
BURST_SECONDS = 1.0


@dataclass(frozen=True)
class Candidate:
    """A network to bench, and the runtime to bench it with."""

    name: str
    spec: ModelSpec
    backend: str


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call of the network at batch 1, without pre- and postprocessing."""

    median_ms: float
    p90_ms: float
    calls: int
    round_medians_ms: tuple[float, ...]


def measure_latencies(
    candidates: Sequence[Candidate],
    *,
    rounds: int = ROUNDS,
    burst_seconds: float = BURST_SECONDS,
    threads: int | None = None,
    on_burst: Callable[[int, int], None] = lambda done, total: None,
) -> list[Latency]:
    """Time all candidates in `rounds` rounds of one burst each.

    Raises:
        InputError: if a candidate's process cannot load it or ends.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(c, threads)) for c in candidates]
        times: list[list[list[float]]] = [[] for _ in workers]
        for turn in range(rounds):
            for index, worker in enumerate(workers):
                times[index].append(worker.ask({"seconds": burst_seconds})["times"])
                on_burst(turn * len(workers) + index + 1, rounds * len(workers))
    return [_summary(bursts) for bursts in times]


def _summary(bursts: list[list[float]]) -> Latency:
    calls = np.concatenate([np.asarray(burst) for burst in bursts]) * 1e3
    return Latency(
        median_ms=float(np.median(calls)),
        p90_ms=float(np.percentile(calls, 90)),
        calls=len(calls),
        round_medians_ms=tuple(float(np.median(burst) * 1e3) for burst in bursts),
    )


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
        self.ask(
            {
                "spec": spec_to_json(candidate.spec),
                "backend": candidate.backend,
                "threads": threads,
            }
        )

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
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
            self.__exit__()
            raise InputError(f"{self._name}: cannot be timed: {answer['error']}")
        return answer

    def _ended(self) -> str:
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip().splitlines()
        self._process.kill()
        code = self._process.wait()
        self.__exit__()
        reason = said[-1] if said else "it said nothing; out of memory?"
        return f"{self._name}: its process ended with code {code} while it was timed: {reason}"

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
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

"""A candidate's own process, seen from the bench: it is told lines, and answers each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from segdeploy.benchmark.worker import START, spec_to_json
from segdeploy.errors import InputError, NotHere
from segdeploy.model_spec import ModelSpec

_PATIENCE = 600.0  # seconds: an engine may compile for its GPU when it is loaded


@dataclass(frozen=True)
class Candidate:
    """A network to bench, and the runtime to bench it with; `scales` are looped over outside it.

    `program` is the command of a process that times it instead of ours, by the same lines, and
    `build` the hash of that program's file.
    """

    name: str
    spec: ModelSpec
    backend: str
    scales: tuple[float, ...] = ()
    program: tuple[str, ...] = ()
    build: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a candidate has no latency: its process could not load it, or ended.

    `is_elsewhere` if it is sound, for another machine.
    """

    reason: str
    is_elsewhere: bool = False


class Process:
    """A process that has loaded one candidate, and warmed it up; `ready` is what it said then.

    Raises:
        InputError: if the candidate cannot be loaded and run there.
    """

    def __init__(self, candidate: Candidate, threads: int | None):
        self._name = candidate.name
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            candidate.program or (sys.executable, "-c", START),
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
                "scales": candidate.scales,
            }
        )

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a line, and read the answer.

        Raises:
            InputError: if the process says an error, or has ended; it is closed then. NotHere if
                the candidate is for another machine.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # A runtime that hangs would hang the bench.
        patience = threading.Timer(_PATIENCE + 20 * message.get("seconds", 0), self._process.kill)
        patience.start()
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            patience.cancel()
        if not line:
            raise InputError(self._ended())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.close()
            if answer["is_elsewhere"]:
                raise NotHere(answer["error"])
            raise InputError(f"{self._name}: cannot be run: {answer['error']}")
        return answer

    def _ended(self) -> str:
        self._process.kill()
        code = self._process.wait()
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip().splitlines()
        self.close()
        how = f"with code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        guess = "; out of memory, or it hung?" if code == -signal.SIGKILL else ""
        reason = said[-1] if said else f"it said nothing{guess}"
        return f"{self._name}: its process ended {how}: {reason}"

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


@contextmanager
def started(
    candidates: Sequence[Candidate], threads: int | None
) -> Iterator[list[Process | Failure]]:
    """A process of each candidate, or why there is none; those that live are ended at the end."""
    workers = [start(one, threads) for one in candidates]
    try:
        yield workers
    finally:
        for worker in workers:
            if isinstance(worker, Process):
                worker.close()


def start(candidate: Candidate, threads: int | None) -> Process | Failure:
    """A candidate's process, or why there is none."""
    try:
        return Process(candidate, threads)
    except InputError as error:
        return Failure(str(error), isinstance(error, NotHere))

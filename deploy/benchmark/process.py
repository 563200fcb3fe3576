"""Worker process of one candidate, as the bench controls it: one answer line per request line."""

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

from segdeploy.artifact import Artifact
from segdeploy.benchmark.failure import Failure
from segdeploy.benchmark.worker import START, spec_to_json
from segdeploy.errors import IncompatibleDevice, InputError
from segdeploy.model_spec import ModelSpec

_PATIENCE = 600.0  # seconds; an engine may be compiled for the GPU while it is loaded


@dataclass(frozen=True)
class Candidate:
    """A network to bench, and the runtime that runs it.

    `file` is the handle of an exported file, which all runtimes of that file share; None for a
    PyTorch network. `scales` run one after another outside the graph. `program` is the command of
    an external program that times the candidate instead of the Python worker, by the same protocol.
    `build` identifies that program, its settings and its libraries.
    """

    name: str
    spec: ModelSpec
    backend: str
    file: Artifact | None = None
    scales: tuple[float, ...] = ()
    program: tuple[str, ...] = ()
    build: str = ""

    @property
    def exported(self) -> Artifact:
        """The handle of a candidate that is an exported file, as all are but the reference."""
        assert self.file is not None
        return self.file


class Process:
    """A process that has loaded and warmed up one candidate; `ready` is its first answer.

    Raises:
        InputError: if the candidate cannot be loaded or run on this machine.
    """

    def __init__(self, candidate: Candidate, threads: int | None):
        self._name = candidate.name
        self._failures = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            candidate.program or (sys.executable, "-c", START),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._failures,
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
        """Send a request, and return the answer.

        Raises:
            InputError: if the process reports an error or has ended; the process is then closed.
                IncompatibleDevice if the candidate was built for another machine.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # A timeout, since a runtime that hangs would block the bench.
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
            if answer["is_incompatible"]:
                raise IncompatibleDevice(answer["error"])
            raise InputError(f"{self._name}: cannot be run: {answer['error']}")
        return answer

    def _ended(self) -> str:
        self._process.kill()
        code = self._process.wait()
        self._failures.seek(0)
        message = self._failures.read().decode(errors="replace").strip().splitlines()
        self.close()
        how = f"with code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        guess = " (out of memory or timeout)" if code == -signal.SIGKILL else ""
        reason = message[-1] if message else f"no error output{guess}"
        return f"{self._name}: its process ended {how}: {reason}"

    def close(self) -> None:
        """End the process by closing its stdin; kill it if it still runs after 10 seconds."""
        self._failures.close()
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
    """Yield a process for each candidate, or its failure; close the processes on exit."""
    workers = [start(one, threads) for one in candidates]
    try:
        yield workers
    finally:
        for worker in workers:
            if isinstance(worker, Process):
                worker.close()


def start(candidate: Candidate, threads: int | None) -> Process | Failure:
    """Start a candidate's process, or return why it failed."""
    try:
        return Process(candidate, threads)
    except InputError as error:
        return Failure(str(error), isinstance(error, IncompatibleDevice))

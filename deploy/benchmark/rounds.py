"""Interleaved rounds: each candidate has one turn per round, so noise affects all equally."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from segdeploy.benchmark.failure import Failure
from segdeploy.benchmark.process import Process
from segdeploy.errors import InputError
from segdeploy.ledger import Ledger

Answers = list[dict[str, Any]]


def take_turns(
    workers: list[Process | Failure],
    rounds: int,
    message: dict[str, Any],
    *,
    ledger: Ledger,
    identities: Sequence[str],
    on_burst: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answers]:
    """Send `message` to each process in turn, `rounds` times; returns the answers of each.

    One that fails is replaced by its failure in `workers`, and has no further turn. A round that
    the ledger holds complete, of the same candidates, is not run again.
    """
    answers: list[Answers] = [[] for _ in workers]
    for turn in range(rounds):
        alive = [i for i, worker in enumerate(workers) if isinstance(worker, Process)]
        place = f"round {turn} of {message} with {[identities[i] for i in alive]}"
        held: Answers | None = ledger.get(place)
        given: Answers = []
        for at, index in enumerate(alive):
            worker = workers[index]
            assert isinstance(worker, Process)
            try:
                given.append(worker.ask(message) if held is None else held[at])
            except InputError as error:
                workers[index] = Failure(str(error))
                continue
            answers[index].append(given[-1])
            on_burst(turn * len(workers) + index + 1, rounds * len(workers))
        if held is None and given and len(given) == len(alive):
            ledger.put(place, given)
    return answers


def burst(
    seconds: float, *, fps: float | None = None, batch: int = 1, clients: int = 1
) -> dict[str, Any]:
    """Return the message that requests a burst of calls."""
    return {"seconds": seconds, "fps": fps, "batch": batch, "clients": clients}


def first_error(answers: Answers) -> str | None:
    """Return why a candidate refused a request, or None if it refused none."""
    return next((answer["refused"] for answer in answers if "refused" in answer), None)

"""Rounds in which each candidate has its turn, so that the machine's noise hits all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from segdeploy.benchmark.journal import Journal
from segdeploy.benchmark.process import Failure, Process
from segdeploy.errors import InputError

Answers = list[dict[str, Any]]


def take_turns(
    workers: list[Process | Failure],
    rounds: int,
    message: dict[str, Any],
    *,
    journal: Journal,
    identities: Sequence[str],
    on_burst: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answers]:
    """Send `message` to each process in turn, `rounds` times; returns the answers of each.

    One that fails is replaced by its failure in `workers`, and has no further turn. A round that
    the journal holds complete, of the same candidates, is not run again.
    """
    answers: list[Answers] = [[] for _ in workers]
    for turn in range(rounds):
        alive = [i for i, worker in enumerate(workers) if isinstance(worker, Process)]
        place = f"round {turn} of {message} with {[identities[i] for i in alive]}"
        held: Answers | None = journal.get(place)
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
            journal.put(place, given)
    return answers


def burst(
    seconds: float, *, fps: float | None = None, batch: int = 1, clients: int = 1
) -> dict[str, Any]:
    """The message that asks a process for a burst of calls."""
    return {"seconds": seconds, "fps": fps, "batch": batch, "clients": clients}


def refusal(answers: Answers) -> str | None:
    """Why a candidate cannot do what it was asked for, if one of its answers says so."""
    return next((answer["refused"] for answer in answers if "refused" in answer), None)

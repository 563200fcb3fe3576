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
        given: Answers = journal.get(place) or []
        is_new = not given
        for index in alive:
            worker = workers[index]
            assert isinstance(worker, Process)
            if is_new:
                try:
                    given.append(worker.ask(message))
                except InputError as error:
                    workers[index] = Failure(str(error))
                    continue
            answers[index].append(given[alive.index(index)] if not is_new else given[-1])
            on_burst(turn * len(workers) + index + 1, rounds * len(workers))
        if is_new and len(given) == len(alive):
            journal.put(place, given)
    return answers

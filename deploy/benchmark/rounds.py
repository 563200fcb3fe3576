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
        place = f"round {turn} of {message} with {identities}"
        held = journal.get(place)
        given: Answers = held or [{} for _ in workers]
        for index, worker in enumerate(workers):
            if isinstance(worker, Failure):
                continue
            if held is None:
                try:
                    given[index] = worker.ask(message)
                except InputError as error:
                    workers[index] = Failure(str(error))
                    continue
            answers[index].append(given[index])
            on_burst(turn * len(workers) + index + 1, rounds * len(workers))
        if held is None and all(given):
            journal.put(place, given)
    return answers

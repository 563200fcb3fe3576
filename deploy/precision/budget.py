"""Budget: try the default assignment first, then a search and its Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.precision.assignment import Assignment
from segdeploy.precision.calibrated_graph import Source
from segdeploy.precision.evaluator import Accuracy, Evaluator, Labels
from segdeploy.precision.frames import FrameSets
from segdeploy.precision.options import Budget

if TYPE_CHECKING:
    from segdeploy.calibration.half_precision import HalfGraph


@dataclass(frozen=True)
class EvaluatedPlan:
    """An assignment, its graph, and the labels and accuracy of that graph."""

    assignment: Assignment
    typed: HalfGraph
    labels: list[Labels]
    accuracy: Accuracy

    @classmethod
    def of(
        cls, source: Source, assignment: Assignment, evaluator: Evaluator, *, fp16_io: bool
    ) -> EvaluatedPlan:
        """Build the graph of an assignment and run it on frames that nothing was tuned on."""
        in_int8 = source.model
        if assignment.int8:
            in_int8 = source.in_int8(
                assignment.int8, assignment.method or "", weights_only=assignment.weights_only
            )
        typed = source.typed(in_int8, keep_io=not fp16_io)
        labels = evaluator.labels(typed.model)
        return cls(assignment, typed, labels, evaluator.accuracy(labels))


def plans_of(start: Assignment, search: Callable[[], Assignment] | None) -> Iterator[Assignment]:
    """Yield the default assignment, the result of a search, and costlier points of its front."""
    yield start
    if search is not None:
        yield from search().in_turn


def search_notes(
    tried: Sequence[EvaluatedPlan], budget: Budget | None, frames: FrameSets
) -> tuple[str, ...]:
    """Return a note on the assignments that were tried before the one that keeps the budget."""
    if budget is None or len(tried) < 2:
        return ()
    before = ", ".join(
        f"{len(one.assignment.int8)} layers in INT8 lost {100 * budget.loss(one.accuracy):.2f}"
        for one in tried[:-1]
    )
    return (
        f"budget of {budget.told(budget.limit)}: {before} on the frames of "
        f"'{frames.check_split}', and {len(tried[-1].assignment.int8)} layers keep it; "
        f"{len(tried)} assignments were evaluated on these frames",
    )


def budget_failure(
    out: Path, tried: Sequence[EvaluatedPlan], budget: Budget, frames: FrameSets, source: Source
) -> str:
    """Return why nothing was written: the least loss of the tried assignments."""
    count = len(source.insertion_points.layers)
    least = min(tried, key=lambda one: budget.loss(one.accuracy))
    searched = least.assignment.searched or tried[-1].assignment.searched
    return (
        f"{out}: not written; of {len(tried)} assignments the least loss is "
        f"{budget.told(budget.loss(least.accuracy))} on {least.accuracy.frames} frames of "
        f"'{frames.check_split}' that the search did not see, more than the "
        f"{100 * budget.limit:.3g} allowed ({len(least.assignment.int8)} of {count} convolutions "
        "in INT8); try more frames (--limit), or allow a larger loss"
        + (f"; {searched.state_text}" if searched else "")
    )

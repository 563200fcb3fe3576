"""Keeping an mIoU budget: the default first, then a search, then its front towards more FP16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.precision.assignment import Assignment
from segdeploy.precision.calibrated_graph import Source
from segdeploy.precision.evaluator import Accuracy, Judge, Labels
from segdeploy.precision.frames import FrameSets

if TYPE_CHECKING:
    from segdeploy.calibration.half_precision import HalfGraph


@dataclass(frozen=True)
class Judged:
    """An assignment as the graph that it becomes, and what that graph gets right."""

    assignment: Assignment
    typed: HalfGraph
    labels: list[Labels]
    accuracy: Accuracy

    @classmethod
    def of(cls, source: Source, assignment: Assignment, judge: Judge, *, half_ends: bool) -> Judged:
        """Write the graph, and run it on the frames that nothing was chosen by."""
        in_int8 = source.model
        if assignment.int8:
            in_int8 = source.in_int8(
                assignment.int8, assignment.method or "", weights_only=assignment.weights_only
            )
        typed = source.typed(in_int8, keep_ends=not half_ends)
        labels = judge.labels(typed.model)
        return cls(assignment, typed, labels, judge.accuracy(labels))


def plans_of(start: Assignment, search: Callable[[], Assignment] | None) -> Iterator[Assignment]:
    """The default assignment, then what a search finds, then what of its front costs more."""
    yield start
    if search is not None:
        yield from search().in_turn


def walked(tried: Sequence[Judged], budget: float | None, frames: FrameSets) -> tuple[str, ...]:
    """What was tried before the assignment that keeps the budget."""
    if len(tried) < 2:
        return ()
    before = ", ".join(
        f"{len(one.assignment.int8)} layers in INT8 lost {one.accuracy.miou_drop:.2f}"
        for one in tried[:-1]
    )
    return (
        f"budget of {budget:g}: {before} on the frames of '{frames.check_split}', and "
        f"{len(tried[-1].assignment.int8)} layers keep it; {len(tried)} assignments were judged on "
        "these frames",
    )


def unkept(
    out: Path, tried: Sequence[Judged], budget: float, frames: FrameSets, source: Source
) -> str:
    """Why nothing was written: what each assignment lost."""
    least = min(tried, key=lambda one: one.accuracy.miou_drop)
    searched = least.assignment.searched or tried[-1].assignment.searched
    return (
        f"{out}: not written; of {len(tried)} assignments the least mIoU drop is "
        f"{least.accuracy.miou_drop:.3g} on {least.accuracy.frames} frames of "
        f"'{frames.check_split}' that the search did not see, more than the {budget:g} allowed "
        f"({len(least.assignment.int8)} of {len(source.sites.layers)} convolutions in INT8); try "
        "more frames (--limit), or allow a larger drop"
        + (f"; {searched.told_state}" if searched else "")
    )

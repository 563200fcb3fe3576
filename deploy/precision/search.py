"""Search for the cheapest mixed-precision assignment within a budget."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.content_keys import key_of_frames
from segdeploy.errors import CheckFailed
from segdeploy.ledger import Ledger
from segdeploy.packages import versions
from segdeploy.precision.assignment import (
    SNR_FRAMES,
    Assignment,
    Progress,
    Search,
    Sensitivity,
    cost_of,
)
from segdeploy.precision.calibrated_graph import Source
from segdeploy.precision.evaluator import Evaluator
from segdeploy.precision.frames import evenly_spaced
from segdeploy.precision.options import Budget
from segdeploy.precision.task import Task

if TYPE_CHECKING:
    import onnx

    from segdeploy.calibration.layers import Layer
    from segdeploy.calibration.mixed_precision import Point, Score
    from segdeploy.calibration.reference_execution import Reference

# Accuracy on a few dozen frames is noisy, so the search aims at this share of the budget.
_MARGIN = 0.5


@dataclass(frozen=True)
class BudgetSearch:
    """Search for the assignment of least cost whose loss keeps a budget.

    `start` is the default assignment; its range method is kept. `kept` are the nodes that are never
    INT8, each with its reason. Every measurement is written to `OUT.search.ledger`, from which an
    interrupted search resumes.
    """

    task: Task
    source: Source
    reference: Reference
    start: Assignment
    kept: Mapping[str, str]
    out: Path
    budget: Budget
    on_progress: Progress

    @property
    def state(self) -> Path:
        """The file of the measurements."""
        return self.out.with_name(f"{self.out.stem}.search.ledger")

    def within(self) -> Assignment:
        """Return the cheapest assignment with a loss of at most half of the budget.

        If there is none, the costliest assignment of the Pareto front within the budget is
        returned. Every layer is first quantized alone.

        Raises:
            CheckFailed: if no assignment keeps the budget.
            KeyboardInterrupt: if the search is interrupted; the message names the file to resume.
        """
        try:
            return self._within()
        except KeyboardInterrupt as stop:
            if not self.state.exists():
                raise
            raise KeyboardInterrupt(f"the same command resumes from {self.state}") from stop

    def _within(self) -> Assignment:
        from segdeploy.calibration.mixed_precision import (
            cheapest_within,
            most_evaluations,
            order_of_return,
        )

        ledger = Ledger(self.state, self._key())
        layers = [y for y in self.source.insertion_points.layers if y.name not in self.kept]
        total = len(layers) + most_evaluations(len(layers))
        lost: dict[str, Sensitivity] = {}
        for name, one in self._sensitivities(layers, ledger):
            lost[name] = one
            self.on_progress(len(lost), total, "sensitivity")
        evaluator = Evaluator(self.task.file, self.task.frames.held_back)
        scores: list[Score] = []

        def evaluate(chosen: frozenset[str]) -> Score:
            scores.append(self._score(chosen, evaluator, ledger))
            loss = 100 * scores[-1].loss
            self.on_progress(len(layers) + len(scores), total, f"loss {loss:.2f}")
            return scores[-1]

        best, front = cheapest_within(
            self.budget.limit * _MARGIN,
            self.source.insertion_points.layers,
            order_of_return(layers, {name: one.snr_db for name, one in lost.items()}),
            evaluate,
            lambda chosen: cost_of(self.source, chosen),
        )
        searched = self._described(lost, front, len(scores))
        kept = (p for p in front if p.score.loss <= self.budget.limit)
        within = sorted(kept, key=lambda p: p.cost)
        if best is None and within:
            best = within[-1]  # within the budget, but beyond the margin
        if best is None:
            raise CheckFailed(
                f"{self.out}: not written; even without INT8 the graph loses "
                f"{self.budget.told(front[-1].score.loss)} on {searched.frames} frames, more than "
                f"the budget of {self.budget.told(self.budget.limit)}; {searched.state_text}"
            )
        costlier = tuple(frozenset(p.int8) for p in within if p.cost > best.cost)
        return self._assignment(frozenset(best.int8), searched, costlier)

    def _key(self) -> str:
        """Return what every measurement depends on, but for the assignment."""
        frames = self.task.frames
        return json.dumps(
            [
                self.task.file.key,
                self.start.method,
                self.source.scheme.name,
                f"SNR, mIoU drop in 0..1, agreement, {self.budget.option}",
                key_of_frames(frames.calibration),
                key_of_frames(frames.held_back, masks=True),
                *versions("onnx", "onnxruntime", "numpy").values(),
            ]
        )

    def _sensitivities(
        self, layers: list[Layer], ledger: Ledger
    ) -> Iterator[tuple[str, Sensitivity]]:
        """Yield the loss of each layer when it alone is INT8."""
        evaluator = Evaluator(self.task.file, evenly_spaced(self.task.frames.held_back, SNR_FRAMES))

        def measure(name: str) -> list[float]:
            graph = self._in_int8(frozenset({name}))
            found = evaluator.score(graph)
            return [self.reference.snr_db(graph), found.miou_drop, found.agreement]

        for layer in layers:
            measured = ledger.once(f"layer {layer.name}", partial(measure, layer.name))
            yield layer.name, Sensitivity(*measured)

    def _score(self, chosen: frozenset[str], evaluator: Evaluator, ledger: Ledger) -> Score:
        """Evaluate one assignment on the held-back frames."""
        from segdeploy.calibration.mixed_precision import Score

        def measure() -> list[float]:
            found = evaluator.score(self.source.typed(self._in_int8(chosen)).model)
            return [found.miou, found.miou_drop, found.agreement, self.budget.loss(found)]

        return Score(*ledger.once(" ".join(sorted(chosen)) or "none", measure))

    def _in_int8(self, chosen: frozenset[str]) -> onnx.ModelProto:
        assert self.start.method is not None
        return self.source.in_int8(chosen, self.start.method) if chosen else self.source.model

    def _described(
        self, lost: Mapping[str, Sensitivity], front: Sequence[Point], evaluations: int
    ) -> Search:
        """Return the result of the search, with modules in place of nodes."""
        modules = self.source.modules()
        return Search(
            {modules[name]: one for name, one in lost.items()},
            tuple(replace(p, int8=tuple(modules[name] for name in p.int8)) for p in front),
            evaluations,
            len(self.task.frames.held_back),
            self.state,
        )

    def _assignment(
        self, chosen: frozenset[str], searched: Search, costlier: tuple[frozenset[str], ...]
    ) -> Assignment:
        names = [y.name for y in self.source.insertion_points.layers if y.name not in chosen]
        return replace(
            self.start,
            int8=chosen,
            kept={name: self.kept.get(name, "budget") for name in names},
            weights_only=frozenset(),
            searched=searched,
            costlier=costlier,
        )

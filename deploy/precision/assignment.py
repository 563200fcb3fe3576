"""Selection of the INT8 convolutions: the default, or the cheapest within an mIoU budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.content_keys import key_of_frames, key_of_model
from segdeploy.contract import Contract
from segdeploy.errors import CheckFailed, InputError
from segdeploy.ledger import Ledger
from segdeploy.models.dataset import Frame
from segdeploy.packages import versions
from segdeploy.precision.calibrated_graph import Source
from segdeploy.precision.evaluator import Evaluator
from segdeploy.precision.frames import evenly_spaced, inputs
from segdeploy.precision.task import Task

if TYPE_CHECKING:
    from segdeploy.calibration.mixed_precision import Point, Score
    from segdeploy.calibration.reference_execution import Reference

Progress = Callable[[int, int, str], None]
_SNR_FRAMES = 4
# mIoU on a few dozen frames is noisy, so the search aims at this share of the budget.
_MARGIN = 0.5


@dataclass(frozen=True)
class Sensitivity:
    """Loss on a few held-back frames with only one layer in INT8.

    `snr_db` is the SNR of the class scores in dB. `miou_drop` is in 0..1. `agreement`
    is the share of labels that stay equal, in 0..1.
    """

    snr_db: float
    miou_drop: float
    agreement: float


@dataclass(frozen=True)
class Search:
    """Result of a search: the sensitivity of each layer, by module, and the Pareto front.

    `state` is the file from which the next run resumes an unfinished search.
    """

    layers: dict[str, Sensitivity]
    pareto_front: tuple[Point, ...]
    evaluations: int
    frames: int
    state: Path

    @property
    def state_text(self) -> str:
        """A clause that names the file of the measurements."""
        return f"the measurements are kept in {self.state}, for another budget"


@dataclass(frozen=True)
class Assignment:
    """The INT8 convolutions by node, the reason for each other convolution, and the range method.

    `weights_only` are convolutions that store int8 weights and compute in the graph's other
    precision. `snr_db` is the SNR of each range method on held-back frames. `dearer` are the
    costlier assignments of the Pareto front that also keep the budget, the cheapest first.
    """

    int8: frozenset[str]
    kept: dict[str, str]
    method: str | None
    weights_only: frozenset[str] = frozenset()
    snr_db: dict[str, float] = field(default_factory=dict)
    searched: Search | None = None
    dearer: tuple[frozenset[str], ...] = ()

    @property
    def in_turn(self) -> Iterator[Assignment]:
        """This assignment, then the costlier ones of the Pareto front that keep the budget, too."""
        yield self
        for int8 in self.dearer:
            added = dict.fromkeys(self.int8 - int8, "budget")
            kept = {name: reason for name, reason in self.kept.items() if name not in int8}
            yield replace(self, int8=int8, kept=kept | added, dearer=())


def cost_of(source: Source, chosen: frozenset[str]) -> float:
    """Return the multiply-accumulates weighted by operand width, relative to an all-FP32 graph."""
    from segdeploy.calibration.layers import relative_cost

    precision: dict[str, str] = {
        y.name: source.half or "fp32" for y in source.insertion_points.layers
    }
    precision |= dict.fromkeys(source.in_fp32, "fp32") | dict.fromkeys(chosen, "int8")
    return relative_cost(source.insertion_points.layers, precision)


def reference_of(source: Source, contract: Contract, held_back: Sequence[Frame]) -> Reference:
    """Return the FP32 graph's class scores of a few held-back frames, the reference of all SNRs."""
    from segdeploy.calibration.reference_execution import Reference

    images = [array for _, array in inputs(evenly_spaced(held_back, _SNR_FRAMES), contract)]
    return Reference(source.model, images)


def state_path(out: Path) -> Path:
    """Return the file in which a search for `out` keeps its measurements: `OUT.search.ledger`."""
    return out.with_name(f"{out.stem}.search.ledger")


def choose_int8(
    source: Source, reference: Reference, method: str, kept: Mapping[str, str]
) -> Assignment:
    """Return the default assignment: every convolution worth quantizing that is not in `kept`.

    `auto` tries every range method. The best method has the highest SNR of the class scores on
    held-back frames, under reference Q/DQ execution.

    Raises:
        InputError: if no convolution is left for INT8.
    """
    from segdeploy.calibration.layers import worth_quantizing
    from segdeploy.calibration.thresholds import METHODS

    layers = source.insertion_points.layers
    chosen = frozenset(y.name for y in worth_quantizing(layers) if y.name not in kept)
    reasons = {y.name: y.kind for y in layers if y.name not in chosen}
    # One-pixel layers cost almost no work, but their weights are a quarter of a MobileNet's file.
    pixels = frozenset(n for n, kind in reasons.items() if kind == "one pixel" and n not in kept)
    if not chosen:
        named = sum(reason == "--exclude" for reason in kept.values())
        others = [reason for reason in kept.values() if reason != "--exclude"]
        overflow = f", {len(others)} do not fit FP16 (the first {others[0]})" if others else ""
        raise InputError(
            f"no convolution of {len(layers)} is left for INT8: --exclude names {named}{overflow}; "
            "use --precision fp16"
        )
    tried = METHODS if method == "auto" else (method,)
    scores = {
        name: reference.snr_db(
            source.typed(source.in_int8(chosen, name, weights_only=pixels)).model
        )
        for name in tried
    }
    best = max(scores, key=scores.__getitem__)
    return Assignment(chosen, reasons | dict(kept), best, pixels, scores)


def loss_by_block(source: Source, reference: Reference, assignment: Assignment) -> dict[str, float]:
    """Return, by block, the SNR of the class scores in dB with only that block's layers in INT8."""
    assert assignment.method is not None
    losses = {}
    for block, layers in source.blocks().items():
        chosen = assignment.int8.intersection(layer.name for layer in layers)
        if chosen:
            losses[block] = reference.snr_db(source.in_int8(chosen, assignment.method))
    return losses


def within_budget(
    task: Task,
    source: Source,
    reference: Reference,
    start: Assignment,
    kept: Mapping[str, str],
    budget: float,
    out: Path,
    on_progress: Progress,
) -> Assignment:
    """Return the cheapest assignment whose mIoU drop on held-back frames is at most `budget` / 2.

    If there is none, the costliest assignment of the Pareto front within `budget` is returned.
    Every layer is first quantized alone. Each measurement is written to `OUT.search.ledger`, from
    which an interrupted search resumes.

    Raises:
        CheckFailed: if no assignment keeps the budget.
    """
    from segdeploy.calibration.mixed_precision import (
        Score,
        cheapest_within,
        most_evaluations,
        order_of_return,
    )

    assert start.method is not None
    frames = task.frames
    method, evaluator = start.method, Evaluator(task.model, frames.held_back)
    key = [
        *(
            key_of_model(task.model),
            method,
            source.scheme.name,
            "SNR, mIoU drop in 0..1, agreement",
        ),
        *(key_of_frames(frames.calibration), key_of_frames(frames.held_back, masks=True)),
        *versions("onnx", "onnxruntime", "numpy").values(),
    ]
    ledger = Ledger(state_path(out), json.dumps(key))
    layers = [y for y in source.insertion_points.layers if y.name not in kept]
    total = len(layers) + most_evaluations(len(layers))
    few = Evaluator(task.model, evenly_spaced(frames.held_back, _SNR_FRAMES))

    def alone(name: str) -> list[float]:
        graph = source.in_int8({name}, method)
        found = few.score(graph)
        return [reference.snr_db(graph), found.miou_drop, found.agreement]

    lost = {}
    for done, layer in enumerate(layers, 1):
        lost[layer.name] = Sensitivity(
            *ledger.once(f"layer {layer.name}", partial(alone, layer.name))
        )
        on_progress(done, total, "sensitivity")
    evaluations = 0

    def evaluate(chosen: frozenset[str]) -> Score:
        nonlocal evaluations
        evaluations += 1

        def measure() -> list[float]:
            graph = source.in_int8(chosen, method) if chosen else source.model
            found = evaluator.score(source.typed(graph).model)
            return [found.miou, found.miou_drop, found.agreement]

        score = Score(*ledger.once(" ".join(sorted(chosen)) or "none", measure))
        on_progress(len(layers) + evaluations, total, f"drop {100 * score.miou_drop:.2f}")
        return score

    best, pareto_front = cheapest_within(
        budget * _MARGIN,
        source.insertion_points.layers,
        order_of_return(layers, {name: one.snr_db for name, one in lost.items()}),
        evaluate,
        lambda chosen: cost_of(source, chosen),
    )
    modules = source.modules()
    searched = Search(
        {modules[name]: one for name, one in lost.items()},
        tuple(replace(p, int8=tuple(modules[name] for name in p.int8)) for p in pareto_front),
        evaluations,
        len(frames.held_back),
        state_path(out),
    )
    within = sorted((p for p in pareto_front if p.score.miou_drop <= budget), key=lambda p: p.cost)
    if best is None and within:
        best = within[-1]  # within the budget, but beyond the margin
    if best is None:
        reached = pareto_front[-1].score
        raise CheckFailed(
            f"{out}: not written; even without INT8 the mIoU drop is "
            f"{100 * reached.miou_drop:.3f} points on {len(frames.held_back)} frames, more than "
            f"the budget of {100 * budget:g}; "
            f"{searched.state_text}"
        )
    dearer = tuple(frozenset(p.int8) for p in within if p.cost > best.cost)
    chosen = frozenset(best.int8)
    reasons = {y.name: kept.get(y.name, "budget") for y in source.insertion_points.layers}
    reasons = {name: reason for name, reason in reasons.items() if name not in chosen}
    return replace(
        start,
        int8=chosen,
        kept=reasons,
        weights_only=frozenset(),
        searched=searched,
        dearer=dearer,
    )

"""Which convolutions are INT8: the default, or the cheapest choice within an mIoU budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from segdeploy.content_keys import key_of_frames, key_of_model
from segdeploy.contract import Contract
from segdeploy.errors import CheckFailed, InputError
from segdeploy.files import write_atomically
from segdeploy.models.dataset import Frame
from segdeploy.models.strict_json import read_json
from segdeploy.packages import versions
from segdeploy.precision.calibrated_graph import Source
from segdeploy.precision.evaluator import Judge
from segdeploy.precision.frames import FrameSets, inputs, spread

if TYPE_CHECKING:
    from segdeploy.calibration.mixed_precision import Point, Score
    from segdeploy.calibration.reference_execution import Reference

T = TypeVar("T")
Progress = Callable[[int, int, str], None]
_SNR_FRAMES = 4
# mIoU on a few dozen frames is noisy: the search aims at this share of the budget.
_MARGIN = 0.5


@dataclass(frozen=True)
class Sensitivity:
    """What one layer alone in INT8 loses on a few held-back frames.

    That is the SNR of the class scores in dB, mIoU in percentage points, and the labels that stay,
    in 0..1.
    """

    snr_db: float
    miou_drop: float
    agreement: float


@dataclass(frozen=True)
class Search:
    """What each layer loses alone, by module, and the front found.

    `state` is the file of an unfinished search, which the next one goes on with.
    """

    layers: dict[str, Sensitivity]
    front: tuple[Point, ...]
    evaluations: int
    frames: int
    state: Path

    @property
    def told_state(self) -> str:
        """Where what was measured stays for another try."""
        return f"what was measured stays in {self.state}, for another budget"


@dataclass(frozen=True)
class Assignment:
    """The convolutions in INT8 by node, why others are not, and how ranges were chosen.

    `weights_only` store int8 weights and compute in half. `snr_db` holds what each method reached
    on held-back frames. `dearer` are the choices of the front that keep the budget, too, and cost
    more, the cheapest first.
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
        """This assignment, then each of the front that costs more and promises as much."""
        yield self
        for int8 in self.dearer:
            added = dict.fromkeys(self.int8 - int8, "budget")
            kept = {name: reason for name, reason in self.kept.items() if name not in int8}
            yield replace(self, int8=int8, kept=kept | added, dearer=())


def cost_of(source: Source, chosen: frozenset[str]) -> float:
    """Multiply-accumulates weighted by the width of what they multiply, with all FP32 as 1."""
    from segdeploy.calibration.layers import relative_cost

    precision = {y.name: source.half or "fp32" for y in source.sites.layers}
    precision |= dict.fromkeys(source.in_fp32, "fp32") | dict.fromkeys(chosen, "int8")
    return relative_cost(source.sites.layers, precision)


def reference_of(source: Source, contract: Contract, held_back: Sequence[Frame]) -> Reference:
    """The FP32 graph's class scores for a few held-back frames: what every SNR is against."""
    from segdeploy.calibration.reference_execution import Reference

    images = [array for _, array in inputs(spread(held_back, _SNR_FRAMES), contract)]
    return Reference(source.model, images)


def state_path(out: Path) -> Path:
    """Where an unfinished search for `out` keeps what it measured: `OUT.search.json`."""
    return out.with_name(f"{out.stem}.search.json")


def choose_int8(
    source: Source, reference: Reference, method: str, kept: Mapping[str, str]
) -> Assignment:
    """All convolutions that are worth it and not in `kept`; `auto` tries every method.

    The best method has the highest SNR of the class scores on held-back frames, run literally.
    """
    from segdeploy.calibration.layers import worth_quantising
    from segdeploy.calibration.thresholds import METHODS

    layers = source.sites.layers
    chosen = frozenset(y.name for y in worth_quantising(layers) if y.name not in kept)
    reasons = {y.name: y.kind for y in layers if y.name not in chosen}
    # A one-pixel layer costs nothing, but its weights are a quarter of a MobileNet's file.
    pixels = frozenset(n for n, kind in reasons.items() if kind == "one pixel" and n not in kept)
    if not chosen:
        named = sum(reason == "--keep" for reason in kept.values())
        others = [reason for reason in kept.values() if reason != "--keep"]
        overflow = f", {len(others)} do not fit FP16 (the first {others[0]})" if others else ""
        raise InputError(
            f"no convolution of {len(layers)} is left for INT8: --keep names {named}{overflow}; "
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
    """SNR of the class scores, in dB, with the INT8 layers of one block alone in INT8, by block."""
    assert assignment.method is not None
    losses = {}
    for block, layers in source.blocks().items():
        chosen = assignment.int8.intersection(layer.name for layer in layers)
        if chosen:
            losses[block] = reference.snr_db(source.in_int8(chosen, assignment.method))
    return losses


def within_budget(
    source: Source,
    reference: Reference,
    start: Assignment,
    kept: Mapping[str, str],
    budget: float,
    model: Path,
    out: Path,
    frames: FrameSets,
    on_progress: Progress,
) -> Assignment:
    """The cheapest assignment whose mIoU drop on held-back frames is half of `budget` at most.

    Every layer is quantised alone first. What was measured is written to `OUT.search.json` as it
    goes, and an interrupted search goes on from there.

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
    method, judge = start.method, Judge(model, frames.held_back)
    key = [
        *(key_of_model(model), method, source.flavour.name, "SNR, drop, agreement"),
        *(key_of_frames(frames.calibration), key_of_frames(frames.held_back, masks=True)),
        *versions("onnx", "onnxruntime", "numpy").values(),
    ]
    state = SearchState(state_path(out), key)
    layers = [y for y in source.sites.layers if y.name not in kept]
    total = len(layers) + most_evaluations(len(layers))
    few = Judge(model, spread(frames.held_back, _SNR_FRAMES))

    def alone(name: str) -> list[float]:
        graph = source.in_int8({name}, method)
        found = few.score(graph)
        return [reference.snr_db(graph), found.miou_drop, found.agreement]

    lost = {}
    for done, layer in enumerate(layers, 1):
        lost[layer.name] = Sensitivity(*state.of(f"layer {layer.name}", alone, layer.name))
        on_progress(done, total, "sensitivity")
    evaluations = 0

    def evaluate(chosen: frozenset[str]) -> Score:
        nonlocal evaluations
        evaluations += 1

        def measure(chosen: frozenset[str]) -> list[float]:
            graph = source.in_int8(chosen, method) if chosen else source.model
            found = judge.score(source.typed(graph).model)
            return [found.miou, found.miou_drop, found.agreement]

        score = Score(*state.of(" ".join(sorted(chosen)) or "none", measure, chosen))
        on_progress(len(layers) + evaluations, total, f"drop {score.miou_drop:.2f}")
        return score

    best, front = cheapest_within(
        budget * _MARGIN,
        source.sites.layers,
        order_of_return(layers, {name: one.snr_db for name, one in lost.items()}),
        evaluate,
        lambda chosen: cost_of(source, chosen),
    )
    modules = source.modules()
    searched = Search(
        {modules[name]: one for name, one in lost.items()},
        tuple(replace(p, int8=tuple(modules[name] for name in p.int8)) for p in front),
        evaluations,
        len(frames.held_back),
        state.path,
    )
    within = sorted((p for p in front if p.score.miou_drop <= budget), key=lambda p: p.cost)
    if best is None and within:
        best = within[-1]  # beyond the margin alone
    if best is None:
        reached = front[-1].score
        raise CheckFailed(
            f"{out}: not written; even without INT8 the mIoU drop is {reached.miou_drop:.3f} on "
            f"{len(frames.held_back)} frames, more than the budget {budget:g}; "
            f"{searched.told_state}"
        )
    dearer = tuple(frozenset(p.int8) for p in within if p.cost > best.cost)
    chosen = frozenset(best.int8)
    reasons = {y.name: kept.get(y.name, "budget") for y in source.sites.layers}
    reasons = {name: reason for name, reason in reasons.items() if name not in chosen}
    return replace(
        start,
        int8=chosen,
        kept=reasons,
        weights_only=frozenset(),
        searched=searched,
        dearer=dearer,
    )


class SearchState:
    """What a search has measured, in a file, so that none of it is lost."""

    def __init__(self, path: Path, key: list[str]):
        self.path, self._key = path, key
        self._measured: dict[str, list[float]] = {}
        try:
            values = read_json(path)
            measured = values["measured"]
            if values["key"] == key and values["sha256"] == _digest(measured):
                self._measured = measured
        except (InputError, KeyError, TypeError):
            pass  # of another search, damaged, or none: measure anew

    def of(self, name: str, measure: Callable[[T], list[float]], given: T) -> list[float]:
        """What was measured under a name before, or is now."""
        if name not in self._measured:
            self._measured[name] = measure(given)
            content = {
                "key": self._key,
                "measured": self._measured,
                "sha256": _digest(self._measured),
            }
            write_atomically(self.path, json.dumps(content).encode())
        return self._measured[name]


def _digest(measured: object) -> str:
    """What a damaged file would not hold."""
    return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()

"""Selection of the INT8 convolutions, and its default: all that are worth quantizing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.contract import Contract
from segdeploy.errors import InputError
from segdeploy.models.dataset import Frame
from segdeploy.onnx_graph.model_file import takes_any_size
from segdeploy.precision.calibrated_graph import Source
from segdeploy.precision.frames import evenly_spaced, inputs

if TYPE_CHECKING:
    from segdeploy.calibration.mixed_precision import Point
    from segdeploy.calibration.reference_execution import Reference

Progress = Callable[[int, int, str], None]
SNR_FRAMES = 4  # held-back frames on which class scores are compared


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
    precision. `snr_db` is the SNR of each range method on held-back frames. `costlier` are the
    costlier assignments of the Pareto front that also keep the budget, the cheapest first.
    """

    int8: frozenset[str]
    kept: dict[str, str]
    method: str | None
    weights_only: frozenset[str] = frozenset()
    snr_db: dict[str, float] = field(default_factory=dict)
    searched: Search | None = None
    costlier: tuple[frozenset[str], ...] = ()

    @property
    def in_turn(self) -> Iterator[Assignment]:
        """This assignment, then the costlier ones of the Pareto front that keep the budget, too."""
        yield self
        for int8 in self.costlier:
            added = dict.fromkeys(self.int8 - int8, "budget")
            kept = {name: reason for name, reason in self.kept.items() if name not in int8}
            yield replace(self, int8=int8, kept=kept | added, costlier=())


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

    frames = evenly_spaced(held_back, SNR_FRAMES)
    images = [array for _, array in inputs(frames, contract, any_size=takes_any_size(source.model))]
    return Reference(source.model, images)


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

"""Calibration report and its HTML page: loss by block and class, ranges, and Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segdeploy.artifact import OnnxFile
from segdeploy.contract import Contract, Precision
from segdeploy.files import write_atomically
from segdeploy.image_folder import UnlabeledFrame
from segdeploy.precision.assignment import Search, Sensitivity, cost_of
from segdeploy.precision.budget import EvaluatedPlan
from segdeploy.precision.calibrated_graph import Source
from segdeploy.precision.evaluator import Accuracy, Evaluator
from segdeploy.precision.frames import FrameSets, coverage
from segdeploy.templates import render

_WORST = 6


@dataclass(frozen=True)
class CalibrationReport:
    """Result of a calibration, with the graph's accuracy on frames that nothing was tuned on.

    `int8` and `kept` name modules; `kept` gives the reason for each convolution that is not INT8.
    `snr_db` is the SNR of each range method on held-back frames. `block_snr_db` is the SNR with
    only one block of the network in INT8. `rewrites` are the exact rewrites that were applied to
    the graph before calibration. `kernel_agreement` is the share of labels (0..1) that are equal
    under reference Q/DQ execution and in the session that `predict` opens.
    """

    path: Path
    precision: Precision
    scheme: str
    method: str | None
    frames: int
    convolutions: int
    int8: tuple[str, ...]
    kept: dict[str, str]
    fp32_fallbacks: tuple[str, ...]
    clamped: tuple[str, ...]
    cost: float
    bytes: int
    bytes_before: int
    accuracy: Accuracy
    check_split: str
    classes_missing: tuple[str, ...]
    rewrites: tuple[str, ...]
    stable_after: int
    snr_db: dict[str, float] = field(default_factory=dict)
    searched: Search | None = None
    block_snr_db: dict[str, float] = field(default_factory=dict)
    kernel_agreement: float | None = None
    odd_channels: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def described_frames(frames: FrameSets, contract: Contract, file: OnnxFile) -> dict[str, Any]:
    """The entries of a report that describe its frames.

    Without masks, the classes are those of the FP32 graph's own labels.
    """
    labels = None
    if any(isinstance(frame, UnlabeledFrame) for frame in frames.calibration):
        labels = Evaluator(file, frames.calibration).reference_labels
    return {
        "frames": len(frames.calibration),
        "check_split": frames.check_split,
        "classes_missing": coverage(frames.calibration, contract, labels),
    }


def described_plan(plan: EvaluatedPlan, source: Source) -> dict[str, Any]:
    """The entries of a report that describe the assignment and its accuracy."""
    assignment, modules, layers = plan.assignment, source.modules(), source.insertion_points.layers
    return {
        "method": assignment.method,
        "convolutions": len(layers),
        "int8": tuple(modules[y.name] for y in layers if y.name in assignment.int8),
        "kept": {modules[name]: reason for name, reason in assignment.kept.items()},
        "fp32_fallbacks": tuple(
            f"{one.node}: {one.tensor} {one.reason}; {one.values_cast:,} values are cast for it an "
            "image"
            for one in source.fp32_fallbacks
        ),
        "clamped": plan.typed.clamped,
        "cost": cost_of(source, assignment.int8),
        "accuracy": plan.accuracy,
        "snr_db": assignment.snr_db,
        "searched": assignment.searched,
        "odd_channels": source.odd_channels(),
    }


def write_page(report: CalibrationReport, source: Source, path: Path) -> None:
    """Write the HTML page to `path`."""
    page = render(
        "calibration.html.j2",
        report=report,
        blocks=_bars(report.block_snr_db),
        layers=_bars({name: one.snr_db for name, one in _alone(report).items()}),
        alone=_alone(report),
        pareto_front=_scaled(report.searched.pareto_front if report.searched else ()),
        histograms=_histograms(report, source),
    )
    write_atomically(path, page.encode())


def _alone(report: CalibrationReport) -> Mapping[str, Sensitivity]:
    return report.searched.layers if report.searched else {}


def _bars(snr_db: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Return each block or layer with its SNR in dB and its noise relative to the largest noise."""
    noise = {name: 10 ** (-snr / 10) for name, snr in snr_db.items()}
    loudest = max(noise.values(), default=0.0) or 1.0
    return [(name, snr, noise[name] / loudest) for name, snr in snr_db.items()]


def _scaled(pareto_front: Sequence[Any]) -> list[tuple[float, float, Any]]:
    costs = [point.cost for point in pareto_front]
    losses = [point.score.loss for point in pareto_front]

    def place(value: float, values: Sequence[float]) -> float:
        return (value - min(values)) / ((max(values) - min(values)) or 1.0)

    return [(place(p.cost, costs), place(p.score.loss, losses), p) for p in pareto_front]


def _histograms(
    report: CalibrationReport, source: Source
) -> list[tuple[str, float | None, list[float], list[tuple[str, float]]]]:
    """Return input histograms of the layers that lose most in INT8.

    If the loss of single layers was not measured, the first INT8 layers are taken.
    """
    modules = source.modules()
    alone = {name: one.snr_db for name, one in _alone(report).items()}
    layers = [
        y
        for y in source.insertion_points.layers
        if source.statistics[y.data].bars and (alone or modules[y.name] in report.int8)
    ]
    layers.sort(key=lambda layer: alone.get(modules[layer.name], math.inf))
    shown = []
    for layer in layers[:_WORST]:
        values = source.statistics[layer.data]
        roots = [math.sqrt(count) for count in values.bars]
        largest = max(roots) or 1.0
        marks = [(m, t / values.top) for m, t in sorted(values.thresholds.items()) if values.top]
        name = modules[layer.name]
        shown.append((name, alone.get(name), [root / largest for root in roots], marks))
    return shown

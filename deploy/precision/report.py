"""What a calibration reports, and that as a page: loss by block and class, ranges, the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segdeploy.files import write_atomically
from segdeploy.models.names import shown
from segdeploy.precision.assignment import Search, Sensitivity
from segdeploy.precision.calibrated_graph import Source
from segdeploy.precision.evaluator import Accuracy

_WORST = 6


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration did, and what the graph that it wrote reaches on frames it was not tuned on.

    `int8` and `kept` name modules; `kept` says of each convolution that is not INT8 why. `snr_db`
    holds what each method of choosing ranges reached on held-back frames, `block_snr_db` what each
    block of the network reaches alone in INT8. `rewrites` are those that the graph still lacked.
    `kernel_agreement` is the share of labels that are equal in the graph run literally and in the
    session that `predict` opens.
    """

    path: Path
    precision: str
    flavour: str
    method: str | None
    frames: int
    convolutions: int
    int8: tuple[str, ...]
    kept: dict[str, str]
    islands: tuple[str, ...]
    clamped: tuple[str, ...]
    cost: float
    bytes: int
    bytes_before: int
    accuracy: Accuracy
    check_split: str
    classes_missing: tuple[str, ...]
    rewrites: tuple[str, ...]
    settled_after: int
    snr_db: dict[str, float] = field(default_factory=dict)
    searched: Search | None = None
    block_snr_db: dict[str, float] = field(default_factory=dict)
    kernel_agreement: float | None = None
    odd_channels: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def write_page(report: CalibrationReport, source: Source, path: Path) -> None:
    """Write the page to `path`."""
    import jinja2

    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    pages = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=shown)
    page = pages.from_string(template).render(
        report=report,
        blocks=_bars(report.block_snr_db),
        layers=_bars({name: one.snr_db for name, one in _alone(report).items()}),
        alone=_alone(report),
        front=_scaled(report.searched.front if report.searched else ()),
        histograms=_histograms(report, source),
    )
    write_atomically(path, page.encode())


def _alone(report: CalibrationReport) -> Mapping[str, Sensitivity]:
    return report.searched.layers if report.searched else {}


def _bars(snr_db: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Each block or layer, its SNR, and its noise as a share of the loudest."""
    noise = {name: 10 ** (-snr / 10) for name, snr in snr_db.items()}
    loudest = max(noise.values(), default=0.0) or 1.0
    return [(name, snr, noise[name] / loudest) for name, snr in snr_db.items()]


def _scaled(front: Sequence[Any]) -> list[tuple[float, float, Any]]:
    costs = [point.cost for point in front]
    drops = [point.score.miou_drop for point in front]

    def place(value: float, values: Sequence[float]) -> float:
        return (value - min(values)) / ((max(values) - min(values)) or 1.0)

    return [(place(p.cost, costs), place(p.score.miou_drop, drops), p) for p in front]


def _histograms(
    report: CalibrationReport, source: Source
) -> list[tuple[str, float | None, list[float], list[tuple[str, float]]]]:
    """What the layers in INT8 that lose most read; the first ones, if that was not measured."""
    modules = source.modules()
    alone = {name: one.snr_db for name, one in _alone(report).items()}
    layers = [
        y
        for y in source.sites.layers
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

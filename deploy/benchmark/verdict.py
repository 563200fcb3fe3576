"""What a bench concludes: which candidates keep the limits, and which one to ship."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from segdeploy.benchmark.accuracy import Judgement, Sample
from segdeploy.benchmark.environment import Environment
from segdeploy.benchmark.latency import Latency
from segdeploy.benchmark.layers import LayerReport
from segdeploy.benchmark.peak_performance import Peak
from segdeploy.benchmark.roofline import Roofline
from segdeploy.benchmark.supported_shapes import Claim
from segdeploy.benchmark.sweep import Point
from segdeploy.errors import InputError
from segdeploy.models.dataset import DataSet
from segdeploy.proof.tolerance import Tolerance, tolerance_of


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep, besides the tolerance of its precision; None asks for no more.

    `max_miou_drop` is in percentage points, `min_agreement` in 0..1, both against the reference;
    `min_speedup` is against the reference's latency.
    """

    max_miou_drop: float | None = None
    min_agreement: float | None = None
    max_latency_ms: float | None = None
    min_speedup: float | None = None

    def check(self) -> None:
        """Refuse limits that mean nothing.

        Raises:
            InputError: for one outside its range.
        """
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise InputError(f"--min-agreement {self.min_agreement}: is a share, 0 to 1")
        if self.max_miou_drop is not None and not 0 <= self.max_miou_drop <= 100:
            raise InputError(
                f"--max-miou-drop {self.max_miou_drop}: must be 0 to 100 percentage points"
            )
        for name in ("max_latency_ms", "min_speedup"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(
                    f"--{name.replace('_', '-')} {value}: must be 0 or more, and finite"
                )

    @property
    def are_given(self) -> bool:
        """Whether anything is asked for."""
        return any(value is not None for value in vars(self).values())


@dataclass(frozen=True)
class Row:
    """One line of the verdict; `bytes` is the file's size, None for a network without one.

    `failure` says why there are no figures, or no latency; `skipped` that the candidate was left
    out because it cannot run on this machine. `layers` sets each layer beside PyTorch's, if that
    was asked for, or says why it cannot. `claims` are the other batches and shapes that it takes.
    """

    name: str
    backend: str
    precision: str
    bytes: int | None
    judgement: Judgement | None
    latency: Latency | None
    failure: str | None = None
    skipped: bool = False
    layers: LayerReport | str | None = None
    claims: tuple[Claim, ...] = ()
    roofline: Roofline | None = None
    complaints: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        """Whether it ran, and keeps the limits."""
        return self.failure is None and not self.complaints


@dataclass(frozen=True)
class Modes:
    """The reference at several scales first, then each way to run them.

    A row's drop and labels are against the reference at the same scales; its speed-up is against
    the reference at one scale, so that it says what the scales cost.
    """

    scales: tuple[float, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Verdict:
    """The reference's row first, then the candidates', the fastest first, those that failed last.

    `recommended` is the fastest candidate that passes, by name; `front` those that no other beats
    in both mIoU (labels equal, without masks) and latency.
    """

    rows: tuple[Row, ...]
    samples: tuple[Sample, ...]
    dataset: DataSet
    split: str
    frames: int
    size: tuple[int, int]
    environment: Environment
    limits: Limits
    has_masks: bool
    recommended: str | None
    front: tuple[str, ...]
    notes: tuple[str, ...]
    modes: Modes | None = None
    sweep: tuple[Point, ...] = ()
    peak: Peak | None = None

    @property
    def reference(self) -> Row:
        """The row that the others are compared with."""
        return self.rows[0]

    @property
    def passes(self) -> bool:
        """Whether every candidate that was not skipped ran and keeps the limits."""
        rows = (*self.rows[1:], *(self.modes.rows[1:] if self.modes else ()))
        return all(row.passes or row.skipped for row in rows)


def miou_drop(reference: Row, row: Row) -> float | None:
    """How much mIoU is lost, in 0..1; None where it is not defined."""
    before, after = (
        one.judgement.accuracy.miou if one.judgement else None for one in (reference, row)
    )
    return None if before is None or after is None else before - after


def complaints(row: Row, reference: Row, limits: Limits) -> tuple[str, ...]:
    """Which limits a row does not keep, and by how much."""
    found = []
    drop = miou_drop(reference, row)
    if limits.max_miou_drop is not None and (drop is None or 100 * drop > limits.max_miou_drop):
        told = "is not defined" if drop is None else f"is {100 * drop:.3g} points"
        found.append(f"the mIoU drop {told} (limit {limits.max_miou_drop:g})")
    fidelity = row.judgement.fidelity if row.judgement else None
    tolerance = _tolerance(row, limits)
    if fidelity is not None and tolerance is not None:
        found += _beyond(tolerance, fidelity.agreement, fidelity.max_rel)
    if limits.max_latency_ms is not None and row.latency is not None:
        took = row.latency.median_ms
        told = f"the median latency is {took:.3g} ms (limit {limits.max_latency_ms:g})"
        found += [told] if took > limits.max_latency_ms else []
    if limits.min_speedup is not None and row.latency is not None:
        speedup = row.latency.ratio.speedup if row.latency.ratio else 0.0
        told = f"it is {speedup:.3g} times as fast (limit {limits.min_speedup:g})"
        found += [told] if speedup < limits.min_speedup else []
    for claim in row.claims:
        said = [claim.failure] if claim.failure is not None else []
        if claim.agreement is not None and tolerance is not None:
            said += _beyond(tolerance, claim.agreement, claim.max_rel)
        at = "x".join(map(str, claim.shape))
        found += [f"it claims to take {at}: {one}" for one in said]
    return tuple(found)


def _tolerance(row: Row, limits: Limits) -> Tolerance | None:
    """What the precision allows, or what was asked for where that is less."""
    if row.judgement is None:
        return None
    tolerance = tolerance_of(row.precision, row.backend)
    if limits.min_agreement is None:
        return tolerance
    least = max(tolerance.least_agreement, limits.min_agreement)
    return replace(tolerance, least_agreement=least)


def _beyond(tolerance: Tolerance, agreement: float, difference: float | None) -> list[str]:
    """Where labels or scores are further from the reference's than they may be."""
    found = []
    if agreement < tolerance.least_agreement:
        found.append(f"{agreement:.3%} of labels are equal (limit {tolerance.least_agreement:.3%})")
    if difference is not None and difference > tolerance.most_difference:
        found.append(
            f"a score differs by {difference:.2g} of the range "
            f"(limit {tolerance.most_difference:g})"
        )
    return found


def _agreement(row: Row) -> float | None:
    fidelity = row.judgement.fidelity if row.judgement else None
    return fidelity.agreement if fidelity else None


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The fastest first, by speed-up: it is measured in pairs. Those without a latency last."""
    return sorted(rows, key=lambda row: -_speed(row))


def _speed(row: Row) -> float:
    if row.latency is None:
        return 0.0
    return row.latency.ratio.speedup if row.latency.ratio else 1.0


def as_fast(rows: Sequence[Row]) -> list[Row]:
    """Of the candidates that pass the fastest, and those which this run cannot tell from it."""
    passing = [row for row in ranked(rows) if row.passes and row.latency]
    if not passing or passing[0].latency is None or passing[0].latency.ratio is None:
        return passing[:1]
    least = passing[0].latency.ratio.low
    return [
        row
        for row in passing
        if row.latency and row.latency.ratio and row.latency.ratio.high >= least
    ]


def recommended(rows: Sequence[Row]) -> str | None:
    """The fastest of the candidates that pass; of several that are as fast the most faithful."""
    best = as_fast(rows)
    if not best:
        return None
    return max(best, key=lambda row: _agreement(row) or 0.0).name


def front(rows: Sequence[Row]) -> tuple[str, ...]:
    """Those that no other beats in both accuracy and latency, the fastest first."""
    best = -1.0
    kept = []
    for row in ranked(rows):
        if row.latency is None or row.judgement is None:
            continue
        accuracy = _accuracy(row.judgement)
        if accuracy > best:
            best = accuracy
            kept.append(row.name)
    return tuple(kept)


def _accuracy(judgement: Judgement) -> float:
    if judgement.accuracy.miou is not None:
        return judgement.accuracy.miou
    return judgement.fidelity.agreement if judgement.fidelity else 1.0

"""The verdict of a bench: which candidates meet the limits, and which one is recommended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from segdeploy.benchmark.accuracy import Evaluation, Sample
from segdeploy.benchmark.environment import Environment
from segdeploy.benchmark.failure import Failure
from segdeploy.benchmark.latency import Latency
from segdeploy.benchmark.layers import LayerReport
from segdeploy.benchmark.peak_performance import Peak
from segdeploy.benchmark.roofline import Roofline
from segdeploy.benchmark.supported_shapes import ShapeCheck
from segdeploy.benchmark.sweep import Point
from segdeploy.contract import Precision
from segdeploy.errors import InputError
from segdeploy.models.dataset import DataSet
from segdeploy.proof.tolerance import Tolerance, tolerance_of


@dataclass(frozen=True)
class Limits:
    """Limits for a candidate, in addition to the tolerance of its precision; None is no limit.

    `max_miou_drop` (percentage points), `min_agreement` (0..1) and `min_speedup` (a ratio of
    latencies) are relative to the reference.
    """

    max_miou_drop: float | None = None
    min_agreement: float | None = None
    max_latency_ms: float | None = None
    min_speedup: float | None = None

    def check(self) -> None:
        """Refuse invalid limits.

        Raises:
            InputError: for a limit outside its range.
        """
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise InputError(f"--min-agreement {self.min_agreement}: must be a share from 0 to 1")
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
        """Whether any limit is set."""
        return any(value is not None for value in vars(self).values())


@dataclass(frozen=True)
class Row:
    """One row of the verdict.

    `precision` is "-" for a candidate that cannot be opened. `bytes` is the size of the file, None
    for a network without a file. `failure` is the reason for missing metrics or latency. `skipped`
    marks a candidate that cannot run on this machine. `layers` is the layer comparison with PyTorch
    if requested, or the reason why there is none. `supported_shapes` are the checks of other
    declared batch sizes and shapes. `failures` are the limits that the candidate does not meet.
    """

    name: str
    backend: str
    precision: Precision | Literal["-"]
    bytes: int | None
    evaluation: Evaluation | None
    latency: Latency | None
    failure: str | None = None
    skipped: bool = False
    layers: LayerReport | Failure | None = None
    supported_shapes: tuple[ShapeCheck, ...] = ()
    roofline: Roofline | None = None
    failures: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        """Whether the candidate ran and meets the limits."""
        return self.failure is None and not self.failures


@dataclass(frozen=True)
class TestTimeAugmentation:
    """Rows of multi-scale inference: the reference at several scales first, then the candidates.

    The drop and labels of a row are relative to the reference at the same scales. The speed-up is
    relative to the reference at one scale, so that it shows the cost of the scales.
    """

    scales: tuple[float, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Verdict:
    """The rows of reference and candidates, and the conclusions from them.

    The reference is the first row. The candidates follow from fastest to slowest; those without
    latency are last. `recommended` is the name of the fastest candidate that passes. `pareto_front`
    names the rows that no other row beats in both mIoU (label agreement, without masks) and
    latency.
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
    pareto_front: tuple[str, ...]
    notes: tuple[str, ...]
    test_time_augmentation: TestTimeAugmentation | None = None
    sweep: tuple[Point, ...] = ()
    peak: Peak | None = None

    @property
    def reference(self) -> Row:
        """The row of the reference."""
        return self.rows[0]

    @property
    def passes(self) -> bool:
        """Whether every candidate that was not skipped ran and meets the limits."""
        rows = (
            *self.rows[1:],
            *(self.test_time_augmentation.rows[1:] if self.test_time_augmentation else ()),
        )
        return all(row.passes or row.skipped for row in rows)


def miou_drop(reference: Row, row: Row) -> float | None:
    """Return the mIoU of the reference minus that of the row, as a share; None if undefined."""
    before, after = (
        one.evaluation.accuracy.miou if one.evaluation else None for one in (reference, row)
    )
    return None if before is None or after is None else before - after


def failures(row: Row, reference: Row, limits: Limits) -> tuple[str, ...]:
    """Return one clause for each limit that a row does not meet, with the measured value."""
    found = []
    drop = miou_drop(reference, row)
    if limits.max_miou_drop is not None and (drop is None or 100 * drop > limits.max_miou_drop):
        message = "is undefined" if drop is None else f"is {100 * drop:.3g} points"
        found.append(f"the mIoU drop {message} (limit {limits.max_miou_drop:g})")
    agreement = row.evaluation.agreement if row.evaluation else None
    tolerance = _tolerance(row, limits)
    if agreement is not None and tolerance is not None:
        found += _beyond(tolerance, agreement.labels, agreement.max_rel)
    if limits.max_latency_ms is not None and row.latency is not None:
        took = row.latency.median_ms
        message = f"the median latency is {took:.3g} ms (limit {limits.max_latency_ms:g})"
        found += [message] if took > limits.max_latency_ms else []
    if limits.min_speedup is not None and row.latency is not None:
        speedup = row.latency.ratio.speedup if row.latency.ratio else 0.0
        message = f"the speed-up is {speedup:.3g} (limit {limits.min_speedup:g})"
        found += [message] if speedup < limits.min_speedup else []
    for checked in row.supported_shapes:
        text = [checked.failure] if checked.failure is not None else []
        if checked.agreement is not None and tolerance is not None:
            text += _beyond(tolerance, checked.agreement, checked.max_rel)
        at = "x".join(map(str, checked.shape))
        found += [f"declared input {at}: {one}" for one in text]
    return tuple(found)


def _tolerance(row: Row, limits: Limits) -> Tolerance | None:
    """Return the tolerance of the row's precision, tightened by `min_agreement`."""
    if row.evaluation is None or row.precision == "-":
        return None
    tolerance = tolerance_of(row.precision, row.backend)
    if limits.min_agreement is None:
        return tolerance
    least = max(tolerance.least_agreement, limits.min_agreement)
    return replace(tolerance, least_agreement=least)


def _beyond(tolerance: Tolerance, agreement: float, difference: float | None) -> list[str]:
    """Return one clause for each violation of the tolerance by labels or scores."""
    found = []
    if agreement < tolerance.least_agreement:
        found.append(f"{agreement:.3%} of labels are equal (limit {tolerance.least_agreement:.3%})")
    if difference is not None and difference > tolerance.most_difference:
        found.append(
            f"a score differs by {difference:.2g} of the reference's range "
            f"(limit {tolerance.most_difference:g})"
        )
    return found


def _agreement(row: Row) -> float | None:
    agreement = row.evaluation.agreement if row.evaluation else None
    return agreement.labels if agreement else None


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Return the rows from fastest to slowest; rows without latency are last.

    They are ordered by speed-up, since it is measured in pairs with the reference.
    """
    return sorted(rows, key=lambda row: -_speed(row))


def _speed(row: Row) -> float:
    if row.latency is None:
        return 0.0
    return row.latency.ratio.speedup if row.latency.ratio else 1.0


def as_fast(rows: Sequence[Row]) -> list[Row]:
    """Return the fastest candidate that passes, and those not significantly slower.

    Such a candidate passes, too, and the upper bound of its speed-up reaches the lower bound of the
    fastest candidate's.
    """
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
    """Return the name of the fastest passing candidate; of equally fast ones the most faithful."""
    best = as_fast(rows)
    if not best:
        return None
    return max(best, key=lambda row: _agreement(row) or 0.0).name


def pareto_front(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the names on the Pareto front of accuracy and latency, from fastest to slowest."""
    best = -1.0
    kept = []
    for row in ranked(rows):
        if row.latency is None or row.evaluation is None:
            continue
        accuracy = _accuracy(row.evaluation)
        if accuracy > best:
            best = accuracy
            kept.append(row.name)
    return tuple(kept)


def _accuracy(evaluation: Evaluation) -> float:
    if evaluation.accuracy.miou is not None:
        return evaluation.accuracy.miou
    return evaluation.agreement.labels if evaluation.agreement else 1.0

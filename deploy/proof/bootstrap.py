"""Bootstrap confidence intervals of mIoU over frames.

Pixels of one frame are not independent, but frames nearly are. Frames are therefore resampled with
replacement, and mIoU is computed for each draw (Efron and Tibshirani, "An Introduction to the
Bootstrap", ch. 13: the percentile interval). The same draws are used for a candidate and the
reference, which removes the difficulty of individual frames from the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Bounds of a 95 % confidence interval, as shares (1 is 100 %)."""

    low: float
    high: float


@dataclass(frozen=True)
class ConfidenceIntervals:
    """Confidence intervals of mIoU, of the IoU of each class, and of the mIoU drop.

    An interval is None if the value is undefined in more than half of the draws, as for a class
    that few frames contain.
    """

    miou: Interval | None
    iou: tuple[Interval | None, ...]
    drop: Interval | None = None


def confidence_intervals(
    counts: Sequence[NDArray[np.int64]], reference: Sequence[NDArray[np.int64]] | None = None
) -> ConfidenceIntervals:
    """Return the intervals for the counts `(C + 1, 3)` of each frame (`LabelCounts`).

    With the counts of the reference on the same frames, the mIoU drop has an interval, too.
    """
    if len(counts) < 2:  # one frame shows no variance between frames
        return ConfidenceIntervals(None, (None,) * (len(counts[0]) - 1))
    weights = _draws(len(counts))
    ious = _iou(weights, counts)
    mious = _mean(ious)
    drop = None
    if reference is not None:
        drop = _interval(_mean(_iou(weights, reference)) - mious)
    return ConfidenceIntervals(
        _interval(mious), tuple(_interval(column) for column in ious.T), drop
    )


def mean_interval(shares: Sequence[float]) -> Interval | None:
    """Return the interval of the mean of a share of each frame; None for a single frame."""
    if len(shares) < 2:
        return None
    return _interval(_draws(len(shares)) @ np.asarray(shares) / len(shares))


def _draws(frames: int) -> NDArray[np.int64]:
    """Return how often each frame is drawn, `(DRAWS, frames)`; equal for every candidate."""
    rng = np.random.default_rng(0)
    return rng.multinomial(frames, np.full(frames, 1 / frames), DRAWS)


def _iou(weights: NDArray[np.int64], counts: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return the IoU of each class in each draw, `(DRAWS, C)`; NaN where undefined."""
    hits, true, found = np.moveaxis(np.stack(counts)[:, :-1], 2, 0)
    union = true + found - hits
    with np.errstate(invalid="ignore"):
        result: NDArray[np.float64] = (weights @ hits) / (weights @ union)
    return result


def _mean(ious: NDArray[np.float64]) -> NDArray[np.float64]:
    defined = ~np.isnan(ious)
    sums = np.where(defined, ious, 0).sum(1)
    with np.errstate(invalid="ignore"):
        result: NDArray[np.float64] = sums / defined.sum(1)
    return result


def _interval(values: NDArray[np.float64]) -> Interval | None:
    known = values[~np.isnan(values)]
    if len(known) < len(values) / 2:
        return None
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(float(low), float(high))

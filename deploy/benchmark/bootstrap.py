"""Confidence intervals of mIoU by resampling frames.

Pixels of one frame are not independent, and frames nearly are: so frames are drawn again, with
replacement, and mIoU is computed of each draw (Efron and Tibshirani, "An Introduction to the
Bootstrap", ch. 13: the percentile interval). A candidate and the reference are drawn together,
which takes the frames' own difficulty out of their difference.
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
    """95 % of the draws lie between `low` and `high`, in 0..1."""

    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """Intervals of mIoU, of each class's IoU, and of the mIoU that a candidate loses.

    None where a draw has no value for most draws: a class that hardly a frame holds.
    """

    miou: Interval | None
    iou: tuple[Interval | None, ...]
    drop: Interval | None = None


def spread(
    counts: Sequence[NDArray[np.int64]], reference: Sequence[NDArray[np.int64]] | None = None
) -> Spread:
    """Intervals for confusion matrices `(C, C)`, one a frame, and a reference's of the same."""
    if len(counts) < 2:  # nothing can be said of how frames differ
        return Spread(None, (None,) * len(counts[0]))
    weights = _draws(len(counts))
    ious = _iou(weights, counts)
    mious = _mean(ious)
    drop = None
    if reference is not None:
        drop = _interval(_mean(_iou(weights, reference)) - mious)
    return Spread(_interval(mious), tuple(_interval(column) for column in ious.T), drop)


def _draws(frames: int) -> NDArray[np.int64]:
    """How often each frame is drawn, `(DRAWS, frames)`; the same for every candidate."""
    rng = np.random.default_rng(0)
    return rng.multinomial(frames, np.full(frames, 1 / frames), DRAWS)


def _iou(weights: NDArray[np.int64], counts: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """IoU of each class for each draw, `(DRAWS, C)`; NaN where it is undefined."""
    held = np.stack(counts)
    hits = np.einsum("fcc->fc", held)
    union = held.sum(1) + held.sum(2) - hits
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

"""Expected calibration error: whether a network that is 90 % sure is right nine times of ten."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segdeploy.runtime.postprocess import softmax

BINS = 15


def reliability(
    scores: NDArray[np.float32], mask: NDArray[np.uint8], ignore_index: int, *, are_logits: bool
) -> NDArray[np.float64]:
    """Pixels, sum of confidence and right pixels `(15, 3)` in bins of equal width of confidence.

    `scores` are `(C, H, W)` at the size of `mask`; ignored pixels do not count.
    """
    labelled = mask != ignore_index
    shares = softmax(scores) if are_logits else scores
    confidence = shares.max(0)[labelled]
    right = shares.argmax(0)[labelled] == mask[labelled]
    bins = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    weights = (None, confidence, right)
    return np.stack([np.bincount(bins, one, BINS).astype(np.float64) for one in weights], axis=1)


def expected_calibration_error(counts: NDArray[np.float64]) -> float | None:
    """Mean distance of confidence from accuracy, in 0..1, over pixels; None without pixels.

    Guo et al., "On Calibration of Modern Neural Networks" (2017), section 2.
    """
    total = counts[:, 0].sum()
    return float(np.abs(counts[:, 1] - counts[:, 2]).sum() / total) if total else None

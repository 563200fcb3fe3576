"""Expected calibration error: the difference between confidence and accuracy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 15


def reliability(
    probabilities: NDArray[np.float32], mask: NDArray[np.uint8], ignore_index: int
) -> NDArray[np.float64]:
    """Return `(15, 3)`: pixels, summed confidence and correct pixels per confidence bin.

    The bins have equal width. `probabilities` is `(C, H, W)` at the size of `mask`. Ignored
    pixels do not count.
    """
    labeled = mask != ignore_index
    confidence = probabilities.max(0)[labeled]
    right = probabilities.argmax(0)[labeled] == mask[labeled]
    bins = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    weights = (None, confidence, right)
    return np.stack([np.bincount(bins, one, BINS).astype(np.float64) for one in weights], axis=1)


def expected_calibration_error(counts: NDArray[np.float64]) -> float | None:
    """Return the mean |confidence - accuracy| of the bins, in 0..1; None without pixels.

    The bins are weighted by their pixels.

    Guo et al., "On Calibration of Modern Neural Networks" (2017), section 2.
    """
    total = counts[:, 0].sum()
    return float(np.abs(counts[:, 1] - counts[:, 2]).sum() / total) if total else None

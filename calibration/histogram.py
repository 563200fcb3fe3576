"""Histogram of a tensor's values over any number of frames, in constant memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 8192
_SMALLEST_TOP = 2.0**-100  # below, BINS / top would overflow float32


class Histogram:
    """Counts of magnitudes in equal bins up to a power of two, and the signed extremes.

    When a larger value arrives, the top doubles and neighboring bins merge. Merging is exact,
    because the top is a power of two: the counts equal those of one pass with the final top known,
    for any order and batching of the frames. With `extremes_only` nothing is counted.
    """

    def __init__(self, *, extremes_only: bool = False) -> None:
        self.counted = not extremes_only
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.top = 0.0  # upper edge of the last bin; 0 until a nonzero value arrives
        self.lowest = math.inf
        self.highest = -math.inf
        self._images = 0
        self._sum_of_largest = 0.0

    @property
    def largest(self) -> float:
        """Largest magnitude."""
        return max(-self.lowest, self.highest, 0.0)

    @property
    def mean_of_largest(self) -> float:
        """Mean of the images' largest magnitudes."""
        return self._sum_of_largest / self._images

    def add(self, batch: NDArray[Any]) -> None:
        """Count the values of `(N, ...) float32`.

        Raises:
            ValueError: if a value is not finite.
        """
        images = batch.reshape(len(batch) if batch.ndim > 1 else 1, -1)
        if not images.size:
            return
        self.add_extremes(images.min(1), images.max(1))
        if self.counted:
            magnitudes = np.abs(images).ravel()
            if self.top:
                magnitudes *= np.float32(BINS / self.top)
            self.counts += np.bincount(magnitudes.astype(np.int32), minlength=BINS)

    def add_extremes(self, low: NDArray[Any], high: NDArray[Any]) -> None:
        """Add each image's smallest and largest value, `(N,) float32`.

        Raises:
            ValueError: if a value is not finite.
        """
        largest = np.maximum(-low, high).astype(np.float64)
        if not np.isfinite(largest).all():
            raise ValueError("not finite")
        self.lowest = min(self.lowest, float(low.min()))
        self.highest = max(self.highest, float(high.max()))
        self._images += len(largest)
        self._sum_of_largest += float(largest.sum())
        self._widen(float(largest.max()))

    def _widen(self, largest: float) -> None:
        if not largest:
            return
        if not self.top:  # only zeros so far, which are in the first bin at any width
            self.top = max(2.0 ** math.frexp(largest)[1], _SMALLEST_TOP)
        while largest >= self.top:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([merged, np.zeros(BINS // 2, np.int64)])
            self.top *= 2

"""Clamping thresholds: the largest magnitude that INT8 represents, from a histogram."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdeploy.calibration.histogram import BINS, Histogram

LEVELS = 127  # symmetric: -128 is not used
PERCENTILE = 99.99
_ENTROPY_BINS = 2048
_BARS = 64


def min_max(values: Histogram) -> float:
    """Return the largest magnitude of all values."""
    return values.largest


def average(values: Histogram) -> float:
    """Return the mean of the images' largest magnitudes, an order-independent moving average."""
    return values.mean_of_largest


def percentile(values: Histogram) -> float:
    """Return the magnitude that `PERCENTILE` percent of the values do not exceed."""
    reached = np.cumsum(values.counts) >= values.counts.sum() * (PERCENTILE / 100)
    edge = (int(reached.argmax()) + 1) * values.top / BINS
    return min(edge, values.largest)


def squared_error(values: Histogram) -> float:
    """Return the threshold of the least mean squared error of rounding and clamping together."""
    seen = int(values.counts.nonzero()[0][-1]) + 1
    counts = values.counts[:seen].astype(np.float64)
    centers = (np.arange(seen) + 0.5) * (values.top / BINS)
    candidates = values.largest * np.linspace(0.1, 1, 91)
    errors = []
    for threshold in candidates:
        step = threshold / LEVELS
        rounded = np.minimum(np.rint(centers / step), LEVELS) * step
        errors.append(float((counts * (rounded - centers) ** 2).sum()))
    return float(candidates[int(np.argmin(errors))])


def entropy(values: Histogram) -> float:
    """Return the threshold whose 128 levels have the least Kullback-Leibler divergence.

    After S. Migacz, 8-bit inference with TensorRT, GTC 2017: the distribution of the values clamped
    at the threshold is compared with the same distribution in 128 steps.
    """
    counts = values.counts.reshape(_ENTROPY_BINS, -1).sum(1).astype(np.float64)
    counts[0] = counts[1]  # bin 0 holds the zeros, which every threshold represents exactly
    seen = int(counts.nonzero()[0][-1]) + 1 if counts.any() else 0
    levels = LEVELS + 1
    if seen <= levels:
        return values.largest
    ends = np.arange(levels, seen + 1, max(1, (seen - levels) // 128))
    divergences = [_divergence(counts[:seen], int(end), levels) for end in ends]
    best = int(ends[int(np.argmin(divergences))])
    return min(best * values.top / _ENTROPY_BINS, values.largest)


def _divergence(counts: NDArray[np.float64], end: int, levels: int) -> float:
    clamped = counts[:end].copy()
    clamped[-1] += counts[end:].sum()
    group = np.arange(end) * levels // end
    held = counts[:end] > 0
    mass = np.bincount(group, counts[:end], levels)
    width = np.bincount(group, held, levels)
    stepped = np.where(held, (mass / np.maximum(width, 1))[group], 0.0)
    if not stepped.any():
        return float("inf")
    p, q = clamped / clamped.sum(), stepped / stepped.sum()
    both = (p > 0) & (q > 0)
    lost = float(p[(p > 0) & (q == 0)].sum())  # mass where the steps have zero probability
    return float((p[both] * np.log(p[both] / q[both])).sum()) + lost * 20


METHODS: Mapping[str, Callable[[Histogram], float]] = {
    "min-max": min_max,
    "average": average,
    "percentile": percentile,
    "entropy": entropy,
    "mse": squared_error,
}


# Methods that need only each image's smallest and largest value.
EXTREMES = ("min-max", "average")


@dataclass(frozen=True)
class Statistics:
    """Summary of a tensor: its signed extremes, and the threshold of every method.

    `bars` is a coarse histogram of its magnitudes up to `top`, empty if none were counted.
    """

    lowest: float
    highest: float
    thresholds: Mapping[str, float]
    top: float = 0.0
    bars: tuple[int, ...] = ()

    @property
    def largest(self) -> float:
        """Largest magnitude."""
        return max(-self.lowest, self.highest, 0.0)


def statistics(values: Histogram) -> Statistics:
    """Apply every method of `METHODS`; a tensor that is always zero has the threshold 0.

    Methods that need counts are left out for a histogram of extremes alone.
    """
    methods = METHODS if values.counted else {name: METHODS[name] for name in EXTREMES}
    found = {name: choose(values) if values.top else 0.0 for name, choose in methods.items()}
    bars = tuple(values.counts.reshape(_BARS, -1).sum(1).tolist()) if values.counted else ()
    return Statistics(values.lowest, values.highest, found, values.top, bars)

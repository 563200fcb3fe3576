"""How far an array is from a reference: the measures that every comparison reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def max_abs(found: Array, reference: Array) -> float:
    """Return the largest difference of two arrays; infinity if their shapes differ."""
    if found.shape != reference.shape:
        return math.inf
    return float(np.abs(found - reference).max())


def value_range(reference: Array) -> float:
    """Return the largest minus the smallest value."""
    return float(np.ptp(reference))


def over_range(difference: float, span: float) -> float:
    """Return a difference relative to a range; infinity where only the range is zero."""
    return difference / span if span else (math.inf if difference else 0.0)


def power(values: Array) -> float:
    """Return the sum of squares, in float64."""
    return float(np.square(values, dtype=np.float64).sum())


def snr_db(signal: float, noise: float) -> float:
    """Return the signal-to-noise ratio of two powers, in dB; infinity without noise."""
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf


def label_agreement(found: Array, reference: Array) -> float:
    """Return the share of equal labels of one image, in 0..1."""
    return float(np.mean(found == reference))


def mean_label_agreement(found: Sequence[Array], reference: Sequence[Array]) -> float:
    """Return the share of equal labels, averaged over images of any sizes."""
    return float(np.mean([label_agreement(a, b) for a, b in zip(found, reference, strict=True)]))

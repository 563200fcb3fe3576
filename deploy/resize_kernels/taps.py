"""Weighted taps of one axis: the source pixels of each target pixel, and their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Filter:
    """A filter `function` that is zero farther than `support` source pixels from its center."""

    function: Callable[[Floats], Floats]
    support: float


@dataclass(frozen=True)
class Taps:
    """Taps of one axis: `index` and `weight` have the shape (target side, number of taps).

    A tap outside the window of its target pixel has weight 0.
    """

    index: NDArray[np.intp]
    weight: NDArray[Any]


def antialiased(side: int, target: int, kernel: Filter) -> Taps:
    """Return the taps of a filter that is stretched when the image shrinks, in float64.

    Pillow, `precompute_coeffs` in Resample.c; torch's antialiased kernels have the same taps.
    """
    scale = side / target
    stretch = max(scale, 1.0)
    support = kernel.support * stretch
    center = (np.arange(target) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.intp), 0)
    last = np.minimum((center + support + 0.5).astype(np.intp), side)
    count = int((last - first).max())
    offset = np.arange(count)
    position = first[:, None] + offset
    weight = kernel.function((position - center[:, None] + 0.5) * (1.0 / stretch))
    weight = np.where(position < last[:, None], weight, 0.0)
    total = np.zeros(target)
    for tap in range(count):  # in the library's order: a pairwise sum would round otherwise
        total += weight[:, tap]
    weight = weight / np.where(total == 0, 1.0, total)[:, None]
    return Taps(np.minimum(position, side - 1), weight)


def saturated(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Convert whole numbers to an integer dtype; values outside its range become its limits."""
    limits = np.iinfo(dtype)
    converted: NDArray[Any] = np.clip(values, limits.min, limits.max).astype(dtype)
    return converted


def half_away_from_zero(values: NDArray[Any]) -> NDArray[Any]:
    """Round as C's conversion of `x + 0.5`, or of `x - 0.5` below zero, does."""
    rounded: NDArray[Any] = np.trunc(values + np.copysign(0.5, values))
    return rounded


def pass_of_bytes(image: NDArray[np.uint8], taps: Taps, axis: int, bits: int) -> NDArray[np.uint8]:
    """Return bytes interpolated along one axis, with fixed-point weights of `bits` bits."""
    fixed = half_away_from_zero(taps.weight * (1 << bits)).astype(np.int32)
    half = np.array(1 << (bits - 1), np.int32)
    total = weighted_sum(image, Taps(taps.index, fixed), axis, half)
    return saturated(total >> bits, np.uint8)


def interpolated(image: NDArray[Any], rows: Taps, columns: Taps) -> NDArray[np.float32]:
    """Return an image interpolated in float32: the columns, then the rows."""
    wide = weighted_sum(image, columns, 1, np.array(0, np.float32))
    return weighted_sum(wide, rows, 0, np.array(0, np.float32))


def weighted_sum(image: NDArray[Any], taps: Taps, axis: int, start: NDArray[Any]) -> NDArray[Any]:
    """Return `start` plus the weighted taps along axis 0 or 1, added one after another.

    The dtype of `start` is that of the arithmetic.
    """
    count, channels = len(taps.index), image[0, 0].size
    height, width = image.shape[:2]
    lines = image.reshape(height, width * channels)
    shape = (count, width) if axis == 0 else (height, count)
    total = np.full((shape[0], shape[1] * channels), start, start.dtype)
    product = np.empty_like(total)
    for tap in range(taps.index.shape[1]):
        index, weight = taps.index[:, tap], taps.weight[:, tap].astype(start.dtype)
        if axis == 0:
            pixels, weight = lines[index], weight[:, None]
        else:
            places = index[:, None] * channels + np.arange(channels)
            pixels, weight = np.take(lines, places.ravel(), axis=1), np.repeat(weight, channels)
        np.multiply(pixels, weight, out=product, dtype=start.dtype, casting="unsafe")
        total += product
    return total.reshape(*shape, *image.shape[2:])

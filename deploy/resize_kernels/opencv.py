"""OpenCV's `resize` (imgproc/src/resize.cpp, 4.x and 5.x), without its vendor code."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.resize_kernels.taps import Taps, interpolated, saturated, weighted_sum

_ONE = 2048  # fixed-point weights of bytes have 11 bits
# Values of a block of rows. The intermediate results of a block stay in a processor's cache.
_BLOCK = 1 << 16
_CUBIC = -0.75  # the parameter of Keys' cubic convolution


def nearest(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize as INTER_NEAREST does: the top left of the pixels that a target pixel covers."""
    for axis, target in enumerate(size):
        side = image.shape[axis]
        position = np.floor(np.arange(target) * _step(side, target)).astype(np.intp)
        image = np.take(image, np.minimum(position, side - 1), axis=axis)
    return image


def linear(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize as INTER_LINEAR does.

    OpenCV halves an image with INTER_AREA. The last bit of 16-bit and float32 images depends on
    vendor code in OpenCV.
    """
    if image.shape[:2] == (2 * size[0], 2 * size[1]):
        return area(image, size)
    return _linear(image, linear_taps((image.shape[0], image.shape[1]), size))


def linear_taps(source: tuple[int, int], size: tuple[int, int]) -> tuple[Taps, Taps]:
    """Return the two taps of each row and of each column of INTER_LINEAR."""
    places = [_linear_taps(side, target) for side, target in zip(source, size, strict=True)]
    return _clamped(source, places)


def cubic(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize as INTER_CUBIC does; the last bit depends on vendor code in OpenCV."""
    rows, columns = (_cubic_taps(image.shape[axis], size[axis]) for axis in (0, 1))
    if image.dtype != np.uint8:
        return _of_floats(image, rows, columns)
    wide = weighted_sum(image, fixed(columns), 1, np.array(0, np.int64))
    total = weighted_sum(wide, fixed(rows), 0, np.array(1 << 21, np.int64)) >> 22
    return saturated(total, np.uint8)


def area(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize as INTER_AREA does: the mean of the covered pixels, or INTER_LINEAR to enlarge."""
    height, width = image.shape[:2]
    if size[0] > height or size[1] > width:
        places = [_area_taps(image.shape[axis], size[axis]) for axis in (0, 1)]
        return _linear(image, _clamped((height, width), places))
    if height % size[0] == 0 and width % size[1] == 0:
        return _blocks(image, size)
    rows, columns = (_covering_taps(image.shape[axis], size[axis]) for axis in (0, 1))
    return _of_floats(image, rows, columns)


def _step(side: int, target: int) -> float:
    return 1.0 / (target / side)


def _linear_taps(side: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the first of the two source pixels, not clamped, and the weight of the second."""
    position = ((np.arange(target) + 0.5) * _step(side, target) - 0.5).astype(np.float32)
    first = np.floor(position)
    return first.astype(np.intp), position - first


def _area_taps(side: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """As `_linear_taps`, with the coordinates of INTER_AREA."""
    step, inverse = _step(side, target), target / side
    index = np.arange(target)
    first = np.floor(index * step).astype(np.intp)
    weight = ((index + 1) - (first + 1) * inverse).astype(np.float32)
    return first, np.where(weight <= 0, np.float32(0), weight - np.floor(weight))


def _clamped(
    source: tuple[int, int], places: list[tuple[NDArray[np.intp], NDArray[np.float32]]]
) -> tuple[Taps, Taps]:
    """Return the taps of the rows and the columns within an image of size `source` (H, W).

    At the edges, OpenCV clamps the rows and keeps the weight; it drops the weight of a column.
    """
    (top, down), (left, right) = places
    height, width = source
    right = np.where((left < 0) | (left >= width - 1), np.float32(0), right)
    left = np.clip(left, 0, width - 1)
    rows = np.clip(np.stack([top, top + 1], 1), 0, height - 1)
    columns = np.stack([left, np.minimum(left + 1, width - 1)], 1)
    return (
        Taps(rows, np.stack([1 - down, down], 1)),
        Taps(columns, np.stack([1 - right, right], 1)),
    )


def _linear(image: NDArray[Any], taps: tuple[Taps, Taps]) -> NDArray[Any]:
    rows, columns = taps
    if image.dtype != np.uint8:
        return _of_floats(image, rows, columns)
    rows, columns = fixed(rows), fixed(columns)
    height, width, channels = len(rows.index), len(columns.index), image[0, 0].size
    resized = np.empty((height, width * channels), np.uint8)
    step = max(1, _BLOCK // (width * channels))
    for first in range(0, height, step):
        block = slice(first, first + step)
        used, place = np.unique(rows.index[block], return_inverse=True)
        wide = weighted_sum(image[used], columns, 1, np.array(0, np.int32))
        wide >>= 4  # the vertical pass does not use the last four bits
        wide = wide.reshape(len(used), -1)
        places = place.reshape(-1, 2)
        total = np.full((len(places), wide.shape[1]), 2, np.int32)
        for tap in (0, 1):
            lines = wide[places[:, tap]]
            lines *= rows.weight[block, tap, None]
            lines >>= 16
            total += lines
        total >>= 2
        resized[block] = total
    return resized.reshape(height, width, *image.shape[2:])


def _cubic_taps(side: int, target: int) -> Taps:
    position = ((np.arange(target) + 0.5) * _step(side, target) - 0.5).astype(np.float32)
    first = np.floor(position)
    x = position - first
    a, one = np.float32(_CUBIC), np.float32(1)
    near, far = x + one, one - x
    weights = [
        ((a * near - 5 * a) * near + 8 * a) * near - 4 * a,
        ((a + 2) * x - (a + 3)) * x * x + one,
        ((a + 2) * far - (a + 3)) * far * far + one,
    ]
    weights.append(one - weights[0] - weights[1] - weights[2])
    index = first.astype(np.intp)[:, None] + np.arange(-1, 3)
    return Taps(np.clip(index, 0, side - 1), np.stack(weights, 1).astype(np.float32))


def _covering_taps(side: int, target: int) -> Taps:
    """Return the pixels that each target pixel covers, weighted by the covered part."""
    step = _step(side, target)
    begin = np.arange(target) * step
    end = begin + step
    cell = np.minimum(step, side - begin)
    last = np.minimum(np.floor(end).astype(np.intp), side - 1)
    first = np.minimum(np.ceil(begin).astype(np.intp), last)
    count = int((last - first).max()) + 2
    index = first[:, None] - 1 + np.arange(count)
    weight = np.where(
        (index >= first[:, None]) & (index < last[:, None]), (1.0 / cell)[:, None], 0.0
    )
    before = first - begin
    weight[:, 0] = np.where(before > 1e-3, before / cell, 0.0)
    after = end - last
    part = np.minimum(np.minimum(after, 1.0), cell) / cell
    rows = np.arange(target)
    weight[rows, last - first + 1] = np.where(after > 1e-3, part, 0.0)
    return Taps(np.clip(index, 0, side - 1), weight.astype(np.float32))


def _blocks(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return the means of whole blocks of pixels."""
    tall, wide = image.shape[0] // size[0], image.shape[1] // size[1]
    whole = image.dtype != np.float32
    parts = image.reshape(size[0], tall, size[1], wide, *image.shape[2:])
    total = np.zeros((*size, *image.shape[2:]), np.int64 if whole else np.float32)
    for row in range(tall):
        for column in range(wide):
            total += parts[:, row, :, column]
    if whole and (tall, wide) == (2, 2):
        return ((total + 2) >> 2).astype(image.dtype)
    mean = total.astype(np.float32) * np.float32(1 / (tall * wide))
    return saturated(np.rint(mean), image.dtype) if whole else mean


def fixed(taps: Taps) -> Taps:
    """Return the taps with the weights of bytes, whole numbers of 11 bits."""
    return Taps(taps.index, np.rint(taps.weight * np.float32(_ONE)).astype(np.int32))


def _of_floats(image: NDArray[Any], rows: Taps, columns: Taps) -> NDArray[Any]:
    total = interpolated(image, rows, columns)
    if image.dtype == np.float32:
        return total
    return saturated(np.rint(total), image.dtype)

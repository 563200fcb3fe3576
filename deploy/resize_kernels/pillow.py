"""Pillow's resize filters (`Image.resize`; Resample.c and Geometry.c of Pillow 13)."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from segdeploy.resize_kernels.taps import (
    Filter,
    Floats,
    Taps,
    antialiased,
    half_away_from_zero,
    pass_of_bytes,
    saturated,
    weighted_sum,
)

BITS = 22  # Pillow's fixed-point weights of bytes: 32 bits less 8 of the pixel and 2 of the sum


def _box(x: Floats) -> Floats:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _bilinear(x: Floats) -> Floats:
    x = np.abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


def cubic(x: Floats, a: float) -> Floats:
    """Return Keys' cubic convolution (1981) with the parameter `a`."""
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _sinc(x: Floats) -> Floats:
    turn = x * np.pi
    return np.where(x == 0.0, 1.0, np.sin(turn) / np.where(x == 0.0, 1.0, turn))


def _lanczos(x: Floats) -> Floats:
    return np.where((x >= -3.0) & (x < 3.0), _sinc(x) * _sinc(x / 3), 0.0)


BILINEAR = Filter(_bilinear, 1.0)
BICUBIC = Filter(lambda x: cubic(x, -0.5), 2.0)
FILTERS = {
    "box": Filter(_box, 0.5),
    "bilinear": BILINEAR,
    "bicubic": BICUBIC,
    "lanczos": Filter(_lanczos, 3.0),
}


def resized(
    image: NDArray[Any], size: tuple[int, int], name: str, *, before_13: bool
) -> NDArray[Any]:
    """Resize with a filter: by Pillow itself where the installed version has this arithmetic."""
    of_bytes = image.dtype == np.uint8 and image.shape[2:] in ((), (3,))
    if of_bytes and before_13 == (int(PIL.__version__.split(".")[0]) < 13):
        by = Image.Resampling[name.upper()]
        return np.asarray(Image.fromarray(image).resize(size[::-1], by))
    return filtered(image, size, FILTERS[name], before_13=before_13)


def begins_with_rows(source: tuple[int, int], size: tuple[int, int]) -> bool:
    """Return whether Pillow 13 resizes the rows before the columns."""
    rows, columns = source[0] - size[0], source[1] - size[1]
    return rows > 0 and rows > 2 * columns


def filtered(
    image: NDArray[Any], size: tuple[int, int], kernel: Filter, *, before_13: bool
) -> NDArray[Any]:
    """Resize with a filter in numpy, and round after each pass.

    Pillow 13 resizes the rows first if it shrinks them by more than twice what it shrinks the
    columns. With `before_13` the columns are always first.
    """
    height, width = image.shape[:2]
    passes = [(1, size[1]), (0, size[0])]
    if not before_13 and begins_with_rows((height, width), size):
        passes.reverse()
    for axis, target in passes:
        if image.shape[axis] != target:
            image = _pass(image, antialiased(image.shape[axis], target, kernel), axis)
    return image


def _pass(image: NDArray[Any], taps: Taps, axis: int) -> NDArray[Any]:
    if image.dtype == np.uint8:
        return pass_of_bytes(image, taps, axis, BITS)
    total = weighted_sum(image, taps, axis, np.array(0.0))
    if image.dtype == np.uint16:
        return saturated(half_away_from_zero(total), np.uint16)
    return total.astype(np.float32)


def nearest(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize by nearest neighbor.

    Pillow adds the step to a position repeatedly for bytes and float32, and multiplies for 16 bits.
    """
    for axis, target in enumerate(size):
        side = image.shape[axis]
        step = side / target
        if image.dtype == np.uint16:
            position = (np.arange(target) + 0.5) * step
        else:
            position = np.cumsum([step * 0.5, *[step] * (target - 1)])
        image = np.take(image, np.minimum(position.astype(np.intp), side - 1), axis=axis)
    return image

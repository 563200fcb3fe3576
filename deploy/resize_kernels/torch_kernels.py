"""PyTorch's `interpolate` of float32 images, and torchvision's `resize` of bytes.

PyTorch 2: aten/src/ATen/native/cpu/UpSampleKernel.cpp. PyTorch has several code paths with and
without fused multiply-add, so float32 results agree up to rounding. The result for bytes is
float32, too: a network that resizes tensors does so after the conversion to float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.resize_kernels.pillow import BICUBIC, BILINEAR, cubic
from segdeploy.resize_kernels.taps import Filter, Taps, antialiased, interpolated, pass_of_bytes

_CUBIC = -0.75  # without antialiasing; with it, the parameter is Pillow's -0.5
_MOST_BITS, _LARGEST = 22, 1 << 15  # fixed-point weights of bytes are 16-bit integers


def nearest(image: NDArray[Any], size: tuple[int, int], *, exact: bool = False) -> NDArray[Any]:
    """Resize by nearest neighbor; `exact` takes the pixel under the center, not the corner."""
    shift = np.float32(0.5 if exact else 0)
    for axis, target in enumerate(size):
        side = image.shape[axis]
        scale = np.float32(side) / np.float32(target)
        position = np.floor((np.arange(target, dtype=np.float32) + shift) * scale)
        image = np.take(image, np.minimum(position.astype(np.intp), side - 1), axis=axis)
    return image


def bilinear(image: NDArray[Any], size: tuple[int, int], *, align_corners: bool) -> NDArray[Any]:
    """Resize as mode `bilinear` without antialiasing."""
    taps = []
    for side, target in zip(image.shape, size, strict=False):
        position = np.maximum(_positions(side, target, align_corners=align_corners), 0)
        first = np.minimum(np.floor(position).astype(np.intp), side - 1)
        weight = (position - first).astype(np.float32)
        index = np.stack([first, np.minimum(first + 1, side - 1)], 1)
        taps.append(Taps(index, np.stack([1 - weight, weight], 1)))
    return interpolated(image, *taps)


def bicubic(image: NDArray[Any], size: tuple[int, int], *, align_corners: bool) -> NDArray[Any]:
    """Resize as mode `bicubic` without antialiasing."""
    taps = []
    for side, target in zip(image.shape, size, strict=False):
        position = _positions(side, target, align_corners=align_corners)
        first = np.floor(position)
        offset = np.arange(-1, 3)
        weight = cubic((position - first).astype(np.float64)[:, None] - offset, _CUBIC)
        index = np.clip(first.astype(np.intp)[:, None] + offset, 0, side - 1)
        taps.append(Taps(index, weight.astype(np.float32)))
    return interpolated(image, *taps)


def antialiased_bilinear(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize as mode `bilinear` with antialiasing."""
    return _antialiased(image, size, BILINEAR)


def antialiased_bicubic(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize as mode `bicubic` with antialiasing."""
    return _antialiased(image, size, BICUBIC)


def bytes_bilinear(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize bytes as torchvision's v2 `resize` does with BILINEAR and antialiasing."""
    return _of_bytes(image, size, BILINEAR)


def bytes_bicubic(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize bytes as torchvision's v2 `resize` does with BICUBIC and antialiasing."""
    return _of_bytes(image, size, BICUBIC)


def _positions(side: int, target: int, *, align_corners: bool) -> NDArray[np.float32]:
    index = np.arange(target, dtype=np.float32)
    half = np.float32(0.5)
    positions: NDArray[np.float32]
    if align_corners:
        positions = index * (np.float32(side - 1) / np.float32(max(target - 1, 1)))
    else:
        positions = np.float32(side) / np.float32(target) * (index + half) - half
    return positions


def _antialiased(image: NDArray[Any], size: tuple[int, int], kernel: Filter) -> NDArray[Any]:
    taps = [antialiased(side, to, kernel) for side, to in zip(image.shape, size, strict=False)]
    return interpolated(image, *taps)


def _of_bytes(image: NDArray[np.uint8], size: tuple[int, int], kernel: Filter) -> NDArray[np.uint8]:
    """Resize with 16-bit weights: the columns, then the rows, rounded after each pass."""
    for axis in (1, 0):
        side, target = image.shape[axis], size[axis]
        if side == target:
            continue
        taps = antialiased(side, target, kernel)
        image = pass_of_bytes(image, taps, axis, bits_of(float(taps.weight.max())))
    return image


def bits_of(largest: float) -> int:
    """Return the most fractional bits with which the largest weight is below 2^15."""
    bits = 0
    while bits < _MOST_BITS and int(0.5 + largest * (1 << (bits + 1))) < _LARGEST:
        bits += 1
    return bits

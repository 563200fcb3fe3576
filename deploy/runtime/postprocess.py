"""From logits to labels of the picture's own size, and to an overlay."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def labels_at(logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Upsample logits `(C, h, w)` bilinearly to `size` (H, W), then take the best class a pixel.

    Logits are interpolated, never class ids: an id between two others means nothing. Equal to
    `F.interpolate(..., mode="bilinear", align_corners=False).argmax(1)` up to rounding.
    """
    best: NDArray[np.uint8] = upsample(logits, size).argmax(0).astype(np.uint8)
    return best


def upsample(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear resize of `(C, h, w)` to `(C, H, W)`, pixel centres at half (ONNX half_pixel)."""
    height, width = size
    if maps.shape[1] != height:
        low, high, weight = _taps(maps.shape[1], height)
        upper = maps[:, low]
        maps = upper + (maps[:, high] - upper) * weight[None, :, None]
    if maps.shape[2] != width:
        low, high, weight = _taps(maps.shape[2], width)
        left = maps[:, :, low]
        maps = left + (maps[:, :, high] - left) * weight[None, None, :]
    return maps


@lru_cache(maxsize=16)
def _taps(
    source: int, target: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    centres = (np.arange(target) + 0.5) * (source / target) - 0.5
    centres = np.clip(centres, 0, source - 1)
    low = np.floor(centres).astype(np.intp)
    return low, np.minimum(low + 1, source - 1), (centres - low).astype(np.float32)


def overlay(
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    palette: Sequence[tuple[int, int, int]],
    opacity: float = 0.6,
) -> NDArray[np.uint8]:
    """Lay the classes' colours over a picture; ids outside the palette leave it as it is.

    `image` is `(H, W, 3) uint8` RGB, `labels` is `(H, W) uint8`.
    """
    colours = np.zeros((256, 3), np.float32)
    colours[: len(palette)] = palette
    painted = (labels < len(palette))[..., None] * np.float32(opacity)
    mixed: NDArray[np.uint8] = (image * (1 - painted) + colours[labels] * painted).astype(np.uint8)
    return mixed

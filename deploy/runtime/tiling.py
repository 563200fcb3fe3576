"""Pictures larger than the network's input, in overlapping windows that are blended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.runtime.session import Session
from segdeploy.spec import Contract

Picture = NDArray[np.uint8]
OVERLAP = 1 / 3


def starts(length: int, window: int) -> list[int]:
    """Where windows of `window` begin along `length` pixels: evenly, overlapping by a third.

    The last one ends with the picture; a shorter picture has one window.
    """
    if length <= window:
        return [0]
    step = max(1, int(window * (1 - OVERLAP)))
    count = -(-(length - window) // step) + 1
    return [index * (length - window) // (count - 1) for index in range(count)]


def largest_window(session: Session, contract: Contract, size: tuple[int, int]) -> tuple[int, int]:
    """The largest piece of a picture of `size` (H, W) that one run takes: all of it, if it fits.

    Rounded up to the contract's multiple: a picture that nearly fits is one window then.
    """
    profiles = session.profiles if session.takes_any_size else ()
    if not profiles:
        return contract.size
    tall, broad = (-(-side // contract.multiple) * contract.multiple for side in size)
    windows = []
    for profile in profiles:
        (_, low, narrow), (_, high, wide) = profile.minimum, profile.maximum
        windows.append((min(max(low, tall), high), min(max(narrow, broad), wide)))
    return max(windows, key=lambda window: window[0] * window[1])


def tiled(
    run: Callable[[Picture], NDArray[Any]], image: Picture, window: tuple[int, int]
) -> NDArray[Any]:
    """Run every window of `(H, W, 3)`, and join what they give at the picture's own size.

    Scores `(C, h, w) float32` are averaged, each pixel weighted by its distance from the window's
    edge; of labels `(h, w)`, which cannot be averaged, a pixel has those of the window in whose
    middle it lies most. Where the picture is smaller than a window, its edge is repeated.
    """
    height, width = image.shape[:2]
    margins = [max(0, window[0] - height), max(0, window[1] - width)]
    if any(margins):
        image = np.pad(image, ((0, margins[0]), (0, margins[1]), (0, 0)), mode="edge")
    weight = np.minimum.outer(_tent(window[0]), _tent(window[1]))
    joined: NDArray[Any] | None = None
    weights = np.zeros(image.shape[:2], np.float32)
    for top in starts(image.shape[0], window[0]):
        for left in starts(image.shape[1], window[1]):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            found = run(np.ascontiguousarray(image[rows, columns]))
            if joined is None:
                joined = np.zeros((*found.shape[:-2], *image.shape[:2]), found.dtype)
            if found.ndim == 3:
                joined[:, rows, columns] += found * weight
                weights[rows, columns] += weight
            else:
                nearer = weight > weights[rows, columns]
                joined[rows, columns][nearer] = found[nearer]
                weights[rows, columns][nearer] = weight[nearer]
    assert joined is not None
    if joined.ndim == 3:
        joined /= weights
    return joined[..., :height, :width]


def _tent(length: int) -> NDArray[np.float32]:
    """1 at both ends of a window, growing to its middle."""
    index = np.arange(length)
    return (np.minimum(index, length - 1 - index) + 1).astype(np.float32)

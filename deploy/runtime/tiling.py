"""Inference on images larger than the network's input, in blended overlapping windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.runtime.session import Session

Pixels = NDArray[np.uint8]
OVERLAP = 1 / 3


def starts(length: int, window: int) -> list[int]:
    """Return the starts of evenly spaced windows along `length` pixels; they overlap by a third.

    The last window ends at the edge of the image. A shorter image has one window.
    """
    if length <= window:
        return [0]
    step = max(1, int(window * (1 - OVERLAP)))
    count = -(-(length - window) // step) + 1
    return [index * (length - window) // (count - 1) for index in range(count)]


def largest_window(session: Session, contract: Contract, size: tuple[int, int]) -> tuple[int, int]:
    """Return the largest window of an image of `size` (H, W) that one run takes.

    The window covers the whole image if possible. The image's sides are rounded up to the
    contract's multiple, so that an image that nearly fits is still one window.
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
    run: Callable[[Pixels], NDArray[Any]], image: Pixels, window: tuple[int, int]
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Run every window of an image `(H, W, 3)`, and blend the outputs at the image's own size.

    Yields bands of rows from top to bottom. A band is yielded once no later window overlaps it, so
    that the scores of a large image are never held as a whole. Scores `(C, rows, W) float32` are
    averaged, each pixel weighted by its distance from the window's edge. Labels `(rows, W)` cannot
    be averaged: a pixel takes its label from the window with the largest weight. An image smaller
    than a window is padded by repeating its edge.
    """
    height, width = image.shape[:2]
    margins = [max(0, window[0] - height), max(0, window[1] - width)]
    if any(margins):
        image = np.pad(image, ((0, margins[0]), (0, margins[1]), (0, 0)), mode="edge")
    weight = np.minimum.outer(_tent(window[0]), _tent(window[1]))
    joined: NDArray[Any] | None = None
    weights = np.zeros((window[0], image.shape[1]), np.float32)
    tops = starts(image.shape[0], window[0])
    for top, following in zip(tops, [*tops[1:], image.shape[0]], strict=True):
        for left in starts(image.shape[1], window[1]):
            columns = slice(left, left + window[1])
            found = run(np.ascontiguousarray(image[top : top + window[0], columns]))
            if joined is None:
                joined = np.zeros((*found.shape[:-1], image.shape[1]), found.dtype)
            if found.ndim == 3:
                joined[:, :, columns] += found * weight
                weights[:, columns] += weight
            else:
                nearer = weight > weights[:, columns]
                joined[:, columns][nearer] = found[nearer]
                weights[:, columns][nearer] = weight[nearer]
        assert joined is not None
        done = following - top
        band = joined[..., :done, :width].copy()
        if band.ndim == 3:
            band /= weights[:done, :width]
        if top < height:
            yield slice(top, min(following, height)), band[..., : height - top, :]
        for buffer in (joined, weights):  # shift up by the finished rows
            buffer[..., : window[0] - done, :] = buffer[..., done:, :].copy()
            buffer[..., window[0] - done :, :] = 0


def _tent(length: int) -> NDArray[np.float32]:
    """Return weights that grow from 1 at both ends of a window to its middle."""
    index = np.arange(length)
    return (np.minimum(index, length - 1 - index) + 1).astype(np.float32)

"""Postprocessing: logits to labels at the image's own size, and labels to an overlay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.models.bit_planes import packed
from segdeploy.preprocessing.fit import Placement, Span

_BAND_VALUES = 1 << 22


def best_class(scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the class with the highest of the scores `(C, H, W)` for each pixel."""
    best: NDArray[np.uint8] = scores.argmax(0).astype(np.uint8)
    return best


def labels_at(
    logits: NDArray[np.float32],
    size: tuple[int, int],
    place: Placement | None = None,
    decide: Callable[[NDArray[np.float32]], NDArray[np.uint8]] = best_class,
) -> NDArray[np.uint8]:
    """Upsample logits `(C, h, w)` bilinearly to `size` (H, W), then decide the class of each pixel.

    `place` is where the image lies on the network's input; None if the image covers the input.

    Logits are interpolated, never class ids: an id between two class ids has no meaning. The labels
    equal `F.interpolate(..., mode="bilinear", align_corners=False).argmax(1)` up to rounding.
    """
    labels = np.empty(size, np.uint8)
    for rows in bands(size[0], len(logits) * max(logits.shape[2], size[1])):
        labels[rows] = decide(upsample(logits, size, rows=rows, place=place))
    return labels


def bands(rows: int, values: int) -> Iterator[slice]:
    """Yield bands of rows of at most 4 Mi values each, where a row has `values` values.

    Without bands, the class scores of an 89-megapixel image would take gigabytes.
    """
    step = max(1, _BAND_VALUES // max(1, values))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def margin(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the best minus the second-best score of each pixel: `(C, H, W)` to `(H, W)`."""
    if scores.shape[0] < 2:
        return np.zeros(scores.shape[1:], np.float32)
    best = np.partition(scores, -2, axis=0)[-2:]
    found: NDArray[np.float32] = best[1] - best[0]
    return found


def with_background(scores: NDArray[np.float32], threshold: float = 0.0) -> NDArray[np.float32]:
    """Return scores of one channel `(..., 1, H, W)` as scores of two classes `(..., 2, H, W)`.

    The background has the constant score `threshold`, so that the best class is the foreground
    exactly where its score is above the threshold, also between pixels that are interpolated.
    """
    background = np.full_like(scores, threshold)
    return np.concatenate([background, scores], axis=-3)


def bit_planes(scores: NDArray[np.float32], thresholds: Sequence[float]) -> NDArray[np.uint8]:
    """Return labels `(H, W)` with bit k set where score k of `(C, H, W)` is above threshold k."""
    pairs = zip(scores, thresholds, strict=True)
    return packed([score > np.float32(threshold) for score, threshold in pairs])


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probability of every logit, of the same shape."""
    smaller = np.exp(-np.abs(logits))  # at most 1, so that nothing overflows
    found: NDArray[np.float32] = np.where(logits >= 0, 1, smaller) / (1 + smaller)
    return found


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities `(C, H, W)` for logits of the same shape."""
    raised: NDArray[np.float32] = np.exp(logits - logits.max(0))
    raised /= raised.sum(0)
    return raised


def nearest(
    labels: NDArray[np.uint8], size: tuple[int, int], place: Placement | None = None
) -> NDArray[np.uint8]:
    """Resize labels `(h, w)` to `(H, W)` by nearest neighbor, with half-pixel centers.

    `place` is where the image lies on the network's input, which has the size of `labels`.
    """
    spans = [Span(0, side, side) for side in labels.shape]
    if place is not None:
        spans = [place.rows, place.columns]
    rows, columns = (
        np.clip(
            span.start + ((np.arange(target) + 0.5) * span.length / target).astype(np.intp),
            *(0, span.side - 1),
        )
        for span, target in zip(spans, size, strict=True)
    )
    resized: NDArray[np.uint8] = labels[rows][:, columns]
    return resized


def crop_window(place: Placement, size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of an image of `size` (H, W) that lie in the crop, if any."""
    rows, columns = (
        slice(
            math.ceil(span.visible.start * target / span.length - 0.5),
            math.floor(span.visible.stop * target / span.length - 0.5) + 1,
        )
        for span, target in zip((place.rows, place.columns), size, strict=True)
    )
    return rows, columns


def upsample(
    maps: NDArray[np.float32],
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    rows: slice = slice(None),
    place: Placement | None = None,
) -> NDArray[np.float32]:
    """Resize `(C, h, w)` bilinearly to `(C, H, W)`, as `F.interpolate` without antialiasing.

    Coordinates are half-pixel (ONNX half_pixel) unless `align_corners`. Only the given `rows` of
    the result are computed. `place` is where the image lies on the network's input; the padding is
    left out, and beyond a crop the outermost values are repeated.
    """
    height, width = size
    spans = (None, None) if place is None else (place.rows, place.columns)
    if maps.shape[1] != height or spans[0]:
        taps_of_rows = _taps(maps.shape[1], height, align_corners, spans[0])
        low, high, weight = (taps[rows] for taps in taps_of_rows)
        upper = maps[:, low]
        maps = upper + (maps[:, high] - upper) * weight[None, :, None]
    else:
        maps = maps[:, rows]
    if maps.shape[2] != width or spans[1]:
        low, high, weight = _taps(maps.shape[2], width, align_corners, spans[1])
        left = maps[:, :, low]
        maps = left + (maps[:, :, high] - left) * weight[None, None, :]
    return maps


@lru_cache(maxsize=16)
def _taps(
    source: int, target: int, align_corners: bool, span: Span | None = None
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    if align_corners:
        centers = np.arange(target) * ((source - 1) / max(target - 1, 1))
    elif span is None:
        centers = (np.arange(target) + 0.5) * (source / target) - 0.5
    else:
        offsets = (np.arange(target) + 0.5) * (span.length / target)
        # The centers of the outermost pixels that show the image: beyond are padding and the crop.
        offsets = np.clip(offsets, span.visible.start + 0.5, span.visible.stop - 0.5) + span.start
        centers = offsets * (source / span.side) - 0.5
    centers = np.clip(centers, 0, source - 1)
    low = np.floor(centers).astype(np.intp)
    return low, np.minimum(low + 1, source - 1), (centers - low).astype(np.float32)


def rgb_preview(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return any image `(H, W, C)` as a picture `(H, W, 3) uint8` for people.

    One or two channels are shown as gray, of more the first three as red, green and blue. Values of
    16 bits or float32 are stretched between their 1st and 99th percentile.
    """
    picked = image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)
    if image.dtype == np.uint8:
        return np.ascontiguousarray(picked)
    low, high = np.percentile(picked, (1, 99))
    scaled = (picked.astype(np.float32) - low) * (255 / max(float(high - low), 1e-12))
    stretched: NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
    return stretched


def label_colors(palette: Sequence[tuple[int, int, int]], *, bit_planes: bool) -> NDArray[np.uint8]:
    """Return the color of each label, `(256, 4) uint8` RGBA; alpha is 0 for labels without color.

    The color of bit planes is the mean of their classes' colors.
    """
    colors = np.zeros((256, 4), np.uint8)
    shades = np.array(palette, np.float64)
    for label in range(1 << len(palette) if bit_planes else len(palette)):
        held = [k for k in range(len(palette)) if label >> k & 1] if bit_planes else [label]
        if held:
            colors[label] = (*shades[held].mean(0).round().astype(np.uint8), 255)
    return colors


def overlay(
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    colors: NDArray[np.uint8],
    opacity: float = 0.6,
) -> NDArray[np.uint8]:
    """Blend the `label_colors` over an image; a pixel whose label has no color is unchanged.

    `image` is `(H, W, 3) uint8` RGB, `labels` is `(H, W) uint8`. `rgb_preview` makes such an
    image of any other.
    """
    shades = colors[:, :3].astype(np.float32)
    opacities = (colors[:, 3] > 0) * np.float32(opacity)
    mixed = np.empty_like(image)
    for rows in bands(len(image), 3 * image.shape[1]):
        painted = opacities[labels[rows]][..., None]
        mixed[rows] = image[rows] * (1 - painted) + shades[labels[rows]] * painted
    return mixed

"""Labels at the image's size from low-resolution logits, without the upsampled logits.

Bilinear values are convex combinations of a cell's four corners. A class that leads at all four
corners therefore leads in the whole cell. Only cells whose corners disagree are interpolated, and
only for candidate classes. A class is a candidate if its maximum over the corners reaches the
largest minimum over the corners of any class.

The labels equal `F.interpolate(scores, size, mode="bilinear").argmax(1)`, except where two classes
differ by less than float32 rounding.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.models.bit_planes import packed
from segdeploy.runtime.postprocess import with_background

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]


def late_labels(scores: Floats, size: tuple[int, int], contract: Contract) -> NDArray[np.uint8]:
    """Return the labels `(H, W)` of a network's scores `(C, h, w)`, as its contract decides.

    The scores of a binary network have one channel, or two with the background's. Scores that are
    above the threshold at all four corners of a cell are above in the whole cell, and likewise
    below, so that each class of a multilabel network is a case of two classes.
    """
    align_corners = contract.upsampling == "align-corners"
    if contract.has_bit_planes:
        pairs = [
            with_background(scores[index : index + 1], threshold)
            for index, threshold in enumerate(contract.threshold_scores)
        ]
        labels = [
            labels_of_low_resolution_logits(pair, size, align_corners=align_corners)
            for pair in pairs
        ]
        return packed(labels)
    if contract.head == "binary" and len(scores) == 1:
        scores = with_background(scores, contract.threshold_scores[0])
    return labels_of_low_resolution_logits(scores, size, align_corners=align_corners)


def labels_of_low_resolution_logits(
    scores: Floats, size: tuple[int, int], *, align_corners: bool
) -> NDArray[np.uint8]:
    """Return the best class of each pixel, `(H, W) uint8`, for scores `(C, h, w) float32`."""
    rows, columns = (_cells(scores.shape[axis + 1], size[axis], align_corners) for axis in (0, 1))
    best = scores.argmax(0).astype(np.uint8)
    top, bottom = best.take(rows.low, 0), best.take(rows.high, 0)
    leader = top.take(columns.low, 1)
    labels: NDArray[np.uint8] = leader.take(columns.cell, 1).take(rows.cell, 0)
    mixed = leader != top.take(columns.high, 1)
    mixed |= leader != bottom.take(columns.low, 1)
    mixed |= leader != bottom.take(columns.high, 1)
    cell_rows, cell_columns = mixed.nonzero()
    if len(cell_rows):
        _settle(labels, scores, rows, columns, cell_rows, cell_columns)
    return labels


class _Cells:
    """The cells between neighboring source indices along one axis, and each cell's output pixels.

    Before the first index and beyond the last lies a cell of zero width, where values are clamped.
    Only cells with output pixels are kept.
    """

    def __init__(self, source: int, target: int, align_corners: bool):
        # PyTorch's arithmetic, in float32 (ATen/native/UpSample.h).
        index = np.arange(target, dtype=np.float32)
        if align_corners:
            scale = np.float32(source - 1) / np.float32(target - 1) if target > 1 else np.float32(0)
            place = index * scale
        else:
            scale = np.float32(source) / np.float32(target)
            place = (index + np.float32(0.5)) * scale - np.float32(0.5)
        held, self.cell, counts = np.unique(
            np.minimum(np.floor(place), source - 1).astype(np.intp),
            return_inverse=True,
            return_counts=True,
        )
        self.low: Indices = np.maximum(held, 0)
        self.high: Indices = np.minimum(held + 1, source - 1)
        first = np.cumsum(counts) - counts
        self.span: Indices = np.stack((first, first + counts), 1)  # first output, last output + 1
        # Cells with fewer outputs repeat their last output.
        steps = np.minimum(np.arange(counts.max()), counts[:, None] - 1)
        share = np.clip(place - self.low[self.cell].astype(np.float32), 0, 1)
        share = share[first[:, None] + steps]
        # Interpolation weights of a cell's two sides for each output, (cells, 2, outputs).
        self.weights: Floats = np.stack((1 - share, share), 1)


@lru_cache(maxsize=16)
def _cells(source: int, target: int, align_corners: bool) -> _Cells:
    return _Cells(source, target, align_corners)


def _settle(
    labels: NDArray[np.uint8],
    scores: Floats,
    rows: _Cells,
    columns: _Cells,
    cell_rows: Indices,
    cell_columns: Indices,
) -> None:
    """Interpolate in the cells whose corners disagree, and write their labels."""
    width = scores.shape[2]
    upper, lower = rows.low[cell_rows] * width, rows.high[cell_rows] * width
    left, right = columns.low[cell_columns], columns.high[cell_columns]
    places = np.stack((upper + left, upper + right, lower + left, lower + right))
    corners = scores.reshape(len(scores), -1).take(places, 1)  # (C, 4, cells)
    rivals = corners.max(1) >= corners.min(1).max(0)
    counts = rivals.sum(0)
    order = np.argsort(-counts)  # the cells with a k-th rival come first
    counts, corners = counts[order], corners[:, :, order]
    cell_rows, cell_columns = cell_rows[order], cell_columns[order]
    ranked = np.argsort(~rivals[:, order], axis=0, kind="stable").astype(np.uint8)
    down, across = rows.weights[cell_rows].transpose(0, 2, 1), columns.weights[cell_columns]
    cells = np.arange(len(order))
    first = corners[ranked[0], :, cells]  # (cells, 4)
    shape = (len(order), down.shape[1], across.shape[2])
    found = np.empty(shape, np.uint8)
    found[:] = ranked[0][:, None, None]
    best, lead = np.zeros(shape, np.float32), np.empty(shape, np.float32)  # over the first rival
    for k in range(1, counts[0]):
        n = int((counts > k).sum())
        ahead = (corners[ranked[k, :n], :, cells[:n]] - first[:n]).reshape(n, 2, 2)
        np.matmul(down[:n], ahead @ across[:n], out=lead[:n])
        change = ranked[k, :n, None, None] - found[:n]
        change *= lead[:n] > best[:n]
        found[:n] += change  # uint8 wraps modulo 256
        np.maximum(best[:n], lead[:n], out=best[:n])
    spans = zip(rows.span[cell_rows].tolist(), columns.span[cell_columns].tolist(), strict=True)
    for block, ((top, bottom), (start, end)) in zip(found, spans, strict=True):
        labels[top:bottom, start:end] = block[: bottom - top, : end - start]

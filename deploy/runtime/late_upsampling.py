"""Labels of an upsampled map without the upsampled map.

Bilinear values are convex combinations of a cell's four corners. So a class that leads at all four
corners leads in the whole cell, and only where corners disagree is anything interpolated, and there
only the classes that no single other class matches or beats at all four corners.

Equal to `F.interpolate(scores, size, mode="bilinear").argmax(1)`, but where two classes differ by
less than float32 rounding.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]


def labels_of_small_map(
    scores: Floats, size: tuple[int, int], *, align_corners: bool
) -> NDArray[np.uint8]:
    """Best class of each pixel, `(H, W) uint8`, for class scores `(C, h, w) float32`."""
    rows, columns = (_cells(scores.shape[axis + 1], size[axis], align_corners) for axis in (0, 1))
    best = scores.argmax(0)
    labels: NDArray[np.uint8] = best.astype(np.uint8).take(rows.low, 0).take(columns.low, 1)
    below, right = rows.next, columns.next
    mixed = best != best[below]
    mixed |= (best != best[:, right]) | (best != best[below][:, right])
    cell_rows, cell_columns = (mixed & rows.used[:, None] & columns.used).nonzero()
    if len(cell_rows):
        _settle(labels, scores, rows, columns, cell_rows, cell_columns)
    return labels


class _Cells:
    """Along one axis: which cell each output lies in, where in it, and each cell's outputs.

    A cell runs from a source index to the next; beyond the last one it has no width.
    """

    def __init__(self, source: int, target: int, align_corners: bool):
        # PyTorch's arithmetic, in float32 (ATen/native/UpSample.h).
        index = np.arange(target, dtype=np.float32)
        if align_corners:
            scale = np.float32(source - 1) / np.float32(target - 1) if target > 1 else np.float32(0)
            place = index * scale
        else:
            scale = np.float32(source) / np.float32(target)
            place = np.maximum((index + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0))
        self.low: Indices = np.minimum(place.astype(np.intp), source - 1)
        self.share: Floats = np.minimum(place - self.low.astype(np.float32), np.float32(1))
        self.next: Indices = np.minimum(np.arange(source) + 1, source - 1)
        counts = np.bincount(self.low, minlength=source)
        self.used = counts > 0
        # Outputs of a cell stand side by side; short cells repeat their last one.
        first = np.cumsum(counts) - counts
        steps = np.minimum(np.arange(max(1, counts.max())), np.maximum(counts - 1, 0)[:, None])
        self.outputs: Indices = np.minimum(first[:, None] + steps, target - 1)


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
    below, right = rows.next[cell_rows], columns.next[cell_columns]
    corners = [
        scores[:, row, column].T  # (cells, C)
        for row, column in (
            (cell_rows, cell_columns),
            (cell_rows, right),
            (below, cell_columns),
            (below, right),
        )
    ]
    candidates = _unbeaten(corners)
    counts = candidates.sum(1)
    for count in np.unique(counts):
        chosen = (counts == count).nonzero()[0]
        classes = candidates[chosen].nonzero()[1].reshape(len(chosen), count).astype(np.uint8)
        y, x = rows.outputs[cell_rows[chosen]], columns.outputs[cell_columns[chosen]]
        down, across = rows.share[y][:, :, None], columns.share[x]
        values = [corner[chosen[:, None], classes] for corner in corners]  # (cells, count) each
        if count == 2:  # nearly all: the sign of one interpolated difference
            lead = _blend([v[:, 1:] - v[:, :1] for v in values], across, down)
            found = np.where(lead > 0, classes[:, 1, None, None], classes[:, 0, None, None])
        else:
            top = _blend([v[:, :1] for v in values], across, down)
            found = np.broadcast_to(classes[:, 0, None, None], top.shape)
            for k in range(1, count):
                rival = _blend([v[:, k : k + 1] for v in values], across, down)
                found = np.where(rival > top, classes[:, k, None, None], found)
                np.maximum(top, rival, out=top)
        labels[y[:, :, None], x[:, None, :]] = found


def _blend(corners: list[Floats], across: Floats, down: Floats) -> Floats:
    """Bilinear values `(cells, rows, columns)` between four corners `(cells, 1)` each."""
    upper = corners[0] * (1 - across) + corners[1] * across
    lower = corners[2] * (1 - across) + corners[3] * across
    blended: Floats = (upper[:, None] * (1 - down) + lower[:, None] * down).astype(np.float32)
    return blended


def _unbeaten(corners: list[Floats]) -> NDArray[np.bool_]:
    """Classes `(cells, C)` that no other class matches at all four corners `(cells, C)`.

    Of classes that are equal at all four, the first stands for all, as in argmax.
    """
    classes = corners[0].shape[1]
    no_less = np.ones((len(corners[0]), classes, classes), bool)  # row over column
    for corner in corners:
        no_less &= corner[:, :, None] >= corner[:, None]
    equal = no_less & no_less.transpose(0, 2, 1)
    later = np.triu(np.ones((classes, classes), bool), 1)
    beaten = (no_less & ~equal) | (equal & later)
    result: NDArray[np.bool_] = ~beaten.any(1)
    return result

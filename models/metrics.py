"""Segmentation metrics from a streaming confusion matrix, with NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segdeploy.models.dataset import Frame
from segdeploy.models.errors import ModelInputError


class ConfusionMatrix:
    """Counts of (true class, predicted class) pixel pairs; ignored pixels are left out.

    `counts` is `(C, C + 1)`. The last column counts the pixels that got the ignore index instead of
    a class, since their class was unsure. They are misses of their true class, as in the evaluation
    of Cityscapes.

    The score of a class that is in neither truth nor prediction is NaN and left out of means.
    """

    def __init__(self, num_classes: int, ignore_index: int):
        self.counts: NDArray[np.int64] = np.zeros((num_classes, num_classes + 1), np.int64)
        self._ignore_index = ignore_index

    def add(self, truth: NDArray[np.uint8], predicted: NDArray[np.integer]) -> None:
        """Add one image, with true and predicted class ids of shape `(H, W)`.

        Raises:
            ModelInputError: for an id outside the classes, which would count for another pair.
        """
        num_classes = len(self.counts)
        kept = truth != self._ignore_index
        known, found = truth[kept], predicted[kept].astype(np.int64)
        is_unsure = found == self._ignore_index
        for what, ids in (("mask", known), ("prediction", found[~is_unsure])):
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < num_classes:
                raise ModelInputError(
                    f"the {what} holds the id {int(ids.max())}; there are {num_classes} classes "
                    f"(0 to {num_classes - 1})"
                )
        found[is_unsure] = num_classes
        pairs = known.astype(np.int64) * (num_classes + 1) + found
        self.counts += np.bincount(pairs, minlength=self.counts.size).reshape(self.counts.shape)

    def iou(self) -> NDArray[np.float64]:
        """Return the IoU per class, `(num_classes,)`, in 0..1, or NaN where undefined."""
        hits = np.diag(self.counts)
        union = self.counts[:, :-1].sum(0) + self.counts.sum(1) - hits
        with np.errstate(invalid="ignore"):
            result: NDArray[np.float64] = hits / union
        return result

    def dice(self) -> NDArray[np.float64]:
        """Return the Dice score per class, `(num_classes,)`, in 0..1, or NaN where undefined."""
        hits = np.diag(self.counts)
        with np.errstate(invalid="ignore"):
            result: NDArray[np.float64] = (
                2 * hits / (self.counts[:, :-1].sum(0) + self.counts.sum(1))
            )
        return result

    def frequency_weighted_iou(self) -> float:
        """Return the IoU weighted by the classes' shares of true pixels, in 0..1; NaN if none."""
        share, iou = self.counts.sum(1), self.iou()
        seen = share > 0
        return float((share * iou)[seen].sum() / share.sum()) if seen.any() else float("nan")

    def coverage(self) -> float:
        """Return the share of the pixels that got a class, in 0..1; NaN if no pixel was counted."""
        total = self.counts.sum()
        return float(self.counts[:, :-1].sum() / total) if total else float("nan")

    def pixel_accuracy(self) -> float:
        """Return the share of correct pixels, in 0..1; NaN if no pixel was counted."""
        total = self.counts.sum()
        return float(np.diag(self.counts).sum() / total) if total else float("nan")


def class_counts(
    frames: Sequence[Frame], num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the pixels of each class, and all pixels of the masks that hold the class.

    Both counts are `(num_classes,)`, over all masks and without ignored pixels.
    """
    counts = np.zeros(num_classes, np.int64)
    held = np.zeros(num_classes, np.int64)
    for frame in frames:
        here = np.bincount(frame.read_mask().ravel(), minlength=256)[:num_classes]
        counts += here
        held += np.where(here > 0, here.sum(), 0)
    return counts, held


def defined_mean(values: NDArray[np.float64]) -> float:
    """Return the mean of a score over the classes where it is defined; NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")

"""Segmentation metrics from one streaming confusion matrix (numpy alone)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segdeploy.models.dataset import Frame
from segdeploy.models.errors import ModelInputError


class ConfusionMatrix:
    """Counts of (true class, predicted class) pixel pairs; ignored pixels are left out.

    A class that neither truth nor prediction holds has an undefined score: NaN, left out of means.
    """

    def __init__(self, num_classes: int, ignore_index: int):
        self.counts: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)
        self._ignore_index = ignore_index

    def add(self, truth: NDArray[np.uint8], predicted: NDArray[np.integer]) -> None:
        """Count one image: two `(H, W)` maps of class ids.

        Raises:
            ModelInputError: for an id beyond the classes, which would count for another pair.
        """
        num_classes = len(self.counts)
        kept = truth != self._ignore_index
        known = truth[kept]
        for what, ids in (("mask", known), ("labels", predicted)):
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < num_classes:
                raise ModelInputError(
                    f"the {what} hold the id {int(ids.max())}, and there are {num_classes} classes "
                    f"(0 to {num_classes - 1})"
                )
        pairs = known.astype(np.int64) * num_classes + predicted[kept]
        self.counts += np.bincount(pairs, minlength=num_classes**2).reshape(self.counts.shape)

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union a class, `(num_classes,)`, in 0..1 or NaN where undefined."""
        hits = np.diag(self.counts)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        with np.errstate(invalid="ignore"):
            result: NDArray[np.float64] = hits / union
        return result

    def dice(self) -> NDArray[np.float64]:
        """Dice coefficient a class, `(num_classes,)`, in 0..1 or NaN where undefined."""
        hits = np.diag(self.counts)
        with np.errstate(invalid="ignore"):
            result: NDArray[np.float64] = 2 * hits / (self.counts.sum(0) + self.counts.sum(1))
        return result

    def frequency_weighted_iou(self) -> float:
        """IoU weighted by each class's share of the true pixels, in 0..1; NaN without pixels."""
        share, iou = self.counts.sum(1), self.iou()
        seen = share > 0
        return float((share * iou)[seen].sum() / share.sum()) if seen.any() else float("nan")

    def pixel_accuracy(self) -> float:
        """Share of counted pixels with the right class, in 0..1; NaN if none was counted."""
        total = self.counts.sum()
        return float(np.diag(self.counts).sum() / total) if total else float("nan")


def class_counts(
    frames: Sequence[Frame], num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels of each class over all masks, and all pixels of the masks that hold the class.

    Both `(num_classes,)`; ignored pixels are not counted.
    """
    counts = np.zeros(num_classes, np.int64)
    held = np.zeros(num_classes, np.int64)
    for frame in frames:
        here = np.bincount(frame.read_mask().ravel(), minlength=256)[:num_classes]
        counts += here
        held += np.where(here > 0, here.sum(), 0)
    return counts, held


def defined_mean(values: NDArray[np.float64]) -> float:
    """Mean of a score over the classes for which it is defined; NaN if it is for none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")

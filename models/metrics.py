"""Segmentation metrics from running counts of pixels, with NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segdeploy.models.dataset import DataSet, Frame
from segdeploy.models.errors import ModelInputError


class LabelCounts:
    """Counts of pixels by true and predicted class, from which all metrics follow.

    Ignored pixels of the truth are left out. A pixel that got the ignore index instead of a class,
    since its class was unsure, is a miss of its true class, as in the evaluation of Cityscapes.
    With `bit_planes` the labels are planes: bit k is set where the pixel is of class k.

    `counts` is `(C + 1, 3) int64`: hits, true and predicted pixels of each class. The last row
    holds the right pixels, all pixels, and the pixels that got a class. A pixel of planes is right
    where all its classes are.

    The score of a class that is in neither truth nor prediction is NaN and left out of means.
    """

    def __init__(self, num_classes: int, ignore_index: int, *, bit_planes: bool = False):
        self.counts: NDArray[np.int64] = np.zeros((num_classes + 1, 3), np.int64)
        self._ignore_index = ignore_index
        self._bit_planes = bit_planes

    @classmethod
    def of(cls, dataset: DataSet) -> LabelCounts:
        """Return empty counts for the labels of a data set."""
        return cls(len(dataset.classes), dataset.ignore_index, bit_planes=dataset.bit_planes)

    def add(self, truth: NDArray[np.uint8], predicted: NDArray[np.integer]) -> None:
        """Add one image, with true and predicted labels of shape `(H, W)`.

        Raises:
            ModelInputError: for an id outside the classes, which would count for another pair.
        """
        num_classes = len(self.counts) - 1
        ids = 1 << num_classes if self._bit_planes else num_classes
        kept = truth != self._ignore_index
        known, found = truth[kept], predicted[kept]
        is_sure = found != self._ignore_index
        for what, labels in (("mask", known), ("prediction", found[is_sure])):
            if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < ids:
                raise ModelInputError(
                    f"the {what} holds the id {int(labels.max())}; there are {num_classes} classes "
                    f"(ids 0 to {ids - 1})"
                )
        self.counts[-1] += [(known == found).sum(), known.size, is_sure.sum()]
        if self._bit_planes:
            for index in range(num_classes):
                true, given = (known >> index & 1) == 1, ((found >> index & 1) == 1) & is_sure
                self.counts[index] += [(true & given).sum(), true.sum(), given.sum()]
            return
        for column, labels in enumerate((known[known == found], known, found[is_sure])):
            self.counts[:-1, column] += np.bincount(labels, minlength=num_classes)

    def iou(self) -> NDArray[np.float64]:
        """Return the IoU per class, `(num_classes,)`, in 0..1, or NaN where undefined."""
        hits, true, found = self.counts[:-1].T
        with np.errstate(invalid="ignore"):
            result: NDArray[np.float64] = hits / (true + found - hits)
        return result

    def dice(self) -> NDArray[np.float64]:
        """Return the Dice score per class, `(num_classes,)`, in 0..1, or NaN where undefined."""
        hits, true, found = self.counts[:-1].T
        with np.errstate(invalid="ignore"):
            result: NDArray[np.float64] = 2 * hits / (true + found)
        return result

    def frequency_weighted_iou(self) -> float:
        """Return the IoU weighted by the classes' shares of true pixels, in 0..1; NaN if none."""
        share, iou = self.counts[:-1, 1], self.iou()
        held = share > 0
        return float((share * iou)[held].sum() / share.sum()) if held.any() else float("nan")

    def coverage(self) -> float:
        """Return the share of the pixels that got a class, in 0..1; NaN if no pixel was counted."""
        _, total, sure = self.counts[-1]
        return float(sure / total) if total else float("nan")

    def pixel_accuracy(self) -> float:
        """Return the share of correct pixels, in 0..1; NaN if no pixel was counted."""
        right, total, _ = self.counts[-1]
        return float(right / total) if total else float("nan")


def class_counts(
    frames: Sequence[Frame], num_classes: int, *, bit_planes: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the pixels of each class, and all pixels of the masks that hold the class.

    Both counts are `(num_classes,)`, over all masks and without ignored pixels.
    """
    counts = np.zeros(num_classes, np.int64)
    held = np.zeros(num_classes, np.int64)
    for frame in frames:
        mask = frame.read_mask()
        here = pixels_of_classes(mask, num_classes, bit_planes=bit_planes)
        counts += here
        held += np.where(here > 0, (mask != frame.ignore_index).sum(), 0)
    return counts, held


def pixels_of_classes(
    labels: NDArray[np.uint8], num_classes: int, *, bit_planes: bool
) -> NDArray[np.int64]:
    """Return the number of pixels of each class, `(num_classes,)`, in labels `(H, W)`."""
    by_id = np.bincount(labels.ravel(), minlength=256)
    if not bit_planes:
        return by_id[:num_classes]
    ids = np.arange(1 << num_classes)  # without the ignore index
    return np.array([by_id[ids[(ids >> k) & 1 == 1]].sum() for k in range(num_classes)])


def defined_mean(values: NDArray[np.float64]) -> float:
    """Return the mean of a score over the classes where it is defined; NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")

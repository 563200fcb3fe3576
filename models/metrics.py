"""Segmentation metrics from one streaming confusion matrix (numpy alone)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ConfusionMatrix:
    """Counts of (true class, predicted class) pixel pairs; ignored pixels are left out.

    A class that neither truth nor prediction holds has an undefined IoU: NaN, left out of means.
    """

    def __init__(self, num_classes: int, ignore_index: int):
        self.counts: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)
        self._ignore_index = ignore_index

    def add(self, truth: NDArray[np.uint8], predicted: NDArray[np.integer]) -> None:
        """Count one image: two `(H, W)` maps of class ids."""
        num_classes = len(self.counts)
        kept = truth != self._ignore_index
        pairs = truth[kept].astype(np.int64) * num_classes + predicted[kept]
        self.counts += np.bincount(pairs, minlength=num_classes**2).reshape(self.counts.shape)

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union a class, `(num_classes,)`, in 0..1 or NaN where undefined."""
        hits = np.diag(self.counts)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        with np.errstate(invalid="ignore"):
            result: NDArray[np.float64] = hits / union
        return result

    def mean_iou(self) -> float:
        """Mean of the defined IoUs, in 0..1; NaN if there is none."""
        iou = self.iou()
        defined = iou[~np.isnan(iou)]
        return float(defined.mean()) if defined.size else float("nan")

    def pixel_accuracy(self) -> float:
        """Share of counted pixels with the right class, in 0..1; NaN if none was counted."""
        total = self.counts.sum()
        return float(np.diag(self.counts).sum() / total) if total else float("nan")

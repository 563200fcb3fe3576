"""mIoU of labels against masks, and how many labels of two networks are equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InputError
from segdeploy.models.dataset import DataSet, Frame
from segdeploy.models.metrics import ConfusionMatrix, defined_mean
from segdeploy.runtime.predictor import Predictor

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Accuracy:
    """All in 0..1. IoU and Dice are None for a class that neither truth nor prediction holds, and
    every figure is None where all pixels are ignored.
    """

    frames: int
    miou: float | None
    pixel_accuracy: float | None
    frequency_weighted_iou: float | None
    mean_dice: float | None
    iou: dict[str, float | None]
    dice: dict[str, float | None]


def confusion(
    predictor: Predictor,
    dataset: DataSet,
    frames: Sequence[Frame],
    on_frame: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> ConfusionMatrix:
    """Compare predictions with the truth on every frame, at the frame's own size.

    `options` are those of `Predictor.predict`.
    """
    matrix = ConfusionMatrix(len(dataset.classes), dataset.ignore_index)
    for done, frame in enumerate(frames, 1):
        image, mask = frame.read()
        matrix.add(mask, predictor.predict(image, **options))
        on_frame(done, len(frames))
    return matrix


def check_judgeable(frames: Sequence[Frame], what: str) -> None:
    """Refuse frames that nothing can be judged by: every pixel of every mask is ignored.

    Raises:
        InputError: beginning with `what`, the promise that these frames are to keep.
    """
    if not any((frame.read_mask() != frame.ignore_index).any() for frame in frames):
        raise InputError(
            f"{what}: no pixel of {len(frames)} masks counts, all are ignored, so no mIoU can be "
            "measured; give frames with labels"
        )


def summarise(matrix: ConfusionMatrix, classes: tuple[str, ...], frames: int) -> Accuracy:
    """Turn a confusion matrix into the figures that are reported."""
    return Accuracy(
        frames=frames,
        miou=_defined(defined_mean(matrix.iou())),
        pixel_accuracy=_defined(matrix.pixel_accuracy()),
        frequency_weighted_iou=_defined(matrix.frequency_weighted_iou()),
        mean_dice=_defined(defined_mean(matrix.dice())),
        iou=_by_class(classes, matrix.iou()),
        dice=_by_class(classes, matrix.dice()),
    )


def _by_class(classes: tuple[str, ...], values: NDArray[np.float64]) -> dict[str, float | None]:
    return {name: _defined(value) for name, value in zip(classes, values, strict=True)}


def _defined(value: float) -> float | None:
    # JSON has no NaN.
    return None if np.isnan(value) else float(value)


def share_equal(some: Sequence[Labels], others: Sequence[Labels]) -> float:
    """Mean share of equal labels, in 0..1, over frames."""
    return float(np.mean([np.mean(a == b) for a, b in zip(some, others, strict=True)]))

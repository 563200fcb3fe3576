"""mIoU of predicted labels against masks, and label agreement between two networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InputError
from segdeploy.models.dataset import DataSet, Frame
from segdeploy.models.metrics import LabelCounts, defined_mean
from segdeploy.runtime.inference_options import ONE_RUN, InferenceOptions
from segdeploy.runtime.predictor import Predictor

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Accuracy:
    """Segmentation metrics over labeled frames, all in 0..1.

    IoU and Dice are None for a class that neither the masks nor the predictions contain. Every
    metric is None if all pixels are ignored. `coverage` is the share of labeled pixels whose class
    was sure enough; the others count as misses.
    """

    frames: int
    miou: float | None
    pixel_accuracy: float | None
    frequency_weighted_iou: float | None
    mean_dice: float | None
    iou: dict[str, float | None]
    dice: dict[str, float | None]
    coverage: float | None = None


def label_counts(
    predictor: Predictor,
    dataset: DataSet,
    frames: Sequence[Frame],
    options: InferenceOptions = ONE_RUN,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> LabelCounts:
    """Return the label counts of the predictions on all frames, at each frame's own size."""
    counts = LabelCounts.of(dataset)
    for done, frame in enumerate(frames, 1):
        image, mask = frame.read()
        try:
            labels = predictor.predict(image, options)
        except InputError as error:
            raise InputError(f"{frame.image}: {error}") from error
        if not options.tile:  # tiles are of the whole image
            window = predictor.crop_window((mask.shape[0], mask.shape[1]))
            mask, labels = mask[window], labels[window]
        counts.add(mask, labels)
        on_frame(done, len(frames))
    return counts


def check_labeled(frames: Sequence[Frame], what: str) -> None:
    """Refuse frames whose masks have only ignored pixels.

    Raises:
        InputError: if no pixel is labeled; the message begins with `what`, such as an option's
        name.
    """
    if not any((frame.read_mask() != frame.ignore_index).any() for frame in frames):
        raise InputError(
            f"{what}: no pixel of {len(frames)} masks is labeled, all are ignored, so no mIoU can "
            "be measured; give frames with labels"
        )


def summarize(counts: LabelCounts, classes: tuple[str, ...], frames: int) -> Accuracy:
    """Return the reported metrics of label counts."""
    return Accuracy(
        frames=frames,
        miou=_defined(defined_mean(counts.iou())),
        pixel_accuracy=_defined(counts.pixel_accuracy()),
        coverage=_defined(counts.coverage()),
        frequency_weighted_iou=_defined(counts.frequency_weighted_iou()),
        mean_dice=_defined(defined_mean(counts.dice())),
        iou=_by_class(classes, counts.iou()),
        dice=_by_class(classes, counts.dice()),
    )


def _by_class(classes: tuple[str, ...], values: NDArray[np.float64]) -> dict[str, float | None]:
    return {name: _defined(value) for name, value in zip(classes, values, strict=True)}


def _defined(value: float) -> float | None:
    # JSON has no NaN.
    return None if np.isnan(value) else float(value)

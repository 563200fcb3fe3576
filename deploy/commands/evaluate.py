"""`segdeploy evaluate`: mIoU of a network or an exported file on labelled frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec, check_classes
from segdeploy.models.dataset import DataSet, Frame, open_dataset
from segdeploy.models.metrics import ConfusionMatrix, defined_mean
from segdeploy.runtime.predictor import Predictor, load


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


def evaluate(
    model: str | Path | ModelSpec,
    data: Path | str,
    *,
    split: str = "val",
    limit: int | None = None,
    backend: str | None = None,
    scales: Sequence[float] = (),
    flip: bool = False,
    fuse: str = "mean",
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Measure a network at each frame's own size: logits are upsampled, then the best is taken.

    A graph with Q/DQ is executed literally, as TensorRT would round.

    Raises:
        InputError, ModelInputError: for a model or data set that cannot be used, or other classes.
    """
    dataset = open_dataset(Path(data))
    frames = dataset.frames(split, limit)
    spec = ModelSpec.of(model)
    first, _ = frames[0].read()
    predictor = load(
        spec,
        backend=backend,
        literal=backend in (None, "onnxruntime"),
        dataset=dataset,
        default_size=first.shape[:2],
    )
    with predictor:
        check_classes(predictor.contract, dataset, spec.model)
        options = {"scales": scales, "flip": flip, "fuse": fuse}
        matrix = confusion(predictor, dataset, frames, on_frame, **options)
    return summarise(matrix, dataset.classes, len(frames))


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

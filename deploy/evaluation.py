"""`segdeploy evaluate`: mIoU of a network or an exported file on labelled frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segdeploy.models.dataset import open_dataset
from segdeploy.models.metrics import ConfusionMatrix
from segdeploy.network import ModelSpec, check_classes
from segdeploy.runtime.predictor import load


@dataclass(frozen=True)
class Accuracy:
    """IoU is in 0..1, and None for a class that neither truth nor prediction holds."""

    frames: int
    miou: float
    pixel_accuracy: float
    iou: dict[str, float | None]


def evaluate(
    model: str | Path | ModelSpec,
    data: Path | str,
    *,
    split: str = "val",
    limit: int | None = None,
    backend: str | None = None,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Measure a network at each frame's own size: logits are upsampled, then the best is taken.

    A graph with Q/DQ is executed literally, as TensorRT would round.

    Raises:
        InputError, ModelInputError: for a model or data set that cannot be used, or other classes.
    """
    dataset = open_dataset(Path(data))
    frames = dataset.frames(split, limit)
    spec = model if isinstance(model, ModelSpec) else ModelSpec(str(model))
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
        matrix = ConfusionMatrix(len(dataset.classes), dataset.ignore_index)
        for done, frame in enumerate(frames, 1):
            image, mask = frame.read()
            matrix.add(mask, predictor.predict(image))
            on_frame(done, len(frames))
    return summarise(matrix, dataset.classes, len(frames))


def summarise(matrix: ConfusionMatrix, classes: tuple[str, ...], frames: int) -> Accuracy:
    """Turn a confusion matrix into the figures that are reported."""
    iou = {
        name: None if value != value else float(value)
        for name, value in zip(classes, matrix.iou(), strict=True)
    }
    return Accuracy(frames, matrix.mean_iou(), matrix.pixel_accuracy(), iou)

"""`segdeploy evaluate`: mIoU of a network or an exported file on labeled frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.network_loading import matched
from segdeploy.proof.accuracy import Accuracy, label_counts, summarize
from segdeploy.runtime.inference_options import ONE_RUN, InferenceOptions
from segdeploy.runtime.predictor import load


def evaluate(
    model: str | Path | ModelSpec,
    data: Path | str,
    *,
    split: str = "val",
    limit: int | None = None,
    backend: str | None = None,
    options: InferenceOptions = ONE_RUN,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Measure the accuracy of a network at each frame's own size: upsample logits, then argmax.

    A graph with Q/DQ nodes runs under reference Q/DQ execution, which rounds as TensorRT does.

    Raises:
        InputError, ModelInputError: for a model or data set that cannot be used, or if the classes
            differ.
    """
    dataset = open_dataset(Path(data))
    spec = ModelSpec.of(model)
    first = dataset.frames(split, limit)[0].read_image()
    predictor = load(
        spec,
        backend=backend,
        reference_execution=backend in (None, "onnxruntime"),
        dataset=dataset,
        default_size=first.shape[:2],
    )
    with predictor:
        dataset = matched(predictor.contract, dataset, spec.model)
        frames = dataset.frames(split, limit)
        counts = label_counts(predictor, dataset, frames, options, on_frame)
    return summarize(counts, dataset.classes, len(frames))

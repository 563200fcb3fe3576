"""mIoU and agreement of a lower-precision graph under reference Q/DQ execution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from segdeploy.artifact import OnnxFile
from segdeploy.calibration.difference import label_agreement
from segdeploy.image_folder import UnlabeledFrame
from segdeploy.models.dataset import Frame
from segdeploy.models.metrics import LabelCounts
from segdeploy.onnx_graph.model_file import serialized
from segdeploy.preprocessing.fit import placement
from segdeploy.proof.bootstrap import Interval, mean_interval
from segdeploy.runtime.onnxruntime_session import OnnxRuntimeSession
from segdeploy.runtime.postprocess import crop_window
from segdeploy.runtime.predictor import Predictor, load

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Accuracy:
    """mIoU of the FP32 graph and of the candidate, over the classes that the masks hold.

    All values are in 0..1. mIoU is NaN where every pixel is ignored. `agreement` is the share of
    equal labels, with its confidence interval over the frames. `iou_drop` is the IoU that each
    class loses. Without masks (`is_labeled`), the FP32 graph's labels stand for them: `miou` is
    then the mIoU between the labels of the two graphs.
    """

    frames: int
    reference_miou: float
    miou: float
    miou_drop: float
    agreement: float
    iou_drop: dict[str, float | None]
    agreement_interval: Interval | None = None
    is_labeled: bool = True


class Evaluator:
    """Evaluator of candidate graphs against masks and FP32 labels, which are computed once."""

    def __init__(self, file: OnnxFile, frames: Sequence[Frame]):
        self._path, self._frames = file.path, frames
        self._is_labeled = not any(isinstance(frame, UnlabeledFrame) for frame in frames)
        with load(file) as predictor:
            self.contract = predictor.contract
            self._labels = self._predicted(predictor)
        self._reference = self._counted(self._labels)

    @property
    def reference_labels(self) -> list[Labels]:
        """The FP32 graph's labels of every frame."""
        return self._labels

    def score(self, candidate: onnx.ModelProto) -> Accuracy:
        """Run a graph with the same contract on every frame by reference execution, and score it.

        Raises:
            InputError: if it cannot be run, or gives NaN or infinity.
        """
        return self.accuracy(self.labels(candidate))

    def labels(
        self, candidate: onnx.ModelProto, *, reference_execution: bool = True
    ) -> list[Labels]:
        """Return a graph's labels of every frame.

        Without `reference_execution`, the CPU kernels of ONNX Runtime compute the labels.

        Raises:
            InputError: if it cannot be run, or gives NaN or infinity.
        """
        file = OnnxFile(self._path, serialized(candidate, self._path))
        session = OnnxRuntimeSession(file, reference_execution=reference_execution)
        with Predictor(session) as predictor:
            return self._predicted(predictor)

    def _predicted(self, predictor: Predictor) -> list[Labels]:
        """Return the labels of every frame, of its pixels in the contract's crop, if any."""
        images = (frame.read()[0] for frame in self._frames)
        return [
            predictor.predict(image)[predictor.crop_window((image.shape[0], image.shape[1]))]
            for image in images
        ]

    def accuracy(self, labels: Sequence[Labels]) -> Accuracy:
        """Compare labels of every frame with the FP32 labels and the masks."""
        counted = self._counted(labels)
        drops = self._reference.iou() - counted.iou()
        before, after = _miou(self._reference), _miou(counted)
        shares = [label_agreement(a, b) for a, b in zip(self._labels, labels, strict=True)]
        return Accuracy(
            frames=len(labels),
            reference_miou=before,
            miou=after,
            miou_drop=before - after,
            agreement=float(np.mean(shares)),
            agreement_interval=mean_interval(shares),
            is_labeled=self._is_labeled,
            iou_drop={
                name: None if np.isnan(drop) else float(drop)
                for name, drop in zip(self.contract.classes, drops, strict=True)
            },
        )

    def _counted(self, labels: Sequence[Labels]) -> LabelCounts:
        contract = self.contract
        counted = LabelCounts(
            len(contract.classes), contract.ignore_index, bit_planes=contract.has_bit_planes
        )
        for frame, truth, found in zip(self._frames, self._labels, labels, strict=True):
            if not self._is_labeled:
                counted.add(truth, found)
                continue
            mask = frame.read_mask()
            place = placement((mask.shape[0], mask.shape[1]), self.contract)
            counted.add(mask[crop_window(place, mask.shape)], found)
        return counted


def _miou(counted: LabelCounts) -> float:
    """mIoU over the classes that the masks hold: the same ones whatever was predicted.

    A stray pixel of another class must not decide a budget; it lowers the IoU of its true class.
    """
    held = counted.counts[:-1, 1] > 0
    return float(np.mean(counted.iou()[held])) if held.any() else math.nan

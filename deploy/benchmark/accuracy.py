"""Accuracy: every candidate and the reference on the same labelled frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdeploy.evaluation import Accuracy, summarise
from segdeploy.models.dataset import DataSet, Frame
from segdeploy.models.metrics import ConfusionMatrix
from segdeploy.runtime.postprocess import labels_at
from segdeploy.runtime.predictor import Predictor


@dataclass(frozen=True)
class Fidelity:
    """How near a candidate is to the reference over all frames.

    `max_abs` is the largest difference of a logit; `max_rel` is the largest over a frame's range
    of reference logits; `agreement` is the share of equal labels at the frames' own size, with
    ignored pixels counted too. A graph that ends in labels has no difference of logits: None.
    """

    agreement: float
    max_abs: float | None
    max_rel: float | None


@dataclass(frozen=True)
class Contestant:
    """A candidate's network: `predictor` is judged; `kernels`, for a quantised graph, is what the
    chosen runtime really computes with its integer kernels.
    """

    name: str
    predictor: Predictor
    kernels: Predictor | None
    precision: str


@dataclass(frozen=True)
class Judgement:
    """Accuracy against the truth and, but for the reference itself, fidelity to the reference.

    `kernels` is the share of labels that the runtime's integer kernels give as the literal graph
    does, for a quantised graph.
    """

    accuracy: Accuracy
    fidelity: Fidelity | None = None
    kernels: float | None = None


@dataclass(frozen=True)
class Sample:
    """One frame for the report: the picture, the truth, and each network's labels by name."""

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    labels: dict[str, NDArray[np.uint8]]


class _Tally:
    """Running counts of one contestant."""

    def __init__(self, contestant: Contestant, matrix: ConfusionMatrix):
        self.contestant = contestant
        self.matrix = matrix
        self.pixels = self.equal = self.kernels_equal = 0
        self.max_abs = self.max_rel = 0.0
        self.has_logits = True

    def add(
        self,
        image: NDArray[np.uint8],
        mask: NDArray[np.uint8],
        reference: NDArray[np.float32],
        reference_labels: NDArray[np.uint8],
    ) -> NDArray[np.uint8]:
        """Count one frame; returns the contestant's labels."""
        predictor = self.contestant.predictor
        logits = predictor.logits(image) if predictor.contract.output == "logits" else None
        if logits is None:
            labels = predictor.predict(image)
        else:
            labels = labels_at(logits, reference_labels.shape)
        self.matrix.add(mask, labels)
        self.pixels += labels.size
        self.equal += int((labels == reference_labels).sum())
        if self.contestant.kernels is not None:
            self.kernels_equal += int((self.contestant.kernels.predict(image) == labels).sum())
        if logits is None:
            self.has_logits = False
            return labels
        difference = float(np.abs(logits - reference).max())
        span = float(reference.max() - reference.min())
        relative = difference / span if span else (float("inf") if difference else 0.0)
        self.max_abs = max(self.max_abs, difference)
        self.max_rel = max(self.max_rel, relative)
        return labels

    def judgement(self, classes: tuple[str, ...], frames: int) -> Judgement:
        """Turn the counts into figures."""
        return Judgement(
            summarise(self.matrix, classes, frames),
            Fidelity(
                self.equal / self.pixels,
                self.max_abs if self.has_logits else None,
                self.max_rel if self.has_logits else None,
            ),
            self.kernels_equal / self.pixels if self.contestant.kernels is not None else None,
        )


def judge(
    reference: Predictor,
    contestants: Sequence[Contestant],
    dataset: DataSet,
    frames: Sequence[Frame],
    *,
    samples: int,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Judgement, list[Judgement], list[Sample]]:
    """Run every frame through the reference and all contestants; one frame is held at a time.

    Returns the reference's judgement, the contestants', and `samples` frames spread over the split.

    Raises:
        InputError, ModelInputError: for a frame that cannot be used, or logits that are not finite.
    """

    def matrix() -> ConfusionMatrix:
        return ConfusionMatrix(len(dataset.classes), dataset.ignore_index)

    own = matrix()
    tallies = [_Tally(contestant, matrix()) for contestant in contestants]
    last = len(frames) - 1
    sampled = set(np.linspace(0, last, min(samples, len(frames))).round().astype(int).tolist())
    shown = []
    for index, frame in enumerate(frames):
        image, mask = frame.read()
        logits = reference.logits(image)
        labels = labels_at(logits, (mask.shape[0], mask.shape[1]))
        own.add(mask, labels)
        by_name = {"reference": labels}
        for tally in tallies:
            by_name[tally.contestant.name] = tally.add(image, mask, logits, labels)
        if index in sampled:
            shown.append(Sample(frame.name, image, mask, by_name))
        on_frame(index + 1, len(frames))
    count = len(frames)
    judged = [tally.judgement(dataset.classes, count) for tally in tallies]
    return Judgement(summarise(own, dataset.classes, count)), judged, shown

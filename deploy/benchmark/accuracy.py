"""Accuracy: every candidate and the reference on the same frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdeploy.benchmark.bootstrap import Spread, spread
from segdeploy.benchmark.fidelity import Fidelity, FidelityCount, margin
from segdeploy.errors import InputError
from segdeploy.evaluation import Accuracy, summarise
from segdeploy.models.dataset import DataSet, Frame
from segdeploy.models.errors import first_line
from segdeploy.models.metrics import ConfusionMatrix
from segdeploy.runtime.postprocess import upsample
from segdeploy.runtime.predictor import Predictor


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

    `spread` holds 95 % intervals over the frames, None without masks. `kernels` is the share of
    labels that the runtime's own kernels give as the literal graph does, for a quantised graph.
    """

    accuracy: Accuracy
    spread: Spread | None
    fidelity: Fidelity | None = None
    kernels: float | None = None


@dataclass(frozen=True)
class Sample:
    """One frame for the report: the picture, the truth, and each network's labels by name.

    `truth` is None where the frames have no masks.
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    labels: dict[str, NDArray[np.uint8]]


class _Tally:
    """Running counts of one contestant; it ends at the first frame that it cannot do."""

    def __init__(self, contestant: Contestant, matrix: Callable[[], ConfusionMatrix]):
        self.contestant = contestant
        self.failure: str | None = None
        self.counts: list[NDArray[np.int64]] = []
        self._matrix, self._whole, self._fidelity = matrix, matrix(), FidelityCount()
        self._kernels_equal = 0

    def add(self, frame: Frame, seen: _Seen) -> NDArray[np.uint8] | None:
        """Count one frame; returns the contestant's labels, or None if it failed."""
        if self.failure is not None:
            return None
        predictor = self.contestant.predictor
        size = seen.labels.shape
        try:
            scores = predictor.logits(seen.image) if predictor.contract.output == "logits" else None
            if scores is None:
                labels = predictor.predict(seen.image)
            else:
                labels = upsample(scores, (size[0], size[1])).argmax(0).astype(np.uint8)
            if self.contestant.kernels is not None:
                own = self.contestant.kernels.predict(seen.image)
                self._kernels_equal += int((own == labels).sum())
        except InputError as error:  # NaN in an output, say: the others go on
            self.failure = f"frame {frame.name}: {first_line(error)}"
            return None
        self.counts.append(_counted(self._matrix(), seen.mask, labels))
        self._whole.counts += self.counts[-1]
        self._fidelity.add(frame.name, seen.scores, seen.labels, seen.margin, labels, scores)
        return labels

    def judgement(
        self, classes: tuple[str, ...], reference: Sequence[NDArray[np.int64]]
    ) -> Judgement:
        """Turn the counts into figures."""
        fidelity = self._fidelity.result()
        has_kernels = self.contestant.kernels is not None
        return Judgement(
            summarise(self._whole, classes, len(self.counts)),
            spread(self.counts, reference) if self._whole.counts.any() else None,
            fidelity,
            self._kernels_equal / self._fidelity.pixels if has_kernels else None,
        )


@dataclass(frozen=True)
class _Seen:
    """A frame, and what the reference says of it."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    scores: NDArray[np.float32]
    labels: NDArray[np.uint8]
    margin: NDArray[np.float32]


def judge(
    reference: Predictor,
    contestants: Sequence[Contestant],
    dataset: DataSet,
    frames: Sequence[Frame],
    *,
    samples: int,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Judgement, list[Judgement | str], list[Sample]]:
    """Run every frame through the reference and all contestants; one frame is held at a time.

    Returns the reference's judgement, the contestants' (or why one failed), and `samples` frames
    spread over the split.

    Raises:
        InputError, ModelInputError: for a frame that cannot be used, or if the reference fails.
    """

    def matrix() -> ConfusionMatrix:
        return ConfusionMatrix(len(dataset.classes), dataset.ignore_index)

    own, counts = matrix(), []
    tallies = [_Tally(contestant, matrix) for contestant in contestants]
    last = len(frames) - 1
    sampled = set(np.linspace(0, last, min(samples, len(frames))).round().astype(int).tolist())
    shown = []
    for index, frame in enumerate(frames):
        image, mask = frame.read()
        scores = reference.logits(image)
        upsampled = upsample(scores, (mask.shape[0], mask.shape[1]))
        labels = upsampled.argmax(0).astype(np.uint8)
        seen = _Seen(image, mask, scores, labels, margin(upsampled))
        counts.append(_counted(matrix(), mask, labels))
        own.counts += counts[-1]
        by_name = {"reference": labels}
        for tally in tallies:
            found = tally.add(frame, seen)
            if found is not None:
                by_name[tally.contestant.name] = found
        if index in sampled:
            has_truth = bool((mask != dataset.ignore_index).any())
            shown.append(Sample(frame.name, image, mask if has_truth else None, by_name))
        on_frame(index + 1, len(frames))
    judged: list[Judgement | str] = [
        tally.failure or tally.judgement(dataset.classes, counts) for tally in tallies
    ]
    of_reference = Judgement(
        summarise(own, dataset.classes, len(frames)), spread(counts) if own.counts.any() else None
    )
    return of_reference, judged, shown


def _counted(
    matrix: ConfusionMatrix, mask: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> NDArray[np.int64]:
    matrix.add(mask, labels)
    return matrix.counts

"""Accuracy of the reference and every candidate on the same frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.benchmark.agreement import Agreement, AgreementCount
from segdeploy.benchmark.failure import Failure
from segdeploy.benchmark.reliability import BINS, expected_calibration_error, reliability
from segdeploy.contract import Precision
from segdeploy.errors import InputError
from segdeploy.image_folder import UnlabeledFrame
from segdeploy.ledger import Ledger
from segdeploy.models.bit_planes import plane
from segdeploy.models.dataset import DataSet, Frame
from segdeploy.models.errors import first_line
from segdeploy.models.metrics import LabelCounts
from segdeploy.proof.accuracy import Accuracy, summarize
from segdeploy.proof.bootstrap import (
    ConfidenceIntervals,
    Interval,
    confidence_intervals,
    mean_interval,
)
from segdeploy.runtime.postprocess import rgb_preview
from segdeploy.runtime.predictor import Predictor

_Output = tuple[NDArray[np.float32] | None, NDArray[np.float32] | None, NDArray[np.uint8]]


@dataclass(frozen=True)
class OpenCandidate:
    """A candidate that is open for evaluation.

    `predictor` is evaluated. For a quantized or 16-bit graph, `predictor` is the reference
    execution, and `kernels` runs the graph with the runtime's own kernels. `identity` is the
    content key in the ledger.
    """

    name: str
    predictor: Predictor
    kernels: Predictor | None
    precision: Precision
    identity: str


@dataclass(frozen=True)
class Evaluation:
    """Accuracy against the masks and, for a candidate, agreement with the reference.

    `confidence_intervals` holds 95 % intervals over the frames, None where no pixel is labeled. In
    a folder of images without masks, the reference's labels stand for the masks.
    `agreement_interval` is that of the share of equal labels. `kernels` is,
    for a quantized or 16-bit graph, the share of labels that are equal with the runtime's own
    kernels and with reference execution. `ece` is the expected calibration error in 0..1, None if
    not requested.
    """

    accuracy: Accuracy
    confidence_intervals: ConfidenceIntervals | None
    agreement: Agreement | None = None
    kernels: float | None = None
    ece: float | None = None
    agreement_interval: Interval | None = None


@dataclass(frozen=True)
class _Seen:
    """A frame with the reference's outputs; `outputs` caches candidates' outputs by predictor.

    `window` are the rows and columns in the contract's crop, if any. `output` is the kind of the
    scores; of labels there are no scores and no margin.
    """

    frame: Frame
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    scores: NDArray[np.float32] | None
    upsampled: NDArray[np.float32] | None
    labels: NDArray[np.uint8]
    margin: NDArray[np.float32] | None
    window: tuple[slice, slice]
    output: str
    outputs: dict[int, _Output] = field(default_factory=dict)


class _Tally:
    """Running counts of one network, which stop at the first frame where the network fails."""

    def __init__(self, counted: LabelCounts):
        self.failure: Failure | None = None
        self.counts: list[NDArray[np.int64]] = []
        self._whole = counted
        self._agreement = AgreementCount()
        self._shares: list[float] = []
        self._reliability = np.zeros((BINS, 3))
        self._kernels_equal: int | None = None

    def take(self, found: dict[str, Any]) -> None:
        """Add the counts of one frame, as `_count` returns them."""
        if "failure" in found:
            self.failure = Failure(found["failure"])
            return
        self.counts.append(np.array(found["counts"], np.int64))
        self._whole.counts += self.counts[-1]
        if "agreement" in found:
            counted = AgreementCount.of_plain(found["agreement"])
            self._agreement.merge(counted)
            self._shares.append(counted.equal / counted.pixels)
        if "reliability" in found:
            self._reliability += np.array(found["reliability"])
        if "kernels" in found:
            self._kernels_equal = (self._kernels_equal or 0) + found["kernels"]

    def evaluation(
        self, classes: tuple[str, ...], reference: Sequence[NDArray[np.int64]] | None
    ) -> Evaluation:
        """Compute the metrics; `reference` holds the reference's counts, None for the reference."""
        pixels, equal = self._agreement.pixels, self._kernels_equal
        return Evaluation(
            summarize(self._whole, classes, len(self.counts)),
            confidence_intervals(self.counts, reference) if self._whole.counts.any() else None,
            self._agreement.result() if pixels else None,
            None if equal is None else equal / pixels,
            expected_calibration_error(self._reliability),
            mean_interval(self._shares),
        )


def evaluate(
    reference: Predictor,
    opened: Sequence[OpenCandidate],
    dataset: DataSet,
    frames: Sequence[Frame],
    *,
    ledger: Ledger,
    identity: str,
    ece: bool = False,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Evaluation, list[Evaluation | Failure]]:
    """Run every frame through the reference and all candidates; one frame is held at a time.

    Returns the reference's evaluation, and an evaluation or the failure of each candidate. Counts
    that the ledger holds are not made again; `identity` names the reference there.

    Raises:
        InputError, ModelInputError: for a frame that cannot be used, or if the reference fails.
    """
    own, *tallies = (_Tally(LabelCounts.of(dataset)) for _ in range(1 + len(opened)))
    for index, frame in enumerate(frames):
        place = f"frame {index} {frame.name} of"
        seen: _Seen | None = None
        counts = ledger.get(f"{place} {identity}")
        if counts is None:
            seen = _see(reference, frame)
            counts = _counts(seen, seen.labels, dataset)
            if ece and seen.upsampled is not None:
                counts.update(_sureness(seen.upsampled, seen, reference, dataset))
            ledger.put(f"{place} {identity}", counts)
        own.take(counts)
        for one, tally in zip(opened, tallies, strict=True):
            if tally.failure is not None:
                continue
            found = ledger.get(f"{place} {one.identity}")
            if found is None:
                seen = seen or _see(reference, frame)
                found = _count(one, seen, dataset, ece=ece)
                ledger.put(f"{place} {one.identity}", found)
            tally.take(found)
        on_frame(index + 1, len(frames))
    evaluated: list[Evaluation | Failure] = [
        tally.failure or tally.evaluation(dataset.classes, own.counts) for tally in tallies
    ]
    return own.evaluation(dataset.classes, None), evaluated


def _see(reference: Predictor, frame: Frame) -> _Seen:
    image, mask = frame.read()
    window = reference.crop_window((mask.shape[0], mask.shape[1]))
    kind = reference.contract.output
    scores = upsampled = lead = None
    if kind == "labels":
        labels = reference.predict(image)
    else:
        scores = reference.scores(image)
        upsampled = reference.upsampled(scores, (mask.shape[0], mask.shape[1]))
        labels = reference.best(upsampled)
        lead = reference.margins(upsampled)
    if isinstance(frame, UnlabeledFrame):
        mask = labels
    return _Seen(frame, image, mask, scores, upsampled, labels, lead, window, kind)


def _count(opened: OpenCandidate, seen: _Seen, dataset: DataSet, *, ece: bool) -> dict[str, Any]:
    """Return the counts of one frame as JSON types, or the failure."""
    try:
        scores, upsampled, labels = _output(opened.predictor, seen)
        found = _counts(seen, labels, dataset)
        if opened.kernels is not None:
            own = opened.kernels.predict(seen.image)
            found["kernels"] = int((own == labels)[seen.window].sum())
    except InputError as error:  # such as NaN in the output; others continue
        return {"failure": f"frame {seen.frame.name}: {first_line(error)}"}
    agreement = AgreementCount()
    at = seen.window  # what lies outside a crop is in no network's answer
    margin = None if seen.margin is None else seen.margin[at]
    agreement.add(seen.frame.name, seen.scores, seen.labels[at], margin, labels[at], scores)
    found["agreement"] = agreement.to_plain()
    if ece and upsampled is not None:
        found.update(_sureness(upsampled, seen, opened.predictor, dataset))
    return found


def _output(predictor: Predictor, seen: _Seen) -> _Output:
    """Return the scores, the scores upsampled to the frame's size, and the labels.

    Both scores are None for a graph whose output is of another kind than the reference's.
    """
    held = seen.outputs.get(id(predictor))  # shared by candidates of the same file
    if held is None:
        if seen.output == "labels" or predictor.contract.output != seen.output:
            held = None, None, predictor.predict(seen.image)
        else:
            height, width = seen.labels.shape
            scores = predictor.scores(seen.image)
            upsampled = predictor.upsampled(scores, (height, width))
            held = scores, upsampled, predictor.best(upsampled)
        seen.outputs[id(predictor)] = held
    return held


def _counts(seen: _Seen, labels: NDArray[np.uint8], dataset: DataSet) -> dict[str, Any]:
    counted = LabelCounts.of(dataset)
    counted.add(seen.mask[seen.window], labels[seen.window])
    return {"counts": counted.counts.tolist()}


def _sureness(
    upsampled: NDArray[np.float32], seen: _Seen, predictor: Predictor, dataset: DataSet
) -> dict[str, Any]:
    rows, columns = seen.window
    probabilities = predictor.class_probabilities(upsampled[:, rows, columns])
    mask = seen.mask[rows, columns]
    if not dataset.bit_planes:
        return {"reliability": reliability(probabilities, mask, dataset.ignore_index).tolist()}
    found = [
        reliability(np.stack([1 - one, one]), plane(mask, index), dataset.ignore_index)
        for index, one in enumerate(probabilities)
    ]
    return {"reliability": np.sum(found, axis=0).tolist()}


@dataclass(frozen=True)
class Sample:
    """One frame for the report: the image, the ground truth, and the labels of each network.

    `truth` is None if the frame has no labeled pixel. `worst_of` maps each candidate whose worst
    frame this is to the pixel (row, column) of its largest error, None if unknown.
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    labels: dict[str, NDArray[np.uint8]]
    worst_of: Mapping[str, tuple[int, int] | None]


def show(
    reference: Predictor,
    opened: Mapping[str, tuple[OpenCandidate, Evaluation]],
    dataset: DataSet,
    frames: Sequence[Frame],
    count: int,
) -> list[Sample]:
    """Return samples: `count` evenly spaced frames, and the worst frame of each candidate."""
    last = len(frames) - 1
    chosen = set(np.linspace(0, last, min(count, len(frames))).round().astype(int).tolist())
    worst = {
        name: evaluated.agreement.worst
        for name, (_, evaluated) in opened.items()
        if evaluated.agreement and evaluated.agreement.worst and evaluated.agreement.labels < 1
    }
    names = {one.frame for one in worst.values()}
    shown = []
    for index, frame in enumerate(frames):
        if index not in chosen and frame.name not in names:
            continue
        image, mask = frame.read()
        labels = {"reference": reference.predict(image)}
        labels |= {name: one.predictor.predict(image) for name, (one, _) in opened.items()}
        marks = {name: one.pixel for name, one in worst.items() if one.frame == frame.name}
        has_truth = bool((mask != dataset.ignore_index).any())
        shown.append(
            Sample(frame.name, rgb_preview(image), mask if has_truth else None, labels, marks)
        )
    return shown

"""Accuracy: every candidate and the reference on the same frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.benchmark.agreement import Fidelity, FidelityCount, margin
from segdeploy.benchmark.bootstrap import Spread, spread
from segdeploy.benchmark.journal import Journal
from segdeploy.benchmark.reliability import BINS, expected_calibration_error, reliability
from segdeploy.errors import InputError
from segdeploy.models.dataset import DataSet, Frame
from segdeploy.models.errors import first_line
from segdeploy.models.metrics import ConfusionMatrix
from segdeploy.proof.accuracy import Accuracy, summarise
from segdeploy.runtime.postprocess import upsample
from segdeploy.runtime.predictor import Predictor

_Output = tuple[NDArray[np.float32] | None, NDArray[np.float32] | None, NDArray[np.uint8]]


@dataclass(frozen=True)
class Contestant:
    """A candidate's network: `predictor` is judged; `kernels`, for a quantised graph, is what the
    chosen runtime really computes with its integer kernels. `identity` names its content.
    """

    name: str
    predictor: Predictor
    kernels: Predictor | None
    precision: str
    identity: str


@dataclass(frozen=True)
class Judgement:
    """Accuracy against the truth and, but for the reference itself, fidelity to the reference.

    `spread` holds 95 % intervals over the frames, None without masks. `kernels` is the share of
    labels that the runtime's own kernels give as the literal graph does, for a quantised graph.
    `ece` is the expected calibration error in 0..1, if that was asked for.
    """

    accuracy: Accuracy
    spread: Spread | None
    fidelity: Fidelity | None = None
    kernels: float | None = None
    ece: float | None = None


@dataclass(frozen=True)
class _Seen:
    """A frame, and what the reference says of it; `outputs` are the candidates', by predictor."""

    frame: Frame
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    scores: NDArray[np.float32]
    upsampled: NDArray[np.float32]
    labels: NDArray[np.uint8]
    margin: NDArray[np.float32]
    outputs: dict[int, _Output] = field(default_factory=dict)


class _Tally:
    """Running counts of one network; it ends at the first frame that it cannot do."""

    def __init__(self, classes: int, ignore_index: int):
        self.failure: str | None = None
        self.counts: list[NDArray[np.int64]] = []
        self._whole = ConfusionMatrix(classes, ignore_index)
        self._fidelity = FidelityCount()
        self._reliability = np.zeros((BINS, 3))
        self._kernels_equal: int | None = None

    def take(self, found: dict[str, Any]) -> None:
        """Add one frame's counts, as `_count` gave them."""
        if "failure" in found:
            self.failure = found["failure"]
            return
        self.counts.append(np.array(found["counts"], np.int64))
        self._whole.counts += self.counts[-1]
        if "fidelity" in found:
            self._fidelity.merge(FidelityCount.of_plain(found["fidelity"]))
        if "reliability" in found:
            self._reliability += np.array(found["reliability"])
        if "kernels" in found:
            self._kernels_equal = (self._kernels_equal or 0) + found["kernels"]

    def judgement(
        self, classes: tuple[str, ...], reference: Sequence[NDArray[np.int64]] | None
    ) -> Judgement:
        """Turn the counts into figures; `reference` are its counts, None for itself."""
        pixels, equal = self._fidelity.pixels, self._kernels_equal
        return Judgement(
            summarise(self._whole, classes, len(self.counts)),
            spread(self.counts, reference) if self._whole.counts.any() else None,
            self._fidelity.result() if pixels else None,
            None if equal is None else equal / pixels,
            expected_calibration_error(self._reliability),
        )


def judge(
    reference: Predictor,
    contestants: Sequence[Contestant],
    dataset: DataSet,
    frames: Sequence[Frame],
    *,
    journal: Journal,
    identity: str,
    ece: bool = False,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Judgement, list[Judgement | str]]:
    """Run every frame through the reference and all contestants; one frame is held at a time.

    Returns the reference's judgement, and the contestants', or why one failed. Counts that the
    journal holds are not made again; `identity` names the reference there.

    Raises:
        InputError, ModelInputError: for a frame that cannot be used, or if the reference fails.
    """
    own, *tallies = (
        _Tally(len(dataset.classes), dataset.ignore_index) for _ in range(1 + len(contestants))
    )
    for index, frame in enumerate(frames):
        place = f"frame {index} {frame.name} of"
        seen: _Seen | None = None
        counts = journal.get(f"{place} {identity}")
        if counts is None:
            seen = _see(reference, frame)
            counts = _counts(seen.mask, seen.labels, dataset)
            counts.update(_sureness(seen.upsampled, seen, reference, dataset) if ece else {})
            journal.put(f"{place} {identity}", counts)
        own.take(counts)
        for contestant, tally in zip(contestants, tallies, strict=True):
            if tally.failure is not None:
                continue
            found = journal.get(f"{place} {contestant.identity}")
            if found is None:
                seen = seen or _see(reference, frame)
                found = _count(contestant, seen, dataset, ece=ece)
                journal.put(f"{place} {contestant.identity}", found)
            tally.take(found)
        on_frame(index + 1, len(frames))
    judged: list[Judgement | str] = [
        tally.failure or tally.judgement(dataset.classes, own.counts) for tally in tallies
    ]
    return own.judgement(dataset.classes, None), judged


def _see(reference: Predictor, frame: Frame) -> _Seen:
    image, mask = frame.read()
    scores = reference.logits(image)
    upsampled = upsample(scores, (mask.shape[0], mask.shape[1]))
    labels = upsampled.argmax(0).astype(np.uint8)
    return _Seen(frame, image, mask, scores, upsampled, labels, margin(upsampled))


def _count(contestant: Contestant, seen: _Seen, dataset: DataSet, *, ece: bool) -> dict[str, Any]:
    """One frame's counts in JSON's types, or the failure."""
    try:
        scores, upsampled, labels = _output(contestant.predictor, seen)
        found = _counts(seen.mask, labels, dataset)
        if contestant.kernels is not None:
            own = contestant.kernels.predict(seen.image)
            found["kernels"] = int((own == labels).sum())
    except InputError as error:  # NaN in an output, say: the others go on
        return {"failure": f"frame {seen.frame.name}: {first_line(error)}"}
    fidelity = FidelityCount()
    fidelity.add(seen.frame.name, seen.scores, seen.labels, seen.margin, labels, scores)
    found["fidelity"] = fidelity.to_plain()
    if ece and upsampled is not None:
        found.update(_sureness(upsampled, seen, contestant.predictor, dataset))
    return found


def _output(predictor: Predictor, seen: _Seen) -> _Output:
    """Scores, the same at the frame's size (None of a graph that gives labels), and labels."""
    held = seen.outputs.get(id(predictor))  # the same file for another runtime ran already
    if held is None:
        if predictor.contract.output != "logits":
            held = None, None, predictor.predict(seen.image)
        else:
            height, width = seen.labels.shape
            scores = predictor.logits(seen.image)
            upsampled = upsample(scores, (height, width))
            held = scores, upsampled, upsampled.argmax(0).astype(np.uint8)
        seen.outputs[id(predictor)] = held
    return held


def _counts(mask: NDArray[np.uint8], labels: NDArray[np.uint8], dataset: DataSet) -> dict[str, Any]:
    matrix = ConfusionMatrix(len(dataset.classes), dataset.ignore_index)
    matrix.add(mask, labels)
    return {"counts": matrix.counts.tolist()}


def _sureness(
    upsampled: NDArray[np.float32], seen: _Seen, predictor: Predictor, dataset: DataSet
) -> dict[str, Any]:
    are_logits = predictor.contract.output == "logits"
    found = reliability(upsampled, seen.mask, dataset.ignore_index, are_logits=are_logits)
    return {"reliability": found.tolist()}


@dataclass(frozen=True)
class Sample:
    """One frame for the report: the picture, the truth, and each network's labels by name.

    `truth` is None where the frames have no masks. `worst_of` are the candidates that are worst in
    it, each with the pixel (row, column) of its largest error, None where that is not known.
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    labels: dict[str, NDArray[np.uint8]]
    worst_of: Mapping[str, tuple[int, int] | None]


def show(
    reference: Predictor,
    contestants: Mapping[str, tuple[Contestant, Judgement]],
    dataset: DataSet,
    frames: Sequence[Frame],
    count: int,
) -> list[Sample]:
    """`count` frames spread over the split, and each contestant's worst, with everyone's labels."""
    last = len(frames) - 1
    chosen = set(np.linspace(0, last, min(count, len(frames))).round().astype(int).tolist())
    worst = {
        name: judged.fidelity.worst
        for name, (_, judged) in contestants.items()
        if judged.fidelity and judged.fidelity.worst and judged.fidelity.agreement < 1
    }
    names = {one.frame for one in worst.values()}
    shown = []
    for index, frame in enumerate(frames):
        if index not in chosen and frame.name not in names:
            continue
        image, mask = frame.read()
        labels = {"reference": reference.predict(image)}
        labels |= {name: one.predictor.predict(image) for name, (one, _) in contestants.items()}
        marks = {name: one.pixel for name, one in worst.items() if one.frame == frame.name}
        has_truth = bool((mask != dataset.ignore_index).any())
        shown.append(Sample(frame.name, image, mask if has_truth else None, labels, marks))
    return shown

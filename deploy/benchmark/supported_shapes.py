"""Check of the other batch sizes and shapes that a candidate declares, against the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdeploy.benchmark.accuracy import OpenCandidate
from segdeploy.benchmark.failure import Failure
from segdeploy.benchmark.process import Candidate, Process, start
from segdeploy.calibration.difference import label_agreement, max_abs, over_range, value_range
from segdeploy.errors import InputError
from segdeploy.models.dataset import Frame
from segdeploy.models.errors import first_line
from segdeploy.preprocessing.preprocess import preprocess
from segdeploy.profiles import Shape
from segdeploy.runtime.predictor import Predictor
from segdeploy.runtime.session import Session

# Checked for a graph without bounds: another batch size, and sides scaled by these factors to odd
# multiples of the network's size step.
_BATCH, _SHRUNK, _GROWN = 3, 0.75, 1.25
_PAIR = 2  # batch size; engine builders have been correct for one image and wrong for two
_MOST = 8  # largest input, as a multiple of the contract's pixels


@dataclass(frozen=True)
class ShapeCheck:
    """An input shape (N, H, W), and the share of labels equal to the reference's.

    `max_rel` is the largest score difference relative to the reference's range, None if the scores
    cannot be compared. `failure` is why the candidate cannot run the shape. `untried` is why the
    reference cannot.
    """

    shape: Shape
    agreement: float | None = None
    max_rel: float | None = None
    failure: str | None = None
    untried: str | None = None


def declared_shapes(session: Session, size: tuple[int, int]) -> list[Shape]:
    """Return the input shapes to check: corners of profiles, or examples for a dynamic graph.

    A batch of two is included if the candidate accepts it. The contract's size at batch 1 is
    excluded, since everything else is evaluated at it. A corner with more than eight times the
    contract's pixels is replaced by smaller shapes.
    """
    found: list[Shape] = []
    for profile in session.profiles:
        (least, low, narrow), (_, high, wide) = profile.minimum, profile.maximum
        for corner in (
            *(profile.minimum, profile.optimum, profile.maximum),
            *((least, low, wide), (least, high, narrow)),
        ):
            found += _within(corner, size)
        if profile.takes((_PAIR, *size)):
            found.append((_PAIR, *size))
    if not session.profiles:
        if session.takes_any_size:
            step = session.contract.multiple
            found += [(1, *_odd(size, factor, step)) for factor in (_SHRUNK, _GROWN)]
        if not isinstance(session.input.shape[0], int):
            found += [(_PAIR, *size), (_BATCH, *size)]
    return [shape for shape in dict.fromkeys(found) if shape != (1, *size)]


def _within(corner: Shape, size: tuple[int, int]) -> list[Shape]:
    """Return the corner; if it is too large, a large batch and a large image instead."""
    batch, height, width = corner
    if batch * height * width <= _MOST * size[0] * size[1]:
        return [corner]
    sides = min(height, 2 * size[0]), min(width, 2 * size[1])
    return [(min(batch, _MOST // 2), min(height, size[0]), min(width, size[1])), (1, *sides)]


def _odd(size: tuple[int, int], factor: float, step: int) -> tuple[int, int]:
    """Return about `factor` times a size, in odd multiples of the network's size step."""
    height, width = ((int(side * factor) // step | 1) * step for side in size)
    return height, width


def check_supported_shapes(
    candidate: Candidate, opened: OpenCandidate, reference: Predictor, frames: Sequence[Frame]
) -> list[ShapeCheck]:
    """Run each declared shape once on frames, and compare it with the reference.

    Each shape first runs in a separate process, so that a crash does not end the bench.
    """
    predictor = opened.predictor
    if predictor.loop:
        return []
    shapes = declared_shapes(predictor.session, predictor.contract.size)
    failures = _failures(candidate, shapes)
    return [
        ShapeCheck(shape, failure=failures[shape])
        if shape in failures
        else _check_shape(predictor, reference, shape, frames)
        for shape in shapes
    ]


def _failures(candidate: Candidate, shapes: Sequence[Shape]) -> dict[Shape, str]:
    """Return the shapes that the candidate's runtime cannot run, with the reasons."""
    found: dict[Shape, str] = {}
    process: Process | Failure | None = None
    for shape in shapes:
        if process is None:
            process = start(candidate, None)
        if isinstance(process, Failure):
            return dict.fromkeys(shapes, process.reason)
        try:
            answer = process.ask({"shape": shape})
            if "refused" in answer:
                found[shape] = answer["refused"]
        except InputError as error:  # the process ended; the next shape starts a new one
            found[shape] = first_line(error)
            process = None
    if isinstance(process, Process):
        process.close()
    return found


def _check_shape(
    predictor: Predictor, reference: Predictor, shape: Shape, frames: Sequence[Frame]
) -> ShapeCheck:
    batch, *sides = shape
    size = (sides[0], sides[1])
    images = list(_images(frames, batch))
    contract = predictor.contract.stretched_to(size)
    try:
        wanted = _stretching(reference, size)
        scores = [wanted.scores(image) for image in images]
    except InputError as error:
        return ShapeCheck(shape, untried=f"the reference cannot run it: {first_line(error)}")
    try:
        inputs = np.concatenate([preprocess(image, contract) for image in images])
        outputs = predictor.finite(predictor.session.run(inputs))
    except InputError as error:
        return ShapeCheck(shape, failure=first_line(error))
    height, width = outputs.shape[-2:]
    if contract.upsampling is None and (height, width) != size:
        return ShapeCheck(shape, failure=f"it returns {height}x{width}")
    at_size = _stretching(predictor, size)
    pairs = list(zip(scores, outputs, strict=True))
    equal = [
        label_agreement(at_size.labels_of(ours, size), wanted.labels_of(theirs, size))
        for theirs, ours in pairs
    ]
    offs = list(_offs(predictor, pairs))
    return ShapeCheck(shape, float(np.mean(equal)), max(offs, default=None))


def _stretching(predictor: Predictor, size: tuple[int, int]) -> Predictor:
    """Return a predictor of the same session that stretches every image to `size` (H, W)."""
    given = Predictor(predictor.session, scales=predictor.loop)
    if size != given.contract.size and not predictor.session.takes_any_size:
        raise InputError(f"the network is static at {given.contract.size}")
    given.contract = given.contract.stretched_to(size)
    return given


def _images(frames: Sequence[Frame], count: int) -> Iterator[NDArray[np.uint8]]:
    """Yield `count` images: the frames, then mirrored frames, and so on in turn."""
    for index in range(count):
        image = frames[index % len(frames)].read()[0]
        mirrored = index // len(frames) % 2
        yield np.ascontiguousarray(image[:, ::-1]) if mirrored else image


def _offs(predictor: Predictor, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[float]:
    if predictor.contract.output != "logits" or predictor.contract.upsampling:
        return
    for theirs, ours in pairs:
        yield over_range(max_abs(ours, theirs), value_range(theirs) or 1.0)

"""Every batch size and shape that a candidate claims to take, tried against the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segdeploy.benchmark.accuracy import Contestant
from segdeploy.benchmark.process import Candidate, Failure, Process, start
from segdeploy.errors import InputError
from segdeploy.models.dataset import Frame
from segdeploy.models.errors import first_line
from segdeploy.profiles import Shape
from segdeploy.runtime.predictor import Predictor
from segdeploy.runtime.preprocess import preprocess
from segdeploy.runtime.session import Session

# Tried where a graph bounds neither its batch nor its sides: another batch, and sides that no
# stride divides.
_BATCH, _SHRUNK, _GROWN = 3, 0.75, 1.25
_PAIR = 2  # builders have been right for one image, and wrong for two
_MOST = 8  # times the pixels of the contract's picture


@dataclass(frozen=True)
class Claim:
    """An input (N, H, W), and the share of labels equal to the reference's.

    `max_rel` is the largest difference of a score over the reference's range; None for labels.
    `failure` says why the candidate cannot run it, `untried` why the reference cannot.
    """

    shape: Shape
    agreement: float | None = None
    max_rel: float | None = None
    failure: str | None = None
    untried: str | None = None


def claimed_shapes(session: Session, size: tuple[int, int]) -> list[Shape]:
    """The corners of each profile and a batch of two, or some of what a dynamic graph takes.

    The contract's own size at batch 1 is not among them: that is what everything else is judged at.
    Of a corner beyond eight times its pixels a part is tried.
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
    """The corner, or, where it is too large to be tried, a large batch and a large picture."""
    batch, height, width = corner
    if batch * height * width <= _MOST * size[0] * size[1]:
        return [corner]
    sides = min(height, 2 * size[0]), min(width, 2 * size[1])
    return [(min(batch, _MOST // 2), min(height, size[0]), min(width, size[1])), (1, *sides)]


def _odd(size: tuple[int, int], factor: float, step: int) -> tuple[int, int]:
    """About `factor` times a size, in odd multiples of the step that the network takes."""
    height, width = ((int(side * factor) // step | 1) * step for side in size)
    return height, width


def check_claims(
    candidate: Candidate, contestant: Contestant, reference: Predictor, frames: Sequence[Frame]
) -> list[Claim]:
    """Run each shape once, with as many frames as its batch holds, beside the reference.

    First in a process of its own, where a shape that crashes takes nothing with it.
    """
    predictor = contestant.predictor
    if predictor.loop:
        return []
    shapes = claimed_shapes(predictor.session, predictor.contract.size)
    failures = _failures(candidate, shapes)
    return [
        Claim(shape, failure=failures[shape])
        if shape in failures
        else _claim(predictor, reference, shape, frames)
        for shape in shapes
    ]


def _failures(candidate: Candidate, shapes: Sequence[Shape]) -> dict[Shape, str]:
    """Why the candidate's own runtime cannot run some of the shapes."""
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
        except InputError as error:  # it died of that, and the next shape has another process
            found[shape] = first_line(error)
            process = None
    if isinstance(process, Process):
        process.close()
    return found


def _claim(
    predictor: Predictor, reference: Predictor, shape: Shape, frames: Sequence[Frame]
) -> Claim:
    batch, *sides = shape
    size = (sides[0], sides[1])
    pictures = list(_pictures(frames, batch))
    contract = replace(predictor.contract, size=size)
    try:
        wanted = Predictor(reference.session, size, reference.loop)
        scores = [wanted.logits(picture) for picture in pictures]
    except InputError as error:
        return Claim(shape, untried=f"the reference cannot: {first_line(error)}")
    try:
        inputs = np.concatenate([preprocess(picture, contract) for picture in pictures])
        outputs = predictor.finite(predictor.session.run(inputs))
    except InputError as error:
        return Claim(shape, failure=first_line(error))
    height, width = outputs.shape[-2:]
    if contract.upsampling is None and (height, width) != size:
        return Claim(shape, failure=f"it gives {height}x{width}")
    at_size = Predictor(predictor.session, size if predictor.session.takes_any_size else None)
    pairs = list(zip(scores, outputs, strict=True))
    equal = [
        np.mean(at_size.labels_of(ours, size) == wanted.labels_of(theirs, size))
        for theirs, ours in pairs
    ]
    offs = list(_offs(predictor, pairs))
    return Claim(shape, float(np.mean(equal)), max(offs, default=None))


def _pictures(frames: Sequence[Frame], count: int) -> Iterator[NDArray[np.uint8]]:
    """So many pictures, each another: frames, and once they are used up, mirrored ones."""
    for index in range(count):
        picture = frames[index % len(frames)].read()[0]
        mirrored = index // len(frames) % 2
        yield np.ascontiguousarray(picture[:, ::-1]) if mirrored else picture


def _offs(predictor: Predictor, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[float]:
    if predictor.contract.output != "logits" or predictor.contract.upsampling:
        return
    for theirs, ours in pairs:
        span = float(np.ptp(theirs)) or 1.0
        yield float(np.abs(ours - theirs).max()) / span

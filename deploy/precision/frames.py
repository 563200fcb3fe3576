"""Which frames a calibration sees, which ones judge it, and whether they can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.content_keys import same_pictures
from segdeploy.contract import Contract
from segdeploy.errors import InputError
from segdeploy.models.dataset import DataSet, Frame
from segdeploy.models.metrics import class_counts
from segdeploy.runtime.preprocess import preprocess

CALIBRATION_FRAMES = 32
JUDGED_FRAMES = 48
# Pixels of a picture that are near each other are alike; those of noise, enlarged or not, are not.
_LEAST_CORRELATION = 0.3
_NEAR = 4


@dataclass(frozen=True)
class FrameSets:
    """Frames for ranges, frames of the same split to choose by, and frames that nobody tunes on.

    `note` says where the first two could not be kept apart, `shared` which pictures are in two
    splits.
    """

    calibration: list[Frame]
    held_back: list[Frame]
    check: list[Frame]
    check_split: str
    note: str | None = None
    shared: str | None = None


def choose_frames(
    dataset: DataSet,
    split: str,
    check_split: str | None,
    limit: int | None,
    judged: int = JUDGED_FRAMES,
) -> FrameSets:
    """Spread each set over its split, apart from the others.

    Without `check_split`, `val` is checked on if there is one; else the last third of the split.

    Raises:
        ModelInputError: for an unknown or empty split, or a frame without a mask.
        InputError: if no frame is left to check on.
    """
    frames = dataset.frames(split)
    told: str | None = None
    if check_split is None and "val" in dataset.splits and split != "val":
        check_split = "val"
    if check_split is not None and check_split != split:
        check = dataset.frames(check_split)
        # By content: VOC's trainval holds its val, and some data sets hold one frame twice.
        shared = {frame.image for frame in same_pictures(frames, check)}
        rest = [frame for frame in frames if frame.image not in shared]
        if shared and not rest:
            rest = frames
            told = f"every frame of '{split}' is one of '{check_split}', too: accuracy on them is "
            told += "that of frames which the ranges were taken from"
        elif shared:
            told = (
                f"{len(shared)} frames of '{split}' are in '{check_split}', too, and were left out"
            )
    else:
        # Neighbouring frames of a video are nearly one; a block behind the others is apart.
        cut = len(frames) - len(frames) // 3
        rest, check = frames[:cut], frames[cut:]
    # Without a wish, a third of a small split is held back.
    calibration = spread(rest, limit or min(CALIBRATION_FRAMES, -(-2 * len(rest) // 3)))
    used = {frame.name for frame in calibration}
    held_back = [frame for frame in rest if frame.name not in used]
    note = None
    if not rest or not check:
        raise InputError(
            f"{dataset.root}: '{split}' has too few frames to keep some apart that judge what the "
            "others calibrate; give more, or another --check-split"
        )
    if not held_back:
        note = f"no frame of '{split}' is left to choose methods and layers by but those of ranges"
    return FrameSets(
        calibration,
        spread(held_back or calibration, judged),
        spread(check, judged),
        check_split or split,
        note,
        told,
    )


def spread(frames: Sequence[Frame], count: int) -> list[Frame]:
    """`count` of the frames, or all, evenly over their order."""
    count = min(count, len(frames))
    return [frames[index * len(frames) // count] for index in range(count)]


def inputs(frames: Sequence[Frame], contract: Contract) -> Iterator[tuple[str, NDArray[Any]]]:
    """Each frame's name, and what the network takes of it: as the contract says, no other way."""
    for frame in frames:
        yield frame.name, preprocess(frame.read()[0], contract)


def check_pictures(frames: Sequence[Frame]) -> list[str]:
    """Name the frames that are no pictures, of one colour or noise, and refuse them if all are.

    Raises:
        InputError: with what they are.
    """
    flat, noisy = [], []
    for frame in frames:
        grey = frame.read()[0].mean(2)
        if float(np.ptp(grey)) == 0:
            flat.append(frame.name)
            continue
        near = min(_NEAR, max(1, grey.shape[1] // 16))
        left, right = grey[:, :-near].ravel(), grey[:, near:].ravel()
        spread_of = float(left.std() * right.std())
        covariance = float(((left - left.mean()) * (right - right.mean())).mean())
        if not spread_of or covariance / spread_of < _LEAST_CORRELATION:
            noisy.append(frame.name)
    bad = [*flat, *noisy]
    if len(bad) == len(frames):
        raise InputError(
            f"calibration: none of {len(frames)} frames is a picture ({len(flat)} of one "
            f"colour, {len(noisy)} noise); ranges taken from them hold for nothing else; give "
            "frames of the kind that the network will see"
        )
    return bad


def coverage(frames: Sequence[Frame], contract: Contract) -> tuple[str, ...]:
    """The classes that no mask of the frames holds."""
    counts, _ = class_counts(frames, len(contract.classes))
    return tuple(name for name, count in zip(contract.classes, counts, strict=True) if not count)

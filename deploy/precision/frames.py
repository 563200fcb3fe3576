"""Selection of calibration and evaluation frames, and checks that they are suitable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.content_keys import same_images
from segdeploy.contract import Contract
from segdeploy.errors import InputError
from segdeploy.models.dataset import DataSet, Frame
from segdeploy.models.metrics import class_counts, pixels_of_classes
from segdeploy.preprocessing.fit import check_input_size
from segdeploy.preprocessing.preprocess import preprocess

CALIBRATION_FRAMES = 32
EVALUATION_FRAMES = 48
# Nearby pixels of an image are correlated. Those of noise, enlarged or not, are not.
_LEAST_CORRELATION = 0.3
_NEAR = 4


@dataclass(frozen=True)
class FrameSets:
    """Frames for ranges, held-back frames of the same split for choices, and frames for the check.

    Nothing is tuned on the `check` frames. `note` states that calibration and held-back frames
    could not be kept apart. `shared` reports the images that are in two splits.
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
    evaluated: int = EVALUATION_FRAMES,
) -> FrameSets:
    """Choose the three sets of frames, each spread evenly over its split and apart from the others.

    Without `check_split`, the check frames are from `val` if that split exists, else from the last
    third of `split`.

    Raises:
        ModelInputError: for an unknown or empty split, or a frame without a mask.
        InputError: if no frame is left to check on.
    """
    frames = dataset.frames(split)
    message: str | None = None
    if check_split is None and "val" in dataset.splits and split != "val":
        check_split = "val"
    if check_split is not None and check_split != split:
        check = dataset.frames(check_split)
        # Compared by content: VOC's trainval contains val, and some data sets repeat a frame.
        shared = {frame.image for frame in same_images(frames, check)}
        rest = [frame for frame in frames if frame.image not in shared]
        if shared and not rest:
            rest = frames
            message = (
                f"every frame of '{split}' is one of '{check_split}', too, so accuracy is measured "
                "on the frames that the ranges were taken from"
            )
        elif shared:
            message = (
                f"{len(shared)} frames of '{split}' are also in '{check_split}' and were left out"
            )
    else:
        # Neighboring frames of a video are nearly equal, so the check frames are a block at the
        # end.
        cut = len(frames) - len(frames) // 3
        rest, check = frames[:cut], frames[cut:]
    # Without `limit`, a third of a small split is held back.
    calibration = evenly_spaced(rest, limit or min(CALIBRATION_FRAMES, -(-2 * len(rest) // 3)))
    used = {frame.name for frame in calibration}
    held_back = [frame for frame in rest if frame.name not in used]
    note = None
    if not rest or not check:
        raise InputError(
            f"{dataset.root}: '{split}' has too few frames to keep some apart for the accuracy "
            "check; give more frames, or another --check-split"
        )
    if not held_back:
        note = (
            f"no frame of '{split}' is left to choose methods and layers, besides those of ranges"
        )
    return FrameSets(
        calibration,
        evenly_spaced(held_back or calibration, evaluated),
        evenly_spaced(check, evaluated),
        check_split or split,
        note,
        message,
    )


def evenly_spaced(frames: Sequence[Frame], count: int) -> list[Frame]:
    """Return `count` evenly spaced frames, or all if there are fewer."""
    count = min(count, len(frames))
    return [frames[index * len(frames) // count] for index in range(count)]


def inputs(
    frames: Sequence[Frame], contract: Contract, *, any_size: bool
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield each frame's name and its network input, preprocessed as the contract specifies.

    Raises:
        InputError: for an image that the contract brings to a size that the network, dynamic if
            `any_size`, does not take.
    """
    for frame in frames:
        image = frame.read()[0]
        size = (image.shape[0], image.shape[1])
        check_input_size(size, contract, str(frame.image), any_size=any_size)
        yield frame.name, preprocess(image, contract)


def check_images(frames: Sequence[Frame]) -> list[str]:
    """Return the names of the frames of one color or of noise, which are no real images.

    Raises:
        InputError: if all frames are of one color or noise.
    """
    flat, noisy = [], []
    for frame in frames:
        gray = frame.read()[0].mean(2)
        if float(np.ptp(gray)) == 0:
            flat.append(frame.name)
            continue
        near = min(_NEAR, max(1, gray.shape[1] // 16))
        left, right = gray[:, :-near].ravel(), gray[:, near:].ravel()
        spread_of = float(left.std() * right.std())
        covariance = float(((left - left.mean()) * (right - right.mean())).mean())
        if not spread_of or covariance / spread_of < _LEAST_CORRELATION:
            noisy.append(frame.name)
    bad = [*flat, *noisy]
    if len(bad) == len(frames):
        raise InputError(
            f"calibration: none of {len(frames)} frames is an image ({len(flat)} of one "
            f"color, {len(noisy)} noise), so their ranges do not fit real images; give "
            "frames like those that the network will see"
        )
    return bad


def coverage(
    frames: Sequence[Frame], contract: Contract, labels: Sequence[NDArray[np.uint8]] | None = None
) -> tuple[str, ...]:
    """Return the classes that occur in no mask of the frames, or in no `labels` of a network."""
    count, bit_planes = len(contract.classes), contract.has_bit_planes
    if labels is None:
        counts, _ = class_counts(frames, count, bit_planes=bit_planes)
    else:
        each = [pixels_of_classes(one, count, bit_planes=bit_planes) for one in labels]
        counts = np.sum(each, 0)
    return tuple(name for name, count in zip(contract.classes, counts, strict=True) if not count)

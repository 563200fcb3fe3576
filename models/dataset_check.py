"""Check of a whole data set: read every frame once, count its pixels and list all problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segdeploy.models.dataset import DataSet, masks_without_image
from segdeploy.models.errors import ModelInputError
from segdeploy.models.metrics import pixels_of_classes


@dataclass
class SplitCheck:
    """Result of one split: pixels per class, ignored and all pixels, frames per size, problems."""

    split: str
    pixels: NDArray[np.int64]
    ignored: int = 0
    total: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """Number of usable frames."""
        return self.sizes.total()


def check_split(dataset: DataSet, split: str, result: SplitCheck) -> Iterator[tuple[int, int]]:
    """Read every frame of a split into `result`, and yield `(done, total)` after each frame."""
    try:
        frames = dataset.listed(split)
    except ModelInputError as error:
        result.problems.append(str(error))
        return
    result.problems += [
        f"{mask}: there is no image for this mask" for mask in masks_without_image(dataset, split)
    ]
    for done, frame in enumerate(frames, 1):
        try:
            _, mask = frame.read()
        except ModelInputError as error:
            result.problems.append(str(error))
        else:
            result.sizes[(mask.shape[0], mask.shape[1])] += 1
            result.pixels += pixels_of_classes(
                mask, len(dataset.classes), bit_planes=dataset.bit_planes
            )
            result.ignored += int((mask == dataset.ignore_index).sum())
            result.total += mask.size
        yield done, len(frames)

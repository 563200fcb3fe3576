"""A folder of pictures without masks: enough for parity and latency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.models.dataset import DataSet, Frame, pictures_in
from segdeploy.models.images import read_image


@dataclass(frozen=True)
class Picture(Frame):
    """A frame of which nothing is known: its mask ignores every pixel."""

    def check_mask(self) -> None:
        """There is none to be missing."""

    def read(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read the picture, and a mask that says nothing."""
        image = read_image(self.image)
        return image, np.full(image.shape[:2], self.ignore_index, np.uint8)


@dataclass(frozen=True)
class Pictures(DataSet):
    """The pictures of one folder, as a data set with the classes of a network."""

    def listed(self, split: str) -> list[Frame]:
        """The pictures by name."""
        count = len(self.classes)
        return [
            Picture(image.stem, image, image, count, self.ignore_index)
            for image, _ in self.listing(split)
        ]


def is_folder_of_pictures(folder: Path) -> bool:
    """Whether a folder is no data set, but holds pictures."""
    if not folder.is_dir() or (folder / "dataset.json").exists():
        return False
    return bool(pictures_in(folder))


def pictures_of(folder: Path, contract: Contract) -> Pictures:
    """The pictures of a folder, with the classes and colours of a network."""
    return Pictures(
        root=folder,
        classes=contract.classes,
        palette=contract.palette,
        ignore_index=contract.ignore_index,
        splits=("pictures",),
        listing=lambda split: [(path, path) for path in pictures_in(folder)],
    )

"""Folders of images without masks: networks are compared with each other alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.models.dataset import DataSet, Frame, images_in


@dataclass(frozen=True)
class UnlabeledFrame(Frame):
    """A frame without a mask file; every pixel of its mask is ignored."""

    def check_mask(self) -> None:
        """Accept the frame, since it has no mask file to check."""

    def read(self) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return the image, and a mask in which every pixel is ignored."""
        image = self.read_image()
        return image, np.full(image.shape[:2], self.ignore_index, np.uint8)


@dataclass(frozen=True)
class ImageFolder(DataSet):
    """The images of one folder, as a data set with the classes of a network."""

    def listed(self, split: str) -> list[Frame]:
        """Return the frames of the folder, in the order of the listing."""
        count = len(self.classes)
        return [
            UnlabeledFrame(
                image.stem,
                image,
                image,
                count,
                self.ignore_index,
                channels=self.channels,
                dtype=self.dtype,
                bit_planes=self.bit_planes,
            )
            for image, _ in self.listing(split)
        ]


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder holds images and is not a data set."""
    if not folder.is_dir() or (folder / "dataset.json").exists():
        return False
    return bool(images_in(folder))


def open_image_folder(folder: Path, contract: Contract) -> ImageFolder:
    """Open the images of a folder as a data set with the classes and colors of a network."""
    return ImageFolder(
        root=folder,
        classes=contract.classes,
        palette=contract.palette,
        ignore_index=contract.ignore_index,
        splits=("images",),
        listing=lambda split: [(path, path) for path in images_in(folder)],
        channels=contract.image_channels,
        dtype=contract.dtype,
        bit_planes=contract.has_bit_planes,
    )

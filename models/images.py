"""Pictures and masks of a data set, as arrays."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeploy.models.errors import ModelInputError
from segdeploy.models.files import check_regular
from segdeploy.models.image_file import PictureError, read_ids, read_picture, rgb_of


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a picture as `(H, W, 3) uint8` RGB, by the rule of `picture_file`.

    Raises:
        ModelInputError: if the file is missing, or one that the rule refuses.
    """
    return _read(read_picture, path)


def of_pillow(image: Image.Image, source: str) -> NDArray[np.uint8]:
    """`(H, W, 3) uint8` RGB of a Pillow image, turned upright where its EXIF data says so.

    Raises:
        ModelInputError: for a mode that RGB bytes would lose something of.
    """
    try:
        return rgb_of(image, source)
    except PictureError as error:
        raise ModelInputError(str(error)) from error


def read_mask(
    path: Path, num_classes: int, ignore_index: int, lookup: bytes | None = None
) -> NDArray[np.uint8]:
    """Read a mask as `(H, W) uint8`, one class id a pixel.

    `lookup` holds, for each of the 256 ids in the file, the id that it stands for.

    Raises:
        ModelInputError: as `read_image`, or if an id is neither a class nor `ignore_index`.
    """
    mask = _read(read_ids, path)
    if lookup is not None:
        mask = np.frombuffer(lookup, np.uint8)[mask]
    known = np.zeros(256, bool)
    known[:num_classes] = True
    known[ignore_index] = True
    if not known[mask].all():
        strangers = sorted({int(i) for i in np.unique(mask) if not known[i]})
        raise ModelInputError(
            f"{path}: holds the ids {strangers[:8]}, but there are {num_classes} classes "
            f"(0 to {num_classes - 1}) and the ignore index {ignore_index}; "
            "renumber the mask or mend dataset.json"
        )
    return mask


def encoded(pixels: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    """An array as the content of a file, `kind` PNG or JPEG; `options` are Pillow's.

    It is written afterwards: Pillow does not tell that a disk was full behind a JPEG's last block.
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _read(reader: Callable[[Path], NDArray[np.uint8]], path: Path) -> NDArray[np.uint8]:
    try:
        return reader(check_regular(path))
    except PictureError as error:
        raise ModelInputError(str(error)) from error

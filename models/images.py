"""Read images and masks as arrays, and encode arrays as image files."""

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
from segdeploy.models.image_file import ImageFileError, decode_image, read_ids, rgb_of


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as `(H, W, 3) uint8` RGB, by the rule of `image_file`.

    Raises:
        ModelInputError: if the file is missing, or if the rule refuses the file.
    """
    return _read(decode_image, path)


def of_pillow(image: Image.Image, source: str) -> NDArray[np.uint8]:
    """Return a Pillow image as `(H, W, 3) uint8` RGB, with the EXIF orientation applied.

    Raises:
        ModelInputError: for a color mode that 8-bit RGB cannot represent.
    """
    try:
        return rgb_of(image, source)
    except ImageFileError as error:
        raise ModelInputError(str(error)) from error


def read_mask(
    path: Path, num_classes: int, ignore_index: int, lookup: bytes | None = None
) -> NDArray[np.uint8]:
    """Read a mask as `(H, W) uint8`, one class id per pixel.

    `lookup` maps each of the 256 possible ids in the file to a class id or `ignore_index`.

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
        unknown = sorted({int(i) for i in np.unique(mask) if not known[i]})
        raise ModelInputError(
            f"{path}: holds the ids {unknown[:8]}, but there are {num_classes} classes "
            f"(0 to {num_classes - 1}) and the ignore index {ignore_index}; "
            "renumber the mask or mend dataset.json"
        )
    return mask


def encoded(pixels: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    """Return an array as PNG or JPEG file content (`kind`); `options` are passed to Pillow.

    The caller writes the file, because Pillow does not report a disk that is full after the last
    block of a JPEG.
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _read(reader: Callable[[Path], NDArray[np.uint8]], path: Path) -> NDArray[np.uint8]:
    try:
        return reader(check_regular(path))
    except ImageFileError as error:
        raise ModelInputError(str(error)) from error

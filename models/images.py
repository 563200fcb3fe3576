"""Reading images and masks, with Pillow, and refusing what is not one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from segdeploy.models.errors import ModelInputError

MAX_PIXELS = 100_000_000  # a decompression bomb, not a camera frame
# Phones and stereo cameras write a JPEG with more pictures behind it, which Pillow calls MPO.
_FORMATS = {".jpg": ("JPEG", "MPO"), ".jpeg": ("JPEG", "MPO"), ".png": ("PNG",)}
_COLOUR_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a picture as `(H, W, 3) uint8` RGB, turned upright where its EXIF data says so.

    Raises:
        ModelInputError: if the file is missing, not what its name says, too large or damaged.
    """
    return of_pillow(_decoded(path, _COLOUR_MODES, "8-bit colour or grey"), str(path))


def of_pillow(image: Image.Image, source: str) -> NDArray[np.uint8]:
    """`(H, W, 3) uint8` RGB of a Pillow image, turned upright where its EXIF data says so.

    Raises:
        ModelInputError: for a mode that RGB bytes would lose something of.
    """
    if image.mode not in _COLOUR_MODES:
        raise ModelInputError(
            f"{source}: has Pillow mode {image.mode}; it must hold 8-bit colour or grey"
        )
    return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def read_mask(
    path: Path, num_classes: int, ignore_index: int, lookup: bytes | None = None
) -> NDArray[np.uint8]:
    """Read a mask as `(H, W) uint8`, one class id a pixel.

    `lookup` holds, for each of the 256 ids in the file, the id that it stands for.

    Raises:
        ModelInputError: as `read_image`, or if an id is neither a class nor `ignore_index`.
    """
    mask: NDArray[np.uint8] = np.array(_decoded(path, ("L", "P"), "one 8-bit class id a pixel"))
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


def _decoded(path: Path, modes: tuple[str, ...], content: str) -> Image.Image:
    if not path.is_file():
        raise ModelInputError(f"{path}: no such image")
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ModelInputError(
                    f"{path}: {width}x{height} pixels are over the limit of {MAX_PIXELS}; scale it"
                )
            expected = _FORMATS.get(path.suffix.lower())
            if expected and image.format not in expected:
                raise ModelInputError(
                    f"{path}: holds {image.format} data although its name says {expected[0]}; "
                    "rename or convert it"
                )
            if image.mode not in modes:
                raise ModelInputError(
                    f"{path}: has Pillow mode {image.mode}; it must hold {content}"
                )
            image.load()
            decoded: Image.Image = image.copy()
            return decoded
    except Image.DecompressionBombError as error:
        raise ModelInputError(f"{path}: too many pixels ({error})") from error
    except UnidentifiedImageError as error:
        raise ModelInputError(
            f"{path}: is not an image that can be read; replace or remove it"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ModelInputError):
            raise
        raise ModelInputError(
            f"{path}: the image is damaged ({error}); replace or remove it"
        ) from error

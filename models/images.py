"""Read images and masks as arrays, and encode arrays as image files."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeploy.models.array_file import ARRAY_SUFFIXES, read_array
from segdeploy.models.channels import RGB
from segdeploy.models.errors import ModelInputError
from segdeploy.models.files import check_regular
from segdeploy.models.image_file import (
    ImageFileError,
    decode_image,
    decode_levels,
    read_ids,
    rgb_of,
)

_SHOWN = 8  # ids of a histogram


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as `(H, W, 3) uint8` RGB, by the rule of `image_file`.

    Raises:
        ModelInputError: if the file is missing, or if the rule refuses the file.
    """
    return _read(decode_image, path)


def read_pixels(
    path: Path, channels: Sequence[str], dtype: str, *, may_be_color: bool = False
) -> NDArray[Any]:
    """Read an image as `(H, W, C)` of `dtype` (uint8, uint16 or float32).

    A PNG or JPEG file holds RGB or gray, a PNG also 16-bit gray. NPY and TIFF files hold any number
    of channels. `may_be_color` reads a color image as RGB where gray is asked for, for a caller
    that converts it. Nothing else is converted.

    Raises:
        ModelInputError: for a file that cannot be read, or that holds other channels or another
            dtype.
    """
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        if dtype == "uint8" and tuple(channels) == RGB:
            return read_image(path)
        if len(channels) != 1 or dtype == "float32":
            raise ModelInputError(
                f"{path}: a PNG or JPEG file holds no image of {_described(channels, dtype)}; save "
                "it as .npy or .tif"
            )
        bits = 8 if dtype == "uint8" else 16
        try:
            return decode_levels(check_regular(path), bits)[:, :, None]
        except ImageFileError as error:
            if may_be_color and bits == 8:
                return read_image(path)
            raise ModelInputError(
                f"{error}; an image of {_described(channels, dtype)} is expected"
            ) from error
    array = read_array(check_regular(path))
    counts = {len(channels)} | ({3} if may_be_color else set())
    if array.shape[2] not in counts or array.dtype != dtype:
        raise ModelInputError(
            f"{path}: has {array.shape[2]} channel{'s' * (array.shape[2] != 1)} of {array.dtype}; "
            f"an image of {_described(channels, dtype)} is expected"
        )
    if dtype == "float32" and not np.isfinite(array).all():
        raise ModelInputError(f"{path}: holds NaN or infinity; mend or remove the image")
    return array


def _described(channels: Sequence[str], dtype: str) -> str:
    return f"{dtype} {','.join(channels)}"


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
    path: Path,
    num_classes: int,
    ignore_index: int,
    lookup: bytes | None = None,
    *,
    bit_planes: bool = False,
    ids: Collection[int] | None = None,
) -> NDArray[np.uint8]:
    """Read a mask as `(H, W) uint8`: one class id per pixel, or with `bit_planes` a bit per class.

    `lookup` maps each of the 256 possible ids in the file to a class id or `ignore_index`. `ids`
    are those that the file may hold, if not all of them.

    Raises:
        ModelInputError: as `read_image`, or if an id is neither a class nor `ignore_index`.
    """
    mask = _read(read_ids, path)
    if ids is not None and (others := sorted(set(np.unique(mask).tolist()) - set(ids))):
        raise ModelInputError(
            f"{path}: holds the ids {others[:8]}, which the data set does not have; its pixels: "
            f"{_histogram(mask)}; give masks of this data set, or map the ids: --data "
            "masks:IMAGES,MASKS,MAP.json"
        )
    if lookup is not None:
        mask = np.frombuffer(lookup, np.uint8)[mask]
    known = np.zeros(256, bool)
    known[: 1 << num_classes if bit_planes else num_classes] = True
    known[ignore_index] = True
    if not known[mask].all():
        unknown = sorted({int(i) for i in np.unique(mask) if not known[i]})
        if bit_planes:
            raise ModelInputError(
                f"{path}: holds the bit planes {unknown[:8]}, but there are {num_classes} classes "
                f"(bits 0 to {num_classes - 1}) and the ignore index {ignore_index}; mend the mask "
                "or dataset.json"
            )
        raise ModelInputError(
            f"{path}: holds the ids {unknown[:8]}, but there are {num_classes} classes "
            f"(0 to {num_classes - 1}) and the ignore index {ignore_index}; its pixels: "
            f"{_histogram(mask)}; renumber the mask, mend dataset.json, or map the ids: --data "
            "masks:IMAGES,MASKS,MAP.json"
        )
    return mask


def _histogram(mask: NDArray[np.uint8]) -> str:
    """Return the shares of the ids of a mask, the largest first."""
    ids, counts = np.unique(mask, return_counts=True)
    ranked = sorted(zip(counts.tolist(), ids.tolist(), strict=True), reverse=True)
    shown = ", ".join(f"id {id_} {100 * count / mask.size:.1f} %" for count, id_ in ranked[:_SHOWN])
    return shown + (f", and {len(ranked) - _SHOWN} more ids" if len(ranked) > _SHOWN else "")


def read_ids_of(path: Path) -> NDArray[np.uint8]:
    """Read the ids of a mask `(H, W) uint8`, whatever they stand for.

    Raises:
        ModelInputError: as `read_mask`, but for any id.
    """
    return _read(read_ids, path)


def read_color_mask(
    path: Path,
    colors: Sequence[tuple[Sequence[int], int]],
    ignore_index: int,
    lookup: bytes | None = None,
) -> NDArray[np.uint8]:
    """Read a mask in color as class ids `(H, W) uint8`; other colors become `ignore_index`.

    `lookup` maps the class ids to others, as for a binary network.

    Raises:
        ModelInputError: as `read_image`.
    """
    pixels = read_image(path).astype(np.uint32)
    packed = pixels[:, :, 0] << 16 | pixels[:, :, 1] << 8 | pixels[:, :, 2]
    mask = np.full(packed.shape, ignore_index, np.uint8)
    for (red, green, blue), place in colors:
        mask[packed == (red << 16 | green << 8 | blue)] = place
    return mask if lookup is None else np.frombuffer(lookup, np.uint8)[mask]


def image_content(image: NDArray[Any], channels: Sequence[str]) -> tuple[bytes, str]:
    """Return an image `(H, W, C)` as the content of a file, and the suffix of the file's name."""
    if image.shape[2] == 1 and image.dtype != np.float32:
        return encoded(image[:, :, 0], "PNG"), ".png"
    if tuple(channels) == RGB and image.dtype == np.uint8:
        return encoded(image, "JPEG", quality=92, subsampling=0), ".jpg"
    file = io.BytesIO()
    np.save(file, image, allow_pickle=False)
    return file.getvalue(), ".npy"


def encoded(pixels: NDArray[Any], kind: str, **options: Any) -> bytes:
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

"""Images that PNG and JPEG cannot hold: 16 bits, floats, any number of channels (NPY and TIFF)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.models.errors import ModelInputError, first_line
from segdeploy.models.image_file import MAX_PIXELS

NPY = ".npy"
TIFF = (".tif", ".tiff")
ARRAY_SUFFIXES = (NPY, *TIFF)


def read_array(path: Path) -> NDArray[Any]:
    """Read an NPY or TIFF file as `(H, W, C)`, with the values and the dtype of the file.

    An NPY file holds `(H, W)` or `(H, W, C)`. The samples of a TIFF's first image are the channels,
    interleaved or in planes; several pages are the channels of a stack of gray pages.

    Raises:
        ModelInputError: for a damaged file, another shape, too many pixels, or a TIFF without the
            package tifffile.
    """
    array = _npy(path) if path.suffix.lower() == NPY else _tiff(path)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or not array.size:
        raise ModelInputError(
            f"{path}: holds an array of shape {array.shape}; an image is (H, W) or (H, W, C)"
        )
    return array


def _npy(path: Path) -> NDArray[Any]:
    try:
        # Mapped, so that a header which claims a huge array allocates nothing.
        held = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # the header is a Python literal, whose parser raises many types
        raise ModelInputError(f"{path}: is no NPY image ({first_line(error)})") from error
    if not isinstance(held, np.ndarray):
        raise ModelInputError(f"{path}: is an archive of arrays; save one image with numpy.save")
    _check_pixels(path, held.shape[:2])
    return np.array(held)


def _tiff(path: Path) -> NDArray[Any]:
    try:
        import tifffile
    except ImportError as error:
        raise ModelInputError(
            f"{path}: TIFF needs tifffile; pip install 'segdeploy[images]', or save the image as "
            ".npy"
        ) from error
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            axes, shape = series.axes, series.shape
            sides = [size for axis, size in zip(axes, shape, strict=True) if axis in "YX"]
            _check_pixels(path, sides)
            array: NDArray[Any] = series.asarray()
    except ModelInputError:
        raise
    except Exception as error:  # tifffile and its codecs raise many types on a damaged file
        raise ModelInputError(f"{path}: is no TIFF image ({first_line(error)})") from error
    kept = [axis for axis, size in zip(axes, shape, strict=True) if axis in "YX" or size > 1]
    array = array.reshape([size for axis, size in zip(axes, shape, strict=True) if axis in kept])
    others = [at for at, axis in enumerate(kept) if axis not in "YX"]
    if len(others) > 1:
        raise ModelInputError(f"{path}: has the axes {axes} of {shape}; an image has three")
    order = [kept.index("Y"), kept.index("X"), *others]
    return np.ascontiguousarray(array.transpose(order))


def _check_pixels(path: Path, sides: Any) -> None:
    height, width = [*sides, 1, 1][:2]
    if height * width > MAX_PIXELS:
        raise ModelInputError(
            f"{path}: {height}x{width} pixels are over the limit of {MAX_PIXELS}; scale it"
        )

"""Preprocessing of an image to the network's input, as the contract specifies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.models.channels import RGB
from segdeploy.preprocessing.fit import Placement, check_input_size, placement
from segdeploy.preprocessing.normalization import normalized
from segdeploy.resize_kernels.kernels import resize
from segdeploy.resize_kernels.taps import saturated

Pixels = NDArray[Any]

# Weights of red, green and blue in fixed point, and their fraction's bits: `convert("L")` of Pillow
# (Convert.c), `cvtColor` of OpenCV (color_rgb.simd.hpp).
FLOAT_GRAY_WEIGHTS = np.array((0.299, 0.587, 0.114), np.float32)  # of both, for floats
GRAY_WEIGHTS = {"pillow": ((19595, 38470, 7471), 16), "opencv": ((9798, 19235, 3735), 15)}


def preprocess(image: Pixels, contract: Contract) -> NDArray[Any]:
    """Return the network's input for an image `(H, W, C)` of the contract's channels and dtype.

    The input is `(1, C, H', W') float32`, scaled and normalized, or `(1, H', W', C)` of the
    contract's `input_dtype` if the graph normalizes. If the graph resizes, too, the image is the
    input. The image is fitted with the contract's
    kernel.

    Raises:
        InputError: for an image that the contract's crop or padding does not fit.
    """
    size = (image.shape[0], image.shape[1])
    if contract.source_size is not None:
        check_input_size(size, contract, "the graph resizes by itself", any_size=False)
        return np.ascontiguousarray(ordered(_with_gray(image, contract), contract)[None])
    place = placement(size, contract)
    image = resize(_with_gray(image, contract), place.resized, contract.resize)
    image = ordered(image, contract)
    if place.is_cropped:
        image = image[place.rows.visible, place.columns.visible]
    is_padded_before = place.is_padded and not contract.pad_normalized
    if is_padded_before:
        image = _padded(image, place, contract)
    if contract.layout == "NHWC":
        if contract.input_dtype == "uint8" and image.dtype != np.uint8:
            image = saturated(np.rint(image), np.uint8)
        return np.ascontiguousarray(image[None], contract.input_dtype)
    made = normalized(image, contract)
    if place.is_padded and not is_padded_before:
        planes = _padded(made[0].transpose(1, 2, 0), place, contract)
        made = np.ascontiguousarray(planes.transpose(2, 0, 1)[None])
    return made


def _with_gray(image: Pixels, contract: Contract) -> Pixels:
    """Return an RGB image as gray, if the contract converts it; else the image."""
    if contract.gray is None or image.shape[2] != len(RGB):
        return image
    return gray_of(image, contract.gray)


def gray_of(image: Pixels, library: str) -> Pixels:
    """Return an RGB image `(H, W, 3)` as gray `(H, W, 1)`, with the weights of a library."""
    if image.dtype == np.float32:
        plain: Pixels = image @ FLOAT_GRAY_WEIGHTS
        return plain[:, :, None]
    weights, bits = GRAY_WEIGHTS[library]
    total = image.astype(np.uint64) @ np.array(weights, np.uint64)
    # Both libraries add half of the last bit before the shift.
    return ((total + (1 << (bits - 1))) >> bits).astype(image.dtype)[:, :, None]


def ordered(image: Pixels, contract: Contract) -> Pixels:
    """Return the image with its channels in the network's order."""
    if contract.channels == contract.image_channels:
        return image
    return image[:, :, contract.channel_order]


def _padded(image: Pixels, place: Placement, contract: Contract) -> Pixels:
    """Return the image on the network's input, `(H, W, C)`, with the padding's values around it.

    The values of the padding may be fractions, so that the result is float32 where they are.
    """
    assert contract.pad is not None
    whole = all(float(value).is_integer() for value in contract.pad)
    kind = image.dtype if whole else np.float32
    canvas = np.empty((*place.size, image.shape[2]), kind)
    canvas[:] = np.asarray(contract.pad, np.float64)
    canvas[place.rows.covered, place.columns.covered] = image
    return canvas

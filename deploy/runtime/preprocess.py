"""Preprocessing of an image to the network's input, as the contract specifies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.resize_kernels.kernels import resize
from segdeploy.resize_kernels.taps import saturated
from segdeploy.runtime.fit import Placement, placement


def preprocess(image: NDArray[np.uint8], contract: Contract) -> NDArray[Any]:
    """Return the network's input for `(H, W, 3) uint8` RGB, as the contract specifies.

    The input is `(1, 3, H', W') float32`, scaled to 0..1 and normalized, or `(1, H', W', 3) uint8`
    if the graph normalizes. The image is resized with the contract's kernel.
    """
    place = placement((image.shape[0], image.shape[1]), contract)
    image = resize(image, place.resized, contract.resize)
    if not place.is_whole:
        image = _padded(image, place, contract)
    if contract.color == "BGR":
        image = image[:, :, ::-1]
    if contract.layout == "NHWC":
        return np.ascontiguousarray(saturated(np.rint(image[None]), np.uint8))
    scale, shift = normalization(contract)
    normalized = image.astype(np.float32) * scale - shift
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None])


def _padded(image: NDArray[Any], place: Placement, contract: Contract) -> NDArray[Any]:
    """Return the image on the network's input, `(H, W, 3) float32` in 0..255."""
    assert contract.pad is not None
    canvas = np.empty((place.rows.side, place.columns.side, 3), np.float32)
    canvas[:] = contract.pad
    top, left = place.rows.start, place.columns.start
    canvas[top : top + place.rows.length, left : left + place.columns.length] = image
    return canvas


def normalization(contract: Contract) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the scale and the shift of `bytes * scale - shift`, both `(3,) float32`."""
    std = np.asarray(contract.std, np.float32)
    return np.float32(1) / (np.float32(255) * std), np.asarray(contract.mean, np.float32) / std

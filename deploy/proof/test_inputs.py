"""Inputs of the parity checks: input shapes, noise, and edge-case images."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.preprocessing import normalization as arithmetic
from segdeploy.preprocessing.preprocess import ordered

if TYPE_CHECKING:
    from segdeploy.profiles import Bounds

Shape = tuple[int, int, int, int]

_PROBED_PIXELS = 1 << 20


def probe_shapes(
    size: tuple[int, int], bounds: Bounds | None = None, channels: int = 3
) -> list[Shape]:
    """Return the input shapes to compare at: the traced shape and, within `bounds`, untraced ones.

    The untraced shapes are half the size with batch 2, an odd size, batch 3, and the largest batch
    at the smallest size. A larger shape reveals code that branches on large sizes: four times the
    height and width, limited to the largest size and a million pixels. All heights and widths are
    multiples of the bounds' `multiple`.
    """
    height, width = size
    if bounds is None:
        return [(1, channels, height, width)]
    (low, narrow), (high, wide) = bounds.smallest, bounds.largest
    sizes = [
        (1, height, width),
        (min(2, bounds.batch), max(height // 2, low), max(width // 2, narrow)),
        (1, min(height + 13, high), min(width + 7, wide)),
        (min(3, bounds.batch), height, width),
        (bounds.batch, low, narrow),
    ]
    factor = min(4.0, math.sqrt(_PROBED_PIXELS / (height * width)))
    if factor > 1:
        sizes.append((1, min(high, int(height * factor)), min(wide, int(width * factor))))
    return [
        (batch, channels, bounds.fitting(tall, 0), bounds.fitting(broad, 1))
        for batch, tall, broad in sizes
    ]


def random_images(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return normal noise, different for each image of a batch, so that swapped images show."""
    images: NDArray[np.float32] = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    return images


def noise_image(contract: Contract, seed: int = 0) -> NDArray[Any]:
    """Return an image of noise `(H, W, C)` of the contract's input size, channels and dtype."""
    shape = (*contract.input_size, len(contract.image_channels))
    return noise_values(shape, contract, seed)


def noise_values(shape: tuple[int, ...], contract: Contract, seed: int = 0) -> NDArray[Any]:
    """Return noise over all values of the contract's dtype, different for each image of a batch."""
    generator = np.random.default_rng(seed)
    if contract.dtype == "float32":
        floats: NDArray[np.float32] = generator.random(shape, np.float32) / contract.scale
        return floats.astype(np.float32)
    most = np.iinfo(contract.dtype).max
    values: NDArray[Any] = generator.integers(0, most + 1, shape).astype(contract.dtype)
    return values


def random_bytes(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return random image bytes, different for each image of a batch."""
    values: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return values


def breaking_images(contract: Contract) -> dict[str, NDArray[Any]]:
    """Return edge-case images `(H, W, C)` by name; a graph may agree on noise and fail here.

    In an image without texture, a sum, a variance or a norm becomes zero. A hard edge and a
    saturated channel give the largest values.
    """
    height, width = contract.input_size
    noise = noise_image(contract)
    most = 1 / contract.scale if contract.dtype == "float32" else np.iinfo(contract.dtype).max
    black, white = np.zeros_like(noise), np.full_like(noise, most)
    half, letterboxed, saturated = white.copy(), noise.copy(), noise.copy()
    half[:, : width // 2] = 0
    letterboxed[: height // 4] = letterboxed[height - height // 4 :] = 0
    saturated[..., 0] = most
    return {
        "a black image": black,
        "a white image": white,
        "an image whose left half is black": half,
        "a letterboxed image": letterboxed,
        "an image whose first channel is saturated": saturated,
    }


def exact_input(image: NDArray[Any], contract: Contract) -> NDArray[np.float32]:
    """Return an image `(H, W, C)` in the network's channel order as input `(1, C, H, W) float32`.

    The normalization is computed in float64, so that it is more exact than the graph's own.
    """
    if contract.normalization != "per-image":
        contract = replace(contract, normalization="f64")
    return arithmetic.normalized(image, contract)


def breaking_inputs(contract: Contract) -> dict[str, NDArray[np.float32]]:
    """Return `breaking_images` at the contract's size as network inputs `(1, C, H, W) float32`.

    An additional input has a border of zeros, as from padding after normalization.
    """
    inputs = {
        name: exact_input(ordered(image, contract), contract)
        for name, image in breaking_images(contract).items()
    }
    count, height, width = contract.shape_at(contract.size)
    padded = random_images((1, count, height, width))
    padded[:, :, : height // 4] = padded[:, :, :, width - width // 4 :] = 0
    return {**inputs, "an image that is padded with zeros": padded}

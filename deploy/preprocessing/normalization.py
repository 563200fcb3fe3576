"""The arithmetic that turns an image's values into the network's input.

Libraries compute `(value * scale - mean) / std` in different orders and precisions, so that their
results differ in the last bit. Each formula here has the order of one of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract


def normalized(image: NDArray[Any], contract: Contract) -> NDArray[np.float32]:
    """Return an image `(H, W, C)` as the network's input `(1, C, H, W) float32`.

    The channels are already in the network's order.
    """
    height, width, count = image.shape
    made = np.empty((1, count, height, width), np.float32)
    if contract.normalization == "per-image":
        made[0] = _standardized(image, contract.scale).transpose(2, 0, 1)
        return made
    with np.errstate(over="ignore"):  # the network's output is checked
        for channel, (mean, std) in enumerate(zip(contract.mean, contract.std, strict=True)):
            values = image[:, :, channel]
            made[0, channel] = formula_of(values, contract.scale, mean, std, contract.normalization)
    return made


def affine(contract: Contract) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the scale and the shift of `value * scale - shift`, both `(C,) float32`."""
    std = np.asarray(contract.std, np.float32)
    divisor = np.float32(1 / contract.scale)
    return np.float32(1) / (divisor * std), np.asarray(contract.mean, np.float32) / std


def formula_of(
    values: NDArray[Any], scale: float, mean: float, std: float, formula: str
) -> NDArray[np.float32]:
    """Return values normalized by one formula, `float32`.

    - `f32-affine`: multiply and subtract, as in the graphs that segdeploy writes.
    - `f32-div`: torchvision's ToTensor and Normalize; transformers' Pillow backend.
    - `f32-mul-inv`: the same with a multiplication by 1/255 (transformers without normalization).
    - `f32-fused-div`: transformers' torchvision backend.
    - `f32-fused-mul`: albumentations.
    - `f32sub-f64mul`: mmcv (`imnormalize`), which multiplies by 1/std in float64.
    - `f64`: segmentation_models_pytorch (`preprocess_input`).
    - `none`: the values themselves.
    """
    f32 = np.float32
    divisor = 1 / scale
    plain: NDArray[np.float32] = values.astype(f32)
    lowered, spread = f32(mean) * f32(divisor), f32(std) * f32(divisor)
    found: NDArray[Any]
    if formula == "none":
        found = plain
    elif formula == "f32-affine":
        found = plain * (f32(1) / (f32(divisor) * f32(std))) - f32(mean) / f32(std)
    elif formula == "f32-div":
        found = (plain / f32(divisor) - f32(mean)) / f32(std)
    elif formula == "f32-mul-inv":
        found = (plain * f32(scale) - f32(mean)) / f32(std)
    elif formula == "f32-fused-div":
        found = (plain - lowered) / spread
    elif formula == "f32-fused-mul":
        found = (plain - lowered) * (f32(1) / spread)
    elif formula == "f32sub-f64mul":
        found = (plain - f32(mean * divisor)).astype(np.float64) * (1 / (std * divisor))
    else:
        assert formula == "f64", formula
        found = ((values.astype(np.float64) / divisor) - mean) / std
    return found.astype(f32, copy=False)


def _standardized(image: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """Return an image minus its mean, divided by its standard deviation, over all its values.

    The deviation is at least `1 / sqrt(values)`, as in TensorFlow's `per_image_standardization`.
    """
    values = image.astype(np.float64) * scale
    deviation = max(float(values.std()), 1 / np.sqrt(values.size))
    found: NDArray[np.float32] = ((values - values.mean()) / deviation).astype(np.float32)
    return found

"""The kernels by name, and `resize`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.resize_kernels import opencv, pillow, torch_kernels

Kernel = Callable[[NDArray[Any], tuple[int, int]], NDArray[Any]]


def _pillow() -> dict[str, Kernel]:
    kernels: dict[str, Kernel] = {"pillow-nearest": pillow.nearest}
    for name in pillow.FILTERS:
        kernels[f"pillow-{name}"] = partial(pillow.resized, name=name, before_13=False)
        kernels[f"pillow-pre13-{name}"] = partial(pillow.resized, name=name, before_13=True)
    return kernels


def _torch() -> dict[str, Kernel]:
    kernels: dict[str, Kernel] = {
        "torch-nearest": torch_kernels.nearest,
        "torch-nearest-exact": partial(torch_kernels.nearest, exact=True),
        "torch-bilinear-antialias": torch_kernels.antialiased_bilinear,
        "torch-bicubic-antialias": torch_kernels.antialiased_bicubic,
    }
    for suffix, align_corners in (("", False), ("-align-corners", True)):
        kernels |= {
            f"torch-bilinear{suffix}": partial(torch_kernels.bilinear, align_corners=align_corners),
            f"torch-bicubic{suffix}": partial(torch_kernels.bicubic, align_corners=align_corners),
        }
    return kernels


_OF_BYTES: dict[str, Kernel] = {
    "torchvision-uint8-bilinear": torch_kernels.bytes_bilinear,
    "torchvision-uint8-bicubic": torch_kernels.bytes_bicubic,
}
KERNELS: dict[str, Kernel] = {
    **_pillow(),
    "opencv-nearest": opencv.nearest,
    "opencv-linear": opencv.linear,
    "opencv-area": opencv.area,
    "opencv-cubic": opencv.cubic,
    **_torch(),
    **_OF_BYTES,
}
"""The kernels by the name of the library whose arithmetic they have."""


def resize(image: NDArray[Any], size: tuple[int, int], kernel: str) -> NDArray[Any]:
    """Resize `(H, W)` or `(H, W, C)` of uint8, uint16 or float32 to `size` (H, W).

    The result has the image's dtype; PyTorch's kernels, which compute in float32, return float32.
    An image of that size is returned unchanged.

    Raises:
        ValueError: for another dtype, an empty image, or a kernel of bytes with another dtype.
        KeyError: for an unknown kernel.
    """
    function = KERNELS[kernel]
    if image.dtype not in (np.uint8, np.uint16, np.float32) or not image.size:
        raise ValueError(f"an image of {image.dtype} with shape {image.shape} cannot be resized")
    if kernel in _OF_BYTES and image.dtype != np.uint8:
        raise ValueError(f"{kernel} resizes uint8 images, and this image is {image.dtype}")
    return image if image.shape[:2] == size else function(image, size)

"""Random augmentation of training frames, with one geometric transform for image and mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from segdeploy.models.errors import ModelInputError
from segdeploy.models.image_file import MAX_PIXELS

_LARGEST_SCALE = 32


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of a training frame; `crop` and the network's `size` are (H, W).

    The frame is scaled to fit `size` times a random factor from `scale`, with its aspect ratio
    kept. The frame is then rotated by up to `rotation` degrees, and a random `crop` is taken.
    Pixels outside the frame get the mean color in the image and `ignore_index` in the mask.
    `color`, 0 to 1, is the strength of the changes of brightness and contrast, and of the
    saturation of RGB images.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.6)
    horizontal_flip: bool = True
    vertical_flip: bool = False
    rotation: float = 0.0
    color: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise ModelInputError(f"scale {low} to {high}: must be positive, the lower one first")
        if high > _LARGEST_SCALE or math.prod(self.crop) > MAX_PIXELS:
            raise ModelInputError(
                f"scale up to {high} and crop {self.crop[0]}x{self.crop[1]}: a scale above "
                f"{_LARGEST_SCALE} or a crop of more than {MAX_PIXELS} pixels is not supported; "
                "lower it"
            )


class _RandomScale(v2.Transform):  # type: ignore[misc]
    """Scale a frame to fit `size` (H, W), times a random factor.

    torchvision's ScaleJitter is not used: it takes the target as (W, H) and can scale to size 0.
    """

    def __init__(self, size: tuple[int, int], factors: tuple[float, float]):
        super().__init__()
        self._size = size
        self._factors = factors

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low, high = self._factors
        height, width = v2.query_size(flat_inputs)
        factor = min(self._size[0] / height, self._size[1] / width)
        factor *= low + float(torch.rand(())) * (high - low)
        return {"size": [max(1, round(side * factor)) for side in (height, width)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.resize(inpt, size=params["size"], antialias=True)


class _ValueJitter(v2.Transform):  # type: ignore[misc]
    """Random brightness and contrast for any number of channels; values of 0..1 stay so.

    torchvision's ColorJitter takes gray and RGB images alone.
    """

    def __init__(self, strength: float):
        super().__init__()
        self._strength = strength

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low = max(0.0, 1 - self._strength)
        brightness, contrast = (torch.rand(2) * (1 + self._strength - low) + low).tolist()
        return {"brightness": brightness, "contrast": contrast}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        bright = inpt.as_subclass(Tensor) * params["brightness"]
        middle = bright.mean()
        return tv_tensors.Image((bright - middle) * params["contrast"] + middle)


class Augment:
    """Applies an `Augmentation` to images `(C, H, W)` and masks `(H, W) uint8`.

    RGB images of bytes stay uint8. Others are float32, multiplied by `scale`, as `tensor` returns
    them.
    """

    def __init__(
        self,
        wanted: Augmentation,
        size: tuple[int, int],
        mean: tuple[float, ...],
        ignore_index: int,
        *,
        scale: float = 1 / 255,
        dtype: str = "uint8",
    ):
        self._scale = scale
        self._is_uint8_rgb = dtype == "uint8" and len(mean) == 3
        color = [round(value / scale) for value in mean] if self._is_uint8_rgb else list(mean)
        fill = {tv_tensors.Image: color, tv_tensors.Mask: ignore_index}
        steps: list[v2.Transform] = [_RandomScale(size, wanted.scale)]
        if wanted.rotation:
            steps.append(
                v2.RandomRotation(
                    wanted.rotation, interpolation=v2.InterpolationMode.BILINEAR, fill=fill
                )
            )
        steps.append(v2.RandomCrop(wanted.crop, pad_if_needed=True, fill=fill))
        if wanted.horizontal_flip:
            steps.append(v2.RandomHorizontalFlip())
        if wanted.vertical_flip:
            steps.append(v2.RandomVerticalFlip())
        if wanted.color:
            strength = wanted.color
            steps.append(
                v2.ColorJitter(strength, strength, strength)
                if self._is_uint8_rgb
                else _ValueJitter(strength)
            )
        self._transform = v2.Compose(steps)

    def tensor(self, image: NDArray[Any]) -> Tensor:
        """Return an image `(H, W, C)` as the tensor `(C, H, W)` that is augmented."""
        values = image if self._is_uint8_rgb else image.astype(np.float32) * np.float32(self._scale)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Augment one frame; the returned image and mask have the size of the crop."""
        moved, labels = self._transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return moved.as_subclass(torch.Tensor), labels.as_subclass(torch.Tensor)

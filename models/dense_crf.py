"""Exact inference of a fully connected CRF, an optional last step for small images.

DeepLab v2 (arXiv 1606.00915, section 3.3) refines its scores with the dense CRF of Kraehenbuehl and
Koltun 2011 (arXiv 1210.5644). The packages with their fast approximate filtering are published as
source only: pydensecrf no longer builds, and its fork pydensecrf2 needs a C++ compiler. Neither is
a dependency. This module implements the exact mean-field update, which is quadratic in the number
of pixels. It is a reference for small images, not a step for deployment.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segdeploy.models.errors import ModelInputError

MAX_PIXELS = 128 * 128


@dataclass(frozen=True)
class CrfSettings:
    """The paper's parameters: weights, and standard deviations in pixels and in 0..255 colors."""

    iterations: int = 10
    appearance_weight: float = 4.0
    appearance_pixels: float = 67.0
    appearance_colors: float = 3.0
    smoothness_weight: float = 3.0
    smoothness_pixels: float = 3.0


def refine(logits: Tensor, image: Tensor, settings: CrfSettings | None = None) -> Tensor:
    """Refine logits `(C, H, W)` with an image `(3, H, W) uint8` to probabilities `(C, H, W)`.

    The method is mean-field inference. The pairwise energy is the Potts model with an appearance
    and a smoothness kernel (equation 3 of 1210.5644), each normalized by the sum over all other
    pixels.

    Raises:
        ModelInputError: if the image has more than `MAX_PIXELS` pixels.
    """
    settings = settings or CrfSettings()
    classes, height, width = logits.shape
    if height * width > MAX_PIXELS:
        raise ModelInputError(
            f"dense CRF: {height}x{width} pixels are over {MAX_PIXELS}; this exact reference is "
            "quadratic in their number, so scale the image down"
        )
    kernel = _kernel(image, settings)
    unary = logits.reshape(classes, -1).float().log_softmax(0)
    q = unary.exp()
    for _ in range(settings.iterations):
        # Potts model: the probability of a class at similar pixels lowers the energy of the class.
        q = (unary + q @ kernel).softmax(0)
    return q.reshape(classes, height, width)


def _kernel(image: Tensor, settings: CrfSettings) -> Tensor:
    _, height, width = image.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows, columns]).reshape(2, -1).T.float()
    colors = image.reshape(3, -1).T.float()
    near = _gaussian(places / settings.smoothness_pixels)
    alike = _gaussian(
        torch.cat([places / settings.appearance_pixels, colors / settings.appearance_colors], dim=1)
    )
    return settings.smoothness_weight * near + settings.appearance_weight * alike


def _gaussian(features: Tensor) -> Tensor:
    affinity = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
    affinity.fill_diagonal_(0)
    return (
        affinity
        / affinity.sum(1).clamp_min(1e-12).sqrt()[:, None]
        / (affinity.sum(0).clamp_min(1e-12).sqrt()[None, :])
    )

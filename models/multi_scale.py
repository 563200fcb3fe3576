"""Multi-scale inference: the same network on several sizes of the image, averaged."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch.nn.functional as F
from torch import Tensor, nn


class MultiScaleInput(nn.Module):
    """Mean of `base_model`'s logits over the image at several scales.

    Each scale's logits are brought back to the input's size and added to a running sum, so that
    memory does not grow with the number of scales.

    Shape: `(N, 3, H, W)` to `(N, num_classes, H, W)`.
    """

    def __init__(
        self,
        base_model: nn.Module,
        *,
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5),
    ):
        super().__init__()
        self.base_model = base_model
        self.scales = list(scales)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        height, width = x.shape[2:]
        total: Tensor | None = None
        for scale in self.scales:
            # Integer arithmetic: `int(h * scale)` would bake the traced size into an exported
            # graph with dynamic height and width, silently.
            ratio = Fraction(scale).limit_denominator(1000)
            size = (
                height * ratio.numerator // ratio.denominator,
                width * ratio.numerator // ratio.denominator,
            )
            scaled = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
            logits = F.interpolate(
                self.base_model(scaled), size=(height, width), mode="bilinear", align_corners=True
            )
            total = logits if total is None else total + logits
        if total is None:
            raise ValueError("MultiScaleInput needs at least one scale")
        return total / len(self.scales)

"""Test-time augmentation: one network on several scales of the image, and on its mirror."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdeploy.models.scales import checked_scaled_size, scaled_size

FUSIONS = ("mean", "max")


class MultiScaleInput(nn.Module):
    """Fusion of `base_model`'s logits over several scales, and mirrored images if `flip`.

    `fuse` is `mean` or `max`, per class and pixel (DeepLab v2, arXiv 1606.00915, section 4.1). The
    logits of each scale are resized to the input size and fused immediately, so memory does not
    grow with the number of scales. Scaled sizes are multiples of `multiple`.

    Shape: `(N, 3, H, W)` to `(N, num_classes, H, W)`.

    Raises:
        ValueError: for an empty list of scales, a scale that is not positive, or an unknown `fuse`;
            in the forward pass, for an image that a scale shrinks to nothing.
    """

    def __init__(
        self,
        base_model: nn.Module,
        *,
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5),
        flip: bool = False,
        fuse: str = "mean",
        multiple: int = 1,
    ):
        super().__init__()
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales {list(scales)}: there must be at least one, all positive")
        if fuse not in FUSIONS:
            raise ValueError(f"fuse '{fuse}' is neither mean nor max")
        self.base_model = base_model
        self.scales = list(scales)
        self.flip = flip
        self.fuse = fuse
        self.multiple = multiple

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        fused = self._at_scale(x, self.scales[0])
        for scale in self.scales[1:]:
            fused = self._fused(fused, self._at_scale(x, scale))
        if self.fuse == "max":
            return fused
        return fused / (len(self.scales) * (2 if self.flip else 1))

    def _at_scale(self, x: Tensor, scale: float) -> Tensor:
        height, width = x.shape[2:]
        if scale == 1:
            return self._run(x)
        # In an exported graph the check would be a branch on the size.
        sized = scaled_size if torch.compiler.is_compiling() else checked_scaled_size
        size = sized((height, width), scale, self.multiple)
        scaled = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        logits = self._run(scaled)
        return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=True)

    def _run(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base_model(x)
        if self.flip:
            logits = self._fused(logits, self.base_model(x.flip(3)).flip(3))
        return logits

    def _fused(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.maximum(one, other) if self.fuse == "max" else one + other

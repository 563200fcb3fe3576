"""A dilated residual backbone followed by a multi-scale context module."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from segdeploy.models.layers import MultiScaleContextModule, dilated_backbone


class SemanticSegmentationModel(nn.Module):
    """Backbone with dilations 1, 2, 4; context module with dilations 1, 2, 4, 8; 1x1 classifier.

    `width` is the number of channels of the first block (64 in the original). The other widths are
    multiples of `width`. If `stride` is above 1, the first block subsamples, and the logits are
    upsampled to the input size.

    Shape: `(N, 3, H, W)` normalized float to logits `(N, num_classes, H, W)`.
    """

    def __init__(self, num_classes: int, *, width: int = 64, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.backbone = dilated_backbone(width, stride)
        self.context_module = MultiScaleContextModule(4 * width, 8 * width)
        self.classifier = nn.Conv2d(8 * width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        logits: Tensor = self.classifier(self.context_module(self.backbone(x)))
        if self.stride == 1:
            return logits
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True)

"""DeepLabV3 on a small dilated residual backbone, plain and with gradient checkpointing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdeploy.models.checkpointing import run_checkpointed
from segdeploy.models.layers import ASPP, dilated_backbone


class DeepLabV3(nn.Module):
    """Backbone with dilations 1, 2, 4; ASPP; 1x1 classifier; bilinear upsampling.

    Chen et al. 2017 (arXiv 1706.05587), figure 5, on three residual blocks instead of a ResNet.
    `width` is the number of channels of the first block (64 in the original); the others follow.
    `stride` subsamples in the first block.

    Shape: `(N, 3, H, W)` normalised float to logits `(N, num_classes, H, W)`.
    """

    def __init__(self, num_classes: int, *, width: int = 64, stride: int = 1):
        super().__init__()
        self.backbone = dilated_backbone(width, stride)
        self.aspp = ASPP(4 * width, 4 * width)
        self.classifier = nn.Conv2d(4 * width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        logits = self.classifier(self.aspp(self.backbone(x)))
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True)


class MemoryEfficientDeepLabV3(DeepLabV3):
    """DeepLabV3 that keeps no activations of backbone and ASPP: they are computed again.

    Same attributes, state dict, outputs and gradients as `DeepLabV3`. BatchNorm's running
    statistics move once a step although the forward pass runs twice.
    """

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        features = run_checkpointed(self.backbone, x)
        logits = self.classifier(run_checkpointed(self.aspp, features))
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True)

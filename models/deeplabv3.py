"""DeepLabV3 on a small dilated residual backbone, plain and with gradient checkpointing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdeploy.models.gradient_checkpointing import run_checkpointed
from segdeploy.models.layers import ASPP, dilated_backbone


class DeepLabV3(nn.Module):
    """Backbone with dilations 1, 2, 4; ASPP; 1x1 classifier; bilinear upsampling.

    Chen et al. 2017 (arXiv 1706.05587), figure 5, on three residual blocks instead of a ResNet.
    `width` is the number of channels of the first block (64 in the original). The other widths are
    multiples of `width`. `stride` is the stride of the first block.

    Shape: `(N, 3, H, W)` normalized float to logits `(N, num_classes, H, W)`.
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
    """DeepLabV3 that stores few activations for the backward pass.

    Attributes, state dict, outputs and gradients equal those of `DeepLabV3`, up to rounding. The
    backbone is checkpointed: its activations are recomputed, and BatchNorm's running statistics are
    updated once per step although the forward pass runs twice. The ASPP and the classifier after it
    are linear. In training their weights are therefore multiplied first, as `optimize` does
    permanently. The concatenated output of the five branches, the largest feature map of the
    network, is never created.
    """

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        features = x
        for block in self.backbone:
            features = run_checkpointed(block, features)
        logits = _linear_head(self.aspp, self.classifier, features)
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True)


def _linear_head(aspp: ASPP, classifier: nn.Conv2d, x: Tensor) -> Tensor:
    """Return `classifier(aspp(x))`, with each branch as one convolution to class scores."""
    combine = aspp.conv_combine
    assert combine.bias is not None
    assert classifier.bias is not None
    with torch.autocast(x.device.type, enabled=False):  # weight products need full precision
        last = classifier.weight.flatten(1)
        shares = (last @ combine.weight.flatten(1)).chunk(5, dim=1)
        bias = classifier.bias + last @ combine.bias
        branches = (aspp.conv1, aspp.conv2, aspp.conv3, aspp.conv4, aspp.conv5)
        weights = []
        for branch, share in zip(branches, shares, strict=True):
            assert branch.bias is not None
            weights.append((share @ branch.weight.flatten(1)).view(-1, *branch.weight.shape[1:]))
            bias = bias + share @ branch.bias
    # The sum broadcasts the 1x1 feature map, so no resize is needed.
    logits = F.conv2d(aspp.pool(x), weights[4], bias)
    for branch, weight in zip(branches[:4], weights[:4], strict=True):
        logits = logits + F.conv2d(x, weight, None, 1, branch.padding, branch.dilation)
    return logits

"""DeepLabV3 on a small dilated residual backbone, plain and with gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
    """DeepLabV3 that keeps few activations for the backward pass: they are computed again.

    Same attributes, state dict, outputs and gradients as `DeepLabV3`, up to rounding. Each block of
    the backbone is checkpointed, and so is each branch of the ASPP: the joined map of the five
    branches, the largest of the network, is never made, since the 1x1 convolution of a Concat is
    the sum of its slices' convolutions. BatchNorm's running statistics move once a step although
    the forward pass runs twice.
    """

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        features = x
        for block in self.backbone:
            features = run_checkpointed(block, features)
        logits = self.classifier(_aspp_by_branch(self.aspp, features))
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True)


def _aspp_by_branch(aspp: ASPP, x: Tensor) -> Tensor:
    def pooled(x: Tensor) -> Tensor:
        # A 1x1 map is broadcast by the sum, so it need not be resized.
        map_of_one: Tensor = aspp.conv5(aspp.pool(x))
        return map_of_one

    branches: tuple[Callable[[Tensor], Tensor], ...]
    branches = (aspp.conv1, aspp.conv2, aspp.conv3, aspp.conv4, pooled)
    combine = aspp.conv_combine
    slices = combine.weight.chunk(len(branches), dim=1)
    assert combine.bias is not None
    total = combine.bias.view(1, -1, 1, 1)
    for branch, weight in zip(branches, slices, strict=True):
        part = partial(_branch_share, branch, weight)
        total = total + run_checkpointed(aspp, x, forward=part)
    return total


def _branch_share(branch: Callable[[Tensor], Tensor], weight: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(branch(x), weight)

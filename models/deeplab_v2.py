"""DeepLab v2: atrous spatial pyramid pooling (ASPP) with summed branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet101
from torchvision.models._utils import IntermediateLayerGetter

from segdeploy.models.vgg import DilatedVGG16

ASPP_S = (2, 4, 8, 12)
ASPP_L = (6, 12, 18, 24)


class DeepLabV2VGG16(nn.Module):
    """VGG-16 with LargeFOV or ASPP (arXiv 1606.00915, section 3.2, figure 7).

    Each rate has its own branch of fc6 (3x3, atrous), fc7 and fc8 (1x1). The scores of the branches
    are summed. The single rate 12 is LargeFOV. `ASPP_S` and `ASPP_L` are the paper's two pyramids.

    Shape: `(N, 3, H, W)` normalized float to logits `(N, num_classes, H, W)`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        rates: Sequence[int] = (12,),
        width: int = 64,
        hidden: int = 1024,
    ):
        super().__init__()
        self.backbone = DilatedVGG16(width=width, keep_pools=True)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(self.backbone.out_channels, hidden, 3, padding=rate, dilation=rate),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Conv2d(hidden, hidden, 1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Conv2d(hidden, num_classes, 1),
            )
            for rate in rates
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return _upsampled(_sum_of(self.branches, self.backbone(x)), x)


class DeepLabV2ResNet101(nn.Module):
    """ResNet-101 at output stride 8 with an ASPP of four classifiers (arXiv 1606.00915, sec. 4).

    The fourth and fifth stages are dilated by 2 and 4 instead of subsampling. Each rate has a 3x3
    classifier on the 2048 channels, and the scores of the classifiers are summed.

    Shape: `(N, 3, H, W)` normalized float to logits `(N, num_classes, H, W)`.
    """

    def __init__(self, num_classes: int, *, rates: Sequence[int] = ASPP_L):
        super().__init__()
        dilated = resnet101(weights=None, replace_stride_with_dilation=[False, True, True])
        self.backbone = IntermediateLayerGetter(dilated, {"layer4": "out"})
        self.branches = nn.ModuleList(
            nn.Conv2d(2048, num_classes, 3, padding=rate, dilation=rate) for rate in rates
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return _upsampled(_sum_of(self.branches, self.backbone(x)["out"]), x)


def _sum_of(branches: nn.ModuleList, features: Tensor) -> Tensor:
    scores = [branch(features) for branch in branches]
    total: Tensor = scores[0]
    for score in scores[1:]:
        total = total + score
    return total


def _upsampled(logits: Tensor, image: Tensor) -> Tensor:
    return F.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False)

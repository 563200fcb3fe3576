"""DeepLabV3 on ResNet with multi-grid, at output stride 8 or 16, and DeepLabV3+'s decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck
from torchvision.models.segmentation.deeplabv3 import ASPP

# ASPP rates by output stride; at output stride 8 the rates double (arXiv 1706.05587, section 3.3).
_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}


def multigrid_backbone(
    build: Callable[..., ResNet], output_stride: int, multi_grid: Sequence[int]
) -> nn.Module:
    """Return a ResNet whose last stage has the atrous rates `base * multi_grid`.

    See arXiv 1706.05587, section 3.2.1. The base rate is 2 at output stride 16 and 4 at output
    stride 8. The network returns `{"low": (N, 256, H/4, W/4), "out": (N, 2048, H/s, W/s)}`.

    Raises:
        ValueError: for an output stride other than 8 and 16, or if `multi_grid` does not have one
            rate per block.
    """
    if output_stride not in _RATES:
        raise ValueError(f"output_stride {output_stride!r} is neither 8 nor 16")
    dilate = [False, output_stride == 8, True]
    network = build(weights=None, replace_stride_with_dilation=dilate)
    blocks = list(network.layer4)
    if len(multi_grid) != len(blocks):
        raise ValueError(f"multi_grid {tuple(multi_grid)} needs {len(blocks)} rates")
    for block, unit in zip(blocks, multi_grid, strict=True):
        assert isinstance(block, Bottleneck)
        rate = 32 // output_stride * unit
        block.conv2.dilation = block.conv2.padding = (rate, rate)
        # PyTorch keeps a second copy of the padding for padding modes other than zeros.
        block.conv2._reversed_padding_repeated_twice = [rate] * 4
    backbone: nn.Module = IntermediateLayerGetter(network, {"layer1": "low", "layer4": "out"})
    return backbone


class DeepLabV3ResNet(nn.Module):
    """ResNet with multi-grid, ASPP with image pooling and BatchNorm, 1x1 classifier.

    Chen et al. 2017 (arXiv 1706.05587), section 3.3 and figure 5. The ASPP is torchvision's, which
    adds a dropout of 0.5 after its projection.

    Shape: `(N, 3, H, W)` normalized float to logits `(N, num_classes, H, W)`.
    """

    def __init__(
        self,
        build: Callable[..., ResNet],
        num_classes: int,
        *,
        output_stride: int = 16,
        multi_grid: Sequence[int] = (1, 2, 4),
    ):
        super().__init__()
        self.backbone = multigrid_backbone(build, output_stride, multi_grid)
        self.aspp = ASPP(2048, _RATES[output_stride], 256)
        self.classifier = nn.Conv2d(256, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        logits = self.classifier(self.aspp(self.backbone(x)["out"]))
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)


class DeepLabV3PlusResNet(nn.Module):
    """DeepLabV3's encoder with a decoder that adds the low-level features of the first stage.

    Chen et al. 2018 (arXiv 1802.02611), figure 2. The low-level features are reduced to 48
    channels, concatenated with the upsampled ASPP output, and refined by two 3x3 convolutions of
    256 channels.

    Shape: `(N, 3, H, W)` normalized float to logits `(N, num_classes, H, W)`.
    """

    def __init__(
        self,
        build: Callable[..., ResNet],
        num_classes: int,
        *,
        output_stride: int = 16,
        multi_grid: Sequence[int] = (1, 2, 4),
    ):
        super().__init__()
        self.backbone = multigrid_backbone(build, output_stride, multi_grid)
        self.aspp = ASPP(2048, _RATES[output_stride], 256)
        self.reduce = _conv_bn_relu(256, 48, 1)
        self.refine = nn.Sequential(_conv_bn_relu(304, 256, 3), _conv_bn_relu(256, 256, 3))
        self.classifier = nn.Conv2d(256, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        features = self.backbone(x)
        low = self.reduce(features["low"])
        pyramid = F.interpolate(
            self.aspp(features["out"]), size=low.shape[2:], mode="bilinear", align_corners=False
        )
        logits = self.classifier(self.refine(torch.cat([pyramid, low], dim=1)))
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )

"""Dilated (atrous) convolution and the blocks built from it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DilatedConv2d(nn.Module):
    """Dilated convolution with "same" padding, which keeps height and width.

    The kernel's taps are `dilation` pixels apart. A k x k kernel therefore covers
    `(k - 1) * dilation + 1` pixels along each axis with k x k weights
    (Yu and Koltun 2015, arXiv 1511.07122, section 2).

    Shape: `(N, in_channels, H, W)` to `(N, out_channels, H, W)`, any float dtype.

    Raises:
        ValueError: for an even kernel, which has no center and so no "same" padding.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} is even; 'same' padding needs an odd one")
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.conv(x)
        return out


class MultiScaleContextModule(nn.Module):
    """Four parallel 3x3 convolutions with dilations 1, 2, 4, 8, joined by a 1x1 convolution.

    Shape: `(N, in_channels, H, W)` to `(N, out_channels, H, W)`.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = DilatedConv2d(in_channels, out_channels, 3, dilation=1)
        self.conv2 = DilatedConv2d(in_channels, out_channels, 3, dilation=2)
        self.conv3 = DilatedConv2d(in_channels, out_channels, 3, dilation=4)
        self.conv4 = DilatedConv2d(in_channels, out_channels, 3, dilation=8)
        self.conv_combine = nn.Conv2d(out_channels * 4, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        branches = [self.conv1(x), self.conv2(x), self.conv3(x), self.conv4(x)]
        out: Tensor = self.conv_combine(torch.cat(branches, dim=1))
        return out


class DilatedResidualBlock(nn.Module):
    """Residual block of two dilated 3x3 convolutions with BatchNorm.

    The shortcut is a 1x1 convolution if the number of channels changes or `stride` is not 1, and
    the identity otherwise.

    Shape: `(N, in_channels, H, W)` to `(N, out_channels, ceil(H / stride), ceil(W / stride))`.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int, *, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation
        )
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Conv2d(in_channels, out_channels, 1, stride=stride)
            if in_channels != out_channels or stride != 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut  # in place: BatchNorm's output is not needed for its gradient
        summed: Tensor = self.relu(out)
        return summed


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: rates 6, 12, 18, a 1x1 branch and image pooling.

    Chen et al. 2017 (arXiv 1706.05587), section 3.3 and figure 5, without BatchNorm or ReLU. The
    whole module is therefore linear, which `optimize` uses.

    Shape: `(N, in_channels, H, W)` to `(N, out_channels, H, W)`.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, padding=6, dilation=6)
        self.conv3 = nn.Conv2d(in_channels, out_channels, 3, padding=12, dilation=12)
        self.conv4 = nn.Conv2d(in_channels, out_channels, 3, padding=18, dilation=18)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv5 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv_combine = nn.Conv2d(out_channels * 5, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        size = x.shape[2:]
        pooled = self.conv5(self.pool(x))
        branches = [
            self.conv1(x),
            self.conv2(x),
            self.conv3(x),
            self.conv4(x),
            F.interpolate(pooled, size=size, mode="bilinear", align_corners=True),
        ]
        out: Tensor = self.conv_combine(torch.cat(branches, dim=1))
        return out


def dilated_backbone(width: int, stride: int) -> nn.Sequential:
    """Return residual blocks of dilation 1, 2, 4: `(N, 3, H, W)` to `(N, 4 * width, H', W')`."""
    return nn.Sequential(
        DilatedResidualBlock(3, width, dilation=1, stride=stride),
        DilatedResidualBlock(width, 2 * width, dilation=2),
        DilatedResidualBlock(2 * width, 4 * width, dilation=4),
    )

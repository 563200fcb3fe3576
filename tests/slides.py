"""The slides' own classes, as their users saved state dicts with them: the seed to be equal to.

Names, signatures and arithmetic are the slides'; see the product's classes for the corrections.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DilatedConv2d(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, dilation):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=dilation, dilation=dilation
        )

    def forward(self, x):
        return self.conv(x)


class MultiScaleContextModule(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv1 = DilatedConv2d(in_channels, out_channels, 3, dilation=1)
        self.conv2 = DilatedConv2d(in_channels, out_channels, 3, dilation=2)
        self.conv3 = DilatedConv2d(in_channels, out_channels, 3, dilation=4)
        self.conv4 = DilatedConv2d(in_channels, out_channels, 3, dilation=8)
        self.conv_combine = nn.Conv2d(out_channels * 4, out_channels, 1)

    def forward(self, x):
        x1, x2, x3, x4 = self.conv1(x), self.conv2(x), self.conv3(x), self.conv4(x)
        return self.conv_combine(torch.cat([x1, x2, x3, x4], dim=1))


class DilatedResidualBlock(nn.Module):
    def __init__(self, in_channels, out_channels, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x):
        residual = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample:
            residual = self.downsample(x)
        out += residual
        return self.relu(out)


class SemanticSegmentationModel(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.backbone = nn.Sequential(
            DilatedResidualBlock(3, 64, dilation=1),
            DilatedResidualBlock(64, 128, dilation=2),
            DilatedResidualBlock(128, 256, dilation=4),
        )
        self.context_module = MultiScaleContextModule(256, 512)
        self.classifier = nn.Conv2d(512, num_classes, 1)

    def forward(self, x):
        return self.classifier(self.context_module(self.backbone(x)))


class MultiScaleInput(nn.Module):
    def __init__(self, base_model):
        super().__init__()
        self.base_model = base_model
        self.scales = [0.5, 0.75, 1.0, 1.25, 1.5]

    def forward(self, x):
        results = []
        _, _, h, w = x.size()
        for scale in self.scales:
            size = (int(h * scale), int(w * scale))
            scaled = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
            output = self.base_model(scaled)
            results.append(F.interpolate(output, size=(h, w), mode="bilinear", align_corners=True))
        return torch.mean(torch.stack(results), dim=0)


class ASPP(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, padding=6, dilation=6)
        self.conv3 = nn.Conv2d(in_channels, out_channels, 3, padding=12, dilation=12)
        self.conv4 = nn.Conv2d(in_channels, out_channels, 3, padding=18, dilation=18)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv5 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv_combine = nn.Conv2d(out_channels * 5, out_channels, 1)

    def forward(self, x):
        size = x.size()[2:]
        x1, x2, x3, x4 = self.conv1(x), self.conv2(x), self.conv3(x), self.conv4(x)
        x5 = F.interpolate(self.conv5(self.pool(x)), size=size, mode="bilinear", align_corners=True)
        return self.conv_combine(torch.cat([x1, x2, x3, x4, x5], dim=1))


class DeepLabV3(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.backbone = nn.Sequential(
            DilatedResidualBlock(3, 64, dilation=1),
            DilatedResidualBlock(64, 128, dilation=2),
            DilatedResidualBlock(128, 256, dilation=4),
        )
        self.aspp = ASPP(256, 256)
        self.classifier = nn.Conv2d(256, num_classes, 1)

    def forward(self, x):
        size = x.size()[2:]
        x = self.classifier(self.aspp(self.backbone(x)))
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)

"""Context network and dilated VGG-16 front end of Yu and Koltun (arXiv 1511.07122)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdeploy.models.vgg import DilatedVGG16

DILATIONS = (1, 1, 2, 4, 8, 16, 1, 1)
_WIDTHS = {
    "basic": (1, 1, 1, 1, 1, 1, 1, 1),
    "large": (2, 2, 4, 8, 16, 32, 32, 1),
}


class ContextNetwork(nn.Module):
    """Multi-scale context aggregation with eight layers (arXiv 1511.07122, table 1).

    Seven 3x3 convolutions with dilations 1, 1, 2, 4, 8, 16, 1, each followed by a ReLU, and a 1x1
    convolution. The receptive field is 67x67. `kind` is `basic` (C channels throughout) or `large`
    (2C to 32C). Zero padding keeps the size of the feature map.

    At initialization the basic network is the identity on non-negative inputs (a ReLU), and the
    large network nearly is (equations 4 and 5). Training therefore starts from the prediction of
    the front end.

    Shape: `(N, channels, H, W)` to `(N, channels, H, W)`.
    """

    def __init__(self, channels: int, *, kind: str = "basic"):
        super().__init__()
        if kind not in _WIDTHS:
            raise ValueError(f"kind '{kind}' is neither basic nor large")
        widths = [channels, *(factor * channels for factor in _WIDTHS[kind])]
        layers: list[nn.Module] = []
        for index, dilation in enumerate(DILATIONS):
            last = index == len(DILATIONS) - 1
            kernel = 1 if last else 3
            conv = nn.Conv2d(
                widths[index],
                widths[index + 1],
                kernel,
                padding=dilation * (kernel // 2),
                dilation=dilation,
            )
            identity_initialize(conv, channels)
            layers += [conv] if last else [conv, nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.layers(x)
        return out


def identity_initialize(conv: nn.Conv2d, channels: int) -> None:
    """Initialize a layer to pass its input on (arXiv 1511.07122, equations 4 and 5).

    The weight from input channel a to output channel b at the kernel's center is C / c_(i+1) if
    both stand for the same one of the network's C channels. Over all layers these sums multiply to
    one. All other weights of a widened layer are much smaller noise, so that training can separate
    its equal channels. A basic layer has no noise.
    """
    wide_in, wide_out = conv.in_channels, conv.out_channels
    joined = (
        torch.arange(wide_in) * channels // wide_in
        == (torch.arange(wide_out) * channels // wide_out)[:, None]
    )
    share = channels / wide_out
    with torch.no_grad():
        if wide_in == wide_out == channels:
            conv.weight.zero_()
        else:
            conv.weight.normal_(0, 1e-4 * channels / wide_out)
        middle = conv.kernel_size[0] // 2
        center = conv.weight[:, :, middle, middle]
        center[joined] = share
        if conv.bias is not None:
            conv.bias.zero_()


class DilatedVGGFrontEnd(nn.Module):
    """VGG-16 as a dense predictor, with an optional context network.

    Section 4 of arXiv 1511.07122: pool4 and pool5 are removed, and the layers after them are
    dilated by 2 and 4. fc6 becomes a 7x7 convolution with dilation 4. fc7 and the classifier become
    1x1 convolutions. The logits have output stride 8 and are upsampled to the input size.

    `context` is `none`, `basic` or `large`. `width` is the number of channels of VGG's first block,
    and `hidden` that of fc6 and fc7.

    Shape: `(N, 3, H, W)` normalized float to logits `(N, num_classes, H, W)`.
    """

    def __init__(
        self, num_classes: int, *, context: str = "none", width: int = 64, hidden: int = 4096
    ):
        super().__init__()
        self.backbone = DilatedVGG16(width=width, keep_pools=False)
        self.fc6 = nn.Conv2d(self.backbone.out_channels, hidden, 7, padding=12, dilation=4)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.classifier = nn.Conv2d(hidden, num_classes, 1)
        self.dropout = nn.Dropout(0.5)
        self.context = None if context == "none" else ContextNetwork(num_classes, kind=context)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        hidden = self.dropout(F.relu(self.fc6(self.backbone(x))))
        hidden = self.dropout(F.relu(self.fc7(hidden)))
        logits = self.classifier(hidden)
        if self.context is not None:
            logits = self.context(logits)
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)

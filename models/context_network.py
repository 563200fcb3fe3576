"""Yu and Koltun's context network, and their VGG-16 front end with it."""

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
    """Multi-scale context aggregation by eight layers (arXiv 1511.07122, table 1).

    Seven 3x3 convolutions with dilations 1, 1, 2, 4, 8, 16, 1, each truncated at zero, and a 1x1
    convolution: receptive field 67x67. `kind` is `basic` (C channels throughout) or `large` (2C to
    32C). Zero padding keeps the size of the map.

    Freshly made, the basic network is the identity behind a ReLU, and the large one nearly is
    (equations 4 and 5): training starts from the front end's own prediction.

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
            identity_initialise(conv, channels)
            layers += [conv] if last else [conv, nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.layers(x)
        return out


def identity_initialise(conv: nn.Conv2d, channels: int) -> None:
    """Let a layer pass its input on (arXiv 1511.07122, equations 4 and 5).

    Input map a and output map b are joined at the kernel's centre, with weight C / c_(i+1), where
    both stand for the same one of the network's C channels; over all layers the sums multiply to
    one. All other weights of a widened layer are noise far below that, so that its equal maps may
    come apart; a basic layer has none.
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
        centre = conv.weight[:, :, middle, middle]
        centre[joined] = share
        if conv.bias is not None:
            conv.bias.zero_()


class DilatedVGGFrontEnd(nn.Module):
    """VGG-16 turned into a dense predictor, with or without a context network.

    Section 4 of arXiv 1511.07122: pool4 and pool5 removed, the layers behind them dilated by 2 and
    4; fc6 becomes a 7x7 convolution with dilation 4, fc7 and the classifier 1x1 convolutions. The
    logits, at output stride 8, are upsampled to the input's size.

    `context` is `none`, `basic` or `large`; `width` is the channels of VGG's first block, `hidden`
    those of fc6 and fc7.

    Shape: `(N, 3, H, W)` normalised float to logits `(N, num_classes, H, W)`.
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

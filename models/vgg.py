"""VGG-16 as a dense feature extractor, with dilation in place of the last poolings."""

from __future__ import annotations

from torch import Tensor, nn

_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # (width factor, convolutions)


class DilatedVGG16(nn.Module):
    """VGG-16's thirteen convolutions at output stride 8.

    The fourth and fifth pooling do not subsample. The three convolutions after the fourth pooling
    have dilation 2 (Yu and Koltun 2015, arXiv 1511.07122, section 4; Chen et al. 2016, arXiv
    1606.00915, section 3.1). The positions in `features` are those of torchvision, so torchvision's
    VGG-16 weights load by name.

    `keep_pools` keeps the two poolings with stride 1 (DeepLab). Otherwise they are removed (Yu and
    Koltun).

    Shape: `(N, 3, H, W)` to `(N, 8 * width, ceil(H / 8), ceil(W / 8))`.
    """

    def __init__(self, *, width: int = 64, keep_pools: bool):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, (factor, convolutions) in enumerate(_STAGES):
            dilation = 2 if stage == 4 else 1
            for _ in range(convolutions):
                layers.append(
                    nn.Conv2d(channels, factor * width, 3, padding=dilation, dilation=dilation)
                )
                layers.append(nn.ReLU(inplace=True))
                channels = factor * width
            if stage < 3:
                layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=True))
            elif keep_pools:
                layers.append(nn.MaxPool2d(3, stride=1, padding=1))
            else:
                layers.append(nn.Identity())
        self.features = nn.Sequential(*layers)
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        features: Tensor = self.features(x)
        return features

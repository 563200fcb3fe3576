"""What is said of a network's layers, against gradients and against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segdeploy.models.deeplabv3 import DeepLabV3
from segdeploy.models.registry import ARCHITECTURES, build
from segdeploy.models.summary import anatomy


class Channelwise(nn.Module):
    """A linear layer over the channels, in the other layout, as ConvNeXt has it."""

    def __init__(self, channels: int):
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Gate(nn.Module):
    """Squeeze and excitation by linear layers: pooled, flattened, and back."""

    def __init__(self, channels: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.linear(self.pool(x).flatten(1)).sigmoid()
        return x * gate.view(len(x), -1, 1, 1)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return mixed.transpose(1, 2).reshape(x.shape)


class Classified(nn.Module):
    """A linear layer over a whole flattened map."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return nn.functional.linear(flat, torch.ones(flat.shape[1], flat.shape[1])).view(x.shape)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(3, 2, 3, dilation=2, padding=2), nn.Conv2d(2, 2, 5, stride=2)),
        nn.Sequential(nn.Conv2d(3, 2, 3, stride=2), nn.MaxPool2d(3, 2, 1), nn.Conv2d(2, 2, 3)),
        DeepLabV3(2, width=2).backbone,
        nn.Sequential(
            nn.Conv2d(3, 2, 3, stride=4, padding=1), nn.Upsample(scale_factor=4.0, mode="bilinear")
        ),
        nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=4, padding=1),
            nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1),
            nn.Conv2d(2, 2, (1, 7)),
        ),
        nn.Sequential(nn.Conv2d(3, 2, (7, 1), dilation=(3, 1)), Channelwise(2)),
    ],
)
def test_summary_the_theoretical_field_is_where_gradients_are(module: nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.1, 1)  # positive: nothing cancels, no ReLU closes
    size = (97, 97)
    reach = anatomy(module, size).output
    image = torch.rand(1, 3, *size, requires_grad=True)
    out = module.eval()(image)
    row = out.shape[2] // 2
    (gradient,) = torch.autograd.grad(out[0, :, row, out.shape[3] // 2].sum(), image)
    rows = gradient[0].abs().sum((0, 2)).nonzero()[:, 0]
    first, last = reach.first + reach.stride * row, reach.last + reach.stride * row
    # A max pooling passes the gradient of one pixel of its window, so it may see less.
    # The two neighbors of a resize stand half a step aside, more or less with the index.
    resized = any(isinstance(m, (nn.Upsample, nn.ConvTranspose2d)) for m in module.modules())
    slack = 2 if resized else 0
    assert int(rows.min()) >= first - slack
    assert int(rows.max()) <= last + slack
    assert not resized or int(rows.max() - rows.min()) + 1 <= reach.size
    if not resized and not any(isinstance(m, nn.MaxPool2d) for m in module.modules()):
        assert (int(rows.min()), int(rows.max())) == (first, last)


def test_summary_work_is_counted_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=4)
    )
    assert anatomy(network, (10, 20)).macs == 5 * 10 * (8 * 27 + 8 * 2 * 9)


def test_summary_a_global_pooling_sees_the_image_and_is_said_so() -> None:
    seen = anatomy(DeepLabV3(2, width=2), (40, 40))
    pooled = next(la for la in seen.layers if la.name == "aspp.conv5")
    assert pooled.reach.size is None
    assert seen.output.pooled
    assert seen.output.size == 65
    assert seen.dilations == (1, 2, 4, 6, 12, 18)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_summary_every_registered_network_has_an_anatomy(name: str) -> None:
    with torch.device("meta"):
        seen = anatomy(build(name, 21, {}), (128, 128))
    assert seen.macs > 1e8
    assert max(seen.dilations) > 1


@pytest.mark.parametrize("mixing", [Attention(), Classified()])
def test_summary_what_mixes_positions_sees_the_image(mixing: nn.Module) -> None:
    reach = anatomy(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), mixing), (8, 8)).output
    assert reach.size is None
    assert reach.pooled


def test_summary_a_gate_by_linear_layers_is_an_image_pooling() -> None:
    reach = anatomy(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), Gate(2)), (16, 16)).output
    assert reach.size == 3
    assert reach.pooled


def test_summary_a_pyramid_of_poolings_sees_its_bins() -> None:
    seen = anatomy(nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(4)), (32, 32)).output
    assert (seen.size, seen.stride, seen.pooled) == (8, 8, False)


def test_summary_transposed_and_narrow_convolutions_are_counted_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, (1, 7), padding=(0, 3)), nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1)
    )
    first, second = anatomy(network, (5, 6)).layers
    assert (first.kernel, first.kernel_width, first.macs) == (1, 7, 5 * 6 * 4 * 3 * 7)
    assert (second.kind, second.macs) == ("conv transposed", 5 * 6 * 4 * 2 * 16)
    assert second.reach.stride == 0.5


class Focus(nn.Module):
    """Space to depth by slices, as YOLOX has it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2]], 1)


def test_summary_slices_and_paddings_move_the_reach() -> None:
    seen = anatomy(nn.Sequential(Focus(), nn.Conv2d(9, 2, 3, padding=1)), (16, 16))
    assert (seen.output.stride, seen.output.size, seen.output_stride) == (2, 6, 2)
    for padded in (
        nn.Sequential(nn.ZeroPad2d(2), nn.Conv2d(3, 2, 5)),
        nn.Sequential(nn.Conv2d(3, 2, 5, padding=2, padding_mode="reflect")),
    ):
        assert (anatomy(padded, (16, 16)).output.center, padded[-1].kernel_size[0]) == (0, 5)


def test_summary_a_mean_over_flattened_positions_is_a_global_pooling() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.flatten(2).mean(2)[:, :, None, None]

    assert anatomy(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), Mean()), (16, 16)).output.pooled


def test_summary_dilations_along_the_columns_are_listed() -> None:
    layer = nn.Conv2d(3, 2, 3, dilation=(1, 4), padding=(1, 4))
    assert anatomy(nn.Sequential(layer), (16, 16)).dilations == (1, 4)

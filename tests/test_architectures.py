"""The papers' networks, layer by layer, and what their outputs see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet50, vgg16

from segdeploy.models.context_network import ContextNetwork, DilatedVGGFrontEnd
from segdeploy.models.deeplab_v2 import ASPP_L, DeepLabV2ResNet101, DeepLabV2VGG16
from segdeploy.models.deeplabv3 import DeepLabV3
from segdeploy.models.deeplabv3_resnet import DeepLabV3PlusResNet, DeepLabV3ResNet
from segdeploy.models.gradient_checkpointing import checkpoint_blocks
from segdeploy.models.multi_scale import MultiScaleInput
from segdeploy.models.registry import ARCHITECTURES, build
from segdeploy.models.summary import anatomy
from segdeploy.models.visualization import dilated_kernel, draw_network, effective_receptive_field


def convolutions(network: nn.Module, size: tuple[int, int] = (64, 64)) -> dict:
    return {layer.name: layer for layer in anatomy(network, size).layers if layer.kind == "conv"}


def test_architectures_the_basic_context_network_is_table_1() -> None:
    layers = list(convolutions(ContextNetwork(3)).values())
    assert [la.dilation for la in layers] == [1, 1, 2, 4, 8, 16, 1, 1]
    assert [la.kernel for la in layers] == [3] * 7 + [1]
    assert [la.reach.size for la in layers] == [3, 5, 9, 17, 33, 65, 67, 67]


def test_architectures_the_large_context_network_widens_as_table_1() -> None:
    widths = [m.out_channels for m in ContextNetwork(3, kind="large").modules() if _is_conv(m)]
    assert widths == [3 * factor for factor in (2, 2, 4, 8, 16, 32, 32, 1)]


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


@pytest.mark.parametrize(("kind", "tolerance"), [("basic", 0.0), ("large", 0.01)])
def test_architectures_a_fresh_context_network_is_the_identity_behind_a_relu(
    kind: str, tolerance: float
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 17, 19)
    network = ContextNetwork(5, kind=kind)
    with torch.no_grad():
        torch.testing.assert_close(network(x), x.relu(), rtol=0, atol=tolerance)
        # The last layer is not truncated: scores may be negative.
        network.layers[-1].bias.fill_(-9.0)
        assert float(network(x).min()) < 0


def test_architectures_a_wide_context_networks_equal_maps_may_come_apart() -> None:
    torch.manual_seed(0)
    for conv in (m for m in ContextNetwork(3, kind="large").modules() if _is_conv(m)):
        joined = conv.weight.abs() > 1e-2
        noise = conv.weight[~joined]
        assert 0.5e-4 < noise.std().item() * conv.out_channels / 3 < 2e-4
    for conv in (m for m in ContextNetwork(3).modules() if _is_conv(m)):
        assert int((conv.weight != 0).sum()) == 3


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_architectures_every_weight_has_a_part_in_the_output(name: str) -> None:
    torch.manual_seed(0)
    small = {"width": 4, "hidden": 8, "context": "basic"}
    accepted = ARCHITECTURES[name].accepted_arguments()
    network = build(name, 3, {k: v for k, v in small.items() if k in accepted}).train()
    out = network(torch.randn(2, 3, 64, 64))
    out = out["out"] if isinstance(out, dict) else out
    (out * torch.randn_like(out)).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        # A bias before a BatchNorm is taken out again, so its gradient is rounding.
        assert parameter.ndim == 1 or float(parameter.grad.abs().max()) > 0, key


def test_architectures_the_front_end_is_vgg_without_two_poolings() -> None:
    network = DilatedVGGFrontEnd(3, width=4, hidden=8)
    layers = convolutions(network)
    assert [layers[f"backbone.features.{i}"].dilation for i in (24, 26, 28)] == [2, 2, 2]
    assert (layers["fc6"].kernel, layers["fc6"].dilation) == (7, 4)
    assert sum(isinstance(m, nn.MaxPool2d) for m in network.modules()) == 3
    assert anatomy(network, (64, 64)).output_stride == 8


@pytest.mark.parametrize("network", [DilatedVGGFrontEnd, DeepLabV2VGG16])
def test_architectures_torchvisions_vgg_weights_fit_by_name(network: type[nn.Module]) -> None:
    with torch.device("meta"):
        ours, theirs = network(3).backbone, vgg16()
    wanted = {k: v.shape for k, v in ours.state_dict().items()}
    given = {k: v.shape for k, v in theirs.state_dict().items() if k.startswith("features.")}
    assert wanted == given


def test_architectures_deeplab_v2_sums_its_rates() -> None:
    network = DeepLabV2VGG16(3, rates=ASPP_L, width=4, hidden=8).eval()
    rates = [la.dilation for la in convolutions(network).values() if ".0" in la.name[8:]]
    assert [r for r in rates if r > 2] == [6, 12, 18, 24]
    with torch.no_grad():
        features = network.backbone(torch.randn(1, 3, 32, 32))
        summed = sum(branch(features) for branch in network.branches)
        from segdeploy.models.deeplab_v2 import _sum_of

        torch.testing.assert_close(_sum_of(network.branches, features), summed)
    assert len(DeepLabV2VGG16(3, width=4, hidden=8).branches) == 1


def test_architectures_deeplab_v2_resnet_has_output_stride_8_and_four_classifiers() -> None:
    with torch.device("meta"):
        seen = anatomy(DeepLabV2ResNet101(21), (128, 128))
    assert seen.output_stride == 8
    assert [la.dilation for la in seen.layers][-4:] == [6, 12, 18, 24]


@pytest.mark.parametrize(
    ("stride", "grid", "rates", "pyramid"),
    [(16, (1, 2, 4), [2, 4, 8], [6, 12, 18]), (8, (1, 2, 1), [4, 8, 4], [12, 24, 36])],
)
@pytest.mark.parametrize("network", [DeepLabV3ResNet, DeepLabV3PlusResNet])
def test_architectures_multi_grid_and_output_stride(
    network: type[nn.Module], stride: int, grid: tuple, rates: list, pyramid: list
) -> None:
    with torch.device("meta"):
        model = network(resnet50, 21, output_stride=stride, multi_grid=grid)
        layers = convolutions(model, (128, 128))
    assert [layers[f"backbone.layer4.{i}.conv2"].dilation for i in range(3)] == rates
    found = [
        la.dilation for name, la in layers.items() if name.startswith("aspp") and la.kernel > 1
    ]
    assert found == pyramid
    assert max(la.reach.stride for la in layers.values()) == stride


def test_architectures_wrong_strides_and_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="output_stride 4 is neither 8 nor 16"):
        DeepLabV3ResNet(resnet50, 3, output_stride=4)
    with pytest.raises(ValueError, match="needs 3 rates"):
        DeepLabV3ResNet(resnet50, 3, multi_grid=(1, 2))
    with pytest.raises(ValueError, match="neither basic nor large"):
        ContextNetwork(3, kind="huge")


def test_architectures_the_kernel_image_has_the_slides_holes() -> None:
    taps = dilated_kernel((3, 3), (2, 2))
    assert taps.tolist() == [[1, 0, 1, 0, 1], [0] * 5, [1, 0, 1, 0, 1], [0] * 5, [1, 0, 1, 0, 1]]


def test_architectures_the_network_image_frames_the_field(tmp_path: Path) -> None:
    network = DeepLabV3(2, width=2)
    field = effective_receptive_field(network, (96, 120))
    assert field.shape == (96, 120)
    assert field.max() == 1
    assert field[48, 60] > field[0, 0]
    image = draw_network(anatomy(network, (96, 120)), field, "net")
    image.save(tmp_path / "p.png")
    colors = np.asarray(Image.open(tmp_path / "p.png")).reshape(-1, 3)
    assert (colors == (220, 60, 40)).all(1).any()
    assert (colors == (118, 185, 0)).all(1).any()


@pytest.mark.parametrize("fuse", ["mean", "max"])
@pytest.mark.parametrize("flip", [False, True])
def test_architectures_multi_scale_fuses_scales_and_mirror_images(fuse: str, flip: bool) -> None:
    torch.manual_seed(0)
    base = DeepLabV3(3, width=2, stride=2).eval()
    x = torch.randn(2, 3, 40, 52)
    maps = []
    with torch.no_grad():
        for scale in (0.5, 1.5):
            single = MultiScaleInput(base, scales=[scale])
            maps.append(single(x))
            if flip:
                maps.append(single(x.flip(3)).flip(3))
        stacked = torch.stack(maps)
        found = MultiScaleInput(base, scales=[0.5, 1.5], flip=flip, fuse=fuse)(x)
    if fuse == "mean":
        torch.testing.assert_close(found, stacked.mean(0), rtol=0, atol=1e-5)
    else:
        # The larger is taken before the upsampling of a scale, not after: never less.
        assert (found >= stacked.max(0).values - 1e-5).all()
        if not flip:
            torch.testing.assert_close(found, stacked.max(0).values, rtol=0, atol=1e-5)


def test_architectures_multi_scale_refuses_what_it_cannot_fuse() -> None:
    base = nn.Conv2d(3, 2, 1)
    with pytest.raises(ValueError, match="neither mean nor max"):
        MultiScaleInput(base, fuse="median")
    with pytest.raises(ValueError, match="all positive"):
        MultiScaleInput(base, scales=[1.0, -1.0])
    with pytest.raises(ValueError, match=r"scale 0.1 shrinks a 8x8 image to nothing"):
        MultiScaleInput(base, scales=[0.1])(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["deeplabv3", "deeplabv3_mobilenet_v3_large", "deeplabv2_vgg16"])
def test_architectures_checkpointed_blocks_keep_gradients_statistics_and_names(name: str) -> None:
    small = {"width": 4, "hidden": 8}
    accepted = ARCHITECTURES[name].accepted_arguments()
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        arguments = {key: value for key, value in small.items() if key in accepted}
        networks.append(build(name, 3, arguments).train())
    plain, efficient = networks
    assert checkpoint_blocks(efficient) > 1
    assert list(plain.state_dict()) == list(efficient.state_dict())
    x = torch.randn(2, 3, 48, 48)
    for network in networks:
        torch.manual_seed(1)  # the dropouts of both draw alike
        out = network(x)
        (out["out"] if isinstance(out, dict) else out).square().mean().backward()
    for (key, expected), found in zip(
        plain.named_parameters(), efficient.parameters(), strict=True
    ):
        torch.testing.assert_close(found.grad, expected.grad, msg=key, rtol=1e-4, atol=1e-6)
    for (key, expected), found in zip(plain.named_buffers(), efficient.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=key)

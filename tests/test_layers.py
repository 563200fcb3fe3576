"""The slides' modules: shapes, parameter counts, receptive fields, and equality with the slides."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segdeploy.models.deeplabv3 import DeepLabV3, MemoryEfficientDeepLabV3
from segdeploy.models.layers import (
    ASPP,
    DilatedConv2d,
    DilatedResidualBlock,
    MultiScaleContextModule,
)
from segdeploy.models.multi_scale import MultiScaleInput
from segdeploy.models.receptive_field import receptive_field
from segdeploy.models.semantic_segmentation_model import SemanticSegmentationModel

from . import slides

PAIRS = [
    (slides.DilatedConv2d, DilatedConv2d, (5, 7, 3, 4), (2, 5, 20, 24)),
    (slides.MultiScaleContextModule, MultiScaleContextModule, (6, 8), (1, 6, 20, 24)),
    (slides.DilatedResidualBlock, DilatedResidualBlock, (6, 8, 2), (2, 6, 15, 17)),
    (slides.DilatedResidualBlock, DilatedResidualBlock, (6, 6, 2), (2, 6, 15, 17)),
    (slides.ASPP, ASPP, (8, 8), (1, 8, 28, 28)),
    (slides.SemanticSegmentationModel, SemanticSegmentationModel, (21,), (1, 3, 40, 48)),
    (slides.DeepLabV3, DeepLabV3, (21,), (1, 3, 41, 49)),
    (slides.DeepLabV3, MemoryEfficientDeepLabV3, (21,), (1, 3, 41, 49)),
]


@pytest.mark.parametrize(("theirs", "ours", "arguments", "shape"), PAIRS)
def test_layers_a_state_dict_of_the_slides_loads_strictly_and_gives_equal_outputs(
    theirs: type[nn.Module], ours: type[nn.Module], arguments: tuple[int, ...], shape: tuple
) -> None:
    torch.manual_seed(0)
    seed, network = theirs(*arguments).eval(), ours(*arguments).eval()
    network.load_state_dict(seed.state_dict(), strict=True)
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(network(x.clone()), seed(x.clone()), rtol=0, atol=1e-6)


def test_layers_multi_scale_equals_the_slides_for_their_five_scales() -> None:
    torch.manual_seed(0)
    base = DeepLabV3(5, width=4, stride=2).eval()
    x = torch.randn(1, 3, 50, 67)
    with torch.no_grad():
        ours, theirs = MultiScaleInput(base)(x), slides.MultiScaleInput(base)(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_layers_multi_scale_refuses_no_scales() -> None:
    with pytest.raises(ValueError, match="there must be at least one"):
        MultiScaleInput(nn.Identity(), scales=[])(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (SemanticSegmentationModel, 6_969_301),
        (DeepLabV3, 3_423_957),
        (MemoryEfficientDeepLabV3, 3_423_957),
    ],
)
def test_layers_parameter_counts_and_output_shape_of_the_seed(
    network: type[nn.Module], parameters: int
) -> None:
    model = network(21).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    with torch.no_grad():
        assert model(torch.randn(1, 3, 56, 64)).shape == (1, 21, 56, 64)


def test_layers_aspp_keeps_the_map_of_the_seed() -> None:
    with torch.no_grad():
        assert ASPP(256, 256)(torch.randn(1, 256, 28, 28)).shape == (1, 256, 28, 28)


@pytest.mark.parametrize("network", [DeepLabV3, SemanticSegmentationModel])
@pytest.mark.parametrize("size", [(33, 47), (64, 64)])
def test_layers_a_strided_stem_still_gives_logits_of_the_input_size(
    network: type[nn.Module], size: tuple[int, int]
) -> None:
    model = network(4, width=4, stride=4).eval()
    with torch.no_grad():
        assert model.backbone(torch.zeros(1, 3, *size)).shape[2] == -(-size[0] // 4)
        assert model(torch.zeros(2, 3, *size)).shape == (2, 4, *size)


def test_layers_receptive_fields_of_the_seed() -> None:
    assert [receptive_field(3, d) for d in (1, 2, 4, 8, 16)] == [3, 5, 9, 17, 33]


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 3), (3, 2), (5, 3), (7, 1)])
def test_layers_dilated_conv_keeps_the_size_and_reads_its_receptive_field(
    kernel: int, dilation: int
) -> None:
    conv = DilatedConv2d(1, 1, kernel, dilation)
    nn.init.ones_(conv.conv.weight)
    x = torch.zeros(1, 1, 41, 41, requires_grad=True)
    out = conv(x)
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out[0, 0, 20, 20], x)
    rows = gradient[0, 0].nonzero()[:, 0]
    assert int(rows.max() - rows.min()) + 1 == receptive_field(kernel, dilation)
    assert int((rows.max() + rows.min()) / 2) == 20


def test_layers_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size 4 is even"):
        DilatedConv2d(1, 1, 4, 1)


def test_layers_checkpointing_has_the_plain_gradients_and_moves_statistics_once() -> None:
    torch.manual_seed(0)
    plain = DeepLabV3(4, width=4).train()
    efficient = MemoryEfficientDeepLabV3(4, width=4).train()
    efficient.load_state_dict(copy.deepcopy(plain.state_dict()))
    x = torch.randn(2, 3, 24, 24)
    for model in (plain, efficient):
        model(x).square().mean().backward()
    for (name, expected), found in zip(
        plain.named_parameters(), efficient.parameters(), strict=True
    ):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)
    moved = dict(plain.named_buffers())
    assert int(moved["backbone.0.bn1.num_batches_tracked"]) == 1
    for name, buffer in efficient.named_buffers():
        torch.testing.assert_close(buffer, moved[name], rtol=0, atol=0, msg=name)

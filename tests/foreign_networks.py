"""Networks that others wrote, small and with random weights: nothing is fetched.

Each is a factory of a network with its classes, as a user names it: `tests.foreign_networks:NAME`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from segdeploy.models import scenes

CLASSES = len(scenes.CLASSES)


def _seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        network = make().eval()
        # Fresh statistics would leave BatchNorm without an effect.
        generator = torch.Generator().manual_seed(1)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                shape = module.running_mean.shape
                module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
        return network

    return build


def _smp(architecture: str, encoder: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import segmentation_models_pytorch as smp

        return smp.create_model(
            architecture, encoder, encoder_weights=None, classes=CLASSES, **options
        )

    return _seeded(make)


def _transformers(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(num_labels=CLASSES, **options)
        return getattr(transformers, name)(made)

    return _seeded(make)


def _upernet() -> nn.Module:
    import transformers

    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, auxiliary_channels=8, num_labels=CLASSES
    )
    return transformers.UperNetForSemanticSegmentation(config)


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision.models import segmentation

        return getattr(segmentation, name)(
            weights=None, weights_backbone=None, num_classes=CLASSES, **options
        )

    return _seeded(make)


SEGMENTATION_MODELS = {
    f"smp_{architecture}_{encoder.replace('-', '_')}_{suffix}".lower().strip("_"): _smp(
        architecture, encoder, **options
    )
    for architecture, encoder, suffix, options in (
        ("DeepLabV3", "resnet18", "8", {"encoder_output_stride": 8}),
        ("DeepLabV3", "mobilenet_v2", "16", {"encoder_output_stride": 16}),
        ("DeepLabV3Plus", "resnet18", "16", {"encoder_output_stride": 16}),
        ("DeepLabV3Plus", "efficientnet-b0", "8", {"encoder_output_stride": 8}),
        ("DeepLabV3Plus", "mobilenet_v2", "8", {"encoder_output_stride": 8}),
        ("PAN", "resnet18", "", {}),
        ("PAN", "efficientnet-b0", "", {}),
        ("PSPNet", "mobilenet_v2", "", {}),
        ("PSPNet", "resnet18", "", {}),
        ("FPN", "efficientnet-b0", "", {}),
        ("UPerNet", "resnet18", "", {}),
        ("Unet", "resnet18", "", {}),
        ("Unet", "mobilenet_v2", "", {}),
    )
} | {"smp_fpn_timm_convnext_atto": _smp("FPN", "tu-convnext_atto")}

TRANSFORMERS = {
    "hf_mobilenet_v2": _transformers(
        "MobileNetV2ForSemanticSegmentation", "MobileNetV2Config", depth_multiplier=0.35
    ),
    "hf_mobilevit": _transformers(
        "MobileViTForSemanticSegmentation",
        "MobileViTConfig",
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 48],
        aspp_out_channels=16,
    ),
    "hf_mobilevit_v2": _transformers(
        "MobileViTV2ForSemanticSegmentation",
        "MobileViTV2Config",
        width_multiplier=0.25,
        aspp_out_channels=16,
    ),
    "hf_segformer": _transformers(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=16,
    ),
    "hf_upernet": _seeded(_upernet),
}

TORCHVISION = {
    "tv_deeplabv3_mobilenet": _torchvision("deeplabv3_mobilenet_v3_large", aux_loss=True),
    "tv_fcn_resnet50": _torchvision("fcn_resnet50", aux_loss=True),
    "tv_lraspp": _torchvision("lraspp_mobilenet_v3_large"),
}

NETWORKS = SEGMENTATION_MODELS | TRANSFORMERS | TORCHVISION


def logits_of(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits at the images' size, as each library's own documentation gets them."""
    output = network(images)
    logits = output["out"] if isinstance(output, dict) and "out" in output else output
    logits = getattr(logits, "logits", logits)
    size = images.shape[2:]
    if logits.shape[2:] == size:
        return logits
    return nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def __getattr__(name: str) -> Callable[[], nn.Module]:
    try:
        return NETWORKS[name]
    except KeyError:
        raise AttributeError(name) from None

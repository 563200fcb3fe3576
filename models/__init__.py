"""Networks and their data: layers, architectures, data sets, metrics, training (PyTorch).

Public names are imported on first use. `from segdeploy.models import DeepLabV3` loads torch.
`from segdeploy.models import open_dataset` does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segdeploy.models.augmentation import Augmentation
    from segdeploy.models.checkpoint import load_weights, read_weights
    from segdeploy.models.context_network import ContextNetwork, DilatedVGGFrontEnd
    from segdeploy.models.dataset import DataSet, Frame, open_dataset, write_dataset
    from segdeploy.models.deeplab_v2 import DeepLabV2ResNet101, DeepLabV2VGG16
    from segdeploy.models.deeplabv3 import DeepLabV3, MemoryEfficientDeepLabV3
    from segdeploy.models.deeplabv3_resnet import DeepLabV3PlusResNet, DeepLabV3ResNet
    from segdeploy.models.images import read_image, read_mask
    from segdeploy.models.layers import (
        ASPP,
        DilatedConv2d,
        DilatedResidualBlock,
        MultiScaleContextModule,
    )
    from segdeploy.models.metrics import LabelCounts
    from segdeploy.models.multi_scale import MultiScaleInput
    from segdeploy.models.registry import ARCHITECTURES, build
    from segdeploy.models.semantic_segmentation_model import SemanticSegmentationModel
    from segdeploy.models.training import Training, TrainingSettings
    from segdeploy.models.vgg import DilatedVGG16
    from segdeploy.models.visualization import effective_receptive_field

__all__ = [
    "ARCHITECTURES",
    "ASPP",
    "Augmentation",
    "ContextNetwork",
    "DataSet",
    "DeepLabV2ResNet101",
    "DeepLabV2VGG16",
    "DeepLabV3",
    "DeepLabV3PlusResNet",
    "DeepLabV3ResNet",
    "DilatedConv2d",
    "DilatedResidualBlock",
    "DilatedVGG16",
    "DilatedVGGFrontEnd",
    "Frame",
    "LabelCounts",
    "MemoryEfficientDeepLabV3",
    "MultiScaleContextModule",
    "MultiScaleInput",
    "SemanticSegmentationModel",
    "Training",
    "TrainingSettings",
    "build",
    "effective_receptive_field",
    "load_weights",
    "open_dataset",
    "read_image",
    "read_mask",
    "read_weights",
    "write_dataset",
]

_HOMES = {
    "ARCHITECTURES": "registry",
    "ASPP": "layers",
    "Augmentation": "augmentation",
    "LabelCounts": "metrics",
    "ContextNetwork": "context_network",
    "DataSet": "dataset",
    "DeepLabV2ResNet101": "deeplab_v2",
    "DeepLabV2VGG16": "deeplab_v2",
    "DeepLabV3": "deeplabv3",
    "DeepLabV3PlusResNet": "deeplabv3_resnet",
    "DeepLabV3ResNet": "deeplabv3_resnet",
    "DilatedConv2d": "layers",
    "DilatedResidualBlock": "layers",
    "DilatedVGG16": "vgg",
    "DilatedVGGFrontEnd": "context_network",
    "Frame": "dataset",
    "MemoryEfficientDeepLabV3": "deeplabv3",
    "MultiScaleContextModule": "layers",
    "MultiScaleInput": "multi_scale",
    "SemanticSegmentationModel": "semantic_segmentation_model",
    "Training": "training",
    "TrainingSettings": "training",
    "build": "registry",
    "effective_receptive_field": "visualization",
    "load_weights": "checkpoint",
    "open_dataset": "dataset",
    "read_image": "images",
    "read_mask": "images",
    "read_weights": "checkpoint",
    "write_dataset": "dataset",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'segdeploy.models' has no attribute '{name}'")
    return getattr(importlib.import_module(f"segdeploy.models.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

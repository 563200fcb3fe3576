"""The networks that segdeploy knows by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torchvision.models import segmentation as torchvision_segmentation

from segdeploy.models.deeplabv3 import DeepLabV3, MemoryEfficientDeepLabV3
from segdeploy.models.errors import ModelInputError
from segdeploy.models.semantic_segmentation_model import SemanticSegmentationModel


@dataclass(frozen=True)
class Architecture:
    """One registered network: `build(num_classes, **arguments)` makes it with random weights."""

    name: str
    build: Callable[..., nn.Module]
    about: str

    def accepted_arguments(self) -> list[str]:
        """Names of the keyword-only options that `build` takes."""
        parameters = inspect.signature(self.build).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def _torchvision(name: str, num_classes: int) -> nn.Module:
    build = getattr(torchvision_segmentation, name)
    network: nn.Module = build(
        weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=None
    )
    return network


def _from_torchvision(name: str, about: str) -> Architecture:
    return Architecture(name, partial(_torchvision, name), about)


ARCHITECTURES: Mapping[str, Architecture] = {
    entry.name: entry
    for entry in (
        Architecture(
            "semantic_segmentation_model",
            SemanticSegmentationModel,
            "dilated residual blocks, context module with dilations 1, 2, 4, 8",
        ),
        Architecture("deeplabv3", DeepLabV3, "dilated residual blocks, ASPP 6, 12, 18"),
        Architecture(
            "memory_efficient_deeplabv3",
            MemoryEfficientDeepLabV3,
            "deeplabv3 with gradient checkpointing",
        ),
        _from_torchvision("deeplabv3_mobilenet_v3_large", "torchvision, ASPP 12, 24, 36"),
        _from_torchvision("deeplabv3_resnet50", "torchvision, output stride 8, ASPP 12, 24, 36"),
        _from_torchvision("deeplabv3_resnet101", "torchvision, output stride 8, ASPP 12, 24, 36"),
        _from_torchvision("fcn_resnet50", "torchvision, dilated ResNet, output stride 8"),
        _from_torchvision("fcn_resnet101", "torchvision, dilated ResNet, output stride 8"),
    )
}


def build(name: str, num_classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Make the registered network `name` with random weights.

    Raises:
        ModelInputError: for a name that is not registered or an option that it does not take.
    """
    if name not in ARCHITECTURES:
        raise ModelInputError(
            f"{name}: no such network; registered are {', '.join(sorted(ARCHITECTURES))}"
        )
    entry = ARCHITECTURES[name]
    accepted = entry.accepted_arguments()
    for argument in arguments:
        if argument not in accepted:
            takes = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
            raise ModelInputError(f"{name}: no option '{argument}'; {takes}")
    try:
        return entry.build(num_classes, **arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelInputError(f"{name}: cannot be built with {dict(arguments)}: {error}") from error

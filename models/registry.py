"""Registry of the networks that segdeploy builds by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from segdeploy.models.context_network import DilatedVGGFrontEnd
from segdeploy.models.deeplabv3 import DeepLabV3, MemoryEfficientDeepLabV3
from segdeploy.models.errors import ModelInputError
from segdeploy.models.memory import free_memory
from segdeploy.models.semantic_segmentation_model import SemanticSegmentationModel

Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class Architecture:
    """A registered network.

    `load` returns the class or function that builds the network. It imports torchvision for the
    networks that are made of torchvision's, since that import takes a second.
    """

    name: str
    load: Callable[[], Build]
    about: str

    @property
    def build(self) -> Build:
        """`build(num_classes, **arguments)` creates the network with random weights."""
        return self.load()

    def accepted_arguments(self) -> dict[str, str]:
        """Return the keyword-only options of `build`, each with its annotation."""
        parameters = inspect.signature(self.build).parameters.values()
        return {p.name: str(p.annotation) for p in parameters if p.kind is p.KEYWORD_ONLY}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 16


def _is_counts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_count, value))


# Description and check of an option's value, by annotation. A network with zero channels or without
# branches would fail later with an error about the input size.
_KINDS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "int": ("a positive integer", _is_count),
    "Sequence[int]": ("a list of positive integers, such as [6,12]", _is_counts),
    "str": ("text", lambda value: isinstance(value, str)),
}


def _torchvision(name: str) -> Build:
    from torchvision.models import segmentation

    def build(num_classes: int) -> nn.Module:
        network: nn.Module = getattr(segmentation, name)(
            weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=None
        )
        return network

    return build


def _deeplab_v2(name: str) -> Build:
    from segdeploy.models import deeplab_v2

    build: Build = getattr(deeplab_v2, name)
    return build


def _on_resnet(name: str, backbone: str) -> Build:
    from torchvision.models import resnet

    from segdeploy.models import deeplabv3_resnet

    return partial(getattr(deeplabv3_resnet, name), getattr(resnet, backbone))


_ENTRIES = (
    Architecture(
        "semantic_segmentation_model",
        lambda: SemanticSegmentationModel,
        "dilated residual blocks, context module (slides)",
    ),
    Architecture("deeplabv3", lambda: DeepLabV3, "dilated residual blocks, ASPP (slides)"),
    Architecture(
        "memory_efficient_deeplabv3",
        lambda: MemoryEfficientDeepLabV3,
        "deeplabv3 with gradient checkpointing (slides)",
    ),
    Architecture(
        "dilated_vgg16",
        lambda: DilatedVGGFrontEnd,
        "front end; context=basic, large (arXiv 1511.07122)",
    ),
    Architecture(
        "deeplabv2_vgg16",
        partial(_deeplab_v2, "DeepLabV2VGG16"),
        "LargeFOV; rates=[6,12,18,24] is ASPP-L (1606.00915)",
    ),
    Architecture(
        "deeplabv2_resnet101",
        partial(_deeplab_v2, "DeepLabV2ResNet101"),
        "ASPP-L, summed (arXiv 1606.00915)",
    ),
    Architecture(
        "deeplabv3_multigrid_resnet50",
        partial(_on_resnet, "DeepLabV3ResNet", "resnet50"),
        "multi-grid, output_stride=8 or 16 (arXiv 1706.05587)",
    ),
    Architecture(
        "deeplabv3_multigrid_resnet101",
        partial(_on_resnet, "DeepLabV3ResNet", "resnet101"),
        "multi-grid, output_stride=8 or 16 (arXiv 1706.05587)",
    ),
    Architecture(
        "deeplabv3plus_resnet50",
        partial(_on_resnet, "DeepLabV3PlusResNet", "resnet50"),
        "with decoder (arXiv 1802.02611)",
    ),
    Architecture(
        "deeplabv3plus_resnet101",
        partial(_on_resnet, "DeepLabV3PlusResNet", "resnet101"),
        "with decoder (arXiv 1802.02611)",
    ),
    *(
        Architecture(name, partial(_torchvision, name), "torchvision's own")
        for name in (
            "deeplabv3_mobilenet_v3_large",
            "deeplabv3_resnet50",
            "deeplabv3_resnet101",
            "fcn_resnet50",
            "fcn_resnet101",
            "lraspp_mobilenet_v3_large",
        )
    ),
)
_ALIKE = 0.9
_TRIED = (64, 64)  # size of the image that finds the convolutions which read it
# Options that change the layers of a network.
_VARIANTS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "dilated_vgg16": ({"context": "basic"},),
    "deeplabv2_vgg16": ({"rates": [6, 12, 18, 24]},),
}
ARCHITECTURES: Mapping[str, Architecture] = {entry.name: entry for entry in _ENTRIES}


def check_name(name: str) -> None:
    """Refuse a name that is not registered.

    Raises:
        ModelInputError: naming the registered networks.
    """
    if name not in ARCHITECTURES:
        raise ModelInputError(
            f"{name}: no such network; it must be one of {', '.join(sorted(ARCHITECTURES))}; "
            "give your own as package.module:factory, a checkpoint as FILE.safetensors"
        )


def variants() -> Iterator[tuple[Architecture, dict[str, Any]]]:
    """Yield the registered networks with options that change their layers, the defaults first."""
    for entry in _ENTRIES:
        for arguments in ({}, *_VARIANTS.get(entry.name, ())):
            yield entry, arguments


def likeliest(keys: Set[str]) -> list[str]:
    """Return the registered networks whose state-dict keys match best, at least to 90 %."""
    shares: dict[str, float] = {}
    with torch.device("meta"):  # nothing is computed or stored
        for entry, arguments in variants():
            own = entry.build(2, **arguments).state_dict().keys()
            share = len(keys & own) / len(keys | own)
            shares[entry.name] = max(share, shares.get(entry.name, 0))
    best = max(shares.values())
    return [name for name, share in shares.items() if share == best and share >= _ALIKE]


def build(
    name: str, num_classes: int, arguments: Mapping[str, Any], channels: int = 3
) -> nn.Module:
    """Build the registered network `name` with random weights, for images of `channels` channels.

    Raises:
        ModelInputError: for a name that is not registered, an invalid option, or too little memory.
    """
    check_name(name)
    entry = ARCHITECTURES[name]
    try:
        accepted = entry.accepted_arguments()
    except ImportError as error:
        raise ModelInputError(
            f"{name}: needs torchvision, which cannot be imported ({error}); "
            "pip install 'segdeploy[torch]'"
        ) from error
    for argument, value in arguments.items():
        if argument not in accepted:
            takes = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
            raise ModelInputError(f"{name}: no option '{argument}'; {takes}")
        wanted = accepted[argument]
        if wanted in _KINDS and not _KINDS[wanted][1](value):
            raise ModelInputError(
                f"{name}: the option {argument} must be {_KINDS[wanted][0]}, not {value!r}"
            )
    try:
        with torch.device("meta"):  # nothing is computed or stored
            outline = entry.build(num_classes, **arguments)
        _check_memory(name, arguments, outline)
        network = entry.build(num_classes, **arguments)
        return network if channels == 3 else _with_channels(network, outline, channels)
    except ModelInputError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelInputError(f"{name}: cannot be built with {dict(arguments)}: {error}") from error


def _with_channels(network: nn.Module, outline: nn.Module, channels: int) -> nn.Module:
    """Give the convolutions that read the image `channels` input channels, with random weights.

    `outline` is the same network on the meta device; it is run to find these convolutions.
    """
    image = torch.zeros(1, 3, *_TRIED, device="meta")
    reading: list[str] = []
    for name, module in outline.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, given, name=name: reading.append(name) if given[0] is image else None
            )
    outline.eval()(image)
    for name in reading:
        old = network.get_submodule(name)
        assert isinstance(old, nn.Conv2d), name
        owner, _, attribute = name.rpartition(".")
        geometry = (old.kernel_size, old.stride, old.padding, old.dilation)
        made = nn.Conv2d(channels, old.out_channels, *geometry, bias=old.bias is not None)  # type: ignore[arg-type]
        setattr(network.get_submodule(owner), attribute, made)
    return network


def _check_memory(name: str, arguments: Mapping[str, Any], outline: nn.Module) -> None:
    """Refuse a network whose weights exceed the free memory, before they are allocated."""
    wanted = sum(t.numel() * t.element_size() for t in outline.state_dict().values())
    free = free_memory()
    if wanted > free:
        raise ModelInputError(
            f"{name}: with {dict(arguments)} its weights take {wanted / 1e9:.1f} GB, but only "
            f"{free / 1e9:.1f} GB of memory are free; give a smaller --width, or other options"
        )

"""What a framework's folder or file tells about a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.contract import Classes, placeholder_classes
from segdeploy.errors import InputError
from segdeploy.models.names import is_name

if TYPE_CHECKING:
    from torch import Tensor, nn

FRAMEWORKS = {
    "hf": "hf:DIR",
    "smp": "smp:DIR",
    "torchvision": "torchvision:NAME",
    "mmseg": "mmseg:CONFIG,CHECKPOINT",
    "mmdeploy": "mmdeploy:DIR",
}
"""The frameworks whose files are read, each with the form of a source."""


@dataclass(frozen=True)
class ForeignNetwork:
    """A network of another framework, as its files describe it.

    `architecture` is the name that the contract records. `stated` holds the fields of the contract
    that the files state, as in `contract_statement.with_stated`, with `size` and the classes.
    `build` returns the network with its weights, for another number of classes if it is not None;
    it is None where `architecture` is a network of the registry, or is empty because the user's
    factory builds the network.
    `weights` is the file of the weights, `state` holds them if they were read already, and
    `built_from` is the file of weights that `build` reads.
    `graph` is the ONNX file that the files describe in place of a network.
    `align_corners` tells how the framework enlarges logits of a smaller size. `notes` are sentences
    for the user.
    """

    architecture: str
    stated: Mapping[str, Any]
    build: Callable[[int | None], nn.Module] | None = None
    num_classes: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Tensor] | None = None
    weights: Path | None = None
    built_from: Path | None = None
    graph: Path | None = None
    align_corners: bool = False
    notes: tuple[str, ...] = ()


def named_classes(names: list[Any], palette: Any, source: str) -> tuple[Classes, list[str]]:
    """Return the classes of a framework's names, and notes about names that were changed.

    Names that occur twice get a number. Without a `palette` of one RGB color for each class, the
    colors are placeholders.

    Raises:
        InputError: if a name is not printable text.
    """
    taken: list[str] = []
    for name in names:
        plain = " ".join(str(name).split())
        if not isinstance(name, str) or not is_name(plain):
            raise InputError(
                f"{source}: the class name {name!r:.80} must be printable text of 1 to 100 "
                "characters"
            )
        count = 2
        unique = plain
        while unique in taken:
            unique, count = f"{plain} {count}", count + 1
        taken.append(unique)
    _, colors = placeholder_classes(len(taken))
    if isinstance(palette, list) and len(palette) == len(taken) and all(map(_is_color, palette)):
        colors = tuple((color[0], color[1], color[2]) for color in palette)
    changed = [name for name, given in zip(taken, names, strict=True) if name != given]
    notes = [f"{source}: names that occur twice got a number: {', '.join(changed)}"]
    return (tuple(taken), colors, 255), notes if changed else []


def _is_color(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(isinstance(one, int) and 0 <= one <= 255 for one in value)
    )

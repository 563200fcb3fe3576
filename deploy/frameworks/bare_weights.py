"""Files of weights without a contract: the registry's network that has these keys and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.contract import GRAY, METADATA_KEY
from segdeploy.errors import InputError
from segdeploy.files import check_input
from segdeploy.frameworks.foreign_network import ForeignNetwork
from segdeploy.packages import require

if TYPE_CHECKING:
    from torch import Tensor

# The first parts of the keys of frameworks' networks, and how such weights come in.
_OTHERS = {
    "segmentation_head.": "segmentation_models_pytorch; give --from smp:DIR of a folder that its "
    "save_pretrained wrote",
    "decode_head.": "mmsegmentation or transformers; give --from mmseg:CONFIG,CHECKPOINT with your "
    "factory, or --from hf:DIR",
}


def read(path: Path) -> ForeignNetwork:
    """Recognize the network of a .safetensors or .pth file by its keys and shapes.

    Raises:
        InputError, ModelInputError: for a file with a contract, a file that cannot be read, or
            weights of no network, or of several, of the registry.
    """
    check_input(path)
    require("torch", "torchvision", "safetensors")
    from segdeploy.models.checkpoint import read_metadata, read_weights
    from segdeploy.models.recognition import recognized

    if METADATA_KEY in read_metadata(path):
        raise InputError(f"{path}: is a checkpoint with a contract; give it as MODEL")
    state = read_weights(path)
    found = recognized(state)
    if not found:
        raise InputError(
            f"{path}: its keys and shapes are of no network of the registry{_told(state)}"
        )
    first = found[0]
    if len(found) > 1:
        raise InputError(
            f"{path}: its keys and shapes are those of {', '.join(one.name for one in found)}; "
            f"name the right one: {first.name} --weights {path}"
        )
    notes = [f"{path}: recognized as {_described(first)}"]
    if first.channels not in (1, 3):
        notes.append(f"{path}: takes {first.channels} channels; name them with --channels")
    return ForeignNetwork(
        architecture=first.name,
        stated={"channels": GRAY} if first.channels == 1 else {},
        num_classes=first.num_classes,
        arguments=first.arguments,
        state=state,
        weights=path,
        notes=tuple(notes),
    )


def _described(found: Any) -> str:
    parts = [f"{found.name} of {found.num_classes} class{'es' * (found.num_classes != 1)}"]
    parts += [f"{name} {value}" for name, value in found.arguments.items()]
    if found.channels != 3:
        parts.append(f"{found.channels} input channels")
    if found.prefix:
        parts.append(f"under the prefix {found.prefix}")
    if found.auxiliary:
        parts.append("with an auxiliary head, which only training uses")
    if found.untold:
        parts.append(
            f"the weights do not tell {' and '.join(found.untold)}: the defaults are taken"
        )
    return ", ".join(parts)


def _told(state: Mapping[str, Tensor]) -> str:
    """Return whose weights these look like."""
    for part, framework in _OTHERS.items():
        if any(key.startswith(part) or f".{part}" in key for key in state):
            return f"; they look like those of {framework}"
    return "; give your own network: package.module:factory --weights FILE"

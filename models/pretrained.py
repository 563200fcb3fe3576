"""Weights that torchvision publishes for its networks, by their names there."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import torch
from torchvision.models import WeightsEnum, get_model_weights

from segdeploy.models.errors import ModelInputError, first_line

# What Pascal VOC and `voc:` folders call the class.
_RENAMED = {"__background__": "background"}


def fetch(network: str, name: str) -> tuple[Path, tuple[str, ...]]:
    """The file of the weights `name` (such as COCO_WITH_VOC_LABELS_V1), and its classes' names.

    It is kept in PyTorch's hub cache (TORCH_HOME), where torchvision keeps it too; what is not
    there is downloaded, and its hash compared with the one in its published name.

    Raises:
        ModelInputError: if the network has no such weights, or they cannot be downloaded.
    """
    entry = _entry(network, name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        expected = path.stem.rpartition("-")[2]
        try:
            torch.hub.download_url_to_file(entry.url, str(path), expected, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise ModelInputError(
                f"{name}: the weights of {network} cannot be downloaded ({first_line(error)}); "
                f"fetch {entry.url} elsewhere and put it at {path}"
            ) from error
    return path, tuple(_RENAMED.get(c, c) for c in entry.meta["categories"])


def _entry(network: str, name: str) -> WeightsEnum:
    try:
        published = get_model_weights(network)
    except ValueError as error:
        raise ModelInputError(
            f"{name}: no such file, and {network} has no published weights; "
            "give a .safetensors or .pth file"
        ) from error
    if name not in published.__members__:
        raise ModelInputError(
            f"{name}: no such file, and no weights of {network}; published are "
            f"{', '.join(published.__members__)}"
        )
    return published[name]

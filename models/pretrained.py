"""Published weights of torchvision's networks, by torchvision's names."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import torch
from torchvision.models import WeightsEnum, get_model_weights

from segdeploy.models.errors import ModelInputError, first_line

# Class names that differ from those of Pascal VOC and of `voc:` folders.
_RENAMED = {"__background__": "background"}


def fetch(network: str, name: str) -> tuple[Path, tuple[str, ...]]:
    """Return the file and the class names of the weights `name` (COCO_WITH_VOC_LABELS_V1, ...).

    The file is kept in PyTorch's hub cache (TORCH_HOME), as torchvision does. A missing file is
    downloaded, and its hash is compared with the hash in the published file name.

    Raises:
        ModelInputError: if the network has no such weights, or they cannot be downloaded.
    """
    entry = published(network, name, f"{name}: no such file, and")
    path = _path(entry)
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
    return path, _classes(entry)


def cached(network: str, entry: WeightsEnum) -> tuple[Path, tuple[str, ...]]:
    """Return the file of published weights in PyTorch's hub cache, and their class names.

    Raises:
        ModelInputError: if the cache lacks the file.
    """
    path = _path(entry)
    if not path.is_file():
        raise ModelInputError(
            f"torchvision:{network}: its weights are not in PyTorch's cache; fetch {entry.url} and "
            f"put it at {path}, or let {network} --weights {entry.name} download it"
        )
    return path, _classes(entry)


def published(network: str, name: str, source: str) -> WeightsEnum:
    """Return torchvision's entry of the weights `name` of a network; DEFAULT is the best one.

    `source` begins the message of an error.

    Raises:
        ModelInputError: if the network has no such weights.
    """
    try:
        entries = get_model_weights(network)
    except ValueError as error:
        raise ModelInputError(
            f"{source} {network} has no published weights; give a .safetensors or .pth file"
        ) from error
    if name not in entries.__members__:
        raise ModelInputError(
            f"{source} no weights of {network}; the published weights are "
            f"{', '.join(entries.__members__)}"
        )
    return entries[name]


def _path(entry: WeightsEnum) -> Path:
    name: str = entry.url.rpartition("/")[2]
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _classes(entry: WeightsEnum) -> tuple[str, ...]:
    return tuple(_RENAMED.get(c, c) for c in entry.meta["categories"])

"""Hashes of all that a step reads, so that work that is done is known by its content.

The size and time of a file are not its content; neither is the name of a network.
"""

from __future__ import annotations

import hashlib
import inspect
import site
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.files import check_input, sha256_of_file
from segdeploy.packages import installed_version

if TYPE_CHECKING:
    from torch import nn

    from segdeploy.models.dataset import DataSet, Frame
    from segdeploy.network import LoadedNetwork


def key_of_model(path: Path) -> str:
    """SHA-256 of a model's file and of the files beside it that hold its weights.

    Raises:
        InputError: if one of them is missing or no regular file.
    """
    own = sha256_of_file(path)
    if path.suffix != ".onnx":
        return own
    from segdeploy.onnx_file import external_files

    beside = [sha256_of_file(one) for one in external_files(path)]
    return hashlib.sha256(" ".join([own, *beside]).encode()).hexdigest() if beside else own


def key_of_network(loaded: LoadedNetwork) -> str:
    """SHA-256 of a PyTorch network: its contract, its weights as they are now, and its code.

    The code is the printed module tree, the source of every class in the tree, and every module of
    the user's own that is loaded (outside of Python, its packages and segdeploy).
    """
    import torch

    digest = hashlib.sha256(loaded.contract.to_json().encode())
    module = loaded.network.module
    digest.update(repr(module).encode())
    for name, tensor in module.state_dict().items():
        content = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {content.dtype} {tuple(content.shape)}".encode())
        digest.update(content.flatten().view(torch.uint8).numpy())
    digest.update(f"{loaded.network.taken} {sorted(_sources(module).items())}".encode())
    return digest.hexdigest()


def _sources(network: nn.Module) -> dict[str, str]:
    """The hash of each source file that defines the network, by its module's name."""
    found: dict[str, str] = {}
    for kind in {type(one) for one in network.modules()}:
        package = kind.__module__.partition(".")[0]
        if package != "torch":  # whose version says it, as those of other packages would not
            _add_source(found, kind.__module__, inspect.getsourcefile(kind))
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and _is_of_the_user(name, Path(path)):
            _add_source(found, name, path)
    return found | {"torch": installed_version("torch") or ""}


def _add_source(found: dict[str, str], name: str, path: str | None) -> None:
    if path and Path(path).is_file():
        found[name] = sha256_of_file(Path(path))


def _is_of_the_user(name: str, path: Path) -> bool:
    if name.partition(".")[0] in ("segdeploy", "__main__", "__mp_main__"):
        return False
    return not any(path.is_relative_to(folder) for folder in _PACKAGES)


_PACKAGES: list[str] = [
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *site.getsitepackages(),
    site.getusersitepackages(),
]


def key_of_frames(frames: Sequence[Frame], *, masks: bool = False) -> str:
    """SHA-256 of the frames' names and pictures, in whatever order they stand.

    With `masks`, also of the masks, and of what turns their ids into classes.

    Raises:
        InputError: if a file is missing.
    """
    digest = hashlib.sha256()
    for frame in sorted(frames, key=lambda one: one.name):
        digest.update(frame.name.encode() + b"\0" + sha256_of_file(frame.image).encode())
        if masks:
            digest.update(sha256_of_file(check_input(frame.mask)).encode())
            read_as = (frame.num_classes, frame.ignore_index, frame.lookup)
            digest.update(repr(read_as).encode())
    return digest.hexdigest()


def key_of_dataset(dataset: DataSet) -> str:
    """SHA-256 of a data set: its classes, colors and ignore index, and each split's frames."""
    told = (dataset.classes, dataset.palette, dataset.ignore_index, dataset.splits)
    digest = hashlib.sha256(repr(told).encode())
    for split in dataset.splits:
        digest.update(key_of_frames(dataset.frames(split), masks=True).encode())
    return digest.hexdigest()


def same_pictures(frames: Sequence[Frame], others: Sequence[Frame]) -> list[Frame]:
    """The frames whose picture is, byte for byte, one of the others'."""
    sizes = {frame.image.stat().st_size for frame in others}
    alike = [frame for frame in frames if frame.image.stat().st_size in sizes]
    if not alike:
        return []
    known = {sha256_of_file(frame.image) for frame in others}
    return [frame for frame in alike if sha256_of_file(frame.image) in known]

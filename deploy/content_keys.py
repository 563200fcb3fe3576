"""Content hashes of the inputs of a step, by which completed work is recognized.

A file is not identified by its size or modification time, nor a network by its name.
"""

from __future__ import annotations

import hashlib
import inspect
import site
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.files import sha256_of_file
from segdeploy.packages import installed_version

if TYPE_CHECKING:
    from torch import Tensor, nn

    from segdeploy.models.dataset import DataSet, Frame
    from segdeploy.network_loading import LoadedNetwork

_PROBED = 256  # logits that are sampled from the output for a noise image


def key_of_model(path: Path) -> str:
    """Return the SHA-256 of a model file, including its external weight files.

    Raises:
        InputError: if one of the files is missing or not a regular file.
    """
    if path.suffix != ".onnx":
        return sha256_of_file(path)
    from segdeploy.onnx_graph.model_file import external_files

    return key_of_files(path, external_files(path))


def key_of_files(path: Path, external: Sequence[Path]) -> str:
    """Return the SHA-256 of a graph's file; with external weight files, of the hashes of all."""
    own = sha256_of_file(path)
    beside = [sha256_of_file(one) for one in external]
    return hashlib.sha256(" ".join([own, *beside]).encode()).hexdigest() if beside else own


def key_of_network(loaded: LoadedNetwork) -> str:
    """Return the SHA-256 of a PyTorch network: its contract, its current weights and its code.

    The code is represented by the printed module tree, the attributes of the modules (including
    buffers and plain tensors), the source of every class in the tree, the source of every loaded
    user module (outside Python, its packages and segdeploy), and the network's output for noise.
    """
    import torch

    digest = hashlib.sha256(loaded.contract.to_json().encode())
    module = loaded.network.module
    digest.update(repr(module).encode())
    for name, one in module.named_modules():
        digest.update(f"{name} {_settings(one)}".encode())
        for attribute, value in sorted(vars(one).items()):
            if isinstance(value, torch.Tensor):
                _add_tensor(digest, f"{name}.{attribute}", value)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        _add_tensor(digest, name, tensor)
    digest.update(_behavior(loaded))
    digest.update(f"{loaded.network.taken} {sorted(_sources(module).items())}".encode())
    return digest.hexdigest()


def _add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    import torch

    content = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {content.dtype} {tuple(content.shape)}".encode())
    digest.update(content.flatten().view(torch.uint8).numpy())


def _behavior(loaded: LoadedNetwork) -> bytes:
    """Return some logits for a noise image, divided by their range and rounded to three decimals.

    They reveal a change of behavior that neither attributes nor sources show.
    """
    import torch

    shape = loaded.contract.shape_at(loaded.contract.size)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        scores = loaded.network.eval()(noise.to(next(loaded.network.parameters()).device))
    values = scores.flatten()[:: max(1, scores.numel() // _PROBED)].double().cpu()
    span = float(scores.max() - scores.min()) or 1.0
    return repr([round(float(value) / span, 3) for value in values]).encode()


def _settings(module: nn.Module) -> dict[str, str]:
    """Return a module's plain attributes; the module's code may have read them from a file."""
    kinds = (str, int, float, bool, tuple, list, dict, set, type(None))
    own = {n: v for n, v in vars(module).items() if isinstance(v, kinds) and n[:1] != "_"}
    return {name: repr(value) for name, value in sorted(own.items())}


def _sources(network: nn.Module) -> dict[str, str]:
    """Return the hash of each source file that defines the network, by Python module name."""
    found: dict[str, str] = {}
    for kind in {type(one) for one in network.modules()}:
        package = kind.__module__.partition(".")[0]
        if package != "torch":  # torch is identified by its version, other packages by source
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
    """Return the SHA-256 of the frames' names and images, independent of their order.

    With `masks`, the hash also covers the masks and the mapping from mask ids to classes.

    Raises:
        InputError: if a file is missing.
    """
    digest = hashlib.sha256()
    for frame in sorted(frames, key=lambda one: one.name):
        digest.update(frame.name.encode() + b"\0" + sha256_of_file(frame.image).encode())
        if masks:
            digest.update(sha256_of_file(frame.mask).encode())
            read_as = (frame.num_classes, frame.ignore_index, frame.lookup)
            digest.update(repr(read_as).encode())
    return digest.hexdigest()


def key_of_dataset(dataset: DataSet) -> str:
    """Return the SHA-256 of a data set: classes, colors, ignore index and frames of every split."""
    described = (dataset.classes, dataset.palette, dataset.ignore_index, dataset.splits)
    digest = hashlib.sha256(repr(described).encode())
    for split in dataset.splits:
        digest.update(key_of_frames(dataset.frames(split), masks=True).encode())
    return digest.hexdigest()


def same_images(frames: Sequence[Frame], others: Sequence[Frame]) -> list[Frame]:
    """Return the frames whose image file is byte-identical to an image file of `others`."""
    sizes = {frame.image.stat().st_size for frame in others}
    alike = [frame for frame in frames if frame.image.stat().st_size in sizes]
    shared = {frame.image.stat().st_size for frame in alike}
    known = {
        sha256_of_file(frame.image) for frame in others if frame.image.stat().st_size in shared
    }
    return [frame for frame in alike if sha256_of_file(frame.image) in known]

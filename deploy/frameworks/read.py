"""`--from`: a network of another framework, by the prefix of its source."""

from __future__ import annotations

from pathlib import Path

from segdeploy.errors import InputError
from segdeploy.frameworks.foreign_network import FRAMEWORKS, ForeignNetwork
from segdeploy.models.errors import first_line


def is_source(text: str) -> bool:
    """Return whether a text names a framework and its folder or file, such as `hf:DIR`."""
    prefix, separator, _ = text.partition(":")
    return bool(separator) and prefix in FRAMEWORKS


def read_network(source: str, *, has_factory: bool = False) -> ForeignNetwork:
    """Read a source: `hf:DIR`, `smp:DIR`, `torchvision:NAME`, `mmseg:CONFIG,CHECKPOINT`, or a file.

    `mmdeploy:DIR` describes a graph that was exported. A file of bare weights (.safetensors, .pth)
    is recognized by its keys and shapes. With `has_factory` the user's own factory builds the
    network, where its code is not in the files.

    Raises:
        InputError, ModelInputError: for a source that is none of these, or that cannot be read.
    """
    try:
        return _read(source, has_factory=has_factory)
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"--from {source}: its files are nested too deeply") from error
    except Exception as error:  # foreign files may hold a value of any type at any place
        raise InputError(
            f"--from {source}: its files hold a value of another type than its framework writes "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def _read(source: str, *, has_factory: bool) -> ForeignNetwork:
    prefix, separator, rest = source.partition(":")
    if separator and prefix in FRAMEWORKS and not rest:
        raise InputError(f"--from {source}: names nothing; give {FRAMEWORKS[prefix]}")
    if prefix == "hf":
        from segdeploy.frameworks import hugging_face

        return hugging_face.read(Path(rest))
    if prefix == "smp":
        from segdeploy.frameworks import segmentation_models

        return segmentation_models.read(Path(rest))
    if prefix == "torchvision":
        from segdeploy.frameworks import torchvision_weights

        return torchvision_weights.read(rest)
    if prefix == "mmseg":
        from segdeploy.frameworks import mmsegmentation

        return mmsegmentation.read(rest, has_factory=has_factory)
    if prefix == "mmdeploy":
        from segdeploy.frameworks import mmdeploy

        return mmdeploy.read(Path(rest))
    if Path(source).suffix in (".pth", ".pt", ".safetensors"):
        from segdeploy.frameworks import bare_weights

        return bare_weights.read(Path(source))
    raise InputError(
        f"--from {source}: is no source; give {', '.join(FRAMEWORKS.values())}, or a file of "
        "weights (.safetensors or .pth)"
    )

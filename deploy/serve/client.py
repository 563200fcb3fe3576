"""The client script that `serve-repo` writes beside a model repository."""

from __future__ import annotations

from pathlib import Path

from segdeploy.contract import GRAY, Contract, listed
from segdeploy.models import image_file
from segdeploy.models.channels import RGB
from segdeploy.templates import render


def client_source(name: str, contract: Contract, version: int) -> str:
    """Return the Python source of a client for version `version` of the model `name`.

    The script contains the source of `image_file`, so it reads images by the same rule and needs
    no segdeploy.
    """
    source = Path(image_file.__file__).read_text(encoding="utf-8")
    height, width = contract.input_size
    is_gray = contract.image_channels == GRAY
    return render(
        "client.py.j2",
        name=name,
        version=version,
        preparation=_preparation(contract),
        takes_files=takes_files(contract),
        channels=contract.image_channels,
        order=_order(contract),
        sent=contract.dtype if contract.layout == "NCHW" else contract.input_dtype,
        dtype=contract.dtype,
        height=height,
        width=width,
        classes=len(contract.classes),
        values=1 << len(contract.classes) if contract.has_bit_planes else len(contract.classes),
        bit_planes=contract.has_bit_planes,
        bits={"uint8": 8, "uint16": 16}.get(contract.dtype, 0) if is_gray else 0,
        reader=f"from __future__{source.split('from __future__', 1)[1]}",  # without its docstring
    )


def takes_files(contract: Contract) -> bool:
    """Return whether the client reads JPEG and PNG files: the network takes 8-bit RGB images."""
    return contract.dtype == "uint8" and contract.image_channels == RGB


def _order(contract: Contract) -> list[int] | None:
    """Return the channels that the client picks; None where the served graphs pick them."""
    if contract.layout == "NCHW" or contract.channels == contract.image_channels:
        return None
    return contract.channel_order


def _preparation(contract: Contract) -> str | None:
    """Return the preprocessing in words, where it is not the one that the client has."""
    if contract.source_size is not None:
        return "of this size, which the graph resizes"
    if contract.fit == "stretch":
        return None if contract.resize == "pillow-bilinear" else f"resized with {contract.resize}"
    padding = "" if contract.pad is None else f" with padding {listed(contract.pad)}"
    return f"fitted as {contract.fit}{padding} and resized with {contract.resize}"

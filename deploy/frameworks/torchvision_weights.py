"""Weights that torchvision publishes, with their `transforms()` as the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import placeholder_classes
from segdeploy.contract_inference.function import Preprocessing
from segdeploy.frameworks.equality import closest
from segdeploy.frameworks.foreign_network import ForeignNetwork
from segdeploy.packages import require


def read(reference: str) -> ForeignNetwork:
    """Read `NAME` or `NAME,WEIGHTS`; without WEIGHTS torchvision's default ones are taken.

    The file of the weights is the one in PyTorch's hub cache; nothing is fetched.

    Raises:
        ModelInputError: for a network or weights that torchvision does not publish, or that are not
            in the cache.
        InputError: if its `transforms()` cannot be stated.
    """
    require("torch", "torchvision", "safetensors")
    from segdeploy.models.pretrained import cached, published

    name, _, wanted = reference.partition(",")
    entry = published(name, wanted or "DEFAULT", f"torchvision:{reference}:")
    path, classes = cached(name, entry)
    chosen = entry.transforms()
    (edge,) = chosen.resize_size
    stated = {
        "fit": "shortest-edge",
        "edge": edge,
        "rounding": "torchvision",
        "resize": f"pillow-{chosen.interpolation.value}",
        "channels": ("R", "G", "B"),
        "mean": tuple(chosen.mean),
        "std": tuple(chosen.std),
        "size": (edge, edge),
    }
    trials = ({**stated, "normalization": one} for one in ("f32-div", "f32-affine"))
    found = closest(trials, (edge, edge), Preprocessing(_function(chosen), "transforms()"))
    colors = placeholder_classes(len(classes))[1]
    return ForeignNetwork(
        architecture=name,
        stated={**found.stated, "classes": classes, "palette": colors, "ignore_index": 255},
        num_classes=len(classes),
        weights=path,
        notes=(
            f"{entry}: the contract gives the input of its transforms(){found.told}; images keep "
            f"their shape, so export with --dynamic, or state --fit stretch with --size",
        ),
    )


def _function(transforms: Any) -> Callable[[NDArray[np.uint8]], Any]:
    from PIL import Image

    return lambda image: transforms(Image.fromarray(image))

"""Read networks of published configurations with mmsegmentation, and print what is equal as JSON.

A program, not a test: mmsegmentation would stay imported in the process of other tests.

    python -m tests.mmsegmentation_labels FOLDER NAME...
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import segdeploy
from segdeploy.model_spec import ModelSpec

from .framework_networks import (
    labels_of_mmsegmentation,
    sample_images,
    saved_by_mmsegmentation,
)


def compared(name: str, folder: Path) -> dict[str, Any]:
    """The classes, and the share of equal labels of the network before and after the export."""
    folder.mkdir()
    source, network = saved_by_mmsegmentation(name, folder)
    image = sample_images(((128, 256),))[0]
    labels = labels_of_mmsegmentation(network, image)
    found: dict[str, Any] = {"labels": len(set(labels.ravel().tolist()))}
    segdeploy.export(source, folder / "m.onnx")
    for key, opened in (("pytorch", ModelSpec(source)), ("onnx", folder / "m.onnx")):
        with segdeploy.load(opened) as ours:
            found["classes"] = ours.contract.classes
            found["architecture"] = ours.contract.architecture
            found[key] = float((ours.logits(image).argmax(0) == labels).mean())
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps([compared(one, Path(sys.argv[1]) / str(at))
                      for at, one in enumerate(sys.argv[2:])]))  # fmt: skip

"""Networks of other frameworks through every step: the table of `segdeploy models --support`.

    python benchmarks/framework_support.py [OUT]

For each network of tests/framework_networks.py, saved by its framework: reading, labels against the
framework's own prediction, INT8, and an engine for sm86. Networks that are refused are listed with
the reason. The rows are written to OUT, by default deploy/frameworks/support.json. The packages of
the extra `dev` are needed; random weights, nothing is fetched.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import torch
import transformers
from PIL import Image
from torchvision.models import get_model_weights

sys.path.insert(0, str(Path(__file__).parent.parent))

import segdeploy
from segdeploy.errors import CheckFailed, InputError
from segdeploy.frameworks.read import read_network
from segdeploy.models import scenes
from segdeploy.profiles import Bounds
from tests import framework_networks as networks

OUT = Path(__file__).parent.parent / "deploy" / "frameworks" / "support.json"
PIPELINE = [A.Resize(128, 128), A.Normalize(networks.MEAN, networks.STD)]
TORCHVISION = ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50")
REFUSED = ("Mask2FormerForUniversalSegmentation", "MaskFormerForInstanceSegmentation",
           "OneFormerForUniversalSegmentation", "EomtForUniversalSegmentation",
           "DetrForSegmentation")  # fmt: skip
Labels = Callable[[np.ndarray], np.ndarray]


def version(framework: str) -> str:
    """The version of the framework's package."""
    return importlib.metadata.version(networks.PACKAGES[framework])


def sources(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, str, Labels]]:
    """Yield the framework and architecture, the source, and the framework's own prediction."""
    for name in networks.HUGGING_FACE:
        path = networks.saved_by_transformers(name, folder / "hf" / name, names)
        yield (
            networks.HUGGING_FACE[name][0],
            f"hf:{path}",
            lambda image, path=path: networks.labels_of_transformers(path, image),
        )
    for name in networks.SMP:
        path = folder / "smp" / name
        network = networks.saved_by_smp(path, PIPELINE, name, classes=len(names))
        yield (
            name,
            f"smp:{path}",
            lambda image, network=network: networks.labels_of_smp(network, PIPELINE, image),
        )
    for name in networks.MMSEG:
        path = folder / "mmseg" / name
        path.mkdir(parents=True)
        source, network = networks.saved_by_mmsegmentation(name, path)
        yield (
            name.partition("/")[2],
            source,
            lambda image, network=network: networks.labels_of_mmsegmentation(network, image),
        )
    os.environ["TORCH_HOME"] = str(folder)
    for name in TORCHVISION:
        yield name, f"torchvision:{name}", published(name, folder)


def published(name: str, folder: Path) -> Labels:
    """Return the prediction of torchvision's network with weights in place of published ones."""
    network = networks.published_by_torchvision(name, folder)
    prepare = get_model_weights(name).DEFAULT.transforms()

    def labels(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            scores = network(prepare(Image.fromarray(image))[None])["out"]
        return scores[0].argmax(0).numpy()

    return labels


def row(architecture: str, source: str, labels: Labels, folder: Path, data: Path) -> dict[str, Any]:
    """Take one network through the steps, each with what it gave or why it ended."""
    framework = source.partition(":")[0]
    path, int8 = folder / "m.onnx", folder / "m.int8.onnx"
    is_published = framework == "torchvision"
    images = networks.sample_images()
    if framework == "mmseg":  # its prediction is of the image's size: that of the network's input
        (image,) = networks.sample_images(((128, 256),))
        images = [image, image[::-1], image[:, ::-1]]

    def read() -> str:
        read_network(source)
        return "read"

    def export() -> str:
        bounds = Bounds((256, 256), (1040, 1040), 2) if is_published else None
        named = data if framework == "smp" else None  # its folders name no classes
        segdeploy.export(source, path, dynamic=is_published, bounds=bounds, data=named)
        equal = []
        with segdeploy.load(path) as network:
            for image in images:
                equal.append((network.logits(image).argmax(0) == labels(image)).mean())
        return f"{100 * min(equal):.3f} % equal"

    def calibrate() -> str:
        frames = {"mmseg": data.with_name("wide") / "val" / "images",
                  "torchvision": data / "val" / "images"}.get(framework, data)  # fmt: skip
        segdeploy.calibrate(path, frames, int8, limit=4)
        return "calibrated"  # random weights leave no margins that INT8 could keep

    def engine() -> str:
        built = segdeploy.build_engine(path, folder / "m.engine", targets=["sm86"])
        assert all(proof.holds for proof in built.convolutions)
        return "built"

    found = {"framework": framework, "architecture": architecture, "version": version(framework)}
    for name, step in (("read", read), ("export", export), ("calibrate", calibrate),
                       ("build-engine", engine)):  # fmt: skip
        try:
            found[name] = step()
        except CheckFailed as error:
            if "draws random numbers" not in str(error):
                raise
            named = ("framework", "architecture", "version")
            return {**{key: found[key] for key in named}, "refused": "draws random numbers"}
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error).replace(str(folder), '')}"
            print(f"{source}, {name}: {error}", file=sys.stderr)
    return found


def refused(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the networks that are refused, with the reason."""
    for name in REFUSED:
        path = folder / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"architectures": [name]}))
        try:
            read_network(f"hf:{path}")
        except InputError as error:
            reason = str(error).rpartition(name)[2].partition(";")[0].strip()
            yield {"framework": "hf", "architecture": name, "version": version("hf"),
                   "refused": reason}  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    out = Path(sys.argv[1]) if sys.argv[1:] else OUT
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "scenes"
        for root, size in ((data, (96, 128)), (folder / "wide", (128, 256))):
            list(scenes.write_scenes(root, {"train": 8, "val": 8}, size))
        for architecture, source, labels in sources(folder, tuple(scenes.CLASSES)):
            rows.append(row(architecture, source, labels, folder, data))
            print(json.dumps(rows[-1]), flush=True)
        rows += refused(folder)
    out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

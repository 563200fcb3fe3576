"""PASCAL VOC 2012, Cityscapes and ADE20K, in their published folder layout.

torchvision's data-set classes find the files of the first two; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torchvision.datasets import Cityscapes, VOCSegmentation

from segdeploy.models.dataset import DataSet, images_in, mask_of
from segdeploy.models.errors import ModelInputError, first_line
from segdeploy.models.palette import voc_color

_IGNORE = 255
_VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def open_public(kind: str, root: Path) -> DataSet:
    """Open `kind` (`voc`, `cityscapes` or `ade20k`) in the folder `root`.

    The folder of VOC holds `VOCdevkit/VOC2012`. The folder of Cityscapes holds `leftImg8bit` and
    `gtFine`, whose label ids become the 19 train ids. The folder of ADE20K is
    `ADEChallengeData2016` with `objectInfo150.txt`; the ids 1 to 150 become 0 to 149, and 0, which
    is none of the 150 classes, is ignored.

    Raises:
        ModelInputError: if VOC's split lists are missing. Other missing files are reported when the
            frames are listed.
    """
    opened = {"voc": _voc, "cityscapes": _cityscapes, "ade20k": _ade20k}
    return opened[kind](root)


def _voc(root: Path) -> DataSet:
    lists = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    if not lists.is_dir():
        raise ModelInputError(f"{lists}: no such folder; give the folder that holds VOCdevkit")
    return DataSet(
        root,
        _VOC_CLASSES,
        tuple(voc_color(index) for index in range(len(_VOC_CLASSES))),
        _IGNORE,
        tuple(s for s in ("train", "val", "trainval") if (lists / f"{s}.txt").is_file()),
        partial(_list_voc, root),
    )


def _list_voc(root: Path, split: str) -> list[tuple[Path, Path]]:
    found = _opened(root, partial(VOCSegmentation, str(root), year="2012", image_set=split))
    return _sorted(root, split, found.images, found.masks)


def _cityscapes(root: Path) -> DataSet:
    classes = [c for c in Cityscapes.classes if 0 <= c.train_id < _IGNORE]
    lookup = bytearray([_IGNORE]) * 256
    for entry in classes:
        lookup[entry.id] = entry.train_id
    return DataSet(
        root,
        tuple(entry.name for entry in classes),
        tuple(entry.color for entry in classes),
        _IGNORE,
        ("train", "val"),
        partial(_list_cityscapes, root),
        bytes(lookup),
    )


_ADE20K = {"train": "training", "val": "validation"}  # splits, and their folders


def _ade20k(root: Path) -> DataSet:
    path = root / "objectInfo150.txt"
    if not path.is_file():
        raise ModelInputError(
            f"{path}: no such file; give the folder ADEChallengeData2016, which names its classes"
        )
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    rows = [line.split("\t") for line in lines if line.strip()]
    # A class has several names, separated by commas; the first one is the usual one.
    names = [row[-1].split(",")[0].strip() for row in rows]
    if [row[0].strip() for row in rows] != [str(at + 1) for at in range(len(rows))] or not rows:
        raise ModelInputError(f"{path}: does not list the classes 1, 2, 3, ...")
    unique = [
        name if names.count(name) == 1 else f"{name} {names[: at + 1].count(name)}"
        for at, name in enumerate(names)
    ]
    lookup = bytearray([_IGNORE]) * 256
    lookup[1 : len(names) + 1] = bytes(range(len(names)))
    return DataSet(
        root,
        tuple(unique),
        tuple(voc_color(index + 1) for index in range(len(names))),
        _IGNORE,
        tuple(_ADE20K),
        partial(_list_ade20k, root),
        bytes(lookup),
    )


def _list_ade20k(root: Path, split: str) -> list[tuple[Path, Path]]:
    folder = root / "images" / _ADE20K[split]
    return [
        (image, mask_of(image, root / "annotations" / _ADE20K[split]))
        for image in images_in(folder)
    ]


def _list_cityscapes(root: Path, split: str) -> list[tuple[Path, Path]]:
    build = partial(Cityscapes, str(root), split=split, mode="fine", target_type="semantic")
    found = _opened(root, build)
    return _sorted(root, split, found.images, [targets[0] for targets in found.targets])


def _opened(root: Path, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelInputError(
            f"{root}: is not the folder that the data set is published in ({first_line(error)})"
        ) from error


def _sorted(root: Path, split: str, images: list[str], masks: list[str]) -> list[tuple[Path, Path]]:
    if not images:
        raise ModelInputError(f"{root}: the split {split} is empty")
    return sorted((Path(i), Path(m)) for i, m in zip(images, masks, strict=True))

"""Public data sets in their published folder layout: `KIND:FOLDER`, or `KIND:FOLDER,VARIANT`.

torchvision's data-set classes find the files of PASCAL VOC and Cityscapes. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torchvision.datasets import Cityscapes, VOCSegmentation

from segdeploy.models.dataset import PUBLIC, DataSet, images_in, is_rgb, mask_of
from segdeploy.models.errors import ModelInputError, first_line
from segdeploy.models.names import are_names
from segdeploy.models.palette import voc_color
from segdeploy.models.public_classes import COCO_STUFF, COCO_STUFF_UNUSED, PASCAL_CONTEXT, VOC
from segdeploy.models.strict_json import read_json

_IGNORE = 255


def open_public(kind: str, reference: str) -> DataSet:
    """Open the data set `kind` of `PUBLIC` in the folder `reference`, or `FOLDER,VARIANT`.

    - `voc` holds `VOCdevkit/VOC2012`.
    - `cityscapes` holds `leftImg8bit` and `gtFine`, whose label ids become the 19 train ids. The
      variant `all` keeps the 34 label ids.
    - `ade20k` is `ADEChallengeData2016` with `objectInfo150.txt`. The ids 1 to 150 become 0 to 149,
      and 0, which is none of the 150 classes, is ignored.
    - `mapillary` is Mapillary Vistas with its `config*.json`; the variant names the version where
      the folder has two. Labels that the configuration does not evaluate are ignored.
    - `coco-stuff` holds `train2017` and `val2017` in `images` and in `annotations` or
      `stuffthingmaps`. The ids of its masks without gaps are 171 classes.
    - `pascal-context` holds `VOCdevkit/VOC2010` with `SegmentationClassContext`, ids 0 to 59. The
      variant `59` ignores the background.

    Raises:
        ModelInputError: if a file that names splits or classes is missing. Other missing files are
            reported when the frames are listed.
    """
    folder, _, variant = reference.rpartition(",")
    if variant not in PUBLIC[kind]:
        folder, variant = reference, ""
    root = Path(folder)
    match kind:
        case "voc":
            return _voc(root)
        case "cityscapes":
            return _cityscapes(root, keeps_all=variant == "all")
        case "ade20k":
            return _ade20k(root)
        case "mapillary":
            return _mapillary(root, variant)
        case "coco-stuff":
            return _coco_stuff(root)
        case _:
            return _pascal_context(root, has_background=variant != "59")


def _voc(root: Path) -> DataSet:
    lists = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    if not lists.is_dir():
        raise ModelInputError(f"{lists}: no such folder; give the folder that holds VOCdevkit")
    return DataSet(
        root,
        VOC,
        tuple(voc_color(index) for index in range(len(VOC))),
        _IGNORE,
        tuple(s for s in ("train", "val", "trainval") if (lists / f"{s}.txt").is_file()),
        partial(_list_voc, root),
    )


def _list_voc(root: Path, split: str) -> list[tuple[Path, Path]]:
    found = _opened(root, partial(VOCSegmentation, str(root), year="2012", image_set=split))
    return _sorted(root, split, found.images, found.masks)


def _cityscapes(root: Path, *, keeps_all: bool) -> DataSet:
    classes = [c for c in Cityscapes.classes if 0 <= c.train_id < _IGNORE]
    if keeps_all:
        classes = [c for c in Cityscapes.classes if c.id >= 0]
    return DataSet(
        root,
        tuple(entry.name for entry in classes),
        tuple(entry.color for entry in classes),
        _IGNORE,
        ("train", "val"),
        partial(_list_cityscapes, root),
        _lookup(entry.id for entry in classes),
        ids=_up_to(33),
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
    return DataSet(
        root,
        tuple(unique),
        tuple(voc_color(index + 1) for index in range(len(names))),
        _IGNORE,
        tuple(_ADE20K),
        partial(_list_ade20k, root),
        _lookup(range(1, len(names) + 1)),
        ids=_up_to(len(names)),
    )


def _list_ade20k(root: Path, split: str) -> list[tuple[Path, Path]]:
    return _paired(root / "images" / _ADE20K[split], root / "annotations" / _ADE20K[split])


_MAPILLARY = {"train": "training", "val": "validation"}


def _mapillary(root: Path, variant: str) -> DataSet:
    if variant:
        path = root / f"config_{variant}.json"
    else:
        found = [p for p in sorted(root.glob("config*.json")) if p.stem.removeprefix("config") in
                 ("", *(f"_{name}" for name in PUBLIC["mapillary"]))]  # fmt: skip
        if not found:
            raise ModelInputError(
                f"{root}: has no config.json, config_v1.2.json or config_v2.0.json; give the "
                "folder of Mapillary Vistas"
            )
        if len(found) > 1:
            raise ModelInputError(
                f"{root}: has the labels of two versions; name one: mapillary:{root},v1.2 or "
                f"mapillary:{root},v2.0"
            )
        path = found[0]
    described = read_json(path)
    labels = described.get("labels") if isinstance(described, dict) else None
    if not isinstance(labels, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) and is_rgb(one.get("color"))
        for one in labels
    ):
        raise ModelInputError(f"{path}: has no 'labels' with a name and a color each")
    kept = [at for at, one in enumerate(labels) if one.get("evaluate") and at < _IGNORE]
    names = [labels[at]["name"] for at in kept]
    if not are_names(names):
        raise ModelInputError(f"{path}: evaluates no labels, or two of the same name")
    version = path.stem.removeprefix("config").removeprefix("_")
    return DataSet(
        root,
        tuple(names),
        tuple((r, g, b) for r, g, b in (labels[at]["color"] for at in kept)),
        _IGNORE,
        tuple(_MAPILLARY),
        partial(_list_mapillary, root, version),
        _lookup(kept),
        ids=_up_to(len(labels) - 1),
    )


def _list_mapillary(root: Path, version: str, split: str) -> list[tuple[Path, Path]]:
    folder = root / _MAPILLARY[split]
    return _paired(folder / "images", folder / version / "labels")


_COCO = {"train": "train2017", "val": "val2017"}


def _coco_stuff(root: Path) -> DataSet:
    splits = tuple(split for split in _COCO if _coco_masks(root, split) is not None)
    if not splits:
        raise ModelInputError(
            f"{root}: has neither annotations/{_COCO['val']} nor stuffthingmaps/{_COCO['val']}; "
            "unpack COCO-Stuff's stuffthingmaps_trainval2017.zip there"
        )
    ids = [at for at in range(182) if at not in COCO_STUFF_UNUSED]
    return DataSet(
        root,
        COCO_STUFF,
        tuple(voc_color(at + 1) for at in range(len(COCO_STUFF))),
        _IGNORE,
        splits,
        partial(_list_coco, root),
        _lookup(ids),
        ids=_up_to(181),
    )


def _coco_masks(root: Path, split: str) -> Path | None:
    folders = (root / name / _COCO[split] for name in ("annotations", "stuffthingmaps"))
    return next((folder for folder in folders if folder.is_dir()), None)


def _list_coco(root: Path, split: str) -> list[tuple[Path, Path]]:
    masks = _coco_masks(root, split)
    assert masks is not None
    return _paired(root / "images" / _COCO[split], masks)


def _pascal_context(root: Path, *, has_background: bool) -> DataSet:
    devkit = root / "VOCdevkit" / "VOC2010"
    lists = devkit / "ImageSets" / "SegmentationContext"
    if not lists.is_dir():
        raise ModelInputError(
            f"{lists}: no such folder; give the folder that holds VOCdevkit, with the lists and "
            "the masks SegmentationClassContext of 60 classes"
        )
    first = 0 if has_background else 1
    ids = range(first, len(PASCAL_CONTEXT))
    return DataSet(
        root,
        PASCAL_CONTEXT[first:],
        tuple(voc_color(at) for at in ids),
        _IGNORE,
        tuple(s for s in ("train", "val") if (lists / f"{s}.txt").is_file()),
        partial(_list_pascal_context, devkit),
        _lookup(ids),
        ids=_up_to(len(PASCAL_CONTEXT) - 1),
    )


def _list_pascal_context(devkit: Path, split: str) -> list[tuple[Path, Path]]:
    listed = devkit / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    names = listed.read_text(encoding="utf-8", errors="replace").split()
    if not names:
        raise ModelInputError(f"{listed}: names no images")
    images, masks = devkit / "JPEGImages", devkit / "SegmentationClassContext"
    return sorted((images / f"{name}.jpg", masks / f"{name}.png") for name in names)


def _lookup(ids: Iterable[int]) -> bytes:
    """Return the class of each id in a mask, where `ids` are those of class 0, 1, ..."""
    found = bytearray([_IGNORE]) * 256
    for at, one in enumerate(ids):
        found[one] = at
    return bytes(found)


def _up_to(last: int) -> frozenset[int]:
    """Return the ids from 0 to `last`, and that of pixels without a label."""
    return frozenset((*range(last + 1), _IGNORE))


def _paired(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    found = images_in(images)
    if not found:
        raise ModelInputError(f"{images}: has no images")
    return [(image, mask_of(image, masks)) for image in found]


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

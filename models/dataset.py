"""Read and write data sets, in the format of all segdeploy commands.

A data set is a folder with `dataset.json` (`classes`, `palette`, `ignore_index`, `splits`). Every
split has `SPLIT/images/NAME.{jpg,png}` and `SPLIT/masks/NAME.png` (one class id per pixel, or with
`"masks": "bit-planes"` one bit per class). Images of other channels or another depth are described
by `channels` and `dtype`, and may be NPY or TIFF files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.models.array_file import ARRAY_SUFFIXES
from segdeploy.models.bit_planes import BIT_PLANES, IGNORED, MASKS, MOST_PLANES
from segdeploy.models.channels import DTYPES, RGB
from segdeploy.models.errors import ModelInputError
from segdeploy.models.files import temporary_folder, write_atomically
from segdeploy.models.images import (
    encoded,
    image_content,
    read_color_mask,
    read_mask,
    read_pixels,
)
from segdeploy.models.names import BACKGROUND, are_names
from segdeploy.models.strict_json import read_json

Colors = tuple[tuple[tuple[int, ...], int], ...]
"""Colors of masks, each with its class id."""
PUBLIC: dict[str, tuple[str, ...]] = {
    "voc": (),
    "cityscapes": ("all",),
    "ade20k": (),
    "mapillary": ("v1.2", "v2.0"),
    "coco-stuff": (),
    "pascal-context": ("59",),
}
"""The public data sets that `public_datasets` opens, each with its variants."""
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", *ARRAY_SUFFIXES)


@dataclass(frozen=True)
class Frame:
    """One labeled image of a data set; `order` are the places of the channels to read.

    The masks hold class ids, or with `bit_planes` a bit for each class.
    """

    name: str
    image: Path
    mask: Path
    num_classes: int
    ignore_index: int
    lookup: bytes | None = None
    channels: tuple[str, ...] = RGB
    dtype: str = "uint8"
    order: tuple[int, ...] | None = None
    bit_planes: bool = False
    colors: Colors | None = None
    ids: frozenset[int] | None = None

    def check_mask(self) -> None:
        """Refuse an image without a mask.

        Raises:
            ModelInputError: if the mask is missing or not a file.
        """
        if not self.mask.is_file():
            raise ModelInputError(
                f"{self.mask}: no such mask, but there is an image {self.image.name}"
            )

    def read_mask(self) -> NDArray[np.uint8]:
        """Read the mask alone, `(H, W) uint8`.

        Raises:
            ModelInputError: for a file that is missing or cannot be used.
        """
        self.check_mask()
        if self.colors is not None:
            return read_color_mask(self.mask, self.colors, self.ignore_index, self.lookup)
        return read_mask(
            self.mask,
            self.num_classes,
            self.ignore_index,
            self.lookup,
            bit_planes=self.bit_planes,
            ids=self.ids,
        )

    def read_image(self) -> NDArray[Any]:
        """Read the image alone, `(H, W, C)` of the data set's channels and dtype.

        Raises:
            ModelInputError: for a file that cannot be used.
        """
        image = read_pixels(self.image, self.channels, self.dtype)
        return image if self.order is None else image[:, :, list(self.order)]

    def read(self) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Read the image, as `read_image`, and the mask `(H, W) uint8`.

        Raises:
            ModelInputError: for a file that cannot be used, or if image and mask differ in size.
        """
        image = self.read_image()
        mask = self.read_mask()
        if image.shape[:2] != mask.shape:
            raise ModelInputError(
                f"{self.mask}: the mask is {mask.shape[0]}x{mask.shape[1]} (HxW), its image "
                f"{image.shape[0]}x{image.shape[1]}; they must have the same size"
            )
        return image, mask


# Lists the (image, mask) files of a split, sorted by name.
Listing = Callable[[str], list[tuple[Path, Path]]]


@dataclass(frozen=True)
class DataSet:
    """Labeled frames in splits; the files are read on access.

    `listing` lists the files of a split. `lookup` maps the ids in the mask files to class ids, if
    the two differ. Images have the channels `channels` and the dtype `dtype` (uint8, uint16 or
    float32); `order` are the places of the channels that a network takes, if it takes others. With
    `bit_planes` a pixel can be of several classes: bit k of the mask is set where it is of class k.
    `colors` are the classes of the colors of masks in color; other colors are ignored. `ids` are
    those that the mask files may hold, if `lookup` does not tell.
    """

    root: Path
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int
    splits: tuple[str, ...]
    listing: Listing
    lookup: bytes | None = None
    channels: tuple[str, ...] = RGB
    dtype: str = "uint8"
    order: tuple[int, ...] | None = None
    bit_planes: bool = False
    colors: Colors | None = None
    ids: frozenset[int] | None = None

    def with_channels(self, names: Sequence[str]) -> DataSet:
        """Return the data set with frames of the channels `names`, in this order.

        Raises:
            ModelInputError: if the images lack a channel.
        """
        missing = [name for name in names if name not in self.channels]
        if missing:
            raise ModelInputError(
                f"{self.root}: its images have the channels {','.join(self.channels)}, and the "
                f"network takes {','.join(names)}; give images of these channels, or state the "
                "network's with --channels"
            )
        return replace(self, order=tuple(self.channels.index(name) for name in names))

    def against_rest(self, name: str) -> DataSet:
        """Return the data set with the two classes `background` and `name`.

        Raises:
            ModelInputError: if there is no class of that name.
        """
        if name not in self.classes:
            raise ModelInputError(
                f"{self.root}: has no class '{name}'; it has {', '.join(self.classes)}"
            )
        at = self.classes.index(name)
        count = 1 << len(self.classes) if self.bit_planes else len(self.classes)
        binary = [
            (one >> at & 1 if self.bit_planes else int(one == at))
            if one < count and one != self.ignore_index
            else one
            for one in self.lookup or bytes(range(256))
        ]
        return replace(
            self,
            classes=(BACKGROUND, name),
            palette=((0, 0, 0), self.palette[at]),
            lookup=bytes(binary),
            bit_planes=False,
        )

    def frames(self, split: str, limit: int | None = None) -> list[Frame]:
        """Return a split's frames in order of name, at most the first `limit`.

        Raises:
            ModelInputError: for an unknown or empty split, or an image without a mask.
        """
        frames = self.listed(split)[:limit]
        for frame in frames:
            frame.check_mask()
        return frames

    def listed(self, split: str) -> list[Frame]:
        """Return a split's frames in order of name, including frames without a mask.

        Raises:
            ModelInputError: for an unknown or empty split.
        """
        if split not in self.splits:
            raise ModelInputError(
                f"{self.root}: has no split '{split}'; it has {', '.join(self.splits) or 'none'}"
            )
        return [
            Frame(
                image.stem,
                image,
                mask,
                len(self.classes),
                self.ignore_index,
                self.lookup,
                self.channels,
                self.dtype,
                self.order,
                self.bit_planes,
                self.colors,
                self.ids,
            )
            for image, mask in self.listing(split)
        ]


def _list_folder(root: Path, split: str) -> list[tuple[Path, Path]]:
    folder = root / split / "images"
    images = images_in(folder)
    if not images:
        raise ModelInputError(f"{folder}: the split is empty; put .jpg or .png images there")
    return [(image, mask_of(image, root / split / "masks")) for image in images]


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name.

    Raises:
        ModelInputError: if the folder is missing or cannot be read, or if two files have one stem.
            Such files would share a mask and the name of their results.
    """
    try:
        names = [Path(entry.name) for entry in os.scandir(folder)]
    except FileNotFoundError:
        raise ModelInputError(f"{folder}: no such folder; put .jpg or .png images there") from None
    except OSError as error:
        raise ModelInputError(f"{folder}: cannot be read ({error.strerror})") from error
    found = sorted(name for name in names if name.suffix.lower() in _IMAGE_SUFFIXES)
    by_stem: dict[str, Path] = {}
    for name in found:
        if name.stem in by_stem:
            raise ModelInputError(
                f"{folder}: holds {by_stem[name.stem]} and {name}, two images of the same name; "
                "rename or remove one"
            )
        by_stem[name.stem] = name
    return [folder / name for name in found]


def mask_of(image: Path, folder: Path) -> Path:
    """Return the mask of an image in a folder: a PNG file of the same name."""
    capital = folder / f"{image.stem}.PNG"
    return capital if capital.is_file() else folder / f"{image.stem}.png"


def masks_without_image(dataset: DataSet, split: str) -> list[Path]:
    """Return the masks of a split without an image.

    The result is empty for a public data set, whose splits share folders.
    """
    if not (dataset.root / "dataset.json").is_file():
        return []
    used = {frame.mask for frame in dataset.listed(split)}
    found = sorted((dataset.root / split / "masks").glob("*"))
    return [p for p in found if p.suffix.lower() == ".png" and p not in used]


def open_dataset(root: Path) -> DataSet:
    """Open the data set `root`: a folder with `dataset.json`, or one in its published layout.

    The latter are those of `PUBLIC`, such as `voc:FOLDER` or `cityscapes:FOLDER,all`, and
    `masks:IMAGES,MASKS[,MAP.json]` for masks with any ids or colors.

    Raises:
        ModelInputError: if the data set is missing, or `dataset.json` is not JSON or lacks a valid
            field.
    """
    kind, colon, folder = str(root).partition(":")
    if colon and kind == "masks":
        from segdeploy.models.mask_folders import open_mask_folders

        return open_mask_folders(folder)
    if colon and kind in PUBLIC:
        from segdeploy.models.public_datasets import open_public

        return open_public(kind, folder)
    path = root / "dataset.json"
    if not path.exists():
        raise ModelInputError(f"{path}: no such file; a data set is a folder with a dataset.json")
    described = read_json(path)
    if not isinstance(described, dict):
        raise ModelInputError(f"{path}: must hold a JSON object")

    def field(name: str, expected: str, valid: bool) -> Any:
        if not valid:
            raise ModelInputError(f"{path}: '{name}' must be {expected}")
        return described[name]

    classes = field(
        "classes", "a list of different printable names", are_names(described.get("classes"))
    )
    splits = field(
        "splits",
        "a list of different folder names",
        are_names(described.get("splits"))
        and not any(set(v) & set("/\\") for v in described["splits"])
        and not {".", ".."} & set(described["splits"]),
    )
    colors = described.get("palette")
    palette = field(
        "palette",
        f"one [red, green, blue] of 0 to 255 for each of the {len(classes)} classes",
        isinstance(colors, list) and len(colors) == len(classes) and all(map(is_rgb, colors)),
    )
    index = described.get("ignore_index")
    ignore_index = field(
        "ignore_index",
        f"a number from {len(classes)} to 255, outside the classes",
        isinstance(index, int) and len(classes) <= index <= 255,
    )
    described.setdefault("channels", list(RGB))
    described.setdefault("dtype", "uint8")
    described.setdefault("masks", MASKS[0])
    masks = field("masks", f"one of {', '.join(MASKS)}", described["masks"] in MASKS)
    bit_planes = masks == BIT_PLANES
    field(
        "ignore_index",
        f"{IGNORED} for bit planes, of at most {MOST_PLANES} classes",
        not bit_planes or (ignore_index == IGNORED and len(classes) <= MOST_PLANES),
    )
    channels = field("channels", "a list of different names", are_names(described["channels"]))
    dtype = field("dtype", f"one of {', '.join(DTYPES)}", described["dtype"] in DTYPES)
    return DataSet(
        root,
        tuple(classes),
        tuple(tuple(c) for c in palette),
        ignore_index,
        tuple(splits),
        partial(_list_folder, root),
        channels=tuple(channels),
        dtype=dtype,
        bit_planes=bit_planes,
    )


def is_rgb(value: object) -> bool:
    """Return whether a value is a color: three numbers of 0 to 255."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(isinstance(v, int) and 0 <= v <= 255 for v in value)
    )


LabeledImages = Iterable[tuple[str, NDArray[Any], NDArray[np.uint8]]]


def write_dataset(
    root: Path,
    *,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    ignore_index: int,
    splits: Mapping[str, LabeledImages],
    channels: Sequence[str] = RGB,
    dtype: str = "uint8",
    bit_planes: bool = False,
) -> Iterator[str]:
    """Write `(name, image, mask)` triples as a new data set, and yield each name once written.

    RGB images of bytes are written as JPEG, gray ones of 8 and 16 bits as PNG, and all others as
    NPY. The folder appears under its own name only when the data set is complete.

    Raises:
        ModelInputError: if `root` exists, or its parent does not.
        OSError: if the disk is full; no part of the data set remains.
    """
    if root.exists() or root.is_symlink():
        raise ModelInputError(f"{root}: already exists; give a new folder or remove it")
    if not root.parent.is_dir():
        raise ModelInputError(f"{root.parent}: no such folder; make it first")
    unfinished = Path(temporary_folder(root))
    try:
        unfinished.chmod(0o755)
        for split, frames in splits.items():
            for folder in ("images", "masks"):
                (unfinished / split / folder).mkdir(parents=True)
            for name, image, mask in frames:
                data, suffix = image_content(image, channels)
                write_atomically(unfinished / split / "images" / f"{name}{suffix}", data)
                write_atomically(unfinished / split / "masks" / f"{name}.png", encoded(mask, "PNG"))
                yield name
        described = {
            "classes": list(classes),
            "palette": [list(color) for color in palette],
            "ignore_index": ignore_index,
            "splits": list(splits),
        }
        if tuple(channels) != RGB or dtype != "uint8":
            described |= {"channels": list(channels), "dtype": dtype}
        if bit_planes:
            described["masks"] = BIT_PLANES
        content = json.dumps(described, indent=2).encode() + b"\n"
        write_atomically(unfinished / "dataset.json", content)
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)

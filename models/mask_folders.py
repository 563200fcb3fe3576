"""Folders of images and of masks with any ids or colors: `masks:IMAGES,MASKS[,MAP.json]`.

The map says which ids or colors are which class:

    {"classes": ["road", "car"], "ids": {"7": "road", "26": "car"}}
    {"classes": ["road", "car"], "colors": {"128,64,128": "road", "0,0,142": "car"}}

Ids and colors that the map does not name are ignored. Without a map the ids are those of classes
that have no names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segdeploy.models.dataset import DataSet, images_in, is_rgb, mask_of
from segdeploy.models.errors import ModelInputError
from segdeploy.models.images import read_ids_of, read_image
from segdeploy.models.names import are_names
from segdeploy.models.palette import voc_color
from segdeploy.models.strict_json import read_json

SPLIT = "all"
_IGNORE = 255
_LOOKED_AT = 8  # masks
_KEYS = {"classes", "palette", "ids", "colors"}


def open_mask_folders(reference: str) -> DataSet:
    """Open `IMAGES,MASKS[,MAP.json]` as a data set of one split, `all`.

    Raises:
        ModelInputError: for missing folders, or a map that cannot be used.
    """
    parts = reference.split(",")
    if len(parts) not in (2, 3) or not all(parts):
        raise ModelInputError(f"masks:{reference}: give masks:IMAGES,MASKS or ...,MASKS,MAP.json")
    images, masks = Path(parts[0]), Path(parts[1])
    if not masks.is_dir():
        raise ModelInputError(f"{masks}: no such folder; give the folder of the masks")
    listing = partial(_listed, images, masks)
    if len(parts) == 2:
        count = _count(listing(SPLIT))
        names = tuple(f"class_{at}" for at in range(count))
        return DataSet(images, names, _palette(count), _IGNORE, (SPLIT,), listing)
    return _mapped(Path(parts[2]), images, listing)


def _listed(images: Path, masks: Path, split: str) -> list[tuple[Path, Path]]:
    found = images_in(images)
    if not found:
        raise ModelInputError(f"{images}: has no images")
    return [(image, mask_of(image, masks)) for image in found]


def _count(files: list[tuple[Path, Path]]) -> int:
    """Return the number of classes of masks without a map: one more than the largest id."""
    largest = -1
    for _, mask in files:
        ids = np.unique(read_ids_of(mask))
        largest = max([largest, *ids[ids != _IGNORE].tolist()])
    return largest + 1


def _palette(count: int) -> tuple[tuple[int, int, int], ...]:
    return tuple(voc_color(at) for at in range(count))


def _mapped(path: Path, images: Path, listing: Any) -> DataSet:
    described = read_json(path)
    if not isinstance(described, dict) or not are_names(described.get("classes")):
        raise ModelInputError(f"{path}: 'classes' must be a list of different printable names")
    classes = described["classes"]
    if unknown := sorted(set(described) - _KEYS):
        raise ModelInputError(
            f"{path}: '{unknown[0]}' is unknown; a map has {', '.join(sorted(_KEYS))}"
        )
    if ("ids" in described) == ("colors" in described):
        raise ModelInputError(f"{path}: a map has either 'ids' or 'colors'")
    kind = "ids" if "ids" in described else "colors"
    places = _places(described[kind], classes, kind, path)
    colors: Any = _palette(len(classes))
    if kind == "colors":
        colors = _own_colors(places, len(classes))
    if "palette" in described:
        colors = described["palette"]
    if not (
        isinstance(colors, (list, tuple))
        and len(colors) == len(classes)
        and all(map(is_rgb, colors))
    ):
        raise ModelInputError(
            f"{path}: 'palette' must hold one [red, green, blue] of 0 to 255 for each of the "
            f"{len(classes)} classes"
        )
    _check_occurs(places, listing(SPLIT), path)
    lookup = None
    if kind == "ids":
        ids = bytearray([_IGNORE]) * 256
        for (number,), place in places.items():
            ids[number] = place
        lookup = bytes(ids)
    return DataSet(
        images,
        tuple(classes),
        tuple((color[0], color[1], color[2]) for color in colors),
        _IGNORE,
        (SPLIT,),
        listing,
        lookup,
        colors=None if kind == "ids" else tuple(places.items()),
    )


def _places(table: Any, classes: list[str], kind: str, path: Path) -> dict[tuple[int, ...], int]:
    """Return the class of each id or color that the map names."""
    if not isinstance(table, dict) or not table:
        raise ModelInputError(f"{path}: '{kind}' must map {kind} to the names of classes")
    places: dict[tuple[int, ...], int] = {}
    for key, name in table.items():
        if name not in classes:
            raise ModelInputError(f"{path}: {key} is mapped to {name!r}, which is no class of it")
        numbers = _numbers(key, 1 if kind == "ids" else 3, path)
        if numbers in places:
            raise ModelInputError(f"{path}: maps {key} twice; remove one of the two")
        places[numbers] = classes.index(name)
    return places


def _check_occurs(
    places: Mapping[tuple[int, ...], int], files: Sequence[tuple[Path, Path]], path: Path
) -> None:
    """Refuse a map of which nothing occurs in the first masks, which would all be ignored."""
    found: set[tuple[int, ...]] = set()
    for _, mask in files[:_LOOKED_AT]:
        if not mask.is_file():  # told when the frame is read
            continue
        if len(next(iter(places))) == 1:
            found |= {(one,) for one in np.unique(read_ids_of(mask)).tolist()}
        else:
            pixels = read_image(mask).reshape(-1, 3)
            found |= set(map(tuple, np.unique(pixels, axis=0).tolist()))
    if found and not found & places.keys():
        shown = ", ".join("'" + ",".join(map(str, one)) + "'" for one in sorted(found)[:4])
        raise ModelInputError(
            f"{path}: none of its ids or colors occurs in the first masks, which hold {shown}"
        )


def _numbers(key: str, count: int, path: Path) -> tuple[int, ...]:
    """Return the id or the color that a key of the map names."""
    try:
        values = tuple(int(part) for part in key.split(","))
    except ValueError:
        values = ()
    if len(values) != count or not all(0 <= value <= 255 for value in values):
        wanted = "an id of 0 to 255, such as '7'"
        if count != 1:
            wanted = "a color of three numbers of 0 to 255, such as '128,64,128'"
        raise ModelInputError(f"{path}: the key {key!r:.40} must be {wanted}")
    return values


def _own_colors(places: dict[tuple[int, ...], int], count: int) -> list[tuple[int, ...]]:
    """Return the first color of each class."""
    found: list[tuple[int, ...]] = list(_palette(count))
    for color, place in reversed(places.items()):
        found[place] = color
    return found

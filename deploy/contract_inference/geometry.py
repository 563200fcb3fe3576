"""Size rule, crop and padding of a preprocessing function, from black and white images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import PAD_SIDES, ROUNDINGS, Contract
from segdeploy.contract_inference.function import Preprocessing
from segdeploy.errors import InputError
from segdeploy.preprocessing.fit import placement

# Sizes that tell size rules apart: both orientations, odd sides, smaller and larger than usual.
SIZES = (
    *((64, 64), (48, 80), (80, 48), (37, 101), (101, 37), (33, 47), (120, 90)),
    *((200, 150), (150, 333), (240, 320), (97, 211), (333, 150)),
)
# A multiple hides the edge before it is rounded up, so that many sizes are needed.
_MORE = tuple(map(tuple, np.random.default_rng(0).integers(30, 360, (60, 2)).tolist()))
_LEAST = 4  # sizes that the function must take
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Observation:
    """The input (h, w) for an image of `source`, and the rows and columns that show the image."""

    source: tuple[int, int]
    size: tuple[int, int]
    rows: slice
    columns: slice
    pad: NDArray[np.float32] | None

    @property
    def content(self) -> tuple[int, int]:
        """The size (h, w) of the part that shows the image."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def observe(function: Preprocessing, channels: int, dtype: str) -> list[Observation]:
    """Return what black and white images of `SIZES` become.

    Raises:
        InputError: if the function takes too few of the sizes, or its padding is no rectangle of
            one color.
    """
    found = _observed_at(SIZES, function, channels, dtype)
    if len(found) < _LEAST:
        raise InputError(
            f"{function.name}: takes {len(found)} of {len(SIZES)} image sizes from 33x47 to "
            "240x320; give a function that takes images of any size"
        )
    if (
        len({one.size for one in found}) > 1
        and math.gcd(*(s for one in found for s in one.size)) > 1
    ):
        found += _observed_at(_MORE, function, channels, dtype)
    return found


def _observed_at(
    sizes: Iterable[tuple[int, int]], function: Preprocessing, channels: int, dtype: str
) -> list[Observation]:
    """Return the observations at the sizes that the function takes."""
    most = 1.0 if dtype == "float32" else np.iinfo(dtype).max
    found = []
    for size in sizes:
        black = function.try_(np.zeros((*size, channels), dtype))
        white = function.try_(np.full((*size, channels), most, dtype))
        if black is None or white is None or black.shape != white.shape:
            continue
        found.append(_observed(function.name, size, black, white))
    return found


def _observed(
    name: str, source: tuple[int, int], black: NDArray[np.float32], white: NDArray[np.float32]
) -> Observation:
    shows = (black != white).any(0)
    size = (shows.shape[0], shows.shape[1])
    rows, columns = np.flatnonzero(shows.any(1)), np.flatnonzero(shows.any(0))
    if not len(rows):  # a standardization of each image gives one color for black and white
        return Observation(source, size, slice(0, size[0]), slice(0, size[1]), None)
    spans = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    outside = np.ones(size, bool)
    outside[spans] = False
    if not shows[spans].all():
        raise InputError(
            f"{name}: shows the image {source[0]}x{source[1]} in more than a rectangle"
        )
    pad = None
    if outside.any():
        values = black[:, outside]
        if np.ptp(values, axis=1).any():
            raise InputError(
                f"{name}: pads with more than one color, such as a mirrored border; a contract "
                "cannot state it"
            )
        pad = values[:, 0]
    return Observation(source, size, *spans, pad)


def fits(start: Contract, seen: list[Observation]) -> Iterator[Contract]:
    """Yield the contracts whose size rule explains all observations; a crop is not seen yet."""
    for stated in _hypotheses(seen):
        contract = replace(start, **stated)
        if all(_explains(contract, one) for one in seen):
            yield contract


def _explains(contract: Contract, one: Observation) -> bool:
    try:
        place = placement(one.source, contract)
    except InputError:
        return False
    shown = (place.rows.covered, place.columns.covered)
    return place.size == one.size and shown == (one.rows, one.columns)


def _hypotheses(seen: list[Observation]) -> Iterator[Mapping[str, Any]]:
    is_padded = any(one.pad is not None for one in seen)
    sizes = {one.size for one in seen}
    if len(sizes) == 1:
        (size,) = sizes
        rules = _padded_to(seen) if is_padded else _without_padding(size)
        yield from ({"size": size, **rule} for rule in rules)
        return
    rules = _padded_to_multiple(seen) if is_padded else _following(seen)
    largest = max(sizes)
    yield from ({"size": largest, **rule} for rule in rules)


def _without_padding(size: tuple[int, int]) -> Iterator[Mapping[str, Any]]:
    """One size for all images: stretched, or cropped from the center of a resized image."""
    yield {"fit": "stretch"}
    for rounding in ("torchvision", "huggingface"):
        yield {"fit": "center-crop", "rounding": rounding}
    # The edge is at least the crop's shorter side; usual edges are up to twice the crop.
    for edge, rounding in product(range(min(size), 2 * max(size) + 1), ROUNDINGS):
        yield {"fit": "shortest-edge,center-crop", "edge": edge, "rounding": rounding}


def _padded_to(seen: list[Observation]) -> Iterator[Mapping[str, Any]]:
    for side, rounding in product(PAD_SIDES, ROUNDINGS):
        yield {"fit": "letterbox", "pad_side": side, "rounding": rounding}
    edge = max(max(one.content) for one in seen)
    for side, rounding in product(PAD_SIDES, ROUNDINGS):
        yield {"fit": "longest-edge,pad", "edge": edge, "pad_side": side, "rounding": rounding}


def _edges(contents: list[tuple[int, int]], step: int) -> Iterator[Mapping[str, Any]]:
    """Rules of one edge for contents whose sides are multiples of `step`."""
    longest, shorter = max(map(max, contents)), max(map(min, contents))
    more = {"side_multiple": step} if step > 1 else {}
    below = range(step)  # rounding up to a multiple hides the edge
    for less, rounding in product(below, ROUNDINGS):
        yield {"fit": "longest-edge", "edge": longest - less, "rounding": rounding, **more}
        yield {"fit": "shortest-edge", "edge": shorter - less, "rounding": rounding, **more}
    for less, under, rounding in product(below, below, ROUNDINGS):
        yield {
            **{"fit": "shortest-edge", "edge": shorter - less, "rounding": rounding},
            **{"longest_edge": longest - under, **more},
        }


def _following(seen: list[Observation]) -> Iterator[Mapping[str, Any]]:
    """Inputs that follow the image, without padding."""
    yield {"fit": "none"}
    contents = [one.content for one in seen]
    whole = math.gcd(*(side for content in contents for side in content))
    for step in _MULTIPLES:
        if whole % step == 0:
            yield from _edges(contents, step)


def _padded_to_multiple(seen: list[Observation]) -> Iterator[Mapping[str, Any]]:
    multiple = math.gcd(*(side for one in seen for side in one.size))
    contents = [one.content for one in seen]
    for step, side in product((s for s in _MULTIPLES[::-1] if multiple % s == 0), PAD_SIDES):
        more = {"pad_multiple": step, "pad_side": side}
        yield {"fit": "pad-to-multiple", **more}
        for rule in _edges(contents, 1):
            yield {**rule, "fit": f"{rule['fit']},pad-to-multiple", **more}

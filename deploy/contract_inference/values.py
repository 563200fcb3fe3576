"""Channel order and normalization of a preprocessing function, from images of one color."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import GRAY
from segdeploy.contract_inference.function import Preprocessing
from segdeploy.errors import InputError
from segdeploy.models.channels import DTYPES, RGB
from segdeploy.preprocessing.normalization import formula_of
from segdeploy.preprocessing.preprocess import GRAY_WEIGHTS, gray_of

# In the order of trial: the most used first, segdeploy's own last.
_FORMULAS = (
    *("f32-div", "f32-fused-div", "f32-fused-mul", "f32-mul-inv", "f32sub-f64mul", "f64"),
    "f32-affine",
)
# Scales of deeper images: round numbers of reflectances, and 10, 12 and 15 bits.
_DEEP_SCALES = tuple(1 / largest for largest in (10000, 1000, 100, 255, 1023, 4095, 32767, 65536))
_LEVELS = 256
_MOST_DIGITS = 9
_COLORS = 16  # colors that tell two conversions to gray apart


@dataclass(frozen=True)
class Values:
    """The fields of the contract that describe the values, and the inverse of the normalization.

    `level_of` returns the image's value that gives a value of the input's channel, or None.
    """

    stated: dict[str, Any]
    level_of: Callable[[NDArray[np.float32]], tuple[float, ...] | None]


def find_values(
    function: Preprocessing, size: tuple[int, int], channels: tuple[str, ...], dtype: str
) -> Values:
    """Return how the channels are ordered and normalized.

    Raises:
        InputError: for values that no formula of the contract gives.
    """
    levels = _levels(dtype)

    def at_center(color: NDArray[Any]) -> NDArray[np.float32]:
        found = function(np.broadcast_to(color.astype(dtype), (*size, len(channels))).copy())
        middle: NDArray[np.float32] = found[:, found.shape[1] // 2, found.shape[2] // 2]
        return middle

    given = np.stack([at_center(np.full(len(channels), level)) for level in levels])
    if not np.ptp(given, axis=0).any():
        return _per_image(function, levels, dtype)
    order = _order(at_center, levels[-1], given[0], channels, function.name)
    constants = _constants(function.name, levels, given, dtype)
    stated = {**order, **constants, "dtype": dtype}

    def level_of(values: NDArray[np.float32]) -> tuple[float, ...] | None:
        found = []
        for index, value in enumerate(values):
            places = np.flatnonzero(given[:, index] == value)
            if not len(places):
                return None
            found.append(float(levels[places[0]]))
        return tuple(found)

    return Values(stated, level_of)


def _levels(dtype: str) -> NDArray[Any]:
    """Return levels over all values of the dtype, without 1.

    Some functions take an image whose largest value is 1 for one that is scaled already.
    """
    if dtype == "float32":
        floats: NDArray[Any] = np.linspace(0, 1, _LEVELS).astype(np.float32)
        return floats
    whole = np.linspace(0, np.iinfo(dtype).max, _LEVELS).round().astype(dtype)
    levels: NDArray[Any] = whole[whole != 1]
    return levels


def _per_image(function: Preprocessing, levels: NDArray[Any], dtype: str) -> Values:
    """Return the standardization of each image; the proof on noise decides whether it is ours."""
    stated = {"normalization": "per-image", "scale": 1.0, "dtype": dtype}
    return Values(stated, lambda values: None)


def _order(
    at_center: Callable[[NDArray[Any]], NDArray[np.float32]],
    most: Any,
    black: NDArray[np.float32],
    channels: tuple[str, ...],
    name: str,
) -> dict[str, Any]:
    """Return which channel of the image each channel of the input comes from.

    Raises:
        InputError: for a mixture of channels other than the known conversions to gray.
    """
    effects = []
    for index in range(len(channels)):
        color = np.zeros(len(channels))
        color[index] = most
        effects.append(np.abs(at_center(color).astype(np.float64) - black))
    effect = np.array(effects)  # (channels of the image, channels of the input)
    share = effect / np.maximum(effect.sum(0), 1e-30)
    sources = share.argmax(0)
    if (share.max(0) > 0.999).all() and len(set(sources)) == len(sources):
        names = tuple(channels[at] for at in sources)
        if len(names) == len(channels):
            return {"channels": names}
        return {"channels": names, "source_channels": channels}
    if effect.shape[1] == 1 and channels == RGB:
        wanted = np.array([weights for weights, _ in GRAY_WEIGHTS.values()], np.float64)
        wanted /= wanted.sum(1, keepdims=True)
        # A gray level is rounded to a byte, of 255.
        if np.abs(share[:, 0] - wanted).max(1).min() < 1 / 255:
            return {"channels": GRAY, "gray": _gray(at_center, most)}
    raise InputError(
        f"{name}: mixes the channels in another way than a conversion to gray by Pillow or OpenCV; "
        "a contract cannot state it"
    )


def _gray(at_center: Callable[[NDArray[Any]], NDArray[np.float32]], most: Any) -> str:
    """Return the library whose gray the function has, by colors where the libraries differ.

    A color and the gray level that the right library gives for it become the same input.
    """
    rng = np.random.default_rng(0)
    colors = rng.integers(0, int(most) + 1, (1, 50_000, 3)).astype(np.asarray(most).dtype)
    grays = {name: gray_of(colors, name)[0, :, 0] for name in GRAY_WEIGHTS}
    first, second = grays
    differing = np.flatnonzero(grays[first] != grays[second])[:_COLORS]
    hits = dict.fromkeys(grays, 0)
    for place in differing:
        found = at_center(colors[0, place])
        for name, levels in grays.items():
            hits[name] += bool(np.array_equal(at_center(np.full(3, levels[place])), found))
    return max(hits, key=lambda name: hits[name])


def _constants(
    name: str, levels: NDArray[Any], given: NDArray[np.float32], dtype: str
) -> dict[str, Any]:
    """Return scale, mean, standard deviation and formula that give all levels to the bit.

    Raises:
        InputError: if no formula does; the message holds the best affine fit.
    """
    if np.array_equal(given, np.repeat(levels[:, None], given.shape[1], 1).astype(np.float32)):
        return {"normalization": "none"}
    values = levels.astype(np.float64)
    slopes = (given[-1].astype(np.float64) - given[0]) / (values[-1] - values[0])
    offsets = given[0].astype(np.float64) - slopes * values[0]
    usual = DTYPES[dtype]
    scales = dict.fromkeys((usual, 1.0, *(() if dtype == "uint8" else _DEEP_SCALES), 1 / 127.5))
    for scale, formula in product(scales, _FORMULAS):
        found = [
            _rounded(levels, given[:, index], scale, formula, slope, offset)
            for index, (slope, offset) in enumerate(zip(slopes, offsets, strict=True))
        ]
        if all(one is not None for one in found):
            mean, std = zip(*(one for one in found if one is not None), strict=True)
            return {"scale": scale, "mean": mean, "std": std, "normalization": formula}
    raise InputError(
        f"{name}: normalizes by no known formula; its values are about "
        f"{', '.join(f'{s:.6g} v {o:+.6g}' for s, o in zip(slopes, offsets, strict=True))}"
    )


def _rounded(
    levels: NDArray[Any],
    given: NDArray[np.float32],
    scale: float,
    formula: str,
    slope: float,
    offset: float,
) -> tuple[float, float] | None:
    """Return mean and standard deviation with the fewest digits that give every level; or None."""
    if slope <= 0:
        return None
    std = float(scale / slope)
    mean = float(-offset * std)
    digits = sorted(product(range(_MOST_DIGITS), repeat=2), key=lambda pair: (sum(pair), pair))
    tried = set()
    for of_mean, of_std in digits:
        pair = (round(mean, of_mean) + 0.0, round(std, of_std))  # no negative zero
        if pair in tried or pair[1] <= 0:
            continue
        tried.add(pair)
        if np.array_equal(formula_of(levels, scale, *pair, formula), given):
            return pair
    return None

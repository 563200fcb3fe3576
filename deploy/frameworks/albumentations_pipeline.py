"""A pipeline that albumentations saved beside a network, read as data."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import FITS
from segdeploy.contract_inference.function import Preprocessing
from segdeploy.errors import InputError
from segdeploy.frameworks.equality import closest
from segdeploy.models.errors import first_line
from segdeploy.models.strict_json import read_json

# The pipelines that are meant for inference, by their key, the likeliest first.
_KEYS = ("eval", "val", "valid", "test", "inference", "predict")
# OpenCV's numbers of the interpolations, which albumentations stores.
_KERNELS = {0: "opencv-nearest", 1: "opencv-linear", 2: "opencv-cubic", 3: "opencv-area"}
_FORMULAS = ("f32-fused-mul", "f32-div", "f32-mul-inv", "f32-fused-div", "f32-affine", "f64")
_WITHOUT_EFFECT = frozenset(("ToTensorV2", "NoOp"))
# The step of a fit that each transform is.
_STEPS = {
    "Resize": "stretch",
    "LongestMaxSize": "longest-edge",
    "SmallestMaxSize": "shortest-edge",
    "CenterCrop": "center-crop",
    "PadIfNeeded": "pad",
}


@dataclass(frozen=True)
class Pipeline:
    """What a pipeline states, and notes for the user."""

    stated: dict[str, Any]
    notes: tuple[str, ...]


def read(folder: Path) -> Pipeline | None:
    """Read the `albumentations_config_KEY.json` of a folder; None without one.

    If albumentations is installed, its own pipeline proves the contract.

    Raises:
        InputError: for several pipelines without one for inference, augmentation, or steps that no
            contract states.
    """
    path = _path(folder)
    if path is None:
        return None
    content = read_json(path)
    steps = list(_steps(content.get("transform") if isinstance(content, dict) else None, path))
    stated = _stated(steps, path)
    try:
        import albumentations
    except ImportError:
        note = f"{path}: albumentations is not installed, so its input was not compared"
        return Pipeline(_whole({**stated, "normalization": _FORMULAS[0]}), (note,))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of parameters of other versions
            pipeline = albumentations.from_dict(content)
    except Exception as error:  # the library raises many types
        raise InputError(f"{path}: albumentations cannot read it ({first_line(error)})") from error

    def preprocess(image: NDArray[np.uint8]) -> Any:
        with np.errstate(all="ignore"):  # an input that is not finite is refused
            return pipeline(image=image)["image"]

    has_values = stated.get("normalization") != "none"
    trials = ({**stated, **({"normalization": one} if has_values else {})} for one in _FORMULAS)
    function = Preprocessing(preprocess, "albumentations")
    try:
        found = closest(map(_whole, trials), stated["size"], function)
    except InputError as error:
        raise InputError(
            f"{path}: {error}; find the contract with `segdeploy contract infer`, state it with "
            "--contract, and move the file away"
        ) from error
    return Pipeline(found.stated, (f"{path}: the contract gives its input{found.told}",))


def _whole(stated: Mapping[str, Any]) -> dict[str, Any]:
    return {**stated, "channels": ("R", "G", "B")}


def _path(folder: Path) -> Path | None:
    found = {
        path.stem.removeprefix("albumentations_config_"): path
        for path in sorted(folder.glob("albumentations_config_*.json"))
    }
    for key in _KEYS:
        if key in found:
            return found[key]
    if len(found) > 1:
        raise InputError(
            f"{folder}: holds the albumentations pipelines {', '.join(found)}, and none is called "
            f"{_KEYS[0]}; keep the one for inference under that name"
        )
    return next(iter(found.values()), None)


def _steps(node: Any, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the parameters of each step; nested sequences are opened."""
    if not isinstance(node, dict) or not isinstance(node.get("__class_fullname__"), str):
        raise InputError(f"{path}: is no pipeline that albumentations saved")
    name = node["__class_fullname__"].rpartition(".")[2]
    if node.get("p", 1) != 1:
        raise InputError(
            f"{path}: {name} is applied to a share of {node['p']} of the images, which is "
            "augmentation; save the pipeline for inference"
        )
    if name in ("Compose", "Sequential"):
        for inner in node.get("transforms") or []:
            yield from _steps(inner, path)
    elif name not in _WITHOUT_EFFECT:
        yield name, node


def _stated(steps: list[tuple[str, Mapping[str, Any]]], path: Path) -> dict[str, Any]:
    """Return the fields of the contract that the steps say.

    Raises:
        InputError: for steps, or an order of steps, that no contract states.
    """
    fits: list[str] = []
    found: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for name, step in steps:
        if name == "Normalize":
            values = _values(step, path)
        elif name in _STEPS:
            if values and name != "PadIfNeeded":
                raise InputError(
                    f"{path}: {name} after Normalize is a rule that no contract states"
                )
            fits.append(_STEPS[name])
            found |= _fit(name, step, path, is_normalized=bool(values))
        else:
            raise InputError(
                f"{path}: {name} is no step that a contract states; save the pipeline for "
                "inference, without augmentation"
            )
    if fits[-1:] == ["pad"] and "pad_multiple" in found:
        fits[-1] = "pad-to-multiple"
    fit = ",".join(fits) or "none"
    if fit not in FITS:
        raise InputError(
            f"{path}: the steps {', '.join(name for name, _ in steps)} are a sequence that no "
            "contract states; find the contract with `segdeploy contract infer`, state it with "
            "--contract, and move the file away"
        )
    if found.get("edge"):
        found["rounding"] = "albumentations"
    side = found.get("edge") or 512
    return {"fit": fit, "size": (side, side), **found, **(values or {"normalization": "none"})}


def _fit(name: str, step: Mapping[str, Any], path: Path, *, is_normalized: bool) -> dict[str, Any]:
    """Return the fields that one step of size states."""
    if name in ("LongestMaxSize", "SmallestMaxSize"):
        side = step.get("max_size")
        if not isinstance(side, int):
            raise InputError(f"{path}: {name} has the size {side!r}; a contract states one number")
        return {"edge": side, "resize": _kernel(step, path)}
    if name == "PadIfNeeded":
        return _pad(step, path, is_normalized=is_normalized)
    size = step.get("height"), step.get("width")
    if not all(isinstance(side, int) for side in size):
        raise InputError(f"{path}: {name} has the size {size!r}; a contract states two numbers")
    return {"size": size} | ({"resize": _kernel(step, path)} if name == "Resize" else {})


def _kernel(step: Mapping[str, Any], path: Path) -> str:
    if step.get("area_for_downscale"):
        raise InputError(f"{path}: area_for_downscale chooses the kernel by the image's size")
    number = step.get("interpolation", 1)
    kernel = _KERNELS.get(number) if isinstance(number, int) else None
    if kernel is None:
        raise InputError(
            f"{path}: the interpolation {number!r:.40} of OpenCV is no kernel of segdeploy"
        )
    return kernel


def _pad(step: Mapping[str, Any], path: Path, *, is_normalized: bool) -> dict[str, Any]:
    sides = {"center": "center", "top_left": "bottom-right"}
    position = step.get("position", "center")
    if step.get("border_mode", 0) != 0 or position not in sides:
        raise InputError(
            f"{path}: PadIfNeeded with border_mode {step.get('border_mode')} and position "
            f"{position} is no padding that a contract states"
        )
    fill = step.get("fill", step.get("value")) or 0.0
    values = fill if isinstance(fill, list) else [fill]
    pad: dict[str, Any] = {"pad": tuple(map(float, values)), "pad_side": sides[position]}
    if is_normalized:
        pad["pad_normalized"] = True
    multiples = step.get("pad_height_divisor"), step.get("pad_width_divisor")
    if any(multiples):
        if multiples[0] != multiples[1]:
            raise InputError(f"{path}: PadIfNeeded pads to the multiples {multiples}; state one")
        return {**pad, "pad_multiple": multiples[0]}
    return {**pad, "size": (step.get("min_height"), step.get("min_width"))}


def _values(step: Mapping[str, Any], path: Path) -> dict[str, Any]:
    kind = step.get("normalization", "standard")
    if kind != "standard":
        raise InputError(f"{path}: Normalize with the normalization {kind} is not stated here")
    mean, std = step.get("mean"), step.get("std")
    most = step.get("max_pixel_value") or 1.0
    if mean is None or std is None:
        raise InputError(f"{path}: Normalize has no mean or no std")
    as_list = [one if isinstance(one, list) else [one] for one in (mean, std)]
    return {
        "scale": 1 / float(most),
        "mean": tuple(map(float, as_list[0])),
        "std": tuple(map(float, as_list[1])),
    }

"""The search for a contract that gives the input of a preprocessing function, and its proof."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import FIT_EXAMPLES, RESIZE_KERNELS, Contract
from segdeploy.contract_checks import contradiction
from segdeploy.contract_inference.function import Preprocessing
from segdeploy.contract_inference.geometry import Observation, fits, observe
from segdeploy.contract_inference.values import Values, find_values
from segdeploy.contract_statement import with_stated
from segdeploy.errors import InputError
from segdeploy.models.channels import RGB
from segdeploy.preprocessing.preprocess import preprocess

Asked = Sequence[tuple[NDArray[Any], NDArray[np.float32]]]
"""Images `(H, W, C)`, each with the network's input `(C, h, w)` that a function gives."""
# Noise of these sizes separates the kernels: enlarged, shrunk by a fraction, a tall portrait. The
# further sizes separate the rules that round an offset or a side.
_NOISE = (
    *((97, 131), (41, 60), (333, 150), (150, 333), (240, 320)),
    *((90, 121), (133, 90), (77, 78), (200, 203), (101, 64), (64, 99), (150, 109), (119, 261)),
    *((55, 58), (258, 83), (181, 140), (72, 211)),
)
_BASE = (240, 320)
_FAR = 0.3  # of the mean deviation of an input; another kernel differs by less than 0.1
_MOST_FITS = 4000  # size rules that are tried on noise


@dataclass(frozen=True)
class Inferred:
    """A contract that was inferred, and how the inputs that it gives differ from the function's.

    `stated` are its fields, as a contract file states them. `frames` is the number of real images
    of the proof. `largest` is the largest difference on them, in the input's units, and `share` the
    share of values that differ; both are 0 where the contract is proven. `probes` is the number of
    probe images, of other sizes than the real ones, on which the inputs differ: a function may
    choose a kernel by the size of the image. `alike` are other kernels that gave the same input on
    every image. `seconds` includes all `calls` of the function.
    """

    contract: Contract
    stated: dict[str, Any]
    frames: int
    largest: float
    share: float
    probes: int
    alike: tuple[str, ...]
    calls: int
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether every value of every input is equal to the bit, those of probe images, too."""
        return self.share == 0 and not self.probes


def infer(
    function: Preprocessing,
    frames: Sequence[NDArray[Any]],
    *,
    channels: tuple[str, ...] = RGB,
    dtype: str = "uint8",
) -> Inferred:
    """Ask a preprocessing function with probe images, and prove the contract on real `frames`.

    Where no contract gives the function's input to the bit, the closest one is returned with its
    differences.

    Raises:
        InputError: if the function is random or fails, mixes channels, normalizes by an unknown
            formula, or pads, sizes or changes images by a rule that no contract states.
    """
    started = time.perf_counter()
    noise = [_noise(size, len(channels), dtype) for size in _NOISE]
    function.check_repeatable(noise[0])
    values = find_values(function, _BASE, channels, dtype)
    seen = observe(function, len(channels), dtype)
    start = _start(values, seen)
    probes = [(image, made) for image in noise if (made := function.try_(image)) is not None]
    found = _search(start, seen, values, probes)
    if found is None:
        sizes = ", ".join(
            f"{one.source[0]}x{one.source[1]} to {one.size[0]}x{one.size[1]}" for one in seen[:4]
        )
        raise InputError(
            f"{function.name}: brings images to sizes by a rule that no contract states ({sizes})"
        )
    contract, alike, near = found
    real = [(image, function(image)) for image in frames]
    if near:
        contract = min(near, key=lambda one: _mean_difference(one, real))
        _check_near(contract, real, function.name)
    largest, share = difference(contract, real)
    return Inferred(
        contract,
        stated_of(contract),
        len(frames),
        largest,
        share,
        sum(compared(contract, image, made)[1] > 0 for image, made in probes) if near else 0,
        alike,
        function.calls,
        time.perf_counter() - started,
    )


def _noise(size: tuple[int, int], channels: int, dtype: str) -> NDArray[Any]:
    rng = np.random.default_rng(size[0])
    shape = (*size, channels)
    if dtype == "float32":
        return rng.random(shape, np.float32)
    return rng.integers(0, int(np.iinfo(dtype).max) + 1, shape).astype(dtype)


def _start(values: Values, seen: Sequence[Observation]) -> Contract:
    contract = Contract("inferred", (), (), 255, seen[0].size)
    return with_stated(contract, values.stated)


def _search(
    start: Contract,
    seen: list[Observation],
    values: Values,
    probes: Asked,
) -> tuple[Contract, tuple[str, ...], list[Contract]] | None:
    """Return the contract that gives all probes, and the kernels alike.

    Where there is none, the first contract is the closest on the probes, and the last value holds
    the closest of each kernel.
    """
    pads = [one.pad for one in seen if one.pad is not None]
    closest: dict[str, tuple[float, Contract]] = {}
    for fitted in islice(fits(start, seen), _MOST_FITS):
        contract = _with_pad(fitted, pads, values)
        exact = []
        for kernel in _kernels(contract):
            trial = replace(contract, resize=kernel)
            distance = _distance(trial, probes)
            if distance == 0:
                exact.append(kernel)
            if kernel not in closest or distance < closest[kernel][0]:
                closest[kernel] = distance, trial
        if exact:
            return replace(contract, resize=exact[0]), tuple(exact[1:]), []
    near = [one for _, one in sorted(closest.values(), key=lambda one: one[0])]
    return (near[0], (), near) if near else None


def _kernels(contract: Contract) -> tuple[str, ...]:
    """Return the kernels to try: one where no image is resized."""
    if contract.fit in ("none", "center-crop", "pad-to-multiple"):
        return ("pillow-bilinear",)
    is_deep = contract.dtype != "uint8"
    return tuple(
        name for name in RESIZE_KERNELS if not (is_deep and name.startswith("torchvision"))
    )


def _with_pad(contract: Contract, pads: Sequence[NDArray[np.float32]], values: Values) -> Contract:
    """Return the contract with the value of the padding, before or after the normalization."""
    if not pads:
        return contract
    level = values.level_of(pads[0])
    if level is not None:
        return replace(contract, pad=level)
    return replace(contract, pad=tuple(map(float, pads[0])), pad_normalized=True)


def _distance(contract: Contract, probes: Asked) -> float:
    """Return the mean difference of the first probe that differs; 0 if none does."""
    if contradiction(contract):
        return float("inf")
    for image, expected in probes:
        _, _, mean = compared(contract, image, expected)
        if mean:
            return mean
    return 0.0


def _mean_difference(contract: Contract, asked: Asked) -> float:
    """Return the mean difference on real images."""
    return float(np.mean([compared(contract, image, made)[2] for image, made in asked]))


def _check_near(contract: Contract, asked: Asked, name: str) -> None:
    """Refuse a contract that is the closest one, and far from the function.

    Raises:
        InputError: if the difference is large against the spread of the function's input.
    """
    spread = float(np.mean([np.abs(made - made.mean()).mean() for _, made in asked]))
    if spread and _mean_difference(contract, asked) > _FAR * spread:
        raise InputError(
            f"{name}: no contract states what it does; the closest one (--fit "
            f"{contract.fit}, --resize {contract.resize}) gives another image. It may mirror, turn "
            "or blur the image, resize the image twice, or normalize by a formula of its own; use "
            "the function in front of the network"
        )


def difference(contract: Contract, asked: Asked) -> tuple[float, float]:
    """Return the largest difference of a contract's inputs from a function's, and the mean share.

    The share is that of the values that differ. The difference is infinite for another size.
    """
    found = [compared(contract, image, made) for image, made in asked]
    largest = max((one[0] for one in found), default=0.0)
    return largest, float(np.mean([one[1] for one in found])) if found else 0.0


def compared(
    contract: Contract, image: NDArray[Any], expected: NDArray[np.float32]
) -> tuple[float, float, float]:
    """Return the largest difference, the share of values that differ, and the mean difference."""
    try:
        found = preprocess(image, contract)[0]
    except InputError:  # smaller than the crop
        return float("inf"), 1.0, float("inf")
    if found.shape != expected.shape:
        return float("inf"), 1.0, float("inf")
    off = np.abs(found.astype(np.float64) - expected)
    return float(off.max()), float((off > 0).mean()), float(off.mean())


def stated_of(contract: Contract) -> dict[str, Any]:
    """Return the fields of a contract file that states the preprocessing of a contract."""
    usual = Contract("", (), (), 255, contract.size)
    names = ["channels", "normalization", "fit", "resize", "size"]
    if contract.normalization not in ("none", "per-image"):
        names += ["scale", "mean", "std"]
    others = ("source_channels", "dtype", "gray", *FIT_EXAMPLES, "pad_normalized")
    names += [one for one in others if getattr(contract, one) != getattr(usual, one)]
    values = {name: getattr(contract, name) for name in names}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

"""Comparison of a network's labels with those of a user's whole pipeline, and what explains them.

Where the labels differ, the network runs with one usual mistake of preprocessing or postprocessing
at a time. A mistake by which the labels become the pipeline's explains the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import IMAGENET_MEAN, IMAGENET_STD, NO_FIT, Contract
from segdeploy.errors import InputError
from segdeploy.models.errors import first_line
from segdeploy.preprocessing.fit import placement
from segdeploy.runtime.postprocess import nearest, upsample
from segdeploy.runtime.predictor import Predictor

Image = NDArray[Any]
Labels = NDArray[np.uint8]
_EQUAL = 0.9999  # share of equal labels; ties of classes are decided by rounding
# A difference is explained if nearly all labels are equal then, and a tenth of the others is left.
_EXPLAINED, _LEFT = 0.999, 0.1
_SHOWN = 3
# One kernel for each arithmetic; the others differ from one of these in few labels.
_KERNELS = (
    *("pillow-bilinear", "pillow-bicubic", "pillow-nearest"),
    *("opencv-linear", "opencv-area", "opencv-cubic", "opencv-nearest"),
    *("torch-bilinear", "torch-bilinear-align-corners", "torch-bilinear-antialias"),
    *("torch-bicubic", "torch-bicubic-antialias"),
)


@dataclass(frozen=True)
class PredictionCheck:
    """The share of labels that equal a pipeline's, and what the other labels come from.

    `agreement` is the mean share over the `frames`, 0..1. `suspects` are differences in
    preprocessing or postprocessing, each with the agreement that it leads to, the best first.
    `explained` is the first of them if it leads to the pipeline's labels.
    """

    frames: int
    agreement: float
    suspects: dict[str, float]
    explained: str | None

    @property
    def is_equal(self) -> bool:
        """Whether the labels are the pipeline's, but for ties."""
        return self.agreement >= _EQUAL


def check_prediction(
    predictor: Predictor, predict: Callable[[Image], Any], name: str, frames: Sequence[Image]
) -> PredictionCheck:
    """Compare the labels of a network with those of a pipeline, on images `(H, W, C)`.

    `predict` takes such an image, and returns labels `(H, W)` of integers at the image's own size
    or at the size of the network's input. `name` is its name in errors.

    Raises:
        InputError: if the pipeline fails, or returns something else.
    """
    expected = [_asked(predict, name, frame) for frame in frames]
    own = _agreement(predictor.predict, frames, expected, predictor)
    if own >= _EQUAL:
        return PredictionCheck(len(frames), own, {}, None)
    found = {
        suspect: agreement
        for suspect, labels in _suspects(predictor)
        if (agreement := _agreement(labels, frames, expected, predictor)) > own
    }
    ranked = sorted(found.items(), key=lambda one: -one[1])[:_SHOWN]
    best = ranked[0] if ranked else (None, 0.0)
    is_explained = best[1] >= _EXPLAINED and 1 - best[1] <= _LEFT * (1 - own)
    explained = best[0] if is_explained else None
    return PredictionCheck(len(frames), own, dict(ranked), explained)


def _asked(predict: Callable[[Image], Any], name: str, image: Image) -> Labels:
    """Return a pipeline's labels `(H, W)` of an image."""
    try:
        returned = predict(image)
    except (Exception, SystemExit) as error:  # the user's own code may fail in any way
        raise InputError(
            f"{name}: failed on an image ({type(error).__name__}: {first_line(error)})"
        ) from error
    if hasattr(returned, "detach"):
        returned = returned.detach().cpu().numpy()
    labels = np.squeeze(np.asarray(returned))
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or not labels.size:
        raise InputError(
            f"{name}: returns shape {labels.shape} and type {labels.dtype}; labels are (H, W) of "
            "integers"
        )
    if labels.min() < 0 or labels.max() > 255:
        raise InputError(f"{name}: returns labels of {labels.min()} to {labels.max()}, not 0..255")
    return labels.astype(np.uint8)


def _agreement(
    labels: Callable[[Image], Labels],
    frames: Sequence[Image],
    expected: Sequence[Labels],
    predictor: Predictor,
) -> float:
    """Return the mean share of equal labels; 0 where the network cannot run so."""
    shares = []
    for frame, wanted in zip(frames, expected, strict=True):
        try:
            found = labels(frame)
            if found.shape != wanted.shape:
                found = _at_input(predictor, frame)
        except InputError:  # such as an image of another size than the graph takes
            return 0.0
        if found.shape != wanted.shape:
            raise InputError(
                f"the pipeline returns labels of {wanted.shape} for an image of {frame.shape[:2]}; "
                "they must have the size of the image, or of the network's input"
            )
        shares.append(float((found == wanted).mean()))
    return float(np.mean(shares))


def _at_input(predictor: Predictor, image: Image) -> Labels:
    """Return the labels at the size of the network's input."""
    if predictor.contract.output == "labels":
        found = predictor.run(predictor.prepare(image))[0]
    else:
        found = predictor.logits(image).argmax(0)
    labels: Labels = found.astype(np.uint8)
    return labels


def _moved(predictor: Predictor, offset: int, image: Image) -> Labels:
    """Return the labels plus an offset, as of masks that count from one."""
    moved: Labels = np.clip(predictor.predict(image).astype(int) + offset, 0, 255).astype(np.uint8)
    return moved


def _suspects(predictor: Predictor) -> Iterator[tuple[str, Callable[[Image], Labels]]]:
    """Yield usual differences, each with the labels that it leads to."""
    contract = predictor.contract
    for name, changed in _contracts(contract):
        yield name, _with(predictor, changed)
    for offset in (1, -1):
        yield f"labels are {offset:+d}", partial(_moved, predictor, offset)
    if contract.output == "labels" or contract.has_bit_planes:
        return

    def resized(image: Image) -> Labels:
        size = (image.shape[0], image.shape[1])
        return nearest(_at_input(predictor, image), size, placement(size, contract))

    def aligned(image: Image) -> Labels:
        size = (image.shape[0], image.shape[1])
        scores = upsample(predictor.logits(image), size, align_corners=True)
        labels: Labels = scores.argmax(0).astype(np.uint8)
        return labels

    yield "labels are enlarged by nearest neighbor, not the scores", resized
    if contract.fit == "stretch":
        yield "scores are enlarged with align_corners", aligned


def _with(predictor: Predictor, contract: Contract) -> Callable[[Image], Labels]:
    """Return the prediction of the same session by another contract."""

    def labels(image: Image) -> Labels:
        own = predictor.session.contract
        predictor.session.contract = contract
        try:
            return Predictor(predictor.session).predict(image)  # the caller closes the session
        finally:
            predictor.session.contract = own

    return labels


def _contracts(contract: Contract) -> Iterator[tuple[str, Contract]]:
    """Yield the contract with one usual difference at a time, and what it is."""
    if contract.layout == "NCHW":  # else the graph normalizes
        yield from _normalizations(contract)
    for kernel in _KERNELS:
        if kernel != contract.resize:
            yield f"the resize kernel is {kernel}", replace(contract, resize=kernel)
    if contract.fit != "stretch":
        yield "images are stretched", replace(contract, fit="stretch", **NO_FIT)
    else:
        pad = (0.0,) * len(contract.channels)
        yield "images are letterboxed", replace(contract, fit="letterbox", pad=pad)
    if contract.pad is not None:
        side = "bottom-right" if contract.pad_side in (None, "center") else "center"
        yield f"the padding is at the {side}", replace(contract, pad_side=side)


def _normalizations(contract: Contract) -> Iterator[tuple[str, Contract]]:
    channels = contract.channels[::-1]
    if len(channels) == 3:
        order = ",".join(channels)
        yield f"the channels are {order}", replace(contract, channels=channels)
        reversed_: dict[str, Any] = {"mean": contract.mean[::-1], "std": contract.std[::-1]}
        yield (
            f"the channels, mean and std are {order}",
            replace(contract, channels=channels, **reversed_),
        )
    if contract.normalization in ("none", "per-image"):
        return
    count = len(contract.channels)
    plain: dict[str, Any] = {"mean": (0.0,) * count, "std": (1.0,) * count}
    yield "values are not divided by 255", replace(contract, scale=contract.scale * 255)
    yield "values are divided by 255 twice", replace(contract, scale=contract.scale / 255)
    yield "there is no mean and no std", replace(contract, **plain)
    yield (
        "there is no normalization at all",
        replace(contract, scale=1.0, normalization="none", **plain),
    )
    half: dict[str, Any] = {"mean": (0.5,) * count, "std": (0.5,) * count}
    yield "mean and std are 0.5", replace(contract, **half)
    if count == 3:
        usual: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        yield "mean and std are ImageNet's", replace(contract, **usual)
        swapped: dict[str, Any] = {"mean": contract.mean[::-1], "std": contract.std[::-1]}
        yield "mean and std are in the order of B,G,R", replace(contract, **swapped)

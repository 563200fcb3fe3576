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
from segdeploy.contract_inference.function import answer_of, array_of
from segdeploy.errors import InputError
from segdeploy.preprocessing.fit import placement
from segdeploy.runtime.postprocess import nearest, upsample
from segdeploy.runtime.predictor import Predictor

Image = NDArray[Any]
Labels = NDArray[np.uint8]
# Returns the labels of an image at its own size, or at the size of the network's input.
Labeling = Callable[[Image, bool], Labels]
_EQUAL = 0.9999  # share of equal labels; ties of classes are decided by rounding
# A difference is explained if nearly all labels are equal then, and a tenth of the others is left.
_EXPLAINED, _LEFT = 0.999, 0.1
_SHOWN = 3
_MORE_CALLS = 3
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
    `explained` is the first of them if it leads to the pipeline's labels. `classes` is the number
    of classes in the pipeline's labels; with one class, equal labels prove nothing.
    """

    frames: int
    agreement: float
    suspects: dict[str, float]
    explained: str | None
    classes: int

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
    ignored = predictor.contract.ignore_index
    expected = [_asked(predict, name, frame, ignored) for frame in frames]
    if any(not np.array_equal(expected[0], _asked(predict, name, frames[0], ignored))
           for _ in range(_MORE_CALLS)):  # fmt: skip
        raise InputError(
            f"{name}: gives other labels for the same image in another call; switch its random "
            "augmentation off"
        )
    own = _agreement(partial(_labels, predictor), frames, expected)
    if own >= _EQUAL:
        return PredictionCheck(len(frames), own, {}, None, classes=_classes(expected))
    found = {
        suspect: agreement
        for suspect, labels in _suspects(predictor)
        if (agreement := _agreement(labels, frames, expected)) > own
    }
    ranked = sorted(found.items(), key=lambda one: -one[1])[:_SHOWN]
    best = ranked[0] if ranked else (None, 0.0)
    is_explained = best[1] >= _EXPLAINED and 1 - best[1] <= _LEFT * (1 - own)
    explained = best[0] if is_explained else None
    return PredictionCheck(len(frames), own, dict(ranked), explained, classes=_classes(expected))


def _classes(labels: Sequence[Labels]) -> int:
    return len(set().union(*(np.unique(one).tolist() for one in labels)))


def _asked(predict: Callable[[Image], Any], name: str, image: Image, ignored: int) -> Labels:
    """Return a pipeline's labels `(H, W)` of an image; -1 becomes the index of ignored pixels."""
    labels = array_of(answer_of(predict, name, image.copy()), name)
    while labels.ndim > 2 and 1 in (labels.shape[0], labels.shape[-1]):
        labels = labels[0] if labels.shape[0] == 1 else labels[..., 0]
    if labels.dtype.kind == "f" and labels.size and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.ndim != 2 or labels.dtype.kind not in "iub" or not labels.size:
        raise InputError(
            f"{name}: returns shape {labels.shape} and type {labels.dtype}; labels are (H, W) of "
            "integers"
        )
    labels = np.where(labels == -1, ignored, labels.astype(np.int64))
    if labels.min() < 0 or labels.max() > 255:
        raise InputError(f"{name}: returns labels of {labels.min()} to {labels.max()}, not 0..255")
    return labels.astype(np.uint8)


def _agreement(labels: Labeling, frames: Sequence[Image], expected: Sequence[Labels]) -> float:
    """Return the mean share of equal labels; 0 where the network cannot run so."""
    shares = []
    for frame, wanted in zip(frames, expected, strict=True):
        try:
            found = labels(frame, wanted.shape != frame.shape[:2])
        except InputError:  # such as an image of another size than the graph takes
            return 0.0
        if found.shape != wanted.shape:
            raise InputError(
                f"the pipeline returns labels of {wanted.shape} for an image of {frame.shape[:2]}; "
                "they must have the size of the image, or of the network's input"
            )
        shares.append(float((found == wanted).mean()))
    return float(np.mean(shares))


def _labels(predictor: Predictor, image: Image, at_input: bool) -> Labels:
    """Return the labels of an image, `at_input` at the size of the network's input."""
    if not at_input:
        return predictor.predict(image)
    if predictor.contract.output == "labels":
        found = predictor.run(predictor.prepare(image))[0]
    else:
        found = predictor.logits(image).argmax(0)
    labels: Labels = found.astype(np.uint8)
    return labels


def _by_contract(predictor: Predictor, contract: Contract, image: Image, at_input: bool) -> Labels:
    """Return the labels of the same session by another contract."""
    own = predictor.session.contract
    predictor.session.contract = contract
    try:
        return _labels(Predictor(predictor.session), image, at_input)  # the caller closes it
    finally:
        predictor.session.contract = own


def _moved(predictor: Predictor, offset: int, image: Image, at_input: bool) -> Labels:
    """Return the labels plus an offset, as of masks that count from one."""
    labels = _labels(predictor, image, at_input).astype(int)
    moved: Labels = np.clip(labels + offset, 0, 255).astype(np.uint8)
    return moved


def _wrapped(predictor: Predictor, image: Image, at_input: bool) -> Labels:
    """Return the labels minus one, where 0 becomes 255 and is ignored (`do_reduce_labels`)."""
    wrapped: Labels = _labels(predictor, image, at_input) - np.uint8(1)
    return wrapped


def _by_nearest(predictor: Predictor, image: Image, at_input: bool) -> Labels:
    """Return the labels of the network's input, enlarged by nearest neighbor."""
    labels = _labels(predictor, image, True)
    size = (image.shape[0], image.shape[1])
    return labels if at_input else nearest(labels, size, placement(size, predictor.contract))


def _by_aligned_corners(predictor: Predictor, image: Image, at_input: bool) -> Labels:
    """Return the labels of scores that were enlarged with `align_corners`."""
    if at_input:
        return _labels(predictor, image, True)
    size = (image.shape[0], image.shape[1])
    scores = upsample(predictor.logits(image), size, align_corners=True)
    labels: Labels = scores.argmax(0).astype(np.uint8)
    return labels


def _suspects(predictor: Predictor) -> Iterator[tuple[str, Labeling]]:
    """Yield usual differences, each with the labels that it leads to."""
    contract = predictor.contract
    for name, changed in _contracts(contract):
        yield name, partial(_by_contract, predictor, changed)
    for offset in (1, -1):
        yield f"labels are {offset:+d}", partial(_moved, predictor, offset)
    yield "labels are -1, and 0 is ignored", partial(_wrapped, predictor)
    if contract.output == "labels" or contract.has_bit_planes:
        return
    yield "labels are enlarged by nearest neighbor, not the scores", partial(_by_nearest, predictor)
    if contract.fit == "stretch":
        yield "scores are enlarged with align_corners", partial(_by_aligned_corners, predictor)


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

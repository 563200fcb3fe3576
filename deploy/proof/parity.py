"""Numeric parity: compare the outputs of PyTorch and ONNX Runtime for the same inputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.calibration.difference import (
    label_agreement,
    max_abs,
    over_range,
    power,
    snr_db,
    value_range,
)
from segdeploy.proof.graph_session import Outputs, run_graph, runner
from segdeploy.proof.test_inputs import Shape, random_images
from segdeploy.runtime.postprocess import with_background

if TYPE_CHECKING:
    import onnx
    from torch import nn

# Two float32 libraries sum in different orders. On these networks they differ by about 1e-6 of the
# range. A wrong operator differs by 1e-2 or more.
FP32_LIMIT = 1e-4
# Where PyTorch's own rounding error is larger, the limit is four times that error, at most this.
_LARGEST_LIMIT = 1e-2
NOISE = "noise"
_UNSTEADY = (
    "PyTorch itself gives another output for the same image in a second run: the network draws "
    "random numbers or keeps a state (dropout that is active in eval mode, a counter)"
)
# Near tie: a label may differ where the reference's margin between the two best classes is below
# this fraction of the mean margin.
NEAR_TIE = 1e-2


@dataclass(frozen=True)
class Parity:
    """Difference of an output from the reference that `against` names.

    `max_rel` is `max_abs` divided by the reference's range. `wrong_labels` counts the pixels whose
    best class differs although it clearly leads in the reference. One class far below all others
    makes the range large, so that `max_rel` alone would hide such pixels. `problem` states why the
    outputs cannot be compared: another shape, NaN or infinity. `image` names the input image.
    """

    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    agreement: float
    wrong_labels: int
    limit: float = FP32_LIMIT
    snr_db: float = float("inf")
    against: str = "PyTorch"
    image: str = NOISE
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Whether the difference is only rounding."""
        return not self.problem and self.max_rel <= self.limit and self.wrong_labels == 0

    def failure(self) -> str:
        """Return one clause with the figures."""
        shape = "x".join(map(str, self.shape))
        where = f"at input {shape}" + ("" if self.image == NOISE else f", {self.image},")
        if self.problem:
            return f"{where} {self.problem}"
        by = ""
        if self.max_rel > self.limit:  # labels have no range
            by = f" by {self.max_rel:.2g} of its range (limit {self.limit:.0e})"
        return (
            f"{where} the output differs from {self.against}{by}: "
            f"{self.wrong_labels} labels are wrong (near ties excluded), and {self.agreement:.2%} "
            "of all labels are equal"
        )


@dataclass(frozen=True)
class Scale:
    """Lower bounds for normalizing differences: score range and mean margin of the best class.

    Both are almost zero for an image without texture, where rounding would look large in relation.
    The values for noise are therefore the minimum. `rounding` is PyTorch's own rounding error, 0 if
    unknown.
    """

    span: float = 0.0
    margin: float = 0.0
    rounding: float = 0.0

    @classmethod
    def of(cls, reference: NDArray[np.float32], *, per_class: bool = False) -> Scale:
        """Return the scale of logits `(N, C, H, W)`; `per_class` is as in `compare`."""
        scores = _of_classes(reference, per_class=per_class)
        return cls(value_range(reference), float(_margins(scores).mean()))


def compare(
    shape: tuple[int, ...],
    reference: NDArray[np.float32],
    output: NDArray[np.float32],
    against: str = "PyTorch",
    scale: Scale | None = None,
    *,
    per_class: bool = False,
) -> Parity:
    """Compare logits `(N, C, H, W)`.

    The labels are the best classes, or with `per_class`, for a multilabel network, the decisions on
    every class. The range is the reference's largest minus its smallest value, or the range of
    `scale` if that is larger. The difference is infinite if a value is not finite or the shapes
    differ.
    """
    problem = _problem(reference, output, against, reference.shape)
    if problem:
        return _incomparable(shape, reference, against, problem)
    least = scale or Scale()
    largest = max_abs(output, reference)
    span = max(value_range(reference), least.span)
    ours, theirs = (_of_classes(scores, per_class=per_class) for scores in (output, reference))
    different = ours.argmax(1) != theirs.argmax(1)
    rounding = max(4 * least.rounding, rounding_of(reference))
    limit = max(FP32_LIMIT, min(rounding / span, _LARGEST_LIMIT)) if span else FP32_LIMIT
    return Parity(
        shape,
        largest,
        over_range(largest, span),
        label_agreement(ours.argmax(1), theirs.argmax(1)),
        int(_sure(theirs, least)[different].sum()),
        limit=limit,
        snr_db=snr_db(power(reference), power(output - reference)),
        against=against,
    )


def _problem(
    reference: NDArray[Any], output: NDArray[Any], against: str, expected: tuple[int, ...]
) -> str:
    """Return why an output of required shape `expected` cannot be compared; empty if it can."""
    if not np.isfinite(reference).all():
        return f"{against} itself gives NaN or infinity, so its labels are meaningless"
    if output.shape != expected:
        return f"the output has shape {output.shape}, but that of {against} has shape {expected}"
    if not np.isfinite(output).all():
        return f"the output holds NaN or infinity, but that of {against} does not"
    return ""


def compare_labels(
    shape: tuple[int, ...],
    logits: NDArray[np.float32],
    labels: NDArray[np.integer],
    against: str,
    scale: Scale | None = None,
) -> Parity:
    """Compare labels `(N, H, W)` with the best class of reference logits `(N, C, H, W)`."""
    problem = _problem(logits, labels, against, logits[:, 0].shape)
    if problem:
        return _incomparable(shape, logits, against, problem)
    different = labels != logits.argmax(1)
    wrong = int(_sure(logits, scale or Scale())[different].sum())
    return Parity(shape, 0.0, 0.0, float(1 - different.mean()), wrong, against=against)


def _incomparable(
    shape: tuple[int, ...], reference: NDArray[np.float32], against: str, problem: str
) -> Parity:
    """Return the worst possible result, for outputs that cannot be compared."""
    worst = float("inf")
    labels = reference[:, 0].size
    return Parity(shape, worst, worst, 0.0, labels, snr_db=-worst, against=against, problem=problem)


def _of_classes(scores: NDArray[np.float32], *, per_class: bool) -> NDArray[np.float32]:
    """Return scores with one channel for each class: those of a binary network get a background.

    With `per_class` every channel is a binary network's, in a row of its own. The background's
    score is the usual threshold, a probability of a half: 0.5 for scores of 0..1, else 0.
    """
    if per_class:
        scores = scores.reshape(-1, 1, *scores.shape[2:])
    if scores.shape[1] != 1:
        return scores
    are_shares = scores.size and scores.min() >= 0 and scores.max() <= 1
    return with_background(scores, 0.5 if are_shares else 0.0)


def _sure(reference: NDArray[np.float32], least: Scale) -> NDArray[np.bool_]:
    """Return a mask `(N, H, W)` of the pixels whose best class clearly leads the second."""
    margins = _margins(reference)
    rounding = max(8 * least.rounding, rounding_of(reference))
    needed = max(NEAR_TIE * max(float(margins.mean()), least.margin), rounding)
    sure: NDArray[np.bool_] = margins > needed
    return sure


def rounding_of(reference: NDArray[np.float32]) -> float:
    """Return a bound on float32 rounding error, which matters for large values in a small range."""
    return 16 * float(np.finfo(np.float32).eps) * float(np.abs(reference).max(initial=0))


def _margins(reference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the margin of the best class over the second, `(N, H, W)`."""
    best = np.partition(reference, -2, axis=1)[:, -2:]
    margins: NDArray[np.float32] = best[:, 1] - best[:, 0]
    return margins


def reference_of(network: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return PyTorch's output for images `(N, C, H, W)`."""
    import torch

    with torch.inference_mode():
        # A copy, since a network may modify its input in place.
        logits: NDArray[np.float32] = network(torch.from_numpy(images.copy())).numpy()
    return logits


def check_parity(
    network: nn.Module,
    graph: onnx.ModelProto,
    shapes: Iterable[Shape],
    images: Mapping[str, NDArray[np.float32]] | None = None,
    *,
    per_class: bool = False,
) -> list[Parity]:
    """Compare PyTorch and the graph on noise of each shape and on the named `images`.

    Logits must have the input's size, even if PyTorch gives another size. The images of a batch are
    also run alone and in another order, and must give the same outputs: builders have been right
    for one image and wrong for two (NVIDIA/TensorRT issue 4853).

    Raises:
        CheckFailed: if ONNX Runtime cannot run the graph on one of these inputs.
    """
    run = runner(graph)
    results: list[Parity] = []
    scale = Scale()
    for shape in shapes:
        noise = random_images(shape)
        reference = reference_of(network, noise)
        if np.isfinite(reference).all() and not scale.span:
            scale = Scale.of(reference, per_class=per_class)
        output = run(noise)
        results.append(
            _compared(network, noise, reference, output, Scale(), NOISE, per_class=per_class)
        )
        if shape[0] > 1 and results[-1].holds:
            results += _check_rows(run, noise, output)
    for name, image in (images or {}).items():
        reference = reference_of(network, image)
        results.append(
            _compared(network, image, reference, run(image), scale, name, per_class=per_class)
        )
    return results


def check_steadiness(network: nn.Module, shape: Shape) -> list[Parity]:
    """Run the same noise twice through PyTorch; return a failure if the outputs differ.

    Differences by rounding are allowed, since threads may sum in another order. `check_parity`
    reports outputs that are not finite.
    """
    noise = random_images(shape)
    reference = reference_of(network, noise)
    if (
        not np.isfinite(reference).all()
        or compare(shape, reference, reference_of(network, noise)).holds
    ):
        return []
    return [_incomparable(shape, reference, "PyTorch", _UNSTEADY)]


def _compared(
    network: nn.Module,
    images: NDArray[np.float32],
    reference: NDArray[np.float32],
    output: NDArray[np.float32],
    scale: Scale,
    image: str,
    *,
    per_class: bool,
) -> Parity:
    shape = images.shape
    if reference.shape[2:] != shape[2:]:
        reference = reference[:, :, :0]  # fails the shape check: logits must have the input's size
    result = compare(shape, reference, output, scale=scale, per_class=per_class)
    if not result.holds and not result.problem:
        rounding = _own_rounding(network, images, reference)
        scale = replace(scale, rounding=rounding)
        result = compare(shape, reference, output, scale=scale, per_class=per_class)
    return replace(result, image=image)


def _own_rounding(
    network: nn.Module, images: NDArray[np.float32], reference: NDArray[np.float32]
) -> float:
    """Return the largest difference between PyTorch's float32 and float64 outputs; 0 if unknown.

    A deep network that was not trained amplifies rounding, in PyTorch as in any other library.
    """
    try:
        exact = reference_of(copy.deepcopy(network).double(), images.astype(np.float64))
    except Exception:  # raised by a network that requires float32
        return 0.0
    rounding = max_abs(exact, reference)
    return rounding if math.isfinite(rounding) else 0.0


def _check_rows(
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    images: NDArray[np.float32],
    output: NDArray[np.float32],
) -> list[Parity]:
    rows = sorted({0, len(images) // 2, len(images) - 1})
    alone = np.concatenate([run(images[row : row + 1]) for row in rows])
    order = np.roll(np.arange(len(images)), 1)
    return [
        compare(images.shape, alone, output[rows], "the same image alone"),
        compare(images.shape, output[order], run(images[order]), "the batch in another order"),
    ]


def compare_outputs(
    inputs: Sequence[NDArray[Any]], references: Sequence[Outputs], graph: onnx.ModelProto
) -> list[Parity]:
    """Run inputs through a graph and compare every output with its reference.

    The graph has one input. Every output is compared as `(N, C, ...)`, whatever its axes mean.
    """
    return [
        compare(given.shape, _as_map(one), _as_map(other), "the graph as given")
        for given, outputs, found in zip(inputs, references, run_graph(graph, inputs), strict=True)
        for one, other in zip(outputs, found, strict=True)
    ]


def _as_map(output: NDArray[Any]) -> NDArray[np.float32]:
    rank = output.ndim
    return output.astype(np.float32).reshape(output.shape + (1,) * max(0, 4 - rank))

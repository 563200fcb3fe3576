"""Losses for segmentation; an ignored pixel enters none of them, nor any mean.

All take logits `(N, C, H, W) float` and targets `(N, H, W) int64`, and give a scalar. A batch with
no pixel that counts has loss 0, and gradients of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segdeploy.models.distributed import averaged
from segdeploy.models.errors import ModelInputError

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy, averaged with the class weights of the pixels' true classes."""
    per_pixel = F.cross_entropy(
        logits, targets, weight=class_weights, ignore_index=ignore_index, reduction="none"
    )
    return per_pixel.sum() / _total_weight(targets, ignore_index, class_weights)


def focal(
    logits: Tensor,
    targets: Tensor,
    ignore_index: int,
    class_weights: Tensor | None = None,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Focal loss `alpha (1 - p_t)^gamma CE` (Lin et al. 2017, arXiv 1708.02002, equation 5).

    p_t comes from the unweighted cross-entropy: a class weight is no probability.
    """
    plain = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")
    per_pixel = alpha * (1 - torch.exp(-plain)) ** gamma * plain
    if class_weights is not None:
        per_pixel = per_pixel * _pixel_weights(targets, ignore_index, class_weights)
    return per_pixel.sum() / _total_weight(targets, ignore_index, class_weights)


def dice(
    logits: Tensor, targets: Tensor, ignore_index: int, class_weights: Tensor | None = None
) -> Tensor:
    """One minus the soft Dice coefficient, averaged over the classes that the batch holds.

    Milletari et al. 2016 (arXiv 1606.04797), section 3. An absent class has none and is left out.
    """
    counted = (targets != ignore_index).unsqueeze(1)
    probabilities = logits.softmax(1) * counted
    truth = torch.zeros_like(probabilities)
    truth.scatter_(1, targets.where(counted[:, 0], 0).unsqueeze(1), counted.to(truth.dtype))
    pixels = truth.sum((0, 2, 3))
    overlap = (probabilities * truth).sum((0, 2, 3))
    coefficient = 2 * overlap / (probabilities.sum((0, 2, 3)) + pixels).clamp_min(1e-12)
    share = (pixels > 0).to(logits.dtype)
    if class_weights is not None:
        share = share * class_weights
    return ((1 - coefficient) * share).sum() / share.sum().clamp_min(1e-12)


LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "cross-entropy": cross_entropy,
    "focal": focal,
    "dice": dice,
}


def weighted_sum(
    terms: Mapping[str, float], ignore_index: int, class_weights: Tensor | None
) -> Loss:
    """One loss from several: `{"cross-entropy": 1, "dice": 0.5}`.

    Raises:
        ModelInputError: for a name that is not among `LOSSES`, or no term at all.
    """
    unknown = [name for name in terms if name not in LOSSES]
    if unknown or not terms:
        raise ModelInputError(
            f"loss {', '.join(unknown) or '(none)'}: there are {', '.join(LOSSES)}, and sums such "
            "as cross-entropy+0.5*dice"
        )

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        total = logits.new_zeros(())
        for name, factor in terms.items():
            total = total + factor * LOSSES[name](logits, targets, ignore_index, class_weights)
        return total

    return loss


def parse_terms(text: str) -> dict[str, float]:
    """Read `cross-entropy+0.5*dice`.

    Raises:
        ModelInputError: if a factor is no positive number.
    """
    terms: dict[str, float] = {}
    for part in text.split("+"):
        factor, star, name = part.rpartition("*")
        try:
            value = float(factor) if star else 1.0
        except ValueError:
            value = -1.0
        if not 0 < value < float("inf"):
            raise ModelInputError(f"loss '{text}': '{factor}' is not a positive factor")
        terms[name.strip()] = terms.get(name.strip(), 0.0) + value
    return terms


CLASS_WEIGHTS = ("none", "median-frequency", "inverse-log")


def class_weights_from(
    counts: NDArray[np.int64], held: NDArray[np.int64], method: str
) -> Tensor | None:
    """Weights `(C,) float32` from what `class_counts` gave.

    `median-frequency` is the median frequency over the class's own, a frequency being a class's
    share of the images that hold it (Eigen and Fergus 2015, arXiv 1411.4734, section 6.3.2);
    `inverse-log` is `1 / log(1.1 + share)` (Paszke et al. 2016, arXiv
    1606.02147, section 5.1, whose constant 1.02 is gentler at 1.1). A class that no pixel has gets
    weight 0 from the first, and its limit from the second.

    Raises:
        ModelInputError: for another method, or when no pixel was counted.
    """
    if method == "none":
        return None
    total = int(counts.sum())
    if total == 0:
        raise ModelInputError("class weights: no pixel of the split counts; all are ignored")
    shares = counts / total
    if method == "median-frequency":
        seen = counts > 0
        frequency = counts / np.maximum(held, 1)
        weights = np.where(seen, np.median(frequency[seen]) / np.where(seen, frequency, 1), 0)
    elif method == "inverse-log":
        weights = 1 / np.log(1.1 + shares)
    else:
        raise ModelInputError(f"class weights '{method}': there are {', '.join(CLASS_WEIGHTS)}")
    return torch.tensor(weights, dtype=torch.float32)


def _pixel_weights(targets: Tensor, ignore_index: int, class_weights: Tensor) -> Tensor:
    counted = targets != ignore_index
    return class_weights[targets.where(counted, 0)] * counted


def _total_weight(targets: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
    if class_weights is None:
        total = (targets != ignore_index).sum().to(torch.float32)
    else:
        total = _pixel_weights(targets, ignore_index, class_weights).sum()
    # The mean over processes, so that their averaged gradients are those of all pixels together.
    return averaged(total).clamp_min(1e-12)

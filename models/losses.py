"""Segmentation losses; ignored pixels count in no loss and in no mean.

Every loss takes logits `(N, C, H, W) float` and targets `(N, H, W) int64`, and returns a scalar. If
all pixels of a batch are ignored, the loss and its gradients are 0.
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
    """Return the cross-entropy, averaged over pixels with the weights of their true classes."""
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
    """Return the focal loss `alpha (1 - p_t)^gamma CE`.

    Lin et al. 2017 (arXiv 1708.02002), equation 5. p_t comes from the unweighted cross-entropy,
    because a weighted cross-entropy gives no probability.
    """
    plain = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")
    per_pixel = alpha * (1 - torch.exp(-plain)) ** gamma * plain
    if class_weights is not None:
        per_pixel = per_pixel * _pixel_weights(targets, ignore_index, class_weights)
    return per_pixel.sum() / _total_weight(targets, ignore_index, class_weights)


def dice(
    logits: Tensor, targets: Tensor, ignore_index: int, class_weights: Tensor | None = None
) -> Tensor:
    """Return one minus the soft Dice coefficient, averaged over the classes in the batch.

    Milletari et al. 2016 (arXiv 1606.04797), section 3. A class that is absent from the batch has
    no coefficient and is left out of the mean.
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
    """Return the weighted sum of losses, such as `{"cross-entropy": 1, "dice": 0.5}`.

    Raises:
        ModelInputError: for a name that is not in `LOSSES`, or if there is no term.
    """
    unknown = [name for name in terms if name not in LOSSES]
    if unknown or not terms:
        raise ModelInputError(
            f"loss {', '.join(unknown) or '(none)'}: must be one of {', '.join(LOSSES)}, or a sum "
            "such as cross-entropy+0.5*dice"
        )

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        total = logits.new_zeros(())
        for name, factor in terms.items():
            total = total + factor * LOSSES[name](logits, targets, ignore_index, class_weights)
        return total

    return loss


def parse_terms(text: str) -> dict[str, float]:
    """Parse loss terms such as `cross-entropy+0.5*dice`.

    Raises:
        ModelInputError: if a factor is not a positive number.
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
    """Return class weights `(C,) float32` from the results of `class_counts`.

    `median-frequency` is the median class frequency divided by the frequency of the class (Eigen
    and Fergus 2015, arXiv 1411.4734, section 6.3.2). The frequency of a class is its share of the
    pixels of the images that hold the class. `inverse-log` is `1 / log(1.1 + share)` (Paszke et al.
    2016, arXiv 1606.02147, section 5.1; the paper's constant is 1.02, and 1.1 is gentler). A class
    without pixels gets weight 0 from `median-frequency`, and `1 / log(1.1)` from `inverse-log`.
    `none` returns None.

    Raises:
        ModelInputError: for an unknown method, or if no pixel was counted.
    """
    if method == "none":
        return None
    total = int(counts.sum())
    if total == 0:
        raise ModelInputError("class weights: all pixels of the split are ignored; label some")
    shares = counts / total
    if method == "median-frequency":
        seen = counts > 0
        frequency = counts / np.maximum(held, 1)
        weights = np.where(seen, np.median(frequency[seen]) / np.where(seen, frequency, 1), 0)
    elif method == "inverse-log":
        weights = 1 / np.log(1.1 + shares)
    else:
        raise ModelInputError(
            f"class weights '{method}': must be one of {', '.join(CLASS_WEIGHTS)}"
        )
    return torch.tensor(weights, dtype=torch.float32)


def _pixel_weights(targets: Tensor, ignore_index: int, class_weights: Tensor) -> Tensor:
    counted = targets != ignore_index
    return class_weights[targets.where(counted, 0)] * counted


def _total_weight(targets: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
    if class_weights is None:
        total = (targets != ignore_index).sum().to(torch.float32)
    else:
        total = _pixel_weights(targets, ignore_index, class_weights).sum()
    # The mean over processes makes the averaged gradients equal those of all pixels together.
    return averaged(total).clamp_min(1e-12)

"""Losses against their formulas, written out pixel by pixel, and what is ignored."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segdeploy.models.errors import ModelInputError
from segdeploy.models.losses import (
    LOSSES,
    class_weights_from,
    cross_entropy,
    dice,
    focal,
    parse_terms,
    weighted_sum,
)

WEIGHTS = torch.tensor([0.2, 1.0, 3.0])


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 6, generator=generator)
    targets = torch.randint(0, 3, (2, 5, 6), generator=generator)
    targets[0, :2] = 255
    return logits, targets


def pixels(logits: torch.Tensor, targets: torch.Tensor):
    """Every counted pixel as (p_t, true class)."""
    probabilities = logits.softmax(1)
    for n, y, x in (targets != 255).nonzero().tolist():
        label = int(targets[n, y, x])
        yield float(probabilities[n, label, y, x]), label


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_losses_cross_entropy_is_pytorchs(batch, weights) -> None:
    logits, targets = batch
    expected = F.cross_entropy(logits, targets, weight=weights, ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, targets, 255, weights), expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_losses_focal_takes_p_from_the_unweighted_cross_entropy(batch, weights) -> None:
    logits, targets = batch
    total = mass = 0.0
    for p, label in pixels(logits, targets):
        weight = 1.0 if weights is None else float(weights[label])
        total += weight * 0.25 * (1 - p) ** 2 * -math.log(p)
        mass += weight
    assert float(focal(logits, targets, 255, weights)) == pytest.approx(total / mass, rel=1e-5)


def test_losses_focal_without_ignored_pixels_is_the_slides() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(1, 21, 9, 9), torch.randint(0, 21, (1, 9, 9))
    ce = F.cross_entropy(logits, targets, reduction="none")
    slides = (0.25 * (1 - torch.exp(-ce)) ** 2 * ce).mean()
    torch.testing.assert_close(focal(logits, targets, 255), slides)


def test_losses_dice_leaves_absent_classes_and_ignored_pixels_out(batch) -> None:
    logits, targets = batch
    targets = targets.where(targets != 2, 1)
    counted = (targets != 255).numpy()
    probabilities = logits.softmax(1).numpy()
    scores = []
    for label in (0, 1):
        truth = (targets.numpy() == label) & counted
        p = probabilities[:, label] * counted
        scores.append(2 * (p * truth).sum() / (p.sum() + truth.sum()))
    assert float(dice(logits, targets, 255)) == pytest.approx(1 - np.mean(scores), rel=1e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_losses_an_ignored_pixel_changes_nothing(batch, name: str, weights) -> None:
    logits, targets = batch
    before = LOSSES[name](logits, targets, 255, weights)
    changed = logits.clone()
    changed[0, :, :2] = 100 * torch.randn(3, 2, 6)
    torch.testing.assert_close(LOSSES[name](changed, targets, 255, weights), before)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_a_batch_that_is_all_ignored_has_no_loss_and_no_gradient(name: str) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = LOSSES[name](logits, torch.full((1, 4, 4), 255), 255, None)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max().item() == 0


def test_losses_sums(batch) -> None:
    logits, targets = batch
    both = weighted_sum(parse_terms("cross-entropy+0.5*dice"), 255, WEIGHTS)(logits, targets)
    expected = cross_entropy(logits, targets, 255, WEIGHTS) + 0.5 * dice(
        logits, targets, 255, WEIGHTS
    )
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize("text", ["dice*2", "x*dice", "-1*dice", "nan*dice"])
def test_losses_a_senseless_factor_is_named(text: str) -> None:
    with pytest.raises(ModelInputError, match="not a positive factor|must be one of cross-entropy"):
        weighted_sum(parse_terms(text), 255, None)


def test_losses_an_unknown_loss_names_those_that_exist() -> None:
    with pytest.raises(ModelInputError, match="hinge: must be one of cross-entropy, focal, dice"):
        weighted_sum({"hinge": 1}, 255, None)


def test_losses_class_weights() -> None:
    counts = np.array([600, 300, 100, 0])
    held = np.array([1000, 1000, 200, 0])  # the third class is in one image of five
    median = class_weights_from(counts, held, "median-frequency")
    np.testing.assert_allclose(median, [0.5 / 0.6, 0.5 / 0.3, 1, 0], rtol=1e-6)
    inverse = class_weights_from(counts, held, "inverse-log")
    np.testing.assert_allclose(inverse, 1 / np.log(1.1 + counts / 1000), rtol=1e-6)
    assert class_weights_from(counts, held, "none") is None
    with pytest.raises(ModelInputError, match="must be one of none, median-frequency, inverse-log"):
        class_weights_from(counts, held, "square")
    with pytest.raises(ModelInputError, match="all pixels of the split are ignored"):
        class_weights_from(np.zeros(3, int), np.zeros(3, int), "inverse-log")

"""The exact dense CRF: what it must do to a small image."""

from __future__ import annotations

import pytest
import torch

from segdeploy.models.dense_crf import CrfSettings, refine
from segdeploy.models.errors import ModelInputError


@pytest.fixture
def halves() -> tuple[torch.Tensor, torch.Tensor]:
    """An image of two colors, and logits for them with an error in each half."""
    image = torch.zeros(3, 12, 16, dtype=torch.uint8)
    image[:, :, 8:] = 200
    logits = torch.zeros(2, 12, 16)
    logits[0, :, :8] = logits[1, :, 8:] = 1.0
    logits[:, 5, 3] = torch.tensor([0.0, 0.5])
    logits[:, 2, 12] = torch.tensor([0.5, 0.0])
    return logits, image


def test_dense_crf_isolated_errors_go_and_the_edge_stays(halves) -> None:
    logits, image = halves
    refined = refine(logits, image)
    torch.testing.assert_close(refined.sum(0), torch.ones(12, 16))
    labels = refined.argmax(0)
    assert bool((labels[:, :8] == 0).all())
    assert bool((labels[:, 8:] == 1).all())


def test_dense_crf_one_step_is_the_papers_update(halves) -> None:
    logits, image = halves
    logits, image = logits[:, :3, 6:10], image[:, :3, 6:10]
    settings = CrfSettings(iterations=1)
    places = [(y, x) for y in range(3) for x in range(4)]

    def affinities(pixels: float, colors: float | None) -> torch.Tensor:
        k = torch.zeros(12, 12)
        for i, (y, x) in enumerate(places):
            for j, (v, u) in enumerate(places):
                if i != j:
                    d = ((y - v) ** 2 + (x - u) ** 2) / pixels**2
                    if colors is not None:
                        difference = image[:, y, x].float() - image[:, v, u].float()
                        d = d + float(difference.square().sum()) / colors**2
                    k[i, j] = torch.exp(torch.tensor(-0.5 * d))
        return k / (k.sum(0).sqrt()[None] * k.sum(1).sqrt()[:, None])

    kernel = settings.smoothness_weight * affinities(settings.smoothness_pixels, None)
    kernel += settings.appearance_weight * affinities(
        settings.appearance_pixels, settings.appearance_colors
    )
    unary = logits.reshape(2, -1).log_softmax(0)
    expected = (unary + unary.exp() @ kernel.T).softmax(0).reshape(2, 3, 4)
    torch.testing.assert_close(refine(logits, image, settings), expected, rtol=1e-4, atol=1e-5)


def test_dense_crf_no_iterations_is_softmax_and_large_images_are_refused(halves) -> None:
    logits, image = halves
    unrefined = refine(logits, image, CrfSettings(iterations=0))
    torch.testing.assert_close(unrefined, logits.softmax(0))
    with pytest.raises(ModelInputError, match="quadratic in their number"):
        refine(torch.zeros(2, 200, 200), torch.zeros(3, 200, 200, dtype=torch.uint8))

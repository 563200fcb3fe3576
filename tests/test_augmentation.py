"""Image and mask move together, by the scale that was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segdeploy.models.augmentation import Augment, Augmentation
from segdeploy.models.errors import ModelInputError

MEAN = (0.5, 0.25, 0.75)
IGNORE = 255
SIZE = (60, 90)


def blocks(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A mask of large blocks of the classes 0..5, and an image that is 40 times the class."""
    rows, columns = torch.arange(height) * 2 // height, torch.arange(width) * 3 // width
    mask = (rows[:, None] * 3 + columns[None]).to(torch.uint8)
    return (mask * 40).expand(3, -1, -1).contiguous(), mask


def augmented(frame: tuple[int, int] = SIZE, seed: int = 0, **options) -> tuple:
    torch.manual_seed(seed)
    wanted = Augmentation(**{"crop": SIZE, "horizontal_flip": False, **options})
    return Augment(wanted, SIZE, MEAN, IGNORE)(*blocks(*frame))


@pytest.mark.parametrize("frame", [SIZE, (120, 180), (30, 45)])
def test_augmentation_scale_1_fits_a_frame_of_the_same_aspect_into_the_size(
    frame: tuple[int, int],
) -> None:
    image, mask = augmented(frame, scale=(1.0, 1.0))
    expected = blocks(*SIZE)
    assert torch.equal(mask, expected[1])
    assert (image.float() - expected[0]).abs().mean() < 3


def test_augmentation_half_the_scale_is_a_quarter_of_the_area_and_the_rest_is_ignored() -> None:
    image, mask = augmented(scale=(0.5, 0.5))
    outside = mask == IGNORE
    assert outside.float().mean() == 0.75
    assert image[:, outside].unique(dim=1).tolist() == [[128], [64], [191]]


def test_augmentation_twice_the_scale_shows_a_quarter_of_the_frame() -> None:
    for seed in range(5):
        _, mask = augmented(scale=(2.0, 2.0), seed=seed)
        classes, counts = mask.unique(return_counts=True)
        assert IGNORE not in classes
        # A class takes a sixth of the frame, and so up to two thirds of a quarter of it.
        assert counts.max() >= mask.numel() / 4


@pytest.mark.parametrize("seed", range(8))
def test_augmentation_image_and_mask_move_together(seed: int) -> None:
    image, mask = augmented(
        seed=seed, scale=(0.6, 1.7), rotation=30.0, horizontal_flip=True, vertical_flip=True
    )
    assert set(mask.unique().tolist()) <= {*range(6), IGNORE}
    inside = mask != IGNORE
    near = (image[0].float() / 40 - mask.float()).abs() < 0.2
    assert near[inside].float().mean() > 0.85  # but for the blurred edges
    # Bilinear interpolation mixes the fill with a frame's border: pixels away from the frame hold
    # the fill alone.
    near_frame = nn.functional.max_pool2d(inside[None].float(), 5, 1, 2)[0].bool()
    assert ((image[1][~near_frame].float() - 64).abs() < 2).all()


def test_augmentation_a_narrow_frame_is_never_scaled_to_nothing() -> None:
    _, mask = augmented((1, 5000), scale=(0.01, 0.01))
    assert mask.shape == SIZE


def test_augmentation_color_leaves_the_mask_alone() -> None:
    image, mask = augmented(scale=(1.0, 1.0), color=0.8)
    assert torch.equal(mask, blocks(*SIZE)[1])
    assert not torch.equal(image, blocks(*SIZE)[0])


@pytest.mark.parametrize("options", [{"scale": (1, 3000)}, {"crop": (99999, 99999)}])
def test_augmentation_senseless_sizes_are_refused(options: dict) -> None:
    with pytest.raises(ModelInputError, match="is not supported; lower it"):
        Augmentation(**{"crop": SIZE, **options})

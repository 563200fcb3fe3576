"""Labels without upsampled logits: the very labels of `F.interpolate(...).argmax(1)`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segdeploy.runtime.late_upsampling import labels_of_low_resolution_logits


def whole(scores: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    maps = torch.from_numpy(scores)[None]
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)[0].numpy()


def check(scores: np.ndarray, size: tuple[int, int], align_corners: bool) -> None:
    labels = labels_of_low_resolution_logits(scores, size, align_corners=align_corners)
    maps = whole(scores, size, align_corners)
    assert labels.shape == size
    assert labels.dtype == np.uint8
    different = labels != maps.argmax(0)
    # Only what float32 cannot tell apart may differ.
    chosen = np.take_along_axis(maps, labels[None].astype(np.intp), 0)[0]
    gap = (maps.max(0) - chosen)[different]
    assert (gap <= 1e-6 * max(1.0, float(np.abs(scores).max()))).all()


SIDE = st.integers(1, 9)


@settings(deadline=None, max_examples=400)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.tuples(SIDE, SIDE),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.booleans(),
    st.sampled_from(("rough", "smooth", "ties", "flat")),
)
def test_late_upsampling_any_map_gives_the_whole_graphs_labels(
    seed: int, classes: int, small: tuple, size: tuple, align_corners: bool, kind: str
) -> None:
    scores = np.random.default_rng(seed).normal(0, 1, (classes, *small)).astype(np.float32)
    if kind == "smooth":
        scores = np.cumsum(np.cumsum(scores, 1), 2).astype(np.float32)
    elif kind == "ties":
        scores = np.round(scores)
    elif kind == "flat":
        scores = np.zeros_like(scores)
    check(scores, size, align_corners)


@pytest.mark.parametrize("align_corners", [False, True])
def test_late_upsampling_without_ties_every_label_is_equal(align_corners: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        coarse = rng.normal(0, 3, (11, 6, 8)).astype(np.float32)
        scores = whole(coarse, (23, 30), True)
        check(scores, (360, 480), align_corners)
        labels = labels_of_low_resolution_logits(scores, (360, 480), align_corners=align_corners)
        expected = whole(scores, (360, 480), align_corners).argmax(0)
        assert (labels != expected).sum() <= 2  # of 172,800: nearer to a tie than float32 can tell


def test_late_upsampling_a_class_that_leads_at_no_corner_may_win_inside() -> None:
    # Second everywhere, and first in the middle, where the other two have fallen to a half.
    scores = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[0.6, 0.6]]], np.float32)
    labels = labels_of_low_resolution_logits(scores, (1, 5), align_corners=True)
    assert 2 in labels
    assert labels.tolist() == whole(scores, (1, 5), True).argmax(0).tolist()


def test_late_upsampling_equal_classes_give_the_first_as_argmax_does() -> None:
    scores = np.zeros((4, 3, 3), np.float32)
    scores[1:3] = 1
    assert (labels_of_low_resolution_logits(scores, (10, 10), align_corners=False) == 1).all()

"""Resizes that move behind pointwise convolutions, and those that stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import helper
from torch import nn

from segdeploy.optimizer import optimize as optimizing

from .graphs import (
    SIZE,
    against,
    check_equal,
    convolutions,
    graph_of,
    image,
    operators,
    random,
    result_of,
    traced,
)


class Upsampled(nn.Module):
    """21 classes taken from 32 channels behind the upsampling, instead of before it."""

    def __init__(self, mode: str, *, shared: bool = False, down: bool = False):
        super().__init__()
        self.mode, self.shared, self.down = mode, shared, down
        self.features = nn.Conv2d(3, 32, 3, stride=1 if down else 4, padding=1)
        self.classify = nn.Conv2d(32, 21, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x).relu()
        aligned = {"align_corners": True} if self.mode == "bilinear" else {}
        size = [side // 4 for side in SIZE] if self.down else list(SIZE)
        if self.down:
            scores = F.interpolate(self.classify(features), size=size, mode=self.mode, **aligned)
            return F.interpolate(scores.relu(), size=list(SIZE), mode="nearest")
        large = F.interpolate(features, size=size, mode=self.mode, **aligned)
        scores = self.classify(large)
        return scores + large[:, :21] if self.shared else scores


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_commute_resize_the_classifier_moves_before_the_upsampling(mode: str) -> None:
    torch.manual_seed(0)
    before = traced(Upsampled(mode), 21)
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert operators(after)[-2:] == ["Conv", "Resize"]
    assert len(result_of(optimization, "commute resizes")[0]) == 1
    # The low-resolution logits has a sixteenth of the pixels.
    features = 32 * 27 * 6 * 8
    assert optimization.before.macs == features + 21 * 32 * 24 * 32
    assert optimization.after.macs == features + 21 * 32 * 6 * 8


def test_commute_resize_a_shrinking_resize_moves_before_the_classifier() -> None:
    torch.manual_seed(0)
    before = traced(Upsampled("bilinear", down=True), 21)
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert optimization.after.macs < optimization.before.macs


class Enlarged(nn.Module):
    """A linear head that is enlarged before it is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(3, 8, 3, stride=2, padding=rate, dilation=rate) for rate in (1, 2)
        )
        self.combine, self.classify = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = self.combine(torch.cat([branch(x) for branch in self.branches], 1))
        large = F.interpolate(joined, size=list(SIZE), mode="bilinear", align_corners=True)
        return self.classify(large)


def test_commute_resize_a_classifier_that_moved_to_its_head_is_folded_into_it() -> None:
    torch.manual_seed(0)
    before = traced(Enlarged(), 2)
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert convolutions(after) == [[2, 3, 3, 3], [2, 3, 3, 3]]
    assert result_of(optimization, "fold linear heads again")[0]


def test_commute_resize_a_shrinking_resize_does_not_take_the_classifier_from_its_head() -> None:
    from segdeploy.models.multi_scale import MultiScaleInput
    from segdeploy.models.semantic_segmentation_model import SemanticSegmentationModel

    torch.manual_seed(0)
    scales = (0.5, 1.0, 1.5)
    network = MultiScaleInput(SemanticSegmentationModel(5, width=4), scales=scales)
    before = traced(network, 5)
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert len(result_of(optimization, "fold linear heads")[0]) == 3
    assert all(len(shape) == 4 and shape[0] != 32 for shape in convolutions(after)[-4:])


def test_commute_resize_an_upsampled_map_with_another_reader_stays() -> None:
    torch.manual_seed(0)
    before = traced(Upsampled("bilinear", shared=True), 21)
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert result_of(optimization, "commute resizes")[0] == ()
    assert "has another reader" in result_of(optimization, "commute resizes")[1][0]


def test_commute_resize_a_cubic_resize_is_not_an_average_of_neighbors() -> None:
    torch.manual_seed(0)
    before = traced(Upsampled("bicubic"), 21)
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert {step.name for step in optimization.steps if step.rewrites} == {"fold shapes"}


def test_commute_resize_a_resize_that_scales_channels_is_left_alone() -> None:
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["r"], name="r", mode="nearest"),
        helper.make_node("Conv", ["r", "w"], ["y"], name="c"),
    ]
    weights = {"scales": np.array([1, 2, 4, 4], np.float32), "w": random(2, 6, 1, 1)}
    before = graph_of(nodes, [1, 2, 24, 28], weights, [1, 3, 6, 7])
    after, optimization = optimizing.optimize_graph(before, check=against(before))
    check_equal(before, after, image(1, 3, 6, 7))
    assert result_of(optimization, "commute resizes") == ((), ())


def test_commute_resize_a_swap_that_saves_resizing_but_not_multiplying_is_left() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "classify"),
        helper.make_node("Resize", ["a", "", "", "sizes"], ["y"], "enlarge", mode="linear"),
    ]
    weights = {"w": random(64, 3, 1, 1), "sizes": np.array([1, 64, 16, 16])}
    before = graph_of(nodes, [1, 64, 16, 16], weights, [1, 3, 8, 8])
    after, optimization = optimizing.optimize_graph(before)
    assert operators(after) == ["Conv", "Resize"]
    assert result_of(optimization, "commute resizes") == ((), ())

"""The image-pooling branch is projected once, at one pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import helper
from torch import nn

from segdeploy.commands.export import trace
from segdeploy.models.network import Network
from segdeploy.optimizer import optimize as optimizing
from segdeploy.proof.dilation import prove_dilations, prove_trace

from .graphs import (
    SIZE,
    against,
    check_equal,
    graph_of,
    image,
    operators,
    random,
    result_of,
)


class Pooled(nn.Module):
    """Two branches and image pooling, each with a ReLU, joined and projected."""

    def __init__(self, *, pooled: int = 1, maps: int = 2, bias: bool = True):
        super().__init__()
        self.pooled, self.maps = pooled, maps
        self.features = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.branch = nn.Conv2d(8, 6, 3, padding=2, dilation=2)
        self.pool = nn.Conv2d(8, 5, 1)
        self.project = nn.Conv2d(5 * pooled + 6 * maps, 4, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x).relu()
        vector = self.pool(features.mean((2, 3), keepdim=True)).relu()
        wide = F.interpolate(vector, size=features.shape[2:], mode="bilinear")
        maps = [self.branch(features).relu()] * self.maps
        parts = [*maps[:1], *[wide] * self.pooled, *maps[1:]]
        scores = self.project(torch.cat(parts, 1)).relu()
        return F.interpolate(scores, size=x.shape[2:], mode="bilinear")


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("options", [{}, {"pooled": 2, "bias": False}, {"maps": 1}])
def test_project_pooled_branch_is_projected_once(options: dict, dynamic: bool) -> None:
    torch.manual_seed(0)
    network = Network(Pooled(**options).eval(), 4, SIZE, "net")
    before = trace(network, SIZE, dynamic=dynamic, name="net")
    tensor = torch.from_numpy(image(1, 3, *SIZE))
    calls = prove_trace(network.module, network, before, tensor).calls
    after, optimization = optimizing.optimize_graph(before)
    for shape in [(1, 3, *SIZE)] + ([(3, 3, 41, 57)] if dynamic else []):
        check_equal(before, after, image(*shape))
    assert len(result_of(optimization, "project pooled branches")[0]) == 1
    assert operators(after).count("Resize") == 1
    if not dynamic:
        assert optimization.after.macs < optimization.before.macs
    assert all(p.holds for p in prove_dilations(calls, after, tensor)[0])


def test_project_pooled_branch_a_large_convolution_of_one_pixel_is_not_made_larger() -> None:
    sizes = np.array([1, 2, 4, 4], np.int64)
    nodes = [
        helper.make_node("Conv", ["x", "wide"], ["p"], name="p", pads=[0] * 4),
        helper.make_node("Resize", ["p", "", "", "sizes"], ["r"], name="r", mode="linear"),
        helper.make_node("Conv", ["x", "small"], ["a"], name="a", strides=[8, 8]),
        helper.make_node("Concat", ["a", "r"], ["j"], axis=-3),
        helper.make_node("Conv", ["j", "join"], ["y"], name="c"),
    ]
    weights = {
        "sizes": sizes, "wide": random(2, 3, 32, 32), "small": random(12, 3, 8, 8),
        "join": random(8, 14, 1, 1),
    }  # fmt: skip
    before = graph_of(nodes, [1, 8, 4, 4], weights, [1, 3, 32, 32])
    after, optimization = optimizing.optimize_graph(before, check=against(before))
    check_equal(before, after, image(1, 3, 32, 32))
    assert optimization.after.macs <= optimization.before.macs

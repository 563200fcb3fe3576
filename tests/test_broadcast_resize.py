"""Resizes of 1x1 feature maps become broadcasts."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from segdeploy.optimizer import optimize as optimizing

from .graphs import (
    check_equal,
    graph_of,
    image,
    operators,
    result_of,
)


@pytest.mark.parametrize("reader", ["Mul", "Concat"])
def test_broadcast_resize_a_1x1_map_is_broadcast_and_not_interpolated(reader: str) -> None:
    sizes = np.array([1, 3, 6, 7], np.int64)
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=1),
        helper.make_node("Resize", ["m", "", "", "sizes"], ["r"], name="r", mode="linear"),
        helper.make_node(reader, ["x", "r"], ["y"], **({"axis": 1} if reader == "Concat" else {})),
    ]
    channels = 6 if reader == "Concat" else 3
    constants = {"sizes": sizes, "axes": np.array([2, 3], np.int64)}
    before = graph_of(nodes, [1, channels, 6, 7], constants, [1, 3, 6, 7])
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, 6, 7))
    assert "Resize" not in operators(after)
    assert ("Expand" in operators(after)) == (reader == "Concat")
    assert len(result_of(optimization, "broadcast resizes")[0]) == 1


def test_broadcast_resize_a_resize_that_nobody_reads_harms_no_pass() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], "mean"),
        helper.make_node("Resize", ["m", "", "", "sizes"], ["unread"], "idle", mode="linear"),
        helper.make_node("Relu", ["x"], ["y"], "relu"),
    ]
    weights = {"axes": np.array([2, 3]), "sizes": np.array([1, 3, 8, 8])}
    before = graph_of(nodes, [1, 3, 8, 8], weights, [1, 3, 8, 8])
    _, optimization = optimizing.optimize_graph(before)
    assert not any("undone" in line for step in optimization.steps for line in step.skipped)

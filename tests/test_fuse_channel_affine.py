"""Factors and offsets a channel behind a convolution: each rule, and what is left as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from segdeploy.contract import CALL_KEY, MODULE_KEY
from segdeploy.optimizer.pass_result import PassResult
from segdeploy.optimizer.passes.fuse_channel_affine import fuse_channel_affine

from .graphs import check_equal, graph_of, image, operators, random

SIDES = [1, 3, 6, 7]


def fused(before: onnx.ModelProto) -> tuple[onnx.ModelProto, PassResult]:
    model = ir.from_proto(before)
    result = fuse_channel_affine(model)
    return ir.to_proto(model), result


def behind_convolution(
    *nodes: onnx.NodeProto, weights: dict, transposed: bool = False, groups: int = 1
) -> onnx.ModelProto:
    kind, shape = (
        ("ConvTranspose", (4, 2, 3, 3)) if transposed else ("Conv", (4, 3 // groups, 3, 3))
    )
    if transposed:
        first = [
            helper.make_node("Conv", ["x", "w0"], ["f"], "first"),
            helper.make_node(kind, ["f", "w", "b"], ["c"], "conv", pads=[1] * 4, group=groups),
        ]
        weights = {"w0": random(4, 3, 1, 1), "b": random(2 * groups), **weights}
    else:
        first = [helper.make_node(kind, ["x", "w", "b"], ["c"], "conv", pads=[1] * 4)]
        weights = {"b": random(4), **weights}
    channels = 2 * groups if transposed else 4
    weights = {"w": random(*shape), **weights}
    return graph_of([*first, *nodes], [1, channels, 6, 7], weights, SIDES)


def norm(channels: int) -> dict:
    return {
        "scale": random(channels),
        "bias": random(channels) + 1,
        "mean": random(channels),
        "var": np.abs(random(channels)) + 0.5,
    }


def batch_norm(source: str, out: str, name: str = "norm") -> onnx.NodeProto:
    inputs = [source, "scale", "bias", "mean", "var"]
    return helper.make_node("BatchNormalization", inputs, [out], name, epsilon=1e-3)


@pytest.mark.parametrize(("transposed", "groups"), [(False, 1), (True, 1), (True, 2)])
def test_fuse_channel_affine_batch_norm_goes_into_its_convolution(
    transposed: bool, groups: int
) -> None:
    channels = 2 * groups if transposed else 4
    before = behind_convolution(
        batch_norm("c", "y"), weights=norm(channels), transposed=transposed, groups=groups
    )
    after, result = fused(before)
    assert "BatchNormalization" not in operators(after)
    assert result.rewrites == ["norm into conv"]
    check_equal(before, after, image(*SIDES))


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1,), ()])
@pytest.mark.parametrize("kind", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("first", [True, False])
def test_fuse_channel_affine_a_constant_a_channel_goes_into_the_convolution(
    shape: tuple, kind: str, first: bool
) -> None:
    inputs = ["c", "k"] if first else ["k", "c"]
    before = behind_convolution(
        helper.make_node(kind, inputs, ["y"], "op"), weights={"k": np.abs(random(*shape)) + 0.5}
    )
    after, _ = fused(before)
    check_equal(before, after, image(*SIDES))
    divides_a_constant = kind == "Div" and not first  # is not linear in the convolution
    assert operators(after) == (["Conv", "Div"] if divides_a_constant else ["Conv"])


def test_fuse_channel_affine_a_chain_is_fused_whole_and_its_origin_is_carried_along() -> None:
    before = behind_convolution(
        batch_norm("c", "n"),
        helper.make_node("Mul", ["n", "gamma"], ["s"], "scaled"),
        helper.make_node("Add", ["s", "beta"], ["y"], "shifted"),
        weights={**norm(4), "gamma": random(4, 1, 1), "beta": random(4, 1, 1)},
    )
    notes = {"conv": "block.conv", "norm": "block.norm", "scaled": "block", "shifted": "block"}
    for node in before.graph.node:
        node.metadata_props.add(key=MODULE_KEY, value=notes[node.name])
        if node.name == "conv":
            node.metadata_props.add(key=CALL_KEY, value="block.conv [2]")
    after, _ = fused(before)
    check_equal(before, after, image(*SIDES))
    (node,) = after.graph.node
    properties = {entry.key: entry.value for entry in node.metadata_props}
    # It computes the convolution's call, and gives what the last module gave.
    assert properties == {CALL_KEY: "block.conv [2]", MODULE_KEY: "block"}


@pytest.mark.parametrize("tiny", [1e-9, -1e-12])
def test_fuse_channel_affine_a_tiny_offset_is_not_zero(tiny: float) -> None:
    """`x + 1e-9` keeps a division from zero: it may not vanish beside a bias."""
    node = helper.make_node("Add", ["c", "k"], ["y"], "tiny")
    before = behind_convolution(node, weights={"k": np.float32(tiny).reshape(1)})
    after, result = fused(before)
    assert operators(after) == ["Conv", "Add"]
    assert result.skipped == ["tiny: float32 cannot hold it inside the weights"]


def test_fuse_channel_affine_what_underflows_stays() -> None:
    node = helper.make_node("Mul", ["c", "k"], ["y"], "small")
    before = behind_convolution(node, weights={"k": np.float32(1e-39).reshape(1)})
    after, result = fused(before)
    assert operators(after) == ["Conv", "Mul"]
    assert "float32 cannot hold" in result.skipped[0]


def test_fuse_channel_affine_a_value_with_another_reader_and_a_constant_a_pixel_stay() -> None:
    read_twice = behind_convolution(
        helper.make_node("Mul", ["c", "k"], ["m"], "scaled"),
        helper.make_node("Add", ["m", "c"], ["y"], "sum"),
        weights={"k": random(4, 1, 1)},
    )
    after, result = fused(read_twice)
    assert operators(after) == ["Conv", "Mul", "Add"]
    assert result.skipped == ["scaled: conv has another reader"]
    a_pixel = behind_convolution(
        helper.make_node("Mul", ["c", "k"], ["y"], "mask"), weights={"k": random(6, 7)}
    )
    assert operators(fused(a_pixel)[0]) == ["Conv", "Mul"]
    a_row = behind_convolution(
        helper.make_node("Mul", ["c", "k"], ["y"], "rows"), weights={"k": random(7)}
    )
    assert operators(fused(a_row)[0]) == ["Conv", "Mul"]


def test_fuse_channel_affine_a_shared_weight_is_fused_once_for_all() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "one", pads=[1] * 4),
        batch_norm("a", "an"),
        helper.make_node("Relu", ["an"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w"], ["b"], "two", pads=[1] * 4),
        batch_norm("b", "y", "second"),
    ]
    before = graph_of(nodes, SIDES, {"w": random(3, 3, 3, 3), **norm(3)}, SIDES)
    after, _ = fused(before)
    check_equal(before, after, image(*SIDES))
    assert operators(after) == ["Conv", "Relu", "Conv"]
    assert len(after.graph.initializer) == 2  # one weight and one bias, read by both

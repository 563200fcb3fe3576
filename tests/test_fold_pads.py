"""A Pad before a convolution: what it takes over, and what it must not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from segdeploy.optimizer.passes.fold_pads import fold_pads

from .graphs import check_equal, graph_of, image, operators, random

SIDES = [1, 3, 6, 7]


def folded(before: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    model = ir.from_proto(before)
    result = fold_pads(model)
    return ir.to_proto(model), result.skipped


def padded(amounts: list[int], value: float | None = 0.0, own: int = 0, **options) -> tuple:
    inputs = ["x", "amounts"] + (["value"] if value is not None else [])
    axes = options.pop("axes", None)
    weights = {"amounts": np.array(amounts, np.int64), "w": random(2, 3, 3, 3)}
    if value is not None:
        weights["value"] = np.float32(value)
    if axes is not None:
        inputs = [*inputs, *[""] * (3 - len(inputs)), "axes"]
        weights["axes"] = np.array(axes, np.int64)
    nodes = [
        helper.make_node("Pad", inputs, ["p"], "pad", **options),
        helper.make_node("Conv", ["p", "w"], ["y"], "conv", pads=[own] * 4),
    ]
    if axes is None:
        begin, end = amounts[2:4], amounts[6:8]
    else:
        begin, end = amounts[: len(axes)], amounts[len(axes) :]
    height, width = (
        side + a + b + 2 * own - 2 for side, a, b in zip((6, 7), begin, end, strict=False)
    )
    return graph_of(nodes, [1, 2, height, width], weights, SIDES)


@pytest.mark.parametrize("value", [0.0, None])
@pytest.mark.parametrize("own", [0, 2])
@pytest.mark.parametrize("around", [(0, 0, 1, 1), (2, 1, 0, 3)])
def test_fold_pads_zeros_around_rows_and_columns_become_the_convolutions_own(
    value: float | None, own: int, around: tuple
) -> None:
    top, left, bottom, right = around
    before = padded([0, 0, top, left, 0, 0, bottom, right], value, own)
    after, _ = folded(before)
    check_equal(before, after, image(*SIDES))
    (node,) = after.graph.node
    pads = next(a.ints for a in node.attribute if a.name == "pads")
    assert list(pads) == [side + own for side in around]


def test_fold_pads_named_axes_are_read() -> None:
    before = padded([1, 0, 2, 1], axes=[-2, 3])
    after, _ = folded(before)
    assert operators(after) == ["Conv"]
    check_equal(before, after, image(*SIDES))


@pytest.mark.parametrize(
    ("amounts", "value", "options"),
    [
        ([0, 0, 1, 1, 0, 0, 1, 1], 1e-9, {}),
        ([0, 0, 1, 1, 0, 0, 1, 1], None, {"mode": "reflect"}),
        ([0, 0, 1, 1, 0, 0, 1, 1], None, {"mode": "edge"}),
        ([0, 0, -1, 1, 0, 0, 1, 1], 0.0, {}),
    ],
)
def test_fold_pads_any_other_padding_stays(
    amounts: list, value: float | None, options: dict
) -> None:
    before = padded(amounts, value, **options)
    after, skipped = folded(before)
    assert operators(after) == ["Pad", "Conv"]
    assert skipped == ["conv: pad is no constant padding with zeros"]


def test_fold_pads_another_reader_keeps_the_pad() -> None:
    nodes = [
        helper.make_node("Pad", ["x", "amounts"], ["p"], "pad"),
        helper.make_node("Conv", ["p", "w"], ["c"], "conv"),
        helper.make_node("MaxPool", ["p"], ["m"], "pool", kernel_shape=[3, 3]),
        helper.make_node("Add", ["c", "m"], ["y"], "sum"),
    ]
    weights = {"amounts": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": random(3, 3, 3, 3)}
    before = graph_of(nodes, [1, 3, 6, 7], weights, SIDES)
    after, _ = folded(before)
    check_equal(before, after, image(*SIDES))
    assert sorted(operators(after)) == ["Add", "Conv", "MaxPool", "Pad"]

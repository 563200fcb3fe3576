"""What does not depend on the image is computed once, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from torch import nn

from segdeploy.optimizer.passes.fold_constants import fold_constants, fold_shapes

from .graphs import SIZE, check_equal, graph_of, image, operators, random, traced


def folded(before: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(before)
    fold_constants(model)
    return ir.to_proto(model)


@pytest.mark.parametrize(("kind", "value"), [("Add", 1e-9), ("Sub", 1e-9), ("Mul", 1 + 1e-7)])
def test_fold_constants_a_constant_is_never_matched_within_a_tolerance(
    kind: str, value: float
) -> None:
    nodes = [helper.make_node(kind, ["x", "k"], ["y"], "op")]
    before = graph_of(nodes, [1, 3, 4, 4], {"k": np.float32(value)}, [1, 3, 4, 4])
    assert operators(folded(before)) == [kind]


def test_fold_constants_a_weight_that_is_computed_becomes_a_constant() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            conv = nn.Conv2d(3, 32, 9, padding=4)  # larger than what is folded by itself
            self.conv = nn.utils.parametrizations.weight_norm(conv)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    before = traced(Normed(), 32)
    assert len(operators(before)) > 1
    after = folded(before)
    assert operators(after) == ["Conv"]
    check_equal(before, after, image(1, 3, *SIZE))


def test_fold_constants_folding_makes_no_file_larger() -> None:
    nodes = [
        helper.make_node("Expand", ["k", "shape"], ["e"], "expand"),
        helper.make_node("Add", ["x", "e"], ["y"], "sum"),
    ]
    weights = {"k": random(1, 3, 1, 1), "shape": np.array([1, 3, 64, 64])}
    before = graph_of(nodes, [1, 3, 64, 64], weights, [1, 3, 64, 64])
    assert folded(before).ByteSize() < 2 * before.ByteSize()


def test_fold_constants_transposed_constants_are_folded_and_shared() -> None:
    nodes = [
        helper.make_node("Transpose", ["k"], ["t"], "t", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["a"], "a"),
        helper.make_node("MatMul", ["a", "same"], ["y"], "b"),
    ]
    values = random(4, 4)
    weights = {"k": values, "same": np.ascontiguousarray(values.T)}
    before = graph_of(nodes, [1, 3, 4, 4], weights, [1, 3, 4, 4])
    after = folded(before)
    assert operators(after) == ["MatMul", "MatMul"]
    assert len(after.graph.initializer) == 1
    check_equal(before, after, image(1, 3, 4, 4))


def test_fold_constants_two_calls_of_a_module_on_one_value_stay_two() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * self.conv(x)

    assert operators(folded(traced(Twice(), 2))).count("Conv") == 2


def test_fold_constants_shapes_alone_leave_every_float() -> None:
    """Rounding of a folded weight may be refused by parity; the axes are still constant then."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Size", ["shape"], ["rank"], "rank"),
        helper.make_node("Sub", ["rank", "two"], ["last"], "last"),
        helper.make_node("Unsqueeze", ["last", "zero"], ["axes"], "axes"),
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], "mean", keepdims=1),
        helper.make_node("Mul", ["w", "w"], ["squared"], "squared"),
        helper.make_node("Add", ["m", "squared"], ["y"], "add"),
    ]
    weights = {"two": np.int64(2), "zero": np.array([0]), "w": np.ones((1, 1, 1, 1), np.float32)}
    before = graph_of(nodes, [1, 3, 1, 7], weights, [1, 3, 6, 7])
    model = ir.from_proto(before)
    fold_shapes(model)
    after = ir.to_proto(model)
    assert operators(after) == ["ReduceMean", "Mul", "Add"]
    check_equal(before, after, image(1, 3, 6, 7))

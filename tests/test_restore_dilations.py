"""Space-to-batch around a convolution, as tensorflow-onnx writes it, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from segdeploy.optimizer.passes.restore_dilations import restore_dilations

from .graphs import check_equal, image, operators, random

LAST = 2**31 - 1


def restored(before: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str], list[str]]:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(before, data_prop=True))
    result = restore_dilations(model)
    return ir.to_proto(model), result.rewrites, result.skipped


def ints(node: onnx.NodeProto, name: str) -> list[int]:
    return next((list(one.ints) for one in node.attribute if one.name == name), [])


class Graph:
    """Nodes in a row, each of which reads the node before it; `x` is (1, 13, 17, 3), NHWC."""

    def __init__(self, opset: int = 18, batch: int = 1) -> None:
        self.opset, self.batch = opset, batch
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.last = "x"

    def add(self, kind: str, *constants: np.ndarray, **options: object) -> Graph:
        at = len(self.nodes)
        names = [f"c{at}_{place}" for place in range(len(constants))]
        self.weights |= dict(zip(names, constants, strict=True))
        self.nodes.append(
            helper.make_node(kind, [self.last, *names], [f"v{at}"], f"{kind}{at}", **options)
        )
        self.last = f"v{at}"
        return self

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "hand",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [self.batch, 13, 17, 3])],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, [None] * 4)],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def zeros_of(rate: int, side: int, kernel: int, own: int = 0) -> tuple[int, int, int]:
    """SAME padding of one axis: zeros before, behind, and the rows to crop behind the merge."""
    before = (kernel - 1) * rate // 2 - own * rate
    more = -(side + 2 * before) % rate
    return before, before + more, more


def atrous(
    rate: int = 2, *, own: int = 0, opset: int = 18, batch: int = 1, middle: object = None,
    stride: int = 1, merged: int | None = None, mode: str = "DCR", has_crop: bool = True,
) -> Graph:  # fmt: skip
    """The first form: SpaceToDepth of a map whose batch and channels are exchanged."""
    graph = Graph(opset, batch)
    top, bottom, rows = zeros_of(rate, 13, 3, own)
    left, right, columns = zeros_of(rate, 17, 3, own)
    pads = [0, top, left, 0, 0, bottom, right, 0]
    if opset < 11:
        graph.add("Pad", pads=pads)
    else:
        graph.add("Pad", np.array(pads, np.int64))
    graph.add("Transpose", perm=[3, 0, 1, 2]).add("SpaceToDepth", blocksize=rate)
    graph.add("Transpose", perm=[1, 0, 2, 3])
    graph.add("Conv", random(4, 3, 3, 3), random(4), pads=[own] * 4, strides=[stride] * 2)
    if callable(middle):
        middle(graph)
    graph.add("Transpose", perm=[1, 0, 2, 3])
    graph.add("DepthToSpace", blocksize=merged or rate, **({"mode": mode} if opset > 10 else {}))
    starts, ends = [0, 0], [-rows if rows else LAST, -columns if columns else LAST]
    if has_crop and opset < 10:
        graph.add("Slice", starts=starts, ends=ends, axes=[2, 3])
    elif has_crop:
        graph.add("Slice", *(np.array(one, np.int64) for one in (starts, ends, [2, 3])))
    return graph.add("Transpose", perm=[1, 2, 3, 0])


@pytest.mark.parametrize("opset", [9, 10, 13, 18])
@pytest.mark.parametrize("rate", [2, 3, 5])
def test_restore_dilations_space_to_depth_becomes_a_dilation(rate: int, opset: int) -> None:
    before = atrous(rate, opset=opset).model()
    after, rewrites, skipped = restored(before)
    check_equal(before, after, image(1, 13, 17, 3))
    assert operators(after) == ["Transpose", "Conv", "Transpose"]
    assert ints(after.graph.node[1], "dilations") == [rate, rate]
    assert ints(after.graph.node[1], "pads") == [rate] * 4
    shown = f"{rate}x{rate}"
    assert rewrites == [f"Conv4: dilation {shown}, instead of a split into {shown} maps"]
    assert skipped == []


@pytest.mark.parametrize("batch", [1, 3])
def test_restore_dilations_own_padding_and_batches_stay_right(batch: int) -> None:
    before = atrous(2, own=1, batch=batch).model()
    after, _, _ = restored(before)
    check_equal(before, after, image(batch, 13, 17, 3))
    assert ints(after.graph.node[1], "pads") == [2, 2, 2, 2]


def test_restore_dilations_elementwise_operators_stay_behind_the_convolution() -> None:
    def middle(graph: Graph) -> None:
        graph.add("Add", random(4, 1, 1)).add("Relu").add("Mul", random(1, 4, 1, 1))
        graph.add("BatchNormalization", random(4), random(4), random(4), np.abs(random(4)) + 1)

    before = atrous(3, middle=middle).model()
    after, _, _ = restored(before)
    check_equal(before, after, image(1, 13, 17, 3))
    assert operators(after)[1:-1] == ["Conv", "Add", "Relu", "Mul", "BatchNormalization"]


def test_restore_dilations_of_a_map_that_is_not_cropped_keep_the_padding() -> None:
    before = atrous(3, has_crop=False).model()
    after, _, _ = restored(before)
    check_equal(before, after, image(1, 13, 17, 3))
    assert operators(after) == ["Transpose", "Conv", "Transpose"]


def test_restore_dilations_a_crop_beyond_the_padding_stays() -> None:
    graph = Graph().add("Transpose", perm=[3, 0, 1, 2])
    graph.add("Slice", *(np.array(one, np.int64) for one in ([0, 0], [12, 16], [2, 3])))
    graph.add("SpaceToDepth", blocksize=2).add("Transpose", perm=[1, 0, 2, 3])
    graph.add("Conv", random(4, 3, 3, 3)).add("Transpose", perm=[1, 0, 2, 3])
    graph.add("DepthToSpace", blocksize=2)
    graph.add("Slice", *(np.array(one, np.int64) for one in ([1, 0], [7, -3], [2, 3])))
    before = graph.model()
    after, rewrites, _ = restored(before)
    check_equal(before, after, image(1, 13, 17, 3))
    assert len(rewrites) == 1
    assert "Slice" in operators(after)
    assert "SpaceToDepth" not in operators(after)


@pytest.mark.parametrize("reshaped", [False, True])
def test_restore_dilations_six_axes_with_other_rates_of_rows_and_columns(reshaped: bool) -> None:
    def shape(*sides: int) -> np.ndarray:
        return np.array(sides, np.int64)

    graph = Graph().add("Pad", shape(0, 2, 3, 0, 0, 3, 4, 0))  # 18 x 24
    graph.add("Reshape", shape(-1, 9, 2, 8, 3, 3)).add("Transpose", perm=[2, 4, 0, 1, 3, 5])
    graph.add("Reshape", shape(-1, 9, 8, 3)).add("Transpose", perm=[0, 3, 1, 2])
    graph.add("Conv", random(4, 3, 3, 3)).add("Relu").add("Transpose", perm=[0, 2, 3, 1])
    graph.add("Reshape", shape(2, 3, -1, 7, 6, 4)).add("Transpose", perm=[2, 3, 0, 4, 1, 5])
    graph.add("Reshape", shape(-1, 14, 18, 4))
    if reshaped:
        graph.add("Slice", shape(0, 0), shape(13, 17), shape(1, 2))
    before = graph.model()
    after, rewrites, _ = restored(before)
    check_equal(before, after, image(1, 13, 17, 3))
    assert operators(after) == ["Transpose", "Conv", "Relu", "Transpose"]
    assert ints(after.graph.node[1], "dilations") == [2, 3]
    assert "dilation 2x3" in rewrites[0]


def test_restore_dilations_a_depthwise_convolution_keeps_its_groups() -> None:
    graph = Graph().add("Pad", np.array([0, 2, 2, 0, 0, 3, 3, 0], np.int64))
    graph.add("Transpose", perm=[3, 0, 1, 2]).add("SpaceToDepth", blocksize=2)
    graph.add("Transpose", perm=[1, 0, 2, 3]).add("Conv", random(3, 1, 3, 3), group=3)
    graph.add("Transpose", perm=[1, 0, 2, 3]).add("DepthToSpace", blocksize=2)
    before = graph.model()
    after, rewrites, _ = restored(before)
    check_equal(before, after, image(1, 13, 17, 3))
    assert len(rewrites) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rate": 4, "merged": 2}, "the merge is not that of the split"),
        ({"mode": "CRD"}, "the split map has several readers, or none"),
        ({"middle": lambda graph: graph.add("Softmax", axis=0)}, "mixes pixels of the split map"),
        ({"middle": lambda graph: graph.add("Add", random(6, 9))}, "mixes pixels of the split map"),
        ({"middle": lambda graph: graph.add("Add", random(4, 1, 1, 1))}, "mixes pixels"),
        (
            {"middle": lambda graph: graph.add("Conv", random(4, 4, 1, 1))},
            "is not followed by one convolution",
        ),
    ],
)
def test_restore_dilations_anything_else_stays(options: dict, told: str) -> None:
    rate = options.pop("rate", 2)
    before = atrous(rate, **options, has_crop=False).model()
    after, rewrites, skipped = restored(before)
    assert rewrites == []
    assert operators(after) == operators(before)
    assert told in skipped[0]


def test_restore_dilations_a_stride_or_another_reader_stays() -> None:
    graph = Graph().add("Transpose", perm=[3, 0, 1, 2])
    graph.add("Pad", np.array([0, 0, 0, 0, 0, 0, 3, 3], np.int64))
    graph.add("SpaceToDepth", blocksize=4).add("Transpose", perm=[1, 0, 2, 3])
    graph.add("Conv", random(4, 3, 3, 3), strides=[2, 2]).add("Transpose", perm=[1, 0, 2, 3])
    strided = graph.add("DepthToSpace", blocksize=4).model()
    assert restored(strided)[2] == ["SpaceToDepth2: its convolution has a stride"]
    read_twice = atrous().model()
    read_twice.graph.output.append(
        helper.make_tensor_value_info("v4", TensorProto.FLOAT, [None] * 4)
    )
    assert "has several readers, or none" in restored(read_twice)[2][0]

"""Linear work goes to low-resolution logits: every rule, every refusal, and the same output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper

import segdeploy
from segdeploy.models.dataset import open_dataset
from segdeploy.models.deeplabv3 import DeepLabV3
from segdeploy.models.multi_scale import MultiScaleInput
from segdeploy.onnx_graph.model_file import load_onnx
from segdeploy.optimizer.optimize import PASSES, optimize_graph
from segdeploy.optimizer.pass_result import PassResult
from segdeploy.optimizer.passes.delay_resizes import delay_resizes

from .graphs import SIZE, check_equal, graph_of, image, operators, run, traced

END = np.iinfo(np.int64).min
CONSTANTS = {
    "sizes": np.array([1, 2, 11, 17]),
    "own": np.array([1, 2, 4, 5]),
    "half": np.array([1, 2, 2, 3]),
    "last": np.array([-1]),
    "end": np.array([END]),
    "middle": np.array([-9]),
    "width": np.array([3]),
    "channels": np.array([1]),
    "two": np.array(2.0, np.float32),
    "each": np.array([2.0, 3.0], np.float32).reshape(1, 2, 1, 1),
}


def resize(source: str, output: str, sizes: str = "sizes", **attributes) -> object:
    attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"} | attributes
    return helper.make_node("Resize", [source, "", "", sizes], [output], output, **attributes)


def node(kind: str, *values: str) -> object:
    return helper.make_node(kind, values[:-1], values[-1:], values[-1])


def rewritten(nodes: list, size: list, x: list = [1, 2, 4, 5]) -> tuple[list[str], PassResult]:  # noqa: B006
    used = {name for n in nodes for name in n.input}
    weights = {k: v for k, v in CONSTANTS.items() if k in used}
    before = graph_of(nodes, size, weights, x)
    model = ir.from_proto(before)
    result = delay_resizes(model)
    after = ir.to_proto(model)
    if all(isinstance(side, int) for side in x):
        check_equal(before, after, image(*x))
    return operators(after), result


def mirror(source: str, output: str, end: str = "end", axis: str = "width") -> object:
    return node("Slice", source, "last", end, axis, "last", output)


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners"])
def test_delay_resizes_a_mirrored_and_scaled_sum_is_enlarged_once(coordinates: str) -> None:
    how = {"coordinate_transformation_mode": coordinates}
    nodes = [
        node("Relu", "x", "a"),
        node("Neg", "x", "b"),
        resize("a", "A", **how),
        resize("b", "B", **how),
        mirror("B", "C"),
        node("Add", "A", "C", "s"),
        node("Div", "s", "two", "y"),
    ]
    kinds, result = rewritten(nodes, [1, 2, 11, 17])
    assert kinds == ["Relu", "Neg", "Slice", "Add", "Div", "Resize"]
    assert len(result.rewrites) == 3


def test_delay_resizes_a_resize_to_the_same_size_goes() -> None:
    kinds, result = rewritten([node("Relu", "x", "a"), resize("a", "y", "own")], [1, 2, 4, 5])
    assert kinds == ["Relu"]
    assert "4x5 to itself" in result.rewrites[0]
    # Between the graph's own input and output something must stay.
    assert rewritten([resize("x", "y", "own")], [1, 2, 4, 5])[0] == ["Resize"]


LEFT_ALONE = {
    "cubic": [resize("x", "A", mode="cubic"), mirror("A", "y")],
    "nearest": [resize("x", "A", mode="nearest"), mirror("A", "y")],
    "antialiased": [resize("x", "A", antialias=1), mirror("A", "y")],
    "leaning": [
        resize("x", "A", coordinate_transformation_mode="asymmetric"),
        mirror("A", "y"),
    ],
    "channels": [resize("x", "A"), mirror("A", "y", axis="channels")],
    "a scale a channel": [resize("x", "A"), node("Mul", "A", "each", "y")],
    "nonlinear": [resize("x", "A"), node("Relu", "A", "y")],
    "added to itself": [resize("x", "A"), node("Add", "A", "A", "y")],
    "not from a resize": [
        resize("x", "A"), resize("x", "B", mode="nearest"), node("Add", "A", "B", "y"),
    ],
    "divisor": [resize("x", "A"), node("Div", "two", "A", "y")],
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_delay_resizes_what_is_not_linear_or_symmetric_is_left_alone(case: str) -> None:
    nodes = LEFT_ALONE[case]
    kinds, result = rewritten(nodes, [1, 2, 11, 17])
    assert kinds == [n.op_type for n in nodes]
    assert result.rewrites == []


def test_delay_resizes_integers_are_left_alone() -> None:
    """ONNX Runtime rounds what it interpolates between integers."""
    cast = helper.make_node("Cast", ["x"], ["i"], "cast", to=onnx.TensorProto.INT32)
    back = helper.make_node("Cast", ["A"], ["f"], "back", to=onnx.TensorProto.FLOAT)
    nodes = [cast, resize("i", "A"), back, node("Div", "f", "two", "y")]
    assert rewritten(nodes, [1, 2, 11, 17])[0] == ["Cast", "Resize", "Cast", "Div"]
    seven = numpy_helper.from_array(np.array(7, np.int32), "seven")
    model = graph_of([cast, resize("i", "A"), node("Mul", "A", "seven", "B"),
                      helper.make_node("Cast", ["B"], ["y"], "out", to=onnx.TensorProto.FLOAT)],
                     [1, 2, 11, 17], {"sizes": CONSTANTS["sizes"]}, [1, 2, 4, 5])  # fmt: skip
    model.graph.initializer.append(seven)
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    assert delay_resizes(inferred).rewrites == []


def test_delay_resizes_a_reader_inside_a_branch_is_left_alone() -> None:
    inner = helper.make_graph(
        [mirror("A", "m")], "then", [], [helper.make_tensor_value_info("m", 1, [1, 2, 11, 17])]
    )
    other = helper.make_graph(
        [node("Neg", "A", "n")], "else", [], [helper.make_tensor_value_info("n", 1, None)]
    )
    branch = helper.make_node("If", ["yes"], ["y"], "if", then_branch=inner, else_branch=other)
    weights = {k: CONSTANTS[k] for k in ("sizes", "last", "end", "width")}
    weights["yes"] = np.array(True)
    model = graph_of([resize("x", "A"), branch], [1, 2, 11, 17], weights, [1, 2, 4, 5])
    assert delay_resizes(ir.from_proto(model)).rewrites == []


def test_delay_resizes_a_part_that_is_mirrored_is_left_alone() -> None:
    kinds, result = rewritten([resize("x", "A"), mirror("A", "y", "middle")], [1, 2, 11, 8])
    assert kinds == ["Resize", "Slice"]
    assert result.rewrites == []


def test_delay_resizes_refusals_are_told() -> None:
    shrunk = [resize("x", "A", "half"), mirror("A", "y")]
    _, result = rewritten(shrunk, [1, 2, 2, 3])
    assert result.skipped == ["A: shrinks, or another node reads it, too"]
    read_twice = [resize("x", "A"), mirror("A", "m"), node("Add", "A", "m", "y")]
    _, result = rewritten(read_twice, [1, 2, 11, 17])
    assert "another node reads it" in result.skipped[0]
    unlike = [
        resize("x", "A"),
        resize("x", "B", coordinate_transformation_mode="align_corners"),
        node("Add", "A", "B", "y"),
    ]
    _, result = rewritten(unlike, [1, 2, 11, 17])
    assert "y: its two maps are not enlarged alike" in result.skipped
    unknown = [resize("x", "A"), mirror("A", "y")]
    _, result = rewritten(unknown, [1, 2, "h", "w"], [1, 2, "p", "q"])
    assert result.skipped == ["A: its sizes are not static"]


def test_delay_resizes_several_scales_of_a_mirrored_network_stay_the_same() -> None:
    torch.manual_seed(0)
    network = MultiScaleInput(
        DeepLabV3(4, width=4, stride=2).eval(), scales=(0.5, 1.0, 1.5), flip=True
    )
    before = traced(network, 4)
    folded, _ = optimize_graph(before, passes=PASSES[:1])
    model = ir.from_proto(folded)
    result = delay_resizes(model)
    after = ir.to_proto(model)
    check_equal(before, after, image(1, 3, *SIZE))
    assert sum("as one" in line for line in result.rewrites) >= 3
    assert run(after, image(1, 3, *SIZE)).shape == (1, 4, *SIZE)


def test_delay_resizes_a_mirrored_graph_ends_at_low_resolution_logits_too(
    checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    full, late = tmp_path / "full.onnx", tmp_path / "late.onnx"
    segdeploy.export(checkpoint, full, output="labels", flip=True, optimized=False)
    report = segdeploy.export(checkpoint, late, output="labels", flip=True, late_upsampling=True)
    assert report.notes == ()
    assert report.contract.upsampling == "align-corners"
    assert not any(n.op_type in ("Resize", "ArgMax") for n in load_onnx(late).graph.node)
    with segdeploy.load(full) as one, segdeploy.load(late) as other:
        for frame in open_dataset(dataset).frames("val"):
            image, _ = frame.read()
            assert np.array_equal(one.predict(image), other.predict(image))

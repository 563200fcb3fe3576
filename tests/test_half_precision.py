"""FP16 and BF16: typed graphs, what must stay FP32, and that TensorRT-RTX takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import segdeploy
from segdeploy.calibration.errors import CalibrationInputError
from segdeploy.calibration.fp16_range import float_tensors, fp32_fallbacks_of
from segdeploy.calibration.half_precision import is_half, rounded, to_half
from segdeploy.calibration.layers import fix_shape
from segdeploy.calibration.ranges import observe
from segdeploy.calibration.reference_execution import open_reference_execution
from segdeploy.calibration.thresholds import statistics
from segdeploy.errors import InputError
from segdeploy.onnx_graph.model_file import contract_of, load_onnx, opset_of

from .conftest import SIZE

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = open_reference_execution(model)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (1, 3, *SIZE)).astype(np.float32)


@pytest.mark.parametrize("keep_io", [True, False])
def test_half_precision_everything_is_half_but_the_ends(graph: Path, keep_io: bool) -> None:
    model = load_onnx(graph)
    made = to_half(model, keep_io=keep_io)
    onnx.checker.check_model(made.model, full_check=True)
    assert made.kept == made.clamped == ()
    types = types_of(made.model)
    ends = {model.graph.input[0].name, model.graph.output[0].name}
    assert {types[name] for name in ends} == {FLOAT if keep_io else HALF}
    assert {types[name] for name in set(types) - ends} <= {HALF, TensorProto.INT64}
    weights = [t for t in made.model.graph.initializer if t.name.endswith("weight_float16")]
    assert weights
    # Without the metadata, which is the same in both.
    assert made.model.graph.ByteSize() < 0.55 * model.graph.ByteSize()
    x = image()
    expected = run(model, x)
    found = run(made.model, x)  # run with rounding, a half input is read as float32
    assert np.abs(found - expected).max() < 0.01 * np.ptp(expected)
    assert load_onnx(graph) == model  # the argument is left alone


def test_half_precision_nodes_that_are_kept_compute_in_fp32(graph: Path) -> None:
    model = load_onnx(graph)
    kept = [n.name for n in model.graph.node if n.op_type == "Conv"][2:5]
    made = to_half(model, kept=kept)
    onnx.checker.check_model(made.model, full_check=True)
    assert list(made.kept) == kept
    types = types_of(made.model)
    for node in made.model.graph.node:
        if node.name in kept:
            assert {types[name] for name in (node.input[0], *node.output)} == {FLOAT}
    everything = to_half(model, kept=[n.name for n in model.graph.node])
    assert np.array_equal(run(everything.model, image()), run(model, image()))


def hand_made(nodes: list, weights: dict, y: list = [1, 2, 4, 4]) -> onnx.ModelProto:  # noqa: B006
    made = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info("x", FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", FLOAT, y)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    return fix_shape(helper.make_model(made, opset_imports=opsets, ir_version=9), [1, 2, 4, 4])


def fp32_fallbacks(model: onnx.ModelProto, x: np.ndarray) -> dict[str, str]:
    histograms = observe(model, float_tensors(model), [("frame", x)])
    values = {name: statistics(one) for name, one in histograms.items()}
    return {fallback.node: fallback.reason for fallback in fp32_fallbacks_of(model, values)}


def test_half_precision_an_overflow_is_found_before_it_happens_and_stays_fp32() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["a"], "grow"),
        helper.make_node("Mul", ["a", "small"], ["b"], "shrink"),
        helper.make_node("Relu", ["b"], ["y"], "end"),
    ]
    weights = {"large": np.float32([5e4]), "small": np.float32([1e-4])}
    model = hand_made(nodes, weights)
    x = np.random.default_rng(0).normal(0, 2, (1, 2, 4, 4)).astype(np.float32)
    assert not np.isfinite(run(to_half(model).model, x)).all()
    found = fp32_fallbacks(model, x)
    assert set(found) == {"grow", "shrink"}
    assert "near the FP16 limit 65504" in found["grow"]
    made = to_half(model, kept=list(found))
    expected = run(model, x)
    assert np.abs(run(made.model, x) - expected).max() < 1e-2 * np.ptp(expected)


def test_half_precision_values_that_vanish_and_sums_that_pass_the_range_stay_fp32() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "tiny"], ["a"], "vanish"),
        helper.make_node("Div", ["a", "tiny"], ["b"], "return"),
        helper.make_node("Mul", ["b", "much"], ["c"], "grow"),
        helper.make_node("ReduceMean", ["c", "axes"], ["y"], "mean"),
    ]
    weights = {
        "tiny": np.float32([1e-6]), "much": np.float32([3e3]), "axes": np.array([2, 3]),
    }  # fmt: skip
    model = hand_made(nodes, weights, [1, 2, 1, 1])
    found = fp32_fallbacks(model, np.full((1, 2, 4, 4), 3, np.float32))
    assert "where FP16 loses precision" in found["vanish"]
    assert found["mean"] == "sums 16 values to 1.44e+05"


def test_half_precision_a_constant_beyond_the_range_is_clamped_and_named() -> None:
    model = hand_made(
        [helper.make_node("Min", ["x", "bound"], ["y"], "min")], {"bound": np.float32([1e6])}
    )
    made = to_half(model)
    assert made.clamped == ("bound",)
    constant = next(t for t in made.model.graph.initializer if t.name == "bound_float16")
    assert numpy_helper.to_array(constant) == 65504


def test_half_precision_what_is_typed_or_holds_control_flow_is_refused(graph: Path) -> None:
    half = to_half(load_onnx(graph)).model
    with pytest.raises(CalibrationInputError, match="is FLOAT16 already"):
        to_half(half)
    body = helper.make_graph([], "b", [], [helper.make_tensor_value_info("x", FLOAT, None)])
    node = helper.make_node("If", ["yes"], ["y"], "branch", then_branch=body, else_branch=body)
    with pytest.raises(CalibrationInputError, match="'branch' .If. holds a subgraph"):
        to_half(hand_made([node], {"yes": np.array(True)}))


def test_half_precision_fp16_from_the_command_down_to_an_engine(
    graph: Path, dataset: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    out = tmp_path / "m.onnx"
    report = segdeploy.calibrate(graph, dataset, out, precision="fp16", limit=4)
    assert report.precision == contract_of(load_onnx(out), out).precision == "fp16"
    assert report.int8 == ()
    assert report.accuracy.agreement > 0.999
    assert abs(report.accuracy.miou_drop) < 0.001
    engine = segdeploy.build_engine(out, tmp_path / "m.engine", targets=["sm86", "sm89"])
    assert engine.precision == "fp16"
    assert all(proof.holds for proof in engine.convolutions)
    with pytest.raises(InputError, match="is fp16 already"):
        segdeploy.calibrate(out, dataset, tmp_path / "n.onnx")


def test_half_precision_bytes_in_and_labels_out_may_be_half_between(
    checkpoint: Path, dataset: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    camera, out = tmp_path / "camera.onnx", tmp_path / "m.onnx"
    segdeploy.export(checkpoint, camera, preprocess="BGR", output="labels")
    for precision in ("fp16", "int8"):
        report = segdeploy.calibrate(camera, dataset, out, precision=precision, limit=4)
        assert report.accuracy.agreement > 0.95
        types = types_of(load_onnx(out))
        assert types["image"] == types["labels"] == TensorProto.UINT8
        segdeploy.build_engine(out, tmp_path / "m.engine", targets=["sm86"])


def test_half_precision_bf16_converts_to_the_opset_that_has_it(
    graph: Path, dataset: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    out = tmp_path / "m.onnx"
    with pytest.raises(CalibrationInputError, match=r"opset 20 .* convert the graph to opset 22"):
        to_half(load_onnx(graph), precision="bf16")
    report = segdeploy.calibrate(graph, dataset, out, precision="bf16", limit=4)
    assert "converted from opset 20 to 22, with equal output" in report.rewrites
    assert 0.9 < report.accuracy.agreement < 1
    made = load_onnx(out)
    onnx.checker.check_model(made, full_check=True)
    assert TensorProto.BFLOAT16 in types_of(made).values()
    segdeploy.build_engine(out, tmp_path / "m.engine", targets=["sm86"])


def test_half_precision_half_values_are_rounded_where_a_cpu_would_leave_it_out() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "third"], ["a"], "shrink"),
        helper.make_node("Sub", ["a", "x"], ["y"], "difference"),
    ]
    half = to_half(hand_made(nodes, {"third": np.float32([1 / 3])}), keep_io=False).model
    assert is_half(half)
    x = np.random.default_rng(0).normal(0, 1, (1, 2, 4, 4)).astype(np.float16)
    third = np.float16(1 / 3)
    expected = ((x * third).astype(np.float16) - x).astype(np.float16)
    found = run(half, x.astype(np.float32))
    assert np.array_equal(found, expected.astype(np.float32))
    assert not is_half(rounded(hand_made(nodes, {"third": np.float32([1 / 3])})))


def scaled_pair(graph: Path, out: Path, scale: float) -> None:
    """Let one Conv, Relu, Conv compute `scale` times as much between, and give the same."""
    model = load_onnx(graph)
    weights = {t.name: t for t in model.graph.initializer}
    nodes = {n.name: n for n in model.graph.node}
    relu = next(
        n
        for n in nodes.values()
        if n.op_type == "Relu"
        and [m.op_type for m in nodes.values() if n.input[0] in m.output] == ["Conv"]
        and [m.op_type for m in nodes.values() if n.output[0] in m.input] == ["Conv"]
    )
    before = next(m for m in nodes.values() if relu.input[0] in m.output)
    after = next(m for m in nodes.values() if relu.output[0] in m.input)
    for name, factor in (
        (before.input[1], scale),
        (before.input[2], scale),
        (after.input[1], 1 / scale),
    ):
        values = numpy_helper.to_array(weights[name]) * np.float32(factor)
        weights[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    out.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("scale", [3e4, 1e6, 1e-6])
def test_half_precision_what_does_not_fit_fp16_is_no_int8_either(
    graph: Path, dataset: Path, tmp_path: Path, tensorrt_rtx: object, scale: float
) -> None:
    scaled, out = tmp_path / "scaled.onnx", tmp_path / "m.onnx"
    scaled_pair(graph, scaled, scale)
    for options in ({"precision": "fp16"}, {}, {"max_miou_drop": 5.0}):
        report = segdeploy.calibrate(scaled, dataset, out, limit=6, **options)
        assert report.fp32_fallbacks
        assert report.accuracy.agreement > (0.999 if "precision" in options else 0.96)
        engine = segdeploy.build_engine(out, tmp_path / "m.engine", targets=["sm86"])
        assert engine.int8 == len(report.int8)
        assert set(report.int8).isdisjoint(report.kept)


def test_half_precision_an_epsilon_that_fp16_has_not_stays_fp32() -> None:
    nodes = [
        helper.make_node("Max", ["x", "epsilon"], ["a"], "clamp"),
        helper.make_node("Div", ["x", "a"], ["y"], "divide"),
    ]
    model = hand_made(nodes, {"epsilon": np.float32([1e-8])})
    x = np.zeros((1, 2, 4, 4), np.float32)
    assert np.isnan(run(to_half(model).model, x)).any()
    found = fp32_fallbacks(
        model, np.abs(np.random.default_rng(0).normal(1, 0.1, x.shape)).astype(np.float32)
    )
    assert "stays below 1e-08" in found["clamp"]


def test_half_precision_a_wide_pool_of_stride_one_sums_its_kernel() -> None:
    pool = helper.make_node(
        "AveragePool", ["x"], ["y"], "pool", kernel_shape=[4, 4], pads=[2, 2, 1, 1],
        strides=[1, 1], count_include_pad=1,
    )  # fmt: skip
    model = hand_made([pool], {})
    found = fp32_fallbacks(model, np.full((1, 2, 4, 4), 3e4, np.float32) * 0.9)
    assert found["pool"].startswith("sums 16 values to")


def test_half_precision_half_scales_convert_to_the_opset_that_has_them(
    checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    old, new = tmp_path / "old.onnx", tmp_path / "m.onnx"
    segdeploy.export(checkpoint, old, opset=18)
    report = segdeploy.calibrate(old, dataset, new, limit=2)
    assert report.rewrites[0] == "converted from opset 18 to 20, with equal output"
    made = load_onnx(new)
    assert opset_of(made) == 20
    layers = [node for node in load_onnx(old).graph.node if node.op_type == "Conv"]
    modules = {one.value for node in layers for one in node.metadata_props}
    kept = {one.value for node in made.graph.node for one in node.metadata_props}
    assert modules <= kept
    made.opset_import[0].version = 18
    with pytest.raises(CalibrationInputError, match="opset 18 has no 16-bit scales"):
        to_half(made)

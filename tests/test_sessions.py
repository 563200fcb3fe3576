"""What is measured is what runs: one file gives one answer in every session of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import segdeploy
from segdeploy.artifact import OnnxFile
from segdeploy.calibration.session import CHANGING_OPTIMIZERS, session_options
from segdeploy.errors import CheckFailed
from segdeploy.models.dataset import open_dataset
from segdeploy.onnx_graph.model_file import contract_of, load_onnx, save_onnx, set_contract
from segdeploy.proof.score_check import check_scores
from segdeploy.proof.tolerance import tolerance_of
from segdeploy.runtime.onnxruntime_session import OnnxRuntimeSession

from .conftest import SIZE


def of_small_weights(graph: Path, out: Path) -> Path:
    """A network with a layer of small weights, and a bias that is large beside their scale.

    Where a runtime makes an int32 of the bias, in steps of the scales, and dequantizes that in
    FP16, it is beyond FP16's 65504 and lost.
    """
    contract = contract_of(load_onnx(graph), graph)
    rng = np.random.default_rng(0)
    classes = len(contract.classes)

    def normal(size: float, *shape: int) -> np.ndarray:
        return (size * rng.normal(0, 1, shape)).astype(np.float32)

    weights = {
        "w1": normal(0.3, 8, 3, 3, 3),
        "w2": normal(1e-4, 8, 8, 3, 3),
        "bias": np.linspace(1, 2, 8).astype(np.float32),
        "w3": normal(0.3, classes, 8, 3, 3),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2", "bias"], ["c"], "small", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("Conv", ["d", "w3"], ["logits"], "last", pads=[1] * 4),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, *SIZE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, classes, *SIZE])],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    set_contract(model, contract)
    save_onnx(onnx.shape_inference.infer_shapes(model), out)
    return out


@pytest.mark.parametrize("scheme", ["tensorrt", "cpu"])
def test_sessions_predict_gives_what_calibrate_measured(
    graph: Path, dataset: Path, tmp_path: Path, scheme: str
) -> None:
    small = of_small_weights(graph, tmp_path / "small.onnx")
    out = tmp_path / "int8.onnx"
    report = segdeploy.calibrate(small, dataset, out, method="min-max", scheme=scheme, limit=4)
    assert report.int8
    assert report.kernel_agreement == pytest.approx(1, abs=2e-3)
    images = [frame.read()[0] for frame in open_dataset(dataset).frames("val")]
    with (
        segdeploy.load(small) as fp32,
        segdeploy.load(out) as ordinary,
        segdeploy.load(out, reference_execution=True) as literal,
    ):
        equal = np.mean([ordinary.predict(i) == fp32.predict(i) for i in images])
        as_written = np.mean([literal.predict(i) == fp32.predict(i) for i in images])
    assert equal == pytest.approx(report.accuracy.agreement, abs=2e-3)
    assert as_written == pytest.approx(report.accuracy.agreement, abs=1e-9)


def test_sessions_the_optimizers_that_change_numbers_are_off(graph: Path, tmp_path: Path) -> None:
    entry = session_options().get_session_config_entry("optimization.disable_specified_optimizers")
    assert entry.split(";") == list(CHANGING_OPTIMIZERS)
    # C++ says the same words.
    source = Path(__file__).parents[1] / "deploy" / "cpp" / "src" / "onnxruntime_backend.cpp"
    assert f'"{entry}"' in source.read_text()
    # Two pairs of Q/DQ with other scales stay two: the value is rounded twice.
    nodes, weights = [], {}
    value = "x"
    for index, scale in enumerate((0.1, 0.07)):
        weights |= {f"s{index}": np.float32(scale), f"z{index}": np.uint8(3 + index)}
        inputs = [f"s{index}", f"z{index}"]
        nodes += [
            helper.make_node("QuantizeLinear", [value, *inputs], [f"q{index}"], f"q{index}"),
            helper.make_node(
                "DequantizeLinear", [f"q{index}", *inputs], [f"d{index}"], f"d{index}"
            ),
        ]
        value = f"d{index}"
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "twice",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1000])],
            [helper.make_tensor_value_info(value, TensorProto.FLOAT, [1000])],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    x = np.random.default_rng(0).normal(0, 4, 1000).astype(np.float32)
    steps = np.clip(np.rint(x / np.float32(0.1)) + 3, 0, 255)
    once = (steps - 3) * np.float32(0.1)
    steps = np.clip(np.rint(once / np.float32(0.07)) + 4, 0, 255)
    expected = (steps - 4) * np.float32(0.07)
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options())
    assert np.allclose(session.run(None, {"x": x})[0], expected, atol=1e-5)


def hiding_nan(graph: Path, out: Path) -> Path:
    """The network with labels at its end, and scores of 0 / 0 where an image is black."""
    model = load_onnx(graph)
    contract = contract_of(model, graph)
    logits = model.graph.output[0].name
    black = float((0 - contract.mean[0]) / contract.std[0])
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(black), "black"),
            numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
        ]
    )
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["image", "axes"], ["brightest"], "brightest"),
            helper.make_node("Sub", ["brightest", "brightest"], ["nothing"], "nothing"),
            helper.make_node("Sub", ["image", "black"], ["light"], "light"),
            helper.make_node("ReduceMax", ["light", "axes"], ["any"], "any"),
            helper.make_node("Abs", ["any"], ["size"], "size"),
            helper.make_node("Div", ["size", "size"], ["one"], "one"),
            helper.make_node("Mul", [logits, "one"], ["scores"], "scores"),
            helper.make_node("ArgMax", ["scores"], ["best"], "best", axis=1, keepdims=0),
            helper.make_node("Cast", ["best"], ["labels"], "cast", to=TensorProto.UINT8),
        ]
    )
    del model.graph.output[:]
    sides = [1, *SIZE]
    model.graph.output.extend([helper.make_tensor_value_info("labels", TensorProto.UINT8, sides)])
    from dataclasses import replace

    set_contract(model, replace(contract, output="labels", mean=(contract.mean[0],) * 3,
                                std=(contract.std[0],) * 3))  # fmt: skip
    save_onnx(onnx.shape_inference.infer_shapes(model), out)
    return out


def test_sessions_nan_behind_an_argmax_is_found_before_an_engine_is_built(
    run, graph: Path, tmp_path: Path
) -> None:  # fmt: skip
    broken = hiding_nan(graph, tmp_path / "broken.onnx")
    black = np.zeros((*SIZE, 3), np.uint8)
    with segdeploy.load(broken) as predictor:
        assert predictor.predict(black).max() < 255  # the labels look like labels
    ran = run("build-engine", broken, "--target", "sm86", "-o", tmp_path / "m.engine")
    assert ran.code == 1
    assert "the scores 'scores' hold NaN or infinity for a black image" in ran.err
    assert not (tmp_path / "m.engine").exists()
    model = load_onnx(broken)
    with pytest.raises(CheckFailed, match="for a night"):
        check_scores(model, contract_of(model, broken), "m", {"a night": black})
    check_scores(model, contract_of(model, broken), "m", {"a day": black + 200})


def test_sessions_a_session_that_is_opened_for_prediction_has_them_off(graph: Path) -> None:
    with OnnxRuntimeSession(OnnxFile(graph)) as session:
        options = session._session.get_session_options()
        entry = options.get_session_config_entry("optimization.disable_specified_optimizers")
    assert entry.split(";") == list(CHANGING_OPTIMIZERS)


def test_sessions_tolerances_loosen_with_precision() -> None:
    least = [tolerance_of(one, "onnxruntime").least_agreement for one in ("fp32", "fp16", "int8")]
    assert least == sorted(least, reverse=True)
    # TensorRT multiplies float32 as TF32.
    assert tolerance_of("fp32", "tensorrt") == tolerance_of("fp16", "tensorrt")

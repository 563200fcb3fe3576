"""INT8: honest ranges, correct weights, Q/DQ where TensorRT wants it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

import segdeploy
from segdeploy.calibration.errors import CalibrationInputError
from segdeploy.calibration.quantize import quantize_convolutions, quantize_weight
from segdeploy.calibration.ranges import conv_inputs, observe_ranges
from segdeploy.errors import InputError
from segdeploy.models.dataset import open_dataset
from segdeploy.network import ModelSpec
from segdeploy.runtime.preprocess import preprocess


@pytest.fixture(scope="module")
def model(graph: Path) -> onnx.ModelProto:
    return onnx.load(graph)


@pytest.fixture(scope="module")
def frames(graph: Path, dataset: Path) -> list[tuple[str, np.ndarray]]:
    with segdeploy.load(graph) as predictor:
        contract = predictor.contract
    return [
        (frame.name, preprocess(frame.read()[0], contract))
        for frame in open_dataset(dataset).frames("train", 6)
    ]


def test_every_frame_counts_in_any_order(model: onnx.ModelProto, frames: list) -> None:
    tensors = conv_inputs(model)
    together = observe_ranges(model, tensors, frames)
    assert together == observe_ranges(model, tensors, frames[::-1])
    alone = [observe_ranges(model, tensors, [frame]) for frame in frames]
    for tensor in tensors:
        assert together[tensor] == max(ranges[tensor] for ranges in alone)
    # No one frame, and not the last, decides them all.
    assert all(ranges != together for ranges in alone)
    assert together["image"] == max(float(np.abs(array).max()) for _, array in frames)


def test_no_frames_and_frames_that_are_not_finite(model: onnx.ModelProto, frames: list) -> None:
    with pytest.raises(CalibrationInputError, match="there is no frame"):
        observe_ranges(model, conv_inputs(model), [])
    broken = frames[0][1].copy()
    broken[0, 0, 3, 3] = np.nan
    with pytest.raises(CalibrationInputError, match="holds NaN or infinity for frame street_7"):
        observe_ranges(model, conv_inputs(model), [frames[0], ("street_7", broken)])


@given(st.integers(0, 2**16), st.floats(1e-6, 1e6))
def test_a_weight_is_off_by_half_a_step_at_most(seed: int, magnitude: float) -> None:
    weight = np.random.default_rng(seed).normal(0, magnitude, (5, 3, 3, 3)).astype(np.float32)
    integers, scales = quantize_weight(weight, "w")
    assert integers.dtype == np.int8
    assert np.abs(integers.reshape(5, -1)).max(1).tolist() == [127] * 5
    error = np.abs(integers * scales[:, None, None, None] - weight)
    assert (error <= scales[:, None, None, None] * 0.5001).all()


def test_a_dead_channel_has_a_scale_and_an_outlier_harms_its_own_channel_alone() -> None:
    weight = np.full((3, 1, 1, 2), 0.5, np.float32)
    weight[1] = 0
    weight[2, 0, 0, 0] = 1000
    integers, scales = quantize_weight(weight, "w")
    assert scales[1] == 1
    assert integers[:, 0, 0].tolist() == [[127, 127], [0, 0], [127, 0]]


def test_a_weight_that_is_not_finite_is_named() -> None:
    weight = np.full((1, 1, 1, 1), np.inf, np.float32)
    with pytest.raises(CalibrationInputError, match=r"weight aspp\.conv1\.weight holds NaN"):
        quantize_weight(weight, "aspp.conv1.weight")


def test_every_convolution_reads_int8_and_biases_stay_float(
    int8_graph: Path, model: onnx.ModelProto
) -> None:
    quantised = onnx.load(int8_graph)
    onnx.checker.check_model(quantised, full_check=True)
    producers = {out: node for node in quantised.graph.node for out in node.output}
    constants = {t.name: t for t in quantised.graph.initializer}
    convolutions = [n for n in quantised.graph.node if n.op_type == "Conv"]
    assert len(convolutions) == sum(n.op_type == "Conv" for n in model.graph.node)
    for node in convolutions:
        data, weight = producers[node.input[0]], producers[node.input[1]]
        assert data.op_type == weight.op_type == "DequantizeLinear"
        assert producers[data.input[0]].op_type == "QuantizeLinear"
        assert constants[weight.input[0]].data_type == onnx.TensorProto.INT8
        assert constants[weight.input[1]].dims[0] == constants[weight.input[0]].dims[0]
        zero_points = (constants[d.input[2]] for d in (data, weight))
        assert all((numpy_helper.to_array(zero) == 0).all() for zero in zero_points)
        assert all(constants[b].data_type == onnx.TensorProto.FLOAT for b in node.input[2:])
    counted = Counter(node.op_type for node in quantised.graph.node)
    # One pair for each tensor that convolutions read, however many read it.
    assert counted["QuantizeLinear"] == len(conv_inputs(model))
    assert counted["DequantizeLinear"] == len(conv_inputs(model)) + len(convolutions)


def test_the_int8_graph_is_nearly_the_fp32_graph(
    graph: Path, int8_graph: Path, dataset: Path
) -> None:
    image = open_dataset(dataset).frames("val")[0].read()[0]
    with segdeploy.load(graph) as fp32, segdeploy.load(int8_graph, literal=True) as int8:
        assert int8.contract.precision == "int8"
        expected, found = fp32.logits(image), int8.logits(image)
        noise = float(np.square(found - expected).mean())
        signal = float(np.square(expected - expected.mean()).mean())
        assert 10 * np.log10(signal / noise) > 20
        assert np.mean(fp32.predict(image) == int8.predict(image)) > 0.95


def test_a_tensor_that_is_always_zero_gets_a_scale(model: onnx.ModelProto, frames: list) -> None:
    ranges = dict.fromkeys(conv_inputs(model), 0.0)
    quantised = quantize_convolutions(model, ranges)
    scales = [t for t in quantised.graph.initializer if t.name.endswith("image_scale")]
    assert numpy_helper.to_array(scales[0]) == 1


def test_what_cannot_be_calibrated_is_told(
    int8_graph: Path, graph: Path, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is int8 already; calibrate the FP32 graph"):
        segdeploy.calibrate(int8_graph, dataset, tmp_path / "m.onnx")
    with pytest.raises(CalibrationInputError, match="quantised already"):
        quantize_convolutions(onnx.load(int8_graph), {})
    empty = onnx.load(graph)
    kept = [n for n in empty.graph.node if n.op_type != "Conv"]
    del empty.graph.node[:]
    empty.graph.node.extend(kept)
    with pytest.raises(CalibrationInputError, match="has no convolution to quantise"):
        quantize_convolutions(empty, {})
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_with_other_classes_is_refused(
    graph: Path, camvid: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="was trained for the classes sky, .*camvid has sky"):
        segdeploy.calibrate(graph, camvid, tmp_path / "m.onnx")


def test_the_graph_itself_is_not_overwritten(graph: Path, dataset: Path) -> None:
    before = graph.read_bytes()
    with pytest.raises(InputError, match="is the input itself; give another output"):
        segdeploy.calibrate(graph, dataset, graph)
    assert graph.read_bytes() == before


def test_a_vanishing_channel_gets_a_positive_scale() -> None:
    weight = np.full((2, 1, 1, 1), 1e-44, np.float32)
    weight[1] = 1
    integers, scales = quantize_weight(weight, "w")
    assert scales[0] == 1
    assert integers.ravel().tolist() == [0, 127]


def test_a_convolution_on_the_image_alone(dataset: Path, tmp_path: Path) -> None:
    spec = ModelSpec(f"{__name__}:one_convolution", size=(48, 64))
    graph = segdeploy.export(spec, tmp_path / "m.onnx", data=dataset).path
    report = segdeploy.calibrate(graph, dataset, tmp_path / "m.int8.onnx", limit=2)
    assert report.convolutions == 1


def test_a_weight_with_another_reader_stays(dataset: Path, tmp_path: Path) -> None:
    spec = ModelSpec(f"{__name__}:tied", size=(48, 64))
    graph = segdeploy.export(spec, tmp_path / "m.onnx", data=dataset).path
    report = segdeploy.calibrate(graph, dataset, tmp_path / "m.int8.onnx", limit=2)
    assert report.agreement > 0.8


def test_the_gpu_package_counts_as_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    from segdeploy import packages

    true_version = packages.importlib.metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise packages.importlib.metadata.PackageNotFoundError(name)
        return "9.9" if name == "onnxruntime-gpu" else true_version(name)

    monkeypatch.setattr(packages.importlib.metadata, "version", version)
    assert packages.versions("onnxruntime")["onnxruntime"] == "9.9"
    assert "nothing" not in packages.versions("nothing")


class Tied(nn.Module):
    """An encoder and a decoder that share one weight."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.code = nn.Conv2d(3, 6, 2, stride=2)
        self.last = nn.Conv2d(3, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        decoded = nn.functional.conv_transpose2d(self.code(x), self.code.weight, stride=2)
        return self.last(decoded.relu())


def tied(num_classes: int) -> nn.Module:
    torch.manual_seed(0)
    return Tied(num_classes)


def one_convolution(num_classes: int) -> nn.Module:
    return nn.Conv2d(3, num_classes, 3, padding=1)

"""Ranges, thresholds, weights, and where Q/DQ stand: what INT8 means here."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnxruntime.quantization.calibrate import HistogramCollector
from PIL import Image
from torch import nn

import segdeploy
from segdeploy.calibration.errors import CalibrationInputError
from segdeploy.calibration.histogram import BINS, Histogram
from segdeploy.calibration.layers import (
    fix_shape,
    read_insertion_points,
    with_names,
    worth_quantizing,
)
from segdeploy.calibration.quantize import (
    CPU,
    TENSORRT,
    Range,
    odd_channels,
    quantize,
    quantize_weight,
)
from segdeploy.calibration.ranges import Settling, observe
from segdeploy.calibration.thresholds import METHODS, Statistics, squared_error, statistics
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.onnx_graph.model_file import load_onnx
from segdeploy.precision.frames import check_images
from segdeploy.preprocessing.preprocess import preprocess

from . import graphs
from .conftest import SIZE

SHAPE = (1, 3, *SIZE)


@pytest.fixture(scope="module")
def model(graph: Path) -> onnx.ModelProto:
    return fix_shape(with_names(load_onnx(graph)), SHAPE)


@pytest.fixture(scope="module")
def frames(graph: Path, dataset: Path) -> list[tuple[str, np.ndarray]]:
    with segdeploy.load(graph) as predictor:
        contract = predictor.contract
    return [
        (frame.name, preprocess(frame.read()[0], contract))
        for frame in open_dataset(dataset).frames("train", 6)
    ]


VALUES = st.lists(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4), min_size=1, max_size=8
)


@settings(deadline=None)
@given(VALUES, st.randoms())
def test_calibration_a_histogram_knows_neither_order_nor_batches(images: list, random) -> None:
    arrays = [np.array(image, np.float32) for image in images]
    one, other = Histogram(), Histogram()
    for array in arrays:
        one.add(array[None])
    random.shuffle(arrays)
    while arrays:
        size = random.randint(1, len(arrays))
        other.add(np.stack(arrays[:size]))
        del arrays[:size]
    assert one.top == other.top
    assert np.array_equal(one.counts, other.counts)
    assert (one.lowest, one.highest) == (other.lowest, other.highest)
    assert one.mean_of_largest == pytest.approx(other.mean_of_largest, rel=1e-12)
    assert one.counts.sum() == sum(len(image) for image in images)
    if one.top:
        assert one.top == 2.0**-100 or one.top / 2 <= one.largest
        assert one.largest < one.top


def test_calibration_every_frame_counts_in_any_order(model: onnx.ModelProto, frames: list) -> None:
    tensors = read_insertion_points(model).tensors()

    def found(given: list) -> dict[str, Statistics]:
        return {n: statistics(h) for n, h in observe(model, tensors, given).items()}

    together = found(frames)
    assert together == found(frames[::-1])
    alone = [found([frame]) for frame in frames]
    for tensor in tensors:
        assert together[tensor].largest == max(one[tensor].largest for one in alone)
    # No one frame, and not the last, decides them all.
    assert all(one != together for one in alone)


def test_calibration_memory_is_bounded_by_running_again(
    model: onnx.ModelProto, frames: list
) -> None:
    tensors = read_insertion_points(model).tensors()
    whole = observe(model, tensors, frames[:2])
    parts = observe(model, tensors, frames[:2], held_bytes=1 << 18)
    for tensor in tensors:  # each run fuses other operators, and rounds otherwise
        assert parts[tensor].largest == pytest.approx(whole[tensor].largest, rel=1e-5)
        assert parts[tensor].counts.sum() == whole[tensor].counts.sum()


def test_calibration_no_frames_and_frames_that_are_not_finite(
    model: onnx.ModelProto, frames: list
) -> None:
    tensors = read_insertion_points(model).tensors()
    with pytest.raises(CalibrationInputError, match="there is no frame"):
        observe(model, tensors, [])
    for wrong in (np.nan, np.inf):
        broken = frames[0][1].copy()
        broken[0, 0, 3, 3] = wrong
        said = "tensor image holds NaN or infinity for frame street_7"
        with pytest.raises(CalibrationInputError, match=said):
            observe(model, tensors, [frames[0], ("street_7", broken)])


def histogram(values: np.ndarray) -> Histogram:
    made = Histogram()
    made.add(values.astype(np.float32)[None])
    return made


def test_calibration_thresholds_clip_the_tail_and_keep_the_body() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 200_000), [300.0]])
    found = statistics(histogram(values)).thresholds
    assert set(found) == set(METHODS)
    assert found["min-max"] == found["average"] == 300
    exact = np.quantile(np.abs(values), 0.9999)
    assert found["percentile"] == pytest.approx(exact, abs=2 * 512 / BINS)
    assert 2 < found["entropy"] < 40
    assert 3 < found["mse"] < 300  # one square of 300 weighs as much as the body


def drawn(distribution: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    parameters = {"normal": (0, 1), "laplace": (0, 1), "standard_t": (4,)}[distribution]
    return getattr(rng, distribution)(*parameters, 200_000).astype(np.float32)


@pytest.mark.parametrize("distribution", ["normal", "laplace", "standard_t"])
def test_calibration_entropy_agrees_with_onnxruntime(distribution: str) -> None:
    """A quarter apart at most, since ONNX Runtime's own threshold moves that much with the bins.

    It has bins for both signs, and rounds the counts of each level down to integers.
    """
    values = drawn(distribution)
    largest = np.abs(values).max()
    bins, levels = 2049, 255
    counts, edges = np.histogram(values, bins, (-largest, largest))
    collector = HistogramCollector("entropy", True, bins, levels, None, None)
    low, high = collector.get_entropy_threshold(
        (counts, edges.astype(np.float32), values.min(), values.max(), largest), levels
    )
    ours = statistics(histogram(values)).thresholds["entropy"]
    assert ours == pytest.approx(max(-low, high), rel=0.25)


@pytest.mark.parametrize("distribution", ["normal", "laplace", "standard_t"])
def test_calibration_squared_error_is_least_by_torchs_fake_quantization(distribution: str) -> None:
    values = drawn(distribution)
    tensor = torch.from_numpy(values)

    def error(threshold: float) -> float:
        rounded = torch.fake_quantize_per_tensor_affine(tensor, threshold / 127, 0, -127, 127)
        return float((rounded - tensor).double().square().mean())

    every = np.abs(values).max() * np.linspace(0.02, 1, 100)
    found = statistics(histogram(values)).thresholds["mse"]
    assert error(found) <= min(error(float(threshold)) for threshold in every) * 1.01


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**16), st.floats(1e-3, 1e3), st.sampled_from(["normal", "relu", "laplace"]))
def test_calibration_no_threshold_is_beyond_what_was_seen(
    seed: int, magnitude: float, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    values = (
        rng.laplace(0, magnitude, 5000) if kind == "laplace" else rng.normal(0, magnitude, 5000)
    )
    if kind == "relu":
        values = np.maximum(values, 0)
    counted = histogram(values)
    for name, threshold in statistics(counted).thresholds.items():
        assert 0 < threshold <= counted.largest * (1 + 1e-6), name

    def error(threshold: float) -> float:
        step = threshold / 127
        rounded = np.clip(np.rint(values / step), -127, 127) * step
        return float(np.square(rounded - values).mean())

    assert error(squared_error(counted)) <= error(counted.largest) * 1.01


def test_calibration_settling_is_the_last_frame_that_moved_the_ranges() -> None:
    rng = np.random.default_rng(0)
    settling, made = Settling(["a"]), {"a": Histogram()}
    for scale in (1.0, 4.0, 4.0, 4.0, 4.0):
        made["a"].add(rng.normal(0, scale, (1, 50_000)).astype(np.float32))
        settling.look(made)
    assert settling.settled_after == 2


@given(st.integers(0, 2**16), st.floats(1e-3, 1e3))
def test_calibration_a_weight_is_off_by_half_a_step_at_most(seed: int, magnitude: float) -> None:
    weight = np.random.default_rng(seed).normal(0, magnitude, (5, 3, 3, 3)).astype(np.float32)
    for scheme, levels in ((TENSORRT, 127), (CPU, 63)):
        integers, scales = quantize_weight(weight, "w", scheme)
        assert integers.dtype == np.int8
        largest = np.abs(integers.reshape(5, -1).astype(int)).max(1)
        assert (largest <= levels).all()
        assert (largest >= levels - 1).all()
        error = np.abs(integers * scales[:, None, None, None] - weight)
        assert (error <= scales[:, None, None, None] * 0.5001).all()
    # TensorRT's scales are exact in FP16, to which the graph around may go.
    _, scales = quantize_weight(weight, "w", TENSORRT)
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))


def test_calibration_a_dead_channel_has_a_scale_and_an_outlier_harms_its_own_channel_alone() -> (
    None
):
    weight = np.full((3, 1, 1, 2), 0.5, np.float32)
    weight[1] = 0
    weight[2, 0, 0, 0] = 1000
    integers, scales = quantize_weight(weight, "w")
    assert scales[1] == 1
    assert integers[1:, 0, 0].tolist() == [[0, 0], [127, 0]]
    assert integers[0, 0, 0].tolist() == [127, 127]


def test_calibration_dead_and_outlying_channels_are_counted() -> None:
    weight = random(8, 4, 3, 3)
    weight[2] = 0
    weight[5] *= 100
    assert odd_channels(weight) == (1, 1)
    assert odd_channels(np.zeros((3, 1, 1, 1), np.float32)) == (3, 0)


def test_calibration_a_vanishing_channel_gets_a_positive_scale() -> None:
    weight = np.full((2, 1, 1, 1), 1e-44, np.float32)
    weight[1] = 1
    integers, scales = quantize_weight(weight, "w")
    assert (scales > 0).all()
    assert integers.ravel().tolist() == [0, 127]


def test_calibration_a_weight_that_is_not_finite_is_named() -> None:
    weight = np.full((1, 1, 1, 1), np.inf, np.float32)
    with pytest.raises(CalibrationInputError, match=r"weight aspp\.conv1\.weight holds NaN"):
        quantize_weight(weight, "aspp.conv1.weight")


def ranges_of(model: onnx.ModelProto, **options: bool) -> dict[str, Range]:
    return {name: Range(4.0, -4.0, 4.0) for name in read_insertion_points(model).tensors(**options)}


def producers_of(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {out: node for node in model.graph.node for out in node.output}


def test_calibration_every_chosen_convolution_reads_int8_and_biases_stay_float(
    model: onnx.ModelProto,
) -> None:
    insertion_points = read_insertion_points(model)
    chosen = {layer.name for layer in insertion_points.layers}
    quantized = quantize(model, insertion_points, chosen, ranges_of(model))
    onnx.checker.check_model(quantized, full_check=True)
    producers = producers_of(quantized)
    constants = {t.name: t for t in quantized.graph.initializer}
    convolutions = [n for n in quantized.graph.node if n.op_type == "Conv"]
    assert len(convolutions) == len(chosen)
    for node in convolutions:
        data, weight = producers[node.input[0]], producers[node.input[1]]
        assert data.op_type == weight.op_type == "DequantizeLinear"
        assert producers[data.input[0]].op_type == "QuantizeLinear"
        assert constants[weight.input[0]].data_type == onnx.TensorProto.INT8
        assert constants[weight.input[1]].dims[0] == constants[weight.input[0]].dims[0]
        zero_points = (constants[d.input[2]] for d in (data, weight))
        assert all((numpy_helper.to_array(zero) == 0).all() for zero in zero_points)
        assert all(constants[b].data_type == onnx.TensorProto.FLOAT for b in node.input[2:])
    # One pair for each tensor, however many read it; nothing before a Resize or an activation.
    counted = Counter(node.op_type for node in quantized.graph.node)
    assert counted["QuantizeLinear"] == len(insertion_points.activations(chosen))
    for node in quantized.graph.node:
        if node.op_type not in ("Conv", "Add", "DequantizeLinear"):
            assert all(
                producers[i].op_type != "DequantizeLinear" for i in node.input if i in producers
            )


def graph_of(nodes: list, weights: dict, x: list, y: list) -> onnx.ModelProto:
    return fix_shape(graphs.graph_of(nodes, y, weights, x), x)


def conv(data: str, weight: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node("Conv", [data, weight], [output], output, **attributes)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.3, shape).astype(np.float32)


def test_calibration_the_branch_that_is_added_to_an_int8_convolution_is_quantized() -> None:
    nodes = [
        conv("x", "w", "a"), helper.make_node("Relu", ["a"], ["r"], "relu"),
        conv("r", "w", "b"), helper.make_node("Add", ["b", "r"], ["s"], "sum"),
        conv("s", "w", "y"),
    ]  # fmt: skip
    model = graph_of(nodes, {"w": random(4, 4, 1, 1)}, [1, 4, 8, 8], [1, 4, 8, 8])
    insertion_points = read_insertion_points(model)
    assert insertion_points.branches({"b"}) == {"sum": "r"}
    assert insertion_points.branches({"a", "y"}) == {}
    quantized = quantize(model, insertion_points, {"a", "b", "y"}, ranges_of(model))
    add = next(n for n in quantized.graph.node if n.op_type == "Add")
    # The skip shares the pair that the convolution reads; the convolution's own output stays.
    assert list(add.input) == ["b", "r_dequantized"]
    assert sum(n.op_type == "QuantizeLinear" for n in quantized.graph.node) == 3


def test_calibration_what_one_concat_joins_has_one_scale() -> None:
    nodes = [
        conv("x", "w", "a"), conv("x", "w", "b"),
        helper.make_node("Concat", ["a", "b"], ["c"], "join", axis=1),
        conv("c", "v", "d"), conv("a", "w", "e"),
        helper.make_node("Add", ["d", "e"], ["y"], "sum"),
    ]  # fmt: skip
    weights = {"w": random(4, 4, 1, 1), "v": random(4, 8, 1, 1)}
    model = graph_of(nodes, weights, [1, 4, 8, 8], [1, 4, 8, 8])
    ranges = {
        n: Range(t, -t, t)
        for n, t in zip(read_insertion_points(model).tensors(), range(1, 9), strict=False)
    }
    insertion_points = read_insertion_points(model)
    quantized = quantize(model, insertion_points, {"a", "b", "d", "e"}, ranges)
    scales = {
        t.name: float(numpy_helper.to_array(t))
        for t in quantized.graph.initializer
        if t.name in ("a_scale", "c_scale", "x_scale")
    }
    assert scales["a_scale"] == scales["c_scale"] != scales["x_scale"]
    assert scales["c_scale"] >= max(ranges["a"].threshold, ranges["c"].threshold) / 127


def test_calibration_the_cpus_integers_are_unsigned_and_convolutions_give_integers() -> None:
    nodes = [
        conv("x", "w", "a"), helper.make_node("Relu", ["a"], ["r"], "relu"), conv("r", "w", "b"),
        helper.make_node("HardSwish", ["b"], ["y"], "act"),
    ]  # fmt: skip
    model = graph_of(nodes, {"w": random(4, 4, 1, 1)}, [1, 4, 8, 8], [1, 4, 8, 8])
    insertion_points = read_insertion_points(model)
    ranges = {name: Range(4.0, 0.0 if name == "r" else -2.0, 4.0) for name in ("x", "r", "b")}
    quantized = quantize(model, insertion_points, {"a", "b"}, ranges, CPU)
    onnx.checker.check_model(quantized, full_check=True)
    constants = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    assert constants["x_zero_point"] == np.rint(2 / 6 * 255)
    assert constants["r_zero_point"] == 0
    assert constants["r_zero_point"].dtype == np.uint8
    assert np.abs(constants["w_quantized"].astype(int)).max() == 63
    producers = producers_of(quantized)
    relu, act = (next(n for n in quantized.graph.node if n.name == k) for k in ("relu", "act"))
    assert producers[relu.input[0]].op_type == "Conv"  # fused: the pair stands behind the Relu
    assert producers[act.input[0]].op_type == "DequantizeLinear"


def test_calibration_cheap_layers_that_lose_much_stay_and_no_more(model: onnx.ModelProto) -> None:
    layers = read_insertion_points(model).layers
    kinds = {layer.kind for layer in layers}
    assert {"image", "one pixel", "classifier", "inner"} == kinds
    chosen = worth_quantizing(layers)
    left = [layer for layer in layers if layer not in chosen]
    assert {layer.kind for layer in left} <= {"image", "one pixel", "classifier"}
    assert sum(y.macs for y in left) <= 0.02 * sum(y.macs for y in layers)
    lone = [layer for layer in layers if layer.kind == "image"][:1]
    assert worth_quantizing(lone) == lone


def test_calibration_the_int8_graph_is_nearly_the_fp32_graph(
    graph: Path, int8_graph: Path, dataset: Path
) -> None:
    image = open_dataset(dataset).frames("val")[0].read()[0]
    with (
        segdeploy.load(graph) as fp32,
        segdeploy.load(int8_graph, reference_execution=True) as int8,
    ):
        assert int8.contract.precision == "int8"
        expected, found = fp32.logits(image), int8.logits(image)
        noise = float(np.square(found - expected).mean())
        signal = float(np.square(expected - expected.mean()).mean())
        assert 10 * np.log10(signal / noise) > 20
        assert np.mean(fp32.predict(image) == int8.predict(image)) > 0.95


def test_calibration_a_tensor_that_is_always_zero_gets_a_scale(model: onnx.ModelProto) -> None:
    insertion_points = read_insertion_points(model)
    ranges = {name: Range(0.0, 0.0, 0.0) for name in insertion_points.tensors()}
    quantized = quantize(model, insertion_points, {y.name for y in insertion_points.layers}, ranges)
    scales = [t for t in quantized.graph.initializer if t.name.endswith("image_scale")]
    assert numpy_helper.to_array(scales[0]) == 1
    zeros = Histogram()
    zeros.add(np.zeros((1, 5), np.float32))
    assert set(statistics(zeros).thresholds.values()) == {0.0}


def test_calibration_what_cannot_be_calibrated_is_told(
    int8_graph: Path, graph: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.onnx"
    with pytest.raises(InputError, match="is int8 already; calibrate the FP32 graph"):
        segdeploy.calibrate(int8_graph, dataset, out)
    quantized = load_onnx(int8_graph)
    for entry in quantized.metadata_props:
        entry.value = entry.value.replace('"int8"', '"fp32"')
    hidden = tmp_path / "hidden.onnx"
    hidden.write_bytes(quantized.SerializeToString())
    with pytest.raises(CalibrationInputError, match="quantized already"):
        segdeploy.calibrate(hidden, dataset, out)
    hidden.unlink()
    empty = load_onnx(graph)
    node = helper.make_node("Identity", ["image"], ["logits"], "nothing")
    del empty.graph.node[:], empty.graph.initializer[:], empty.graph.value_info[:]
    empty.graph.node.append(node)
    empty.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    hidden.write_bytes(empty.SerializeToString())
    with pytest.raises(CalibrationInputError, match="no convolution to quantize"):
        segdeploy.calibrate(hidden, dataset, out)
    assert [p.name for p in tmp_path.iterdir()] == ["hidden.onnx"]


def test_calibration_a_data_set_with_other_classes_is_refused(
    graph: Path, camvid: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="was trained for the classes sky, .*camvid has sky"):
        segdeploy.calibrate(graph, camvid, tmp_path / "m.onnx")


def test_calibration_the_graph_itself_is_not_overwritten(graph: Path, dataset: Path) -> None:
    before = graph.read_bytes()
    with pytest.raises(InputError, match="is the input itself; give another output"):
        segdeploy.calibrate(graph, dataset, graph)
    assert graph.read_bytes() == before


def test_calibration_a_convolution_on_the_image_alone(dataset: Path, tmp_path: Path) -> None:
    spec = ModelSpec(f"{__name__}:one_convolution", size=(48, 64))
    graph = segdeploy.export(spec, tmp_path / "m.onnx", data=dataset).path
    report = segdeploy.calibrate(graph, dataset, tmp_path / "m.int8.onnx", limit=2)
    assert report.convolutions == len(report.int8) == 1


def test_calibration_a_weight_with_another_reader_stays(dataset: Path, tmp_path: Path) -> None:
    spec = ModelSpec(f"{__name__}:tied", size=(48, 64))
    graph = segdeploy.export(spec, tmp_path / "m.onnx", data=dataset).path
    report = segdeploy.calibrate(graph, dataset, tmp_path / "m.int8.onnx", limit=2)
    assert report.accuracy.agreement > 0.8


def test_calibration_the_gpu_package_counts_as_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_calibration_scalars_and_empty_tensors_are_counted_or_passed_over() -> None:
    histogram = Histogram()
    histogram.add(np.float32(2.0))
    histogram.add(np.zeros((1, 0, 3), np.float32))
    assert (histogram.lowest, histogram.highest) == (2.0, 2.0)


@pytest.mark.parametrize("opset", [13, 20])
def test_calibration_extremes_are_the_same_in_the_graph_as_outside_it(opset: int) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[1,3,8,9] image) => (float[1,3,8,9] scaled)
        <float two = {{2.0}}> {{
            raised = Mul(image, two)
            root = Sqrt(raised)
            scaled = Relu(root)
        }}"""
    )
    model = onnx.shape_inference.infer_shapes(model)
    images = [(str(i), np.random.default_rng(i).uniform(0, 3, (1, 3, 8, 9)).astype(np.float32))
              for i in range(3)]  # fmt: skip
    names = ["raised", "root", "scaled"]
    whole = observe(model, names, iter(images))
    reduced = observe(model, names, iter(images), extremes_only=names)
    for name in names:
        assert reduced[name].lowest == whole[name].lowest
        assert reduced[name].highest == whole[name].highest
        assert reduced[name].mean_of_largest == whole[name].mean_of_largest
    images[1][1][0, 0, 0, 0] = -1.0
    with pytest.raises(
        CalibrationInputError, match="tensor root holds NaN or infinity for frame 1"
    ):
        observe(model, names, iter(images), extremes_only=names)


def test_calibration_enlarged_noise_is_no_image(tmp_path: Path, dataset: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(noise.repeat(2, 0).repeat(2, 1)).save(path)
    frame = open_dataset(dataset).frames("val", 1)[0]
    noisy = replace(frame, image=path)
    assert check_images([frame, noisy]) == [noisy.name]

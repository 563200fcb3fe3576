"""Engines by TensorRT-RTX's own parser and builder, on a machine without a GPU."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

import segdeploy
from segdeploy.calibration.reference_execution import open_reference_execution
from segdeploy.contract_json import read_contract
from segdeploy.engine import network_proof
from segdeploy.engine.foreign_qdq import with_float_biases, with_symmetric_integers
from segdeploy.engine.network_proof import prove_network
from segdeploy.engine.timing_cache import shared_timing_cache
from segdeploy.errors import CheckFailed, InputError
from segdeploy.models.dataset import open_dataset
from segdeploy.onnx_graph.model_file import contract_of, load_onnx, set_contract
from segdeploy.preprocessing.preprocess import preprocess
from segdeploy.profiles import Profile, route
from segdeploy.proof.golden_vectors import golden_path

from .conftest import SIZE

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")

PROFILE = Profile((1, 32, 32), (1, 48, 64), (4, 96, 128))


def read_manifest(engine: Path) -> dict:
    return json.loads(engine.with_name(engine.name + ".json").read_text())


@pytest.mark.parametrize("targets", [("sm86",), ("sm89",), ("sm86", "sm89"), ("sm75", "sm120")])
@pytest.mark.parametrize("name", ["graph", "int8_graph"])
def test_engine_graphs_build_for_every_target_with_their_dilations(
    name: str, targets: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    report = segdeploy.build_engine(path, tmp_path / "m.engine", targets=targets)
    assert {max(p.found.dilation) for p in report.convolutions} == {1, 2, 4, 6, 12, 18}
    assert all(proof.holds for proof in report.convolutions)
    assert len(report.convolutions) == sum(
        node.op_type == "Conv" for node in onnx.load(path).graph.node
    )
    assert report.precision == ("fp32" if name == "graph" else "int8")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "m.engine", "m.engine.golden.safetensors", "m.engine.json"
    ]  # fmt: skip
    assert report.targets == targets


def test_engine_the_manifest_describes_the_engine(
    graph: Path, tmp_path: Path, tensorrt_rtx: ModuleType
) -> None:
    out = tmp_path / "m.engine"
    segdeploy.build_engine(graph, out, targets=["SM86"])
    manifest = read_manifest(out)
    assert manifest["schema"] == 2
    assert manifest["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert manifest["bytes"] == out.stat().st_size
    assert manifest["compute_capabilities"] == ["sm86"]
    assert (manifest["backend"], manifest["backend_version"]) == (
        "tensorrt-rtx", tensorrt_rtx.__version__
    )  # fmt: skip
    assert manifest["options"]["weights"] == "kept"
    assert manifest["golden"] == "m.engine.golden.safetensors"
    assert manifest["contract"]["provenance"]["parent_sha256"]
    assert manifest["parent_sha256"] == hashlib.sha256(graph.read_bytes()).hexdigest()
    assert manifest["input"] == {"name": "image", "dtype": "float", "shape": [1, 3, 48, 64]}
    assert manifest["output"]["shape"] == [1, 8, 48, 64]
    contract = read_contract(json.dumps(manifest["contract"]), "manifest")
    assert contract.classes[0] == "sky"
    by_module = {c["module"]: c for c in manifest["convolutions"]}
    assert by_module["aspp.conv4"]["dilation"] == [18, 18]


def test_engine_a_dynamic_graph_is_built_for_its_bounds_or_given_profiles(
    dynamic_graph: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.engine"
    segdeploy.build_engine(dynamic_graph, out, targets=["sm86"])
    smallest, _, _ = contract_of(load_onnx(dynamic_graph), dynamic_graph).bounds
    (profile,) = read_manifest(out)["profiles"]
    assert profile["minimum"] == [1, *smallest]
    assert profile["maximum"] == [4, 96, 128]  # not all that the graph could take
    two = [PROFILE, Profile((1, 48, 64), (1, 48, 64), (1, 48, 64))]
    report = segdeploy.build_engine(dynamic_graph, out, targets=["sm86"], profiles=two)
    assert report.profiles == tuple(two)
    assert [one["maximum"] for one in read_manifest(out)["profiles"]] == [[4, 96, 128], [1, 48, 64]]


def test_engine_profiles_that_cannot_be_are_refused(dynamic_graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.engine"
    wrong = Profile(PROFILE.maximum, PROFILE.optimum, PROFILE.minimum)
    with pytest.raises(InputError, match="must grow in that order"):
        segdeploy.build_engine(dynamic_graph, out, targets=["sm86"], profiles=[wrong])
    far = Profile((1, 32, 32), (1, 48, 64), (1, 9000, 9000))
    with pytest.raises(InputError, match=r"was proven for .*1x9000x9000 is outside"):
        segdeploy.build_engine(dynamic_graph, out, targets=["sm86"], profiles=[far])
    model = load_onnx(dynamic_graph)
    set_contract(model, replace(contract_of(model, dynamic_graph), bounds=None))
    unbounded = tmp_path / "unbounded.onnx"
    onnx.save(model, unbounded)
    with pytest.raises(InputError, match="is dynamic in batch, height, width; say which shapes"):
        segdeploy.build_engine(unbounded, out, targets=["sm86"])
    assert not out.exists()


def test_engine_an_engine_of_other_sizes_resizes_to_one_of_them(
    dynamic_graph: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.engine"
    larger = Profile((1, 96, 128), (1, 96, 128), (1, 96, 128))
    segdeploy.build_engine(dynamic_graph, out, targets=["sm86"], profiles=[larger])
    assert read_manifest(out)["contract"]["size"] == [96, 128]
    assert (
        segdeploy.self_test(dynamic_graph, golden=golden_path(out)).images[0].input_difference > 0
    )
    with segdeploy.load(dynamic_graph, size=(96, 128)) as network:
        assert network.contract.size == (96, 128)


def test_engine_an_input_goes_to_the_profile_that_was_built_for_it() -> None:
    wide = Profile((1, 100, 100), (1, 400, 400), (4, 800, 800))
    exact = Profile((1, 360, 480), (1, 360, 480), (1, 360, 480))
    assert route([wide, exact], (1, 360, 480)) == 1
    assert route([exact, wide], (1, 360, 480)) == 0
    assert route([wide, exact], (2, 360, 480)) == 0
    with pytest.raises(InputError, match="no input of 1x99x400; it was built for 1x100x100 to 4x8"):
        route([wide, exact], (1, 99, 400))


def test_engine_the_cameras_bytes_have_profiles_too(
    checkpoint: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    path, out = tmp_path / "bytes.onnx", tmp_path / "m.engine"
    segdeploy.export(checkpoint, path, dynamic=True, preprocess="RGB", output="labels")
    segdeploy.build_engine(path, out, targets=["sm86"], profiles=[PROFILE])
    assert read_manifest(out)["profiles"][0]["optimum"] == [1, 48, 64]


def test_engine_several_builds_are_compared(graph: Path, tmp_path: Path) -> None:
    report = segdeploy.build_engine(graph, tmp_path / "m.engine", targets=["sm86"], repeats=3)
    varied = report.variation
    assert varied is not None
    assert varied.builds == len(varied.bytes) == 3
    assert 1 <= varied.distinct <= 3
    assert varied.least_agreement is None  # no GPU runs them here
    with pytest.raises(InputError, match="--repeats 0: must be 1 to 20"):
        segdeploy.build_engine(graph, tmp_path / "m.engine", targets=["sm86"], repeats=0)


def test_engine_progress_is_told_and_ctrl_c_ends_the_build(graph: Path, tmp_path: Path) -> None:
    reports: list[tuple[int, int, str]] = []
    out = tmp_path / "m.engine"

    def note(done: int, total: int, what: str) -> None:
        reports.append((done, total, what))

    segdeploy.build_engine(graph, out, targets=["sm86"], on_progress=note)
    assert len(reports) > 10
    assert all(0 <= done <= total for done, total, _ in reports)
    assert reports[-1][0] == reports[-1][1]
    for path in tmp_path.iterdir():
        path.unlink()

    def interrupt(done: int, total: int, what: str) -> None:
        if done:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        segdeploy.build_engine(graph, out, targets=["sm86"], on_progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert list(tmp_path.iterdir()) == []


def test_engine_what_a_callback_raises_is_raised_behind_the_build(
    graph: Path, tmp_path: Path
) -> None:
    def fail(done: int, total: int, what: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        segdeploy.build_engine(graph, tmp_path / "m.engine", targets=["sm86"], on_progress=fail)


def test_engine_a_workspace_that_is_too_small_is_named(camvid_graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.engine"
    with pytest.raises(InputError, match="--workspace 1 MiB is too little"):
        segdeploy.build_engine(camvid_graph, out, targets=["sm86"], workspace=1)
    assert list(tmp_path.iterdir()) == []
    segdeploy.build_engine(camvid_graph, out, targets=["sm86"], workspace=256)
    assert read_manifest(out)["options"]["workspace_mib"] == 256


def test_engine_rtx_says_that_it_has_no_use_for_a_timing_cache(graph: Path, tmp_path: Path) -> None:
    cache, out = tmp_path / "timings", tmp_path / "m.engine"
    report = segdeploy.build_engine(graph, out, targets=["sm86"], timing_cache=cache)
    assert "--timing-cache is ignored" in report.notes[0]
    assert not cache.exists()


@pytest.mark.filterwarnings("ignore:.*no-ops in TensorRT-RTX:DeprecationWarning")
def test_engine_a_timing_cache_is_kept_and_merged(tmp_path: Path, tensorrt_rtx: ModuleType) -> None:
    """With RTX's own objects, which are real, though nothing is timed into them."""
    cache = tmp_path / "timings"

    def config() -> object:
        return tensorrt_rtx.Builder(tensorrt_rtx.Logger()).create_builder_config()

    with shared_timing_cache(cache, config()):
        assert not cache.exists()
    held = cache.read_bytes()
    assert len(held) > 100
    with shared_timing_cache(cache, config()):
        cache.write_bytes(b"another build wrote this meanwhile")
    assert cache.read_bytes() == held  # what is no cache is not merged, and what is stays whole

    def build() -> None:
        with shared_timing_cache(cache, config()):
            time.sleep(0.01)

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache.read_bytes()) == len(held)
    with (
        pytest.raises(ZeroDivisionError),
        shared_timing_cache(cache, config()),
    ):
        raise ZeroDivisionError  # a build that failed adds nothing


def test_engine_what_a_stripped_engine_could_not_be_loaded_with_is_refused(
    graph: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.engine"
    with pytest.raises(InputError, match="must be in the engine's folder"):
        segdeploy.build_engine(graph, out, targets=["sm86"], weights="stripped")
    beside = tmp_path / "m.onnx"
    beside.write_bytes(graph.read_bytes())
    with pytest.raises(InputError, match="cannot be compared without their weights"):
        segdeploy.build_engine(beside, out, targets=["sm86"], weights="stripped", repeats=2)


def test_engine_weights_that_can_be_replaced_need_a_gpu_here(graph: Path, tmp_path: Path) -> None:
    beside = tmp_path / "m.onnx"
    beside.write_bytes(graph.read_bytes())
    for weights in ("refittable", "stripped"):
        with pytest.raises(InputError, match="--refittable and --stripped need a GPU"):
            segdeploy.build_engine(beside, tmp_path / "m.engine", targets=["sm86"], weights=weights)
    assert list(tmp_path.iterdir()) == [beside]


def test_engine_a_graph_is_calibrated_where_another_precision_is_asked_for(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.engine"
    with pytest.raises(InputError, match="--precision fp16: .*give --data"):
        segdeploy.build_engine(graph, out, targets=["sm86"], precision="fp16")
    report = segdeploy.build_engine(graph, out, targets=["sm86"], precision="fp16", data=dataset)
    assert report.precision == "fp16"
    assert read_manifest(out)["parent"] == "m.fp16.onnx"
    assert (tmp_path / "m.fp16.onnx").exists()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="--target sm1"):
        segdeploy.build_engine(graph, out, targets=["sm1"], precision="int8", data=dataset)
    assert sorted(tmp_path.iterdir()) == before


def test_engine_a_static_graph_takes_no_profile(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave --min, --opt and --max out"):
        segdeploy.build_engine(graph, tmp_path / "m.engine", targets=["sm86"], profiles=[PROFILE])


def parsed(trt: ModuleType, model: onnx.ModelProto):
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, logger).parse(model.SerializeToString())
    return builder, network


def test_engine_another_dilation_in_tensorrts_network_is_found(
    graph: Path, tensorrt_rtx: ModuleType
) -> None:
    trt = tensorrt_rtx
    model = onnx.load(graph)
    builder, network = parsed(trt, model)
    assert all(proof.holds for proof in prove_network(trt, network, model))
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.CONVOLUTION:
            layer.__class__ = trt.IConvolutionLayer
            if tuple(layer.dilation_nd) == (12, 12):
                layer.dilation_nd = (11, 11)
    failed = [proof for proof in prove_network(trt, network, model) if not proof.holds]
    assert len(failed) == 1
    assert "convolution aspp.conv3" in failed[0].failure()
    assert "has dilation (11, 11) instead of (12, 12)" in failed[0].failure()
    del builder


def test_engine_a_network_that_differs_is_not_written(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_layer = network_proof._layer_geometry

    def shifted(bindings, layer):
        geometry = true_layer(bindings, layer)
        if geometry.dilation == (18, 18):
            layer.dilation_nd = (17, 17)
        return true_layer(bindings, layer)

    monkeypatch.setattr(network_proof, "_layer_geometry", shifted)
    with pytest.raises(CheckFailed, match=r"aspp\.conv4 .* dilation \(17, 17\) instead of"):
        segdeploy.build_engine(graph, tmp_path / "m.engine", targets=["sm86"])
    assert list(tmp_path.iterdir()) == []


def test_engine_an_unnamed_foreign_convolution_is_proven_too(graph: Path, tmp_path: Path) -> None:
    model = onnx.load(graph)
    for node in model.graph.node:
        node.name = ""
        del node.metadata_props[:]
    path = tmp_path / "unnamed.onnx"
    onnx.save(model, path)
    report = segdeploy.build_engine(path, tmp_path / "m.engine", targets=["sm86"])
    assert len({proof.node for proof in report.convolutions}) == len(report.convolutions) == 14


def test_engine_wrong_targets_backends_and_outputs(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.engine"

    def refuse(said: str, **options: object) -> None:
        with pytest.raises(InputError, match=said):
            segdeploy.build_engine(graph, out, **options)

    refuse("--target sm90: TensorRT-RTX .* builds for sm75, sm80", targets=["sm90"])
    refuse("name the GPU's compute capability")
    refuse("trtexec: no such builder; there are tensorrt-rtx, tensorrt", backend="trtexec")
    refuse("--version-compatible: is an option of", targets=["sm86"], version_compatible=True)
    refuse("--hardware-compatible: is an option of", targets=["sm86"], hardware_compatible=True)
    refuse("weights 'gone': there are kept", targets=["sm86"], weights="gone")
    with pytest.raises(InputError, match=r"must end in \.engine"):
        segdeploy.build_engine(graph, tmp_path / "m.plan", targets=["sm86"])
    assert list(tmp_path.iterdir()) == []


def test_engine_a_graph_that_the_parser_refuses_names_node_and_module(
    graph: Path, tmp_path: Path
) -> None:
    model = onnx.load(graph)
    relu = next(n for n in model.graph.node if n.op_type == "Relu")
    relu.op_type = "Bernoulli"  # sound ONNX, and nothing that TensorRT has
    path = tmp_path / "strange.onnx"
    onnx.save(model, path)
    with pytest.raises(InputError) as raised:
        segdeploy.build_engine(path, tmp_path / "m.engine", targets=["sm86"])
    message = str(raised.value)
    assert "TensorRT's parser refuses it: node node_relu (module backbone.0.relu)" in message
    assert "Bernoulli" in message


def quantized_by_another_tool(
    graph: Path,
    dataset: Path,
    out: Path,
    *,
    symmetric: bool,
    quant_format: QuantFormat = QuantFormat.QDQ,
) -> None:
    """What onnxruntime's `quantize_static` writes: biases in int32, and zero points by default."""
    contract = contract_of(load_onnx(graph), graph)
    frames = open_dataset(dataset).frames("train", 2)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter([preprocess(frame.read()[0], contract) for frame in frames])

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"image": image}

    symmetry = {"ActivationSymmetric": True} if symmetric else {}
    kinds = (
        {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8} if symmetric else {}
    )
    quantize_static(
        graph, out, Reader(), quant_format=quant_format, extra_options=symmetry, **kinds
    )


def test_engine_a_graph_that_another_tool_quantized_is_mended_exactly(
    graph: Path, dataset: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    path, out = tmp_path / "theirs.onnx", tmp_path / "m.engine"
    quantized_by_another_tool(graph, dataset, path, symmetric=True)
    theirs = load_onnx(path)
    ours, count = with_float_biases(theirs)
    assert count >= 10
    x = np.random.default_rng(0).normal(0, 1, (1, 3, *SIZE)).astype(np.float32)
    given = [open_reference_execution(one).run(None, {"image": x})[0] for one in (theirs, ours)]
    assert np.array_equal(*given)
    report = segdeploy.build_engine(path, out, targets=["sm86", "sm89"])
    assert report.precision == "int8"
    assert report.notes == (
        f"{count} biases were int32, which TensorRT refuses; converted to float",
    )
    same, none = with_float_biases(ours)
    assert same is ours
    assert none == 0


def test_engine_zero_points_are_mended_with_a_notice_and_the_graph_that_was_built(
    graph: Path, dataset: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    path, built = tmp_path / "theirs.onnx", tmp_path / "m.symmetric.onnx"
    quantized_by_another_tool(graph, dataset, path, symmetric=False)
    report = segdeploy.build_engine(path, tmp_path / "m.engine", targets=["sm86", "sm89"])
    assert report.int8 >= 10
    assert f"{built} is that graph" in report.notes[1]
    assert "up to one bit coarser" in report.notes[1]
    ours = load_onnx(built)
    again, none = with_symmetric_integers(ours, "it")
    assert (again is ours, none) == (True, 0)
    frame = open_dataset(dataset).frames("val", 1)[0].read()[0]
    x = preprocess(frame, contract_of(ours, built))
    exact, theirs, mended = (
        open_reference_execution(load_onnx(one)).run(None, {"image": x})[0]
        for one in (graph, path, built)
    )
    # No further from FP32 than twice what theirs is: one bit.
    assert np.abs(mended - exact).mean() < 2.5 * np.abs(theirs - exact).mean()
    assert not np.array_equal(mended, theirs)


def test_engine_weights_with_a_zero_point_keep_their_values(tmp_path: Path) -> None:
    weights = np.linspace(-0.2, 1.0, 2 * 3 * 3 * 3).reshape(2, 3, 3, 3).astype(np.float32)
    scale, zero = np.array([0.006, 0.005], np.float32), np.array([40, 10], np.uint8)
    integers = np.clip(np.rint(weights / scale[:, None, None, None]) + zero[:, None, None, None],
                       0, 255).astype(np.uint8)  # fmt: skip
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3,4,4] image) => (float[1,2,2,2] logits) {
            w = DequantizeLinear<axis = 0>(q, s, z)
            logits = Conv(image, w)
        }"""
    )
    held = {"q": integers, "s": scale, "z": zero}
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in held.items())
    mended, count = with_symmetric_integers(model, "it")
    assert count == 1
    after = {t.name: numpy_helper.to_array(t) for t in mended.graph.initializer}
    values = after["w.integers"] * after["w.scale"][:, None, None, None]
    before = (integers.astype(int) - zero[:, None, None, None]) * scale[:, None, None, None]
    assert after["w.integers"].dtype == np.int8
    assert np.abs(values - before).max() <= after["w.scale"].max() / 2 + 1e-6


def test_engine_a_constant_float_weight_is_quantized_in_the_graph(tmp_path: Path) -> None:
    """Q on a constant, with a zero point: the constant is no integer, and becomes none."""
    weights = np.linspace(-0.2, 1.0, 54).reshape(2, 3, 3, 3).astype(np.float32)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3,4,4] image) => (float[1,2,2,2] logits)
        <float s = {0.006}, uint8 z = {40}> {
            q = QuantizeLinear(weights, s, z)
            w = DequantizeLinear(q, s, z)
            logits = Conv(image, w)
        }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(weights, "weights"))
    mended, count = with_symmetric_integers(model, "it")
    assert count == 1
    image = {"image": np.random.default_rng(0).random((1, 3, 4, 4), np.float32)}
    before, after = (
        onnxruntime.InferenceSession(one.SerializeToString()).run(None, image)[0]
        for one in (model, mended)
    )
    assert np.abs(after - before).max() < 27 * 0.006  # half a step of 27 weights, each up to 2s


def test_engine_operators_on_integers_are_refused_and_nothing_is_written(
    graph: Path, dataset: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    path = tmp_path / "theirs.onnx"
    quantized_by_another_tool(
        graph, dataset, path, symmetric=False, quant_format=QuantFormat.QOperator
    )
    with pytest.raises(InputError, match="is a QLinear.*quantize with QuantFormat.QDQ"):
        segdeploy.build_engine(path, tmp_path / "m.engine", targets=["sm86"])
    assert list(tmp_path.iterdir()) == [path]


def test_engine_sixteen_bit_integers_are_refused_with_the_way_out() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 21]>
        g (float[1,3,4,4] image) => (float[1,3,4,4] logits)
        <float s = {0.1}, int16 z = {0}> {
            [wide] q = QuantizeLinear(image, s, z)
            logits = DequantizeLinear(q, s, z)
        }"""
    )
    with pytest.raises(InputError, match="node 'wide' has int16 integers.*--scheme tensorrt"):
        with_symmetric_integers(model, "it.onnx")


@pytest.mark.parametrize("options", [{"max_miou_drop": 5.0}, {"method": "entropy"}])
def test_engine_every_graph_of_ours_is_built(
    graph: Path, dataset: Path, tmp_path: Path, tensorrt_rtx: object, options: dict
) -> None:
    path = tmp_path / "m.onnx"
    calibrated = segdeploy.calibrate(graph, dataset, path, limit=4, **options)
    report = segdeploy.build_engine(path, tmp_path / "m.engine", targets=["sm86", "sm89"])
    assert all(proof.holds for proof in report.convolutions)
    assert report.int8 == len(calibrated.int8) > 0

"""Graphs that take bytes, fuse scales, or give labels: the runtimes' answer is PyTorch's."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP

import segdeploy
from segdeploy.commands import export
from segdeploy.errors import CheckFailed, InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.models.multi_scale import MultiScaleInput
from segdeploy.network_loading import load_network
from segdeploy.onnx_graph.model_file import contract_of, load_onnx
from segdeploy.optimizer import optimize
from segdeploy.optimizer.pass_result import PassResult
from segdeploy.profiles import Bounds
from segdeploy.proof.divergence import first_divergence
from segdeploy.proof.parity import NOISE
from segdeploy.proof.test_inputs import random_images
from segdeploy.runtime.inference_options import InferenceOptions

from .conftest import SIZE, Ran, check_one_line
from .graphs import set_ints

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)


def first_image(dataset: Path) -> np.ndarray:
    return open_dataset(dataset).frames("val")[0].read()[0]


@pytest.mark.parametrize("color", ["RGB", "BGR"])
@pytest.mark.parametrize("output", ["logits", "probabilities", "labels"])
def test_deployed_graphs_bytes_in_and_any_output_out(
    checkpoint: Path, dataset: Path, tmp_path: Path, color: str, output: str
) -> None:
    out = tmp_path / "m.onnx"
    report = segdeploy.export(checkpoint, out, preprocess=color, output=output)
    plain, ends = (
        [p.image for p in report.parity if p.against == against]
        for against in ("PyTorch", f"PyTorch's {output}")
    )
    assert plain[0] == ends[0] == NOISE
    # Bytes cannot be padded with the zeros of a normalized image.
    assert set(ends) == set(plain) - {"an image that is padded with zeros"}
    graph = load_onnx(out)
    contract = contract_of(graph, out)
    assert (contract.layout, contract.channels, contract.output) == ("NHWC", tuple(color), output)
    onnx.checker.check_model(graph, full_check=True)
    image = first_image(dataset)[: SIZE[0], : SIZE[1]]
    with segdeploy.load(checkpoint) as torch_network:
        expected = torch_network.predict(image)
    for backend in ("onnxruntime", "openvino"):
        with segdeploy.load(out, backend=backend) as predictor:
            assert predictor.session.input.shape == (1, *SIZE, 3)
            assert np.mean(predictor.predict(image) == expected) > 0.999


def test_deployed_graphs_labels_of_a_larger_image_are_enlarged_by_nearest(
    checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    segdeploy.export(checkpoint, tmp_path / "m.onnx", output="labels")
    image = first_image(dataset)
    with segdeploy.load(tmp_path / "m.onnx") as predictor:
        labels = predictor.predict(image)
        assert labels.shape == image.shape[:2]
        assert np.array_equal(labels[::2, ::2], labels[1::2, 1::2])
        with pytest.raises(InputError, match="the graph gives labels, not logits"):
            predictor.logits(image)


@pytest.mark.parametrize("dynamic", [False, True])
def test_deployed_graphs_late_upsampling_gives_the_whole_graphs_labels(
    checkpoint: Path, dataset: Path, tmp_path: Path, dynamic: bool
) -> None:
    full, late = tmp_path / "full.onnx", tmp_path / "late.onnx"
    segdeploy.export(checkpoint, full, output="labels", dynamic=dynamic)
    report = segdeploy.export(
        checkpoint, late, output="labels", late_upsampling=True, dynamic=dynamic
    )
    assert report.contract.upsampling == "align-corners"
    assert report.parity[-1].against == "PyTorch's labels"
    assert not any(n.op_type in ("Resize", "ArgMax") for n in load_onnx(late).graph.node)
    with segdeploy.load(full) as one, segdeploy.load(late) as other:
        for frame in open_dataset(dataset).frames("val"):
            image, _ = frame.read()
            assert np.array_equal(one.predict(image), other.predict(image))
        small = other.session.run(np.zeros((1, 3, *SIZE), np.float32))
        assert small.shape == (1, 8, SIZE[0] // 2, SIZE[1] // 2)


def test_deployed_graphs_what_does_not_end_in_a_resize_is_not_cut(
    checkpoint: Path, tmp_path: Path
) -> None:
    report = segdeploy.export(
        checkpoint, tmp_path / "m.onnx", output="labels", late_upsampling=True, scales=(0.75, 1.0)
    )
    assert report.contract.upsampling is None
    assert "--late-upsampling left out" in report.notes[0]
    assert load_onnx(tmp_path / "m.onnx").graph.output[0].name == "labels"
    with pytest.raises(InputError, match="needs --output labels"):
        segdeploy.export(checkpoint, tmp_path / "m.onnx", late_upsampling=True)


@pytest.mark.parametrize(
    ("flip", "fuse", "dynamic"),
    [(False, "mean", False), (True, "max", False), (True, "mean", True)],
)
def test_deployed_graphs_several_scales_in_one_graph(
    checkpoint: Path, tmp_path: Path, flip: bool, fuse: str, dynamic: bool
) -> None:
    out = tmp_path / "m.onnx"
    report = segdeploy.export(checkpoint, out, scales=SCALES, flip=flip, fuse=fuse, dynamic=dynamic)
    runs = len(SCALES) * (2 if flip else 1)
    assert all(proof.holds for proof in report.convolutions)
    assert len(report.convolutions) >= runs * 14
    heads = [line for line in report.optimization.rewrites if line.startswith("linear head")]
    assert len(heads) == runs
    # The scales share their weights, folded or not.
    names = [t.name for t in load_onnx(out).graph.initializer if "backbone.1.conv1" in t.name]
    assert len(names) == len(set(names)) <= 2
    if dynamic:
        network = load_network(ModelSpec(str(checkpoint))).network
        fused = MultiScaleInput(network, scales=SCALES, flip=flip, fuse=fuse).eval()
        with segdeploy.load(out) as predictor:
            for shape in ((1, 3, 77, 133), (2, 3, 50, 39)):  # never traced
                x = torch.randn(shape)
                with torch.no_grad():
                    expected = fused(x).numpy()
                found = predictor.session.run(x.numpy())
                assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)


@pytest.mark.parametrize("fuse", ["mean", "max"])
def test_deployed_graphs_a_loop_over_a_dynamic_session_is_the_fused_graph(
    checkpoint: Path, dynamic_graph: Path, dataset: Path, fuse: str
) -> None:
    network = load_network(ModelSpec(str(checkpoint)))
    fused = MultiScaleInput(network.network, scales=SCALES, flip=True, fuse=fuse).eval()
    image = first_image(dataset)
    from segdeploy.preprocessing.preprocess import preprocess

    with torch.no_grad():
        expected = fused(torch.from_numpy(preprocess(image, network.contract)))[0].numpy()
    for model in (dynamic_graph, checkpoint):
        with segdeploy.load(model) as predictor:
            options = InferenceOptions(SCALES, flip=True, fuse=fuse)
            found = predictor.logits(image, options)
            assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)
            assert predictor.predict(image, options).shape == image.shape[:2]


def test_deployed_graphs_scales_at_run_time_need_a_dynamic_graph_of_logits(
    graph: Path, dataset: Path, checkpoint: Path, tmp_path: Path
) -> None:
    image = first_image(dataset)
    with segdeploy.load(graph) as predictor:
        with pytest.raises(InputError, match="is static at 48x64, and scale 0.5 is another size"):
            predictor.predict(image, InferenceOptions(scales=(0.5,)))
        with pytest.raises(InputError, match="shrinks a 48x64 image to nothing"):
            predictor.predict(image, InferenceOptions(scales=(0.001,)))
        with pytest.raises(InputError, match="neither mean nor max"):
            predictor.predict(image, InferenceOptions(flip=True, fuse="median"))
        mirrored = predictor.logits(np.ascontiguousarray(image[:, ::-1]))[..., ::-1]
        expected = (predictor.logits(image) + mirrored) / 2
        flipped = predictor.logits(image, InferenceOptions(flip=True))
        assert np.abs(flipped - expected).max() < 1e-5 * np.ptp(expected)
    segdeploy.export(checkpoint, tmp_path / "m.onnx", preprocess="RGB")
    bytes_in = segdeploy.load(tmp_path / "m.onnx")
    with bytes_in, pytest.raises(InputError, match="scales need float input and logits"):
        bytes_in.predict(image, InferenceOptions(flip=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--scales", "0.5,x"), "is not a list of scales such as 0.5,1,1.5"),
        (("--scales", "0.001,1"), "shrinks a 48x64 image to nothing"),
        (("--scales", "1,1.001"), "1.0 and 1.001 both give 48x64; leave one out"),
        (("--opset", "9"), "PyTorch's exporter writes 18 to 23"),
        (("--min-size", "32x32"), "--min-size, --max-size and --max-batch go with --dynamic"),
        (("--dynamic", "--min-size", "64x64"), "the height 64, 48, 8192 must be in ascending"),
        (("--dynamic", "--max-size", "40x400"), "the height 32, 48, 40 must be in ascending"),
        (("--dynamic", "--max-size", "20000x20000"), "20000x20000, more than 100000000 pixels"),
    ],
)
def test_deployed_graphs_contradictions_are_refused(
    run,
    checkpoint: Path,
    tmp_path: Path,
    options: tuple,
    said: str,
) -> None:
    check_one_line(run("export", checkpoint, "-o", tmp_path / "m.onnx", *options), said)
    assert list(tmp_path.iterdir()) == []


def test_deployed_graphs_scales_are_not_fused_twice_nor_beyond_the_bounds(
    checkpoint: Path, dynamic_graph: Path, dataset: Path, tmp_path: Path
) -> None:
    segdeploy.export(checkpoint, tmp_path / "m.onnx", scales=(0.5, 1.0))
    fused = segdeploy.load(tmp_path / "m.onnx")
    with fused, pytest.raises(InputError, match=r"fuses scales \(0.5, 1.0\) already"):
        fused.predict(first_image(dataset), InferenceOptions(flip=True))
    with segdeploy.load(dynamic_graph) as predictor:
        assert predictor.contract.bounds == ((24, 32), (8192, 8192), 32)
        with pytest.raises(InputError, match="outside the graph's 24x32 to 8192x8192"):
            predictor.predict(first_image(dataset), InferenceOptions(scales=(0.25,)))


def test_deployed_graphs_a_real_frame_is_compared_too(
    checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    report = segdeploy.export(checkpoint, tmp_path / "m.onnx", data=dataset)
    assert report.parity[-1].image == "the frame val_0000"


def test_deployed_graphs_bounds_and_opset_are_kept(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    bounds = Bounds((40, 40), (100, 120), 4)
    report = segdeploy.export(checkpoint, out, dynamic=True, bounds=bounds, opset=18)
    shapes = [p.shape for p in report.parity]
    assert {(4, 3, 40, 40), (1, 3, 61, 71), (1, 3, 100, 120)} <= set(shapes)
    assert load_onnx(out).opset_import[0].version == 18


class Shapely(nn.Module):
    """A network that looks at its data to decide what to do."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.mean() > 0 else -self.conv(x)


def test_deployed_graphs_control_flow_on_data_is_named_with_its_line(tmp_path: Path) -> None:
    spec = ModelSpec(f"{__name__}:Shapely", 2, size=(16, 16))
    with pytest.raises(InputError, match=r"data-dependent.*test_deployed_graphs\.py, line \d+"):
        segdeploy.export(spec, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def adding_to(weight: str, amount: float):
    """A change of one value of a weight."""

    def tamper(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == weight)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[0, 0, 1, 1] += amount
        tensor.raw_data = values.tobytes()

    return tamper


def let_traces_be_changed(monkeypatch: pytest.MonkeyPatch, tamper) -> None:
    true_trace = export.trace

    def broken(*arguments, **options):
        model = true_trace(*arguments, **options)
        tamper(model)
        return model

    monkeypatch.setattr(export, "trace", broken)


def tampered_dilation(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if "backbone.2.conv1.weight" in n.input)
    set_ints(node, "dilations", [3, 3])
    set_ints(node, "pads", [3, 3, 3, 3])


def tampered_resize(model: onnx.ModelProto) -> None:
    node = [n for n in model.graph.node if n.op_type == "Resize"][-1]
    attribute = next(a for a in node.attribute if a.name == "coordinate_transformation_mode")
    attribute.s = b"half_pixel"


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (adding_to("backbone.1.conv2.weight", 0.5),
         r"first layer that differs is backbone\.1\.(conv2|bn2) "),
        (tampered_dilation, r"backbone\.2\.conv1 .* dilation \(3, 3\) instead of \(4, 4\).*"
         r"first layer that differs is backbone\.2\.(conv1|bn1) "),
        (tampered_resize, r"resize of forward .* has align_corners False instead of True"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("optimized", [False, True])
def test_deployed_graphs_a_broken_graph_is_told_by_its_first_layer(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tamper, said: str,
    optimized: bool,
) -> None:  # fmt: skip
    let_traces_be_changed(monkeypatch, tamper)
    with pytest.raises(CheckFailed, match=said):
        segdeploy.export(checkpoint, tmp_path / "m.onnx", optimized=optimized, output="labels")
    assert [p.name for p in tmp_path.iterdir()] == ["m.rejected.onnx"]
    kept = tmp_path / "m.rejected.onnx"
    assert contract_of(onnx.load(kept), kept).output == "logits"
    with pytest.raises(InputError, match="failed its proof when it was exported"):
        load_onnx(kept)


class Joined(nn.Module):
    """Three branches with BatchNorm, the last of a rate that loses its dead taps, and pooling."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.aspp = ASPP(3, [1, 2, 24], 8)
        self.classify = nn.Conv2d(8, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.aspp(x))


def test_deployed_graphs_a_broken_branch_is_found_though_others_run_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(f"{__name__}:Joined", 3, size=(20, 24))
    out = tmp_path / "m.onnx"
    torch.manual_seed(0)
    report = segdeploy.export(spec, out)
    assert any("dead taps" in line for line in report.optimization.rewrites)
    assert any("broadcast 1x1 map" in line for line in report.optimization.rewrites)
    torch.manual_seed(0)
    network = load_network(spec).network
    graph = export.trace(network, (20, 24), dynamic=False, name="joined")
    found, compared = first_divergence(
        network.module, network, graph, random_images((1, 3, 20, 24))
    )
    assert found is None
    assert compared >= 14
    let_traces_be_changed(monkeypatch, adding_to("aspp.convs.1.0.weight", 5))
    said = r"first layer that differs is aspp\.convs\.1\.0 .*aspp\.convs\.0\.2 before it agrees"
    with pytest.raises(CheckFailed, match=said):
        segdeploy.export(spec, out)


def test_deployed_graphs_a_true_graph_has_no_first_divergence(
    checkpoint: Path, graph: Path
) -> None:
    network = load_network(ModelSpec(str(checkpoint))).network
    mirrored = MultiScaleInput(network, scales=(0.5, 1.0), flip=True).eval()
    for called, runs in ((network, 1), (mirrored, 4)):
        traced = export.trace(called, SIZE, dynamic=False, name="true")
        found, compared = first_divergence(
            network.module, called, traced, random_images((1, 3, *SIZE))
        )
        assert found is None
        assert compared >= 20 * runs


class Several(nn.Module):
    """A layer that gives two tensors, before one that is broken; run twice when mirrored."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.mix, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, num_classes, 3, padding=1)
        nn.init.constant_(self.mix.bias, 3)  # no channel is dead: what is broken behind it shows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.mix(self.up(self.pool(x)[0])).relu())


@pytest.mark.parametrize("flip", [False, True])
def test_deployed_graphs_a_layer_is_found_behind_a_rewrite_and_in_a_mirrored_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flip: bool
) -> None:
    let_traces_be_changed(monkeypatch, adding_to("last.weight", 5))
    spec = ModelSpec(f"{__name__}:Several", 3, size=(16, 24))
    with pytest.raises(
        CheckFailed, match=r"first layer that differs is last .*mix before it agrees"
    ):
        segdeploy.export(spec, tmp_path / "m.onnx", flip=flip)


def test_deployed_graphs_a_wrong_rewrite_is_undone_and_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: ir.Model) -> PassResult:
        weights = (v for v in model.graph.initializers.values() if "conv1.weight" in v.name)
        value = next(weights)
        value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=value.name)
        return PassResult(["a weight of zeros"])

    monkeypatch.setattr(optimize, "PASSES", (*optimize.PASSES[:2], ("wrong", wrong)))
    report = segdeploy.export(checkpoint, tmp_path / "m.onnx")
    steps = {step.name: step for step in report.optimization.steps}
    assert re.match("undone: .* the output differs from PyTorch by", steps["wrong"].skipped[0])
    assert steps["fold shapes"].rewrites
    assert all(p.holds for p in report.parity)


class BranchesOnHeight(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y * 2 if x.shape[2] > 64 else y


class BranchesOnPixels(BranchesOnHeight):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y * 2 if x.shape[2] * x.shape[3] > 10_000 else y


class FixedGrid(BranchesOnHeight):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta = torch.eye(2, 3)[None].expand(x.shape[0], 2, 3)
        grid = nn.functional.affine_grid(theta, list(x.shape))
        return self.conv(nn.functional.grid_sample(x, grid))


@pytest.mark.parametrize(
    ("network", "error", "said"),
    [
        ("BranchesOnHeight", InputError, "branches on the height, .* traced it for 16 to 64;"),
        ("BranchesOnPixels", CheckFailed, "at input 1x3x128x192 the output differs"),
        ("FixedGrid", InputError, "needs a fixed size, .*height 32, width 48.*without --dynamic"),
    ],
)
def test_deployed_graphs_a_graph_that_holds_for_some_sizes_alone_is_refused(
    tmp_path: Path, network: str, error: type[Exception], said: str
) -> None:
    spec = ModelSpec(f"{__name__}:{network}", 2, size=(32, 48))
    with pytest.raises(error, match=said):
        segdeploy.export(spec, tmp_path / "m.onnx", dynamic=True)
    assert not (tmp_path / "m.onnx").exists()


class ByFactor(BranchesOnHeight):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = nn.functional.avg_pool2d(self.conv(x), 2)
        return nn.functional.interpolate(small, scale_factor=2.06, mode="bilinear")


def test_deployed_graphs_an_enlargement_by_a_factor_is_not_finished_late(tmp_path: Path) -> None:
    spec = ModelSpec(f"{__name__}:ByFactor", 3, size=(35, 35))
    out = tmp_path / "m.onnx"
    report = segdeploy.export(spec, out, output="labels", late_upsampling=True)
    assert report.contract.upsampling is None
    assert "--late-upsampling left out" in report.notes[0]


def test_deployed_graphs_predict_from_the_command_line(
    run,
    dynamic_graph: Path,
    dataset: Path,
    tmp_path: Path,
) -> None:
    image = open_dataset(dataset).frames("val")[0].image
    out = tmp_path / "o.png"
    ran: Ran = run("predict", dynamic_graph, image, "--scales", "0.5,1", "--flip", "-o", out)
    assert ran.code == 0, ran.err
    assert out.exists()


class Amplifying(nn.Module):
    """Rounding grows a hundredfold on its way through: a difference of large equal numbers."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 5, padding=2)
        nn.init.normal_(self.conv.weight, generator=torch.Generator().manual_seed(0))
        self.gain = nn.Parameter(torch.tensor(4000.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = self.conv(x * self.gain + 1e6)
        return large - large.mean((2, 3), keepdim=True)


def test_deployed_graphs_rounding_that_pytorch_has_too_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(f"{__name__}:Amplifying", 2, size=(16, 16))
    from segdeploy.proof import parity

    monkeypatch.setattr(parity, "FP32_LIMIT", 1e-9)
    report = segdeploy.export(spec, tmp_path / "m.onnx")
    assert 1e-9 < report.parity[0].max_rel < report.parity[0].limit < 1e-3
    # A wrong weight is far beyond it.
    true_trace = export.trace

    def broken(*arguments, **options):
        model = true_trace(*arguments, **options)
        tensor = next(t for t in model.graph.initializer if t.name == "conv.weight")
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[0, 0, 1, 1] *= 1.01
        tensor.raw_data = values.tobytes()
        return model

    monkeypatch.setattr(export, "trace", broken)
    with pytest.raises(CheckFailed, match="the output differs from PyTorch by"):
        segdeploy.export(spec, tmp_path / "m.onnx")

"""The other exact rewrites: each rule, each refusal, and that nothing changes but the cost."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from torch import nn

from segdeploy.commands.export import trace
from segdeploy.models.network import Network
from segdeploy.onnx_graph.convolutions import ConvGeometry
from segdeploy.optimizer import optimize as optimizing
from segdeploy.optimizer.pass_result import PassResult
from segdeploy.optimizer.passes.remove_dead_taps import live_taps, remove_dead_taps
from segdeploy.proof.dilation import prove_dilations, prove_trace
from segdeploy.proof.recording import record

from .graphs import check_equal, graph_of, image, operators, random, run, traced

SIZE = (24, 32)


def convolutions(model: onnx.ModelProto) -> list[list[int]]:
    names = [n.input[1] for n in model.graph.node if n.op_type == "Conv"]
    weights = {t.name: t for t in model.graph.initializer}
    return [list(weights[name].dims) for name in names]


def result_of(
    optimization: optimizing.RewriteReport, name: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    step = next(step for step in optimization.steps if step.name == name)
    return step.rewrites, step.skipped


def against(before: onnx.ModelProto) -> optimizing.Check:
    sides = [d.dim_value for d in before.graph.input[0].type.tensor_type.shape.dim]
    return optimizing.against_itself(before, [image(*sides)])


class Rates(nn.Module):
    """Four rates on a 6x8 map, with a ReLU behind each, as in DeepLab's pyramid."""

    def __init__(self, rates: tuple[int, ...] = (2, 5, 7, 12)):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.branches = nn.ModuleList(
            nn.Conv2d(4, 2, 3, padding=rate, dilation=rate) for rate in rates
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.first(x).relu()
        total = sum(branch(features).relu() for branch in self.branches)
        return F.interpolate(total, size=x.shape[2:], mode="bilinear")


def test_passes_dead_taps_go_and_the_proof_follows_them() -> None:
    torch.manual_seed(0)
    network = Network(Rates().eval(), 2, SIZE, "net")
    before = trace(network, SIZE, dynamic=False, name="net")
    tensor = torch.from_numpy(image(1, 3, *SIZE))
    calls = prove_trace(network.module, network, before, tensor).calls
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, *SIZE))
    shapes = sorted(shape[2:] for shape in convolutions(after))
    assert shapes == [[1, 1], [1, 3], [3, 3], [3, 3], [3, 3]]
    assert len(result_of(optimization, "remove dead taps")[0]) == 2
    assert optimization.after.macs < optimization.before.macs
    proofs, strangers = prove_dilations(calls, after, tensor)
    assert len(proofs) == 5
    assert all(p.holds for p in proofs)
    assert not strangers
    # Which is a proof at this size alone.
    larger = torch.from_numpy(image(1, 3, 48, 64))
    recorded = record(network.module, network, larger).live
    assert not all(p.holds for p in prove_dilations(recorded, after, tensor)[0])


def test_passes_a_dynamic_graph_keeps_every_tap_and_says_why() -> None:
    torch.manual_seed(0)
    before = traced(Rates(), 2, dynamic=True)
    after, optimization = optimizing.optimize_graph(before)
    rewrites, skipped = result_of(optimization, "remove dead taps")
    assert rewrites == ()
    assert len(skipped) == 4
    assert all("has no static size, so every tap may live" in line for line in skipped)
    for shape in ((1, 3, *SIZE), (2, 3, 40, 33)):
        check_equal(before, after, image(*shape))


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 20)] * 4),
    st.sampled_from((1, 2)),
)
def test_passes_any_kernel_without_its_dead_taps_is_the_same(
    size: tuple, kernel: tuple, dilation: tuple, stride: tuple, pads: tuple, groups: int
) -> None:
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    out = [(size[a] + pads[a] + pads[a + 2] - spans[a]) // stride[a] + 1 for a in (0, 1)]
    if min(out) < 1:
        return
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], name="c", dilations=dilation, strides=stride, pads=pads,
        group=groups, kernel_shape=kernel,
    )  # fmt: skip
    weights = {"w": random(4, 2 // groups, *kernel), "b": random(4)}
    before = graph_of([node], [1, 4, *out], weights, [1, 2, *size])
    model = ir.from_proto(before)
    remove_dead_taps(model)
    after = ir.to_proto(model)
    x = image(1, 2, *size)
    np.testing.assert_allclose(run(after, x), run(before, x), atol=1e-5)
    for axis in (0, 1):
        first, last, *_ = live_taps(
            kernel[axis], dilation[axis], stride[axis], pads[axis], size[axis], out[axis]
        )
        assert 0 <= first < last <= kernel[axis]


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 9), st.integers(1, 3),
       st.integers(0, 20))  # fmt: skip
def test_passes_pass_and_proof_keep_the_same_taps(
    source: int, kernel: int, dilation: int, stride: int, pad: int
) -> None:
    output = (source + 2 * pad - (kernel - 1) * dilation - 1) // stride + 1
    if output < 1:
        return
    geometry = ConvGeometry((kernel,) * 2, (dilation,) * 2, (stride,) * 2, (pad,) * 4, 1)
    first, last, front, back = live_taps(kernel, dilation, stride, pad, source, output)
    left = geometry.without_dead_taps((source, source), (output, output))
    if (first, last) == (0, kernel):  # the pass does not touch it
        assert left.kernel == geometry.kernel
    else:
        assert (left.kernel, left.padding) == ((last - first,) * 2, (front, front, back, back))


def test_passes_the_proof_counts_live_taps_for_itself() -> None:
    wide = ConvGeometry((3, 3), (24, 24), (1, 1), (24, 24, 24, 24), 1)
    assert wide.without_dead_taps((23, 30), (23, 30)) == ConvGeometry(
        (1, 3), (1, 24), (1, 1), (0, 24, 0, 24), 1
    )
    assert wide.without_dead_taps((40, 40), (40, 40)) == wide


class Upsampled(nn.Module):
    """21 classes taken from 32 channels behind the upsampling, instead of before it."""

    def __init__(self, mode: str, *, shared: bool = False, down: bool = False):
        super().__init__()
        self.mode, self.shared, self.down = mode, shared, down
        self.features = nn.Conv2d(3, 32, 3, stride=1 if down else 4, padding=1)
        self.classify = nn.Conv2d(32, 21, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x).relu()
        aligned = {"align_corners": True} if self.mode == "bilinear" else {}
        size = [side // 4 for side in SIZE] if self.down else list(SIZE)
        if self.down:
            scores = F.interpolate(self.classify(features), size=size, mode=self.mode, **aligned)
            return F.interpolate(scores.relu(), size=list(SIZE), mode="nearest")
        large = F.interpolate(features, size=size, mode=self.mode, **aligned)
        scores = self.classify(large)
        return scores + large[:, :21] if self.shared else scores


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_passes_the_classifier_moves_before_the_upsampling(mode: str) -> None:
    torch.manual_seed(0)
    before = traced(Upsampled(mode), 21)
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert operators(after)[-2:] == ["Conv", "Resize"]
    assert len(result_of(optimization, "commute resizes")[0]) == 1
    # The low-resolution logits has a sixteenth of the pixels.
    features = 32 * 27 * 6 * 8
    assert optimization.before.macs == features + 21 * 32 * 24 * 32
    assert optimization.after.macs == features + 21 * 32 * 6 * 8


def test_passes_a_shrinking_resize_moves_before_the_classifier() -> None:
    torch.manual_seed(0)
    before = traced(Upsampled("bilinear", down=True), 21)
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert optimization.after.macs < optimization.before.macs


class Enlarged(nn.Module):
    """A linear head that is enlarged before it is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(3, 8, 3, stride=2, padding=rate, dilation=rate) for rate in (1, 2)
        )
        self.combine, self.classify = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = self.combine(torch.cat([branch(x) for branch in self.branches], 1))
        large = F.interpolate(joined, size=list(SIZE), mode="bilinear", align_corners=True)
        return self.classify(large)


def test_passes_a_classifier_that_moved_to_its_head_is_folded_into_it() -> None:
    torch.manual_seed(0)
    before = traced(Enlarged(), 2)
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert convolutions(after) == [[2, 3, 3, 3], [2, 3, 3, 3]]
    assert result_of(optimization, "fold linear heads again")[0]


def test_passes_a_shrinking_resize_does_not_take_the_classifier_from_its_head() -> None:
    from segdeploy.models.multi_scale import MultiScaleInput
    from segdeploy.models.semantic_segmentation_model import SemanticSegmentationModel

    torch.manual_seed(0)
    scales = (0.5, 1.0, 1.5)
    network = MultiScaleInput(SemanticSegmentationModel(5, width=4), scales=scales)
    before = traced(network, 5)
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert len(result_of(optimization, "fold linear heads")[0]) == 3
    assert all(len(shape) == 4 and shape[0] != 32 for shape in convolutions(after)[-4:])


def test_passes_an_upsampled_map_with_another_reader_stays() -> None:
    torch.manual_seed(0)
    before = traced(Upsampled("bilinear", shared=True), 21)
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert result_of(optimization, "commute resizes")[0] == ()
    assert "has another reader" in result_of(optimization, "commute resizes")[1][0]


def test_passes_a_cubic_resize_is_not_an_average_of_neighbors() -> None:
    torch.manual_seed(0)
    before = traced(Upsampled("bicubic"), 21)
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert {step.name for step in optimization.steps if step.rewrites} == {"fold constants"}


class Pooled(nn.Module):
    """Two branches and image pooling, each with a ReLU, joined and projected."""

    def __init__(self, *, pooled: int = 1, maps: int = 2, bias: bool = True):
        super().__init__()
        self.pooled, self.maps = pooled, maps
        self.features = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.branch = nn.Conv2d(8, 6, 3, padding=2, dilation=2)
        self.pool = nn.Conv2d(8, 5, 1)
        self.project = nn.Conv2d(5 * pooled + 6 * maps, 4, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x).relu()
        vector = self.pool(features.mean((2, 3), keepdim=True)).relu()
        wide = F.interpolate(vector, size=features.shape[2:], mode="bilinear")
        maps = [self.branch(features).relu()] * self.maps
        parts = [*maps[:1], *[wide] * self.pooled, *maps[1:]]
        scores = self.project(torch.cat(parts, 1)).relu()
        return F.interpolate(scores, size=x.shape[2:], mode="bilinear")


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("options", [{}, {"pooled": 2, "bias": False}, {"maps": 1}])
def test_passes_the_pooled_branch_is_projected_once(options: dict, dynamic: bool) -> None:
    torch.manual_seed(0)
    network = Network(Pooled(**options).eval(), 4, SIZE, "net")
    before = trace(network, SIZE, dynamic=dynamic, name="net")
    tensor = torch.from_numpy(image(1, 3, *SIZE))
    calls = prove_trace(network.module, network, before, tensor).calls
    after, optimization = optimizing.optimize_graph(before)
    for shape in [(1, 3, *SIZE)] + ([(3, 3, 41, 57)] if dynamic else []):
        check_equal(before, after, image(*shape))
    assert len(result_of(optimization, "project pooled branches")[0]) == 1
    assert operators(after).count("Resize") == 1
    if not dynamic:
        assert optimization.after.macs < optimization.before.macs
    assert all(p.holds for p in prove_dilations(calls, after, tensor)[0])


@pytest.mark.parametrize("reader", ["Mul", "Concat"])
def test_passes_a_1x1_map_is_broadcast_and_not_interpolated(reader: str) -> None:
    sizes = np.array([1, 3, 6, 7], np.int64)
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=1),
        helper.make_node("Resize", ["m", "", "", "sizes"], ["r"], name="r", mode="linear"),
        helper.make_node(reader, ["x", "r"], ["y"], **({"axis": 1} if reader == "Concat" else {})),
    ]
    channels = 6 if reader == "Concat" else 3
    constants = {"sizes": sizes, "axes": np.array([2, 3], np.int64)}
    before = graph_of(nodes, [1, channels, 6, 7], constants, [1, 3, 6, 7])
    after, optimization = optimizing.optimize_graph(before)
    check_equal(before, after, image(1, 3, 6, 7))
    assert "Resize" not in operators(after)
    assert ("Expand" in operators(after)) == (reader == "Concat")
    assert len(result_of(optimization, "broadcast resizes")[0]) == 1


def test_passes_a_pass_that_is_not_exact_is_undone_and_named() -> None:
    def wrong(model: ir.Model) -> PassResult:
        weight = next(iter(model.graph.initializers.values()))
        weight.const_value = ir.tensor(weight.const_value.numpy() * 1.5)
        return PassResult(["something"])

    before = traced(Rates(), 2)
    after, optimization = optimizing.optimize_graph(
        before,
        passes=(("wrong", wrong), *optimizing.PASSES),
        check=optimizing.against_itself(before, [image(1, 3, *SIZE)]),
    )
    rewrites, skipped = result_of(optimization, "wrong")
    assert rewrites == ()
    assert skipped[0].startswith("undone: at input 1x3x24x32 the output differs from the graph")
    # What it did is not in the result, and the others went on.
    check_equal(before, after, image(1, 3, *SIZE))
    assert result_of(optimization, "remove dead taps")[0]


def test_passes_a_pass_that_makes_a_graph_dearer_or_fails_is_undone() -> None:
    def dearer(model: ir.Model) -> PassResult:
        conv = next(node for node in model.graph if node.op_type == "Conv")
        out = ir.Value(name="copy", shape=conv.outputs[0].shape, type=conv.outputs[0].type)
        attributes = list(conv.attributes.values())
        copied = ir.Node("", "Conv", list(conv.inputs), attributes, name="copied", outputs=[out])
        model.graph.insert_after(conv, copied)
        return PassResult(["a copy"])

    def fails(model: ir.Model) -> PassResult:
        raise KeyError("axis")

    passes = (("dearer", dearer), ("fails", fails))
    _, optimization = optimizing.optimize_graph(traced(Rates(), 2), passes=passes)
    assert "multiply-accumulates rise from" in result_of(optimization, "dearer")[1][0]
    assert result_of(optimization, "fails")[1] == ("undone: KeyError: 'axis'",)
    assert optimization.before == optimization.after


def test_passes_a_resize_that_scales_channels_is_left_alone() -> None:
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["r"], name="r", mode="nearest"),
        helper.make_node("Conv", ["r", "w"], ["y"], name="c"),
    ]
    weights = {"scales": np.array([1, 2, 4, 4], np.float32), "w": random(2, 6, 1, 1)}
    before = graph_of(nodes, [1, 2, 24, 28], weights, [1, 3, 6, 7])
    after, optimization = optimizing.optimize_graph(before, check=against(before))
    check_equal(before, after, image(1, 3, 6, 7))
    assert result_of(optimization, "commute resizes") == ((), ())


def test_passes_a_large_convolution_of_one_pixel_is_not_made_larger() -> None:
    sizes = np.array([1, 2, 4, 4], np.int64)
    nodes = [
        helper.make_node("Conv", ["x", "wide"], ["p"], name="p", pads=[0] * 4),
        helper.make_node("Resize", ["p", "", "", "sizes"], ["r"], name="r", mode="linear"),
        helper.make_node("Conv", ["x", "small"], ["a"], name="a", strides=[8, 8]),
        helper.make_node("Concat", ["a", "r"], ["j"], axis=-3),
        helper.make_node("Conv", ["j", "join"], ["y"], name="c"),
    ]
    weights = {
        "sizes": sizes, "wide": random(2, 3, 32, 32), "small": random(12, 3, 8, 8),
        "join": random(8, 14, 1, 1),
    }  # fmt: skip
    before = graph_of(nodes, [1, 8, 4, 4], weights, [1, 3, 32, 32])
    after, optimization = optimizing.optimize_graph(before, check=against(before))
    check_equal(before, after, image(1, 3, 32, 32))
    assert optimization.after.macs <= optimization.before.macs


def test_passes_a_swap_that_saves_resizing_but_not_multiplying_is_left() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "classify"),
        helper.make_node("Resize", ["a", "", "", "sizes"], ["y"], "enlarge", mode="linear"),
    ]
    weights = {"w": random(64, 3, 1, 1), "sizes": np.array([1, 64, 16, 16])}
    before = graph_of(nodes, [1, 64, 16, 16], weights, [1, 3, 8, 8])
    after, optimization = optimizing.optimize_graph(before)
    assert operators(after) == ["Conv", "Resize"]
    assert result_of(optimization, "commute resizes") == ((), ())


def test_passes_a_resize_that_nobody_reads_harms_no_pass() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], "mean"),
        helper.make_node("Resize", ["m", "", "", "sizes"], ["unread"], "idle", mode="linear"),
        helper.make_node("Relu", ["x"], ["y"], "relu"),
    ]
    weights = {"axes": np.array([2, 3]), "sizes": np.array([1, 3, 8, 8])}
    before = graph_of(nodes, [1, 3, 8, 8], weights, [1, 3, 8, 8])
    _, optimization = optimizing.optimize_graph(before)
    assert not any("undone" in line for step in optimization.steps for line in step.skipped)

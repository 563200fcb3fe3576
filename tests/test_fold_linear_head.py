"""Linear-head folding: each rule, each refusal, and the counter of multiply-accumulates."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from segdeploy.models.deeplabv3 import DeepLabV3
from segdeploy.models.semantic_segmentation_model import SemanticSegmentationModel
from segdeploy.optimizer.cost import cost_of
from segdeploy.optimizer.optimize import PASSES
from segdeploy.optimizer.optimize import optimize_graph as optimize

from .graphs import check_equal, image, operators, run, traced

SIZE = (24, 32)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("network", "branches"), [(DeepLabV3, 5), (SemanticSegmentationModel, 4)])
def test_fold_linear_head_the_slides_heads_fold_exactly(
    network: type[nn.Module], branches: int, dynamic: bool
) -> None:
    torch.manual_seed(0)
    before = traced(network(5, width=4, stride=2), 5, dynamic=dynamic)
    original = before.SerializeToString()
    after, optimization = optimize(before)
    assert before.SerializeToString() == original
    (head,) = (line for line in optimization.rewrites if line.startswith("linear head"))
    assert f"{branches} branches emit its 5 channels" in head
    assert "conv_combine folded in" in head
    assert optimization.after.parameters < optimization.before.parameters
    shapes = [(1, 3, *SIZE)] + ([(2, 3, 40, 33), (1, 3, 65, 51)] if dynamic else [])
    for shape in shapes:
        check_equal(before, after, image(*shape))
    if not dynamic:
        assert optimization.after.macs < optimization.before.macs
    channels = [n for n in after.graph.node if n.op_type == "Concat"]
    assert dynamic or not channels


class Head(nn.Module):
    """Two dilated branches, joined, combined and classified; variants break one condition."""

    def __init__(self, variant: str = "plain"):
        super().__init__()
        self.variant = variant
        bias = variant != "no_bias"
        groups = 2 if variant == "grouped" else 1
        self.a = nn.Conv2d(3, 8, 3, padding=2, dilation=2, bias=bias)
        self.b = nn.Conv2d(3, 8, 3, padding=4, dilation=4, bias=bias)
        kernel = 3 if variant == "wide_combine" else 1
        self.combine = nn.Conv2d(16, 16, kernel, padding=kernel // 2, bias=bias, groups=groups)
        self.classify = nn.Conv2d(16, 64 if variant == "costly" else 2, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x), self.b(x)
        if self.variant == "relu_in_branch":
            a = a.relu()
        joined = a + b if self.variant == "sum" else torch.cat([a, b], 1)
        if self.variant == "raw_input":
            joined = torch.cat([a, b[:, :5], x], 1)
        if self.variant == "sum":
            return nn.functional.conv2d(joined, self.classify.weight[:, :8], self.classify.bias)
        combined = self.combine(joined)
        if self.variant == "relu":
            combined = combined.relu()
        out = self.classify(combined)
        return out + a[:, : out.shape[1]] if self.variant == "second_reader" else out


@pytest.mark.parametrize("variant", ["plain", "no_bias", "sum", "raw_input"])
def test_fold_linear_head_rules(variant: str) -> None:
    torch.manual_seed(1)
    before = traced(Head(variant), 2)
    after, optimization = optimize(before)
    assert optimization.rewrites
    assert optimization.after.macs < optimization.before.macs
    check_equal(before, after, image(1, 3, *SIZE))


def test_fold_linear_head_a_branch_with_a_nonlinearity_is_read_through_its_slice() -> None:
    torch.manual_seed(1)
    before = traced(Head("relu_in_branch"), 2)
    after, optimization = optimize(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert operators(after).count("Relu") == 1
    assert optimization.after.macs < optimization.before.macs


@pytest.mark.parametrize("variant", ["relu", "grouped", "wide_combine", "second_reader", "costly"])
def test_fold_linear_head_what_must_not_be_folded_away_stays_exact(variant: str) -> None:
    torch.manual_seed(1)
    before = traced(Head(variant), 64 if variant == "costly" else 2)
    after, optimization = optimize(before)
    check_equal(before, after, image(1, 3, *SIZE))
    assert optimization.after.macs <= optimization.before.macs
    if variant == "relu":  # the combine before the ReLU may fold, the classifier may not
        assert operators(after).count("Relu") == 1
        assert all("classify folded" not in line for line in optimization.rewrites)
    if variant in ("wide_combine", "grouped"):
        assert any(n.name and "combine" in n.input[1] for n in after.graph.node if n.input[1:])


def test_fold_linear_head_a_head_that_is_a_graph_output_too_is_left_alone() -> None:
    torch.manual_seed(1)
    before = traced(Head(), 2)
    joined = next(n for n in before.graph.node if n.op_type == "Concat").output[0]
    before.graph.output.append(helper.make_tensor_value_info(joined, TensorProto.FLOAT, None))
    after, _ = optimize(before)
    assert {o.name for o in after.graph.output} == {o.name for o in before.graph.output}
    expected, found = (
        ort.InferenceSession(m.SerializeToString()).run(None, {"image": image(1, 3, *SIZE)})
        for m in (before, after)
    )
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_fold_linear_head_a_module_that_is_run_twice_keeps_both_nodes() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.last = nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.conv(self.conv(x).relu()))

    torch.manual_seed(1)
    before = traced(Twice(), 2)
    after, optimization = optimize(before)
    assert optimization.rewrites
    weights = [n.input[1] for n in after.graph.node if n.op_type == "Conv"]
    assert weights == ["conv.weight", "conv.weight_folded"]
    check_equal(before, after, image(1, 3, *SIZE))


def test_fold_linear_head_multiply_accumulates_of_a_hand_counted_network() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.grouped = nn.Conv2d(8, 8, (1, 5), padding=(0, 2), groups=4)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.grouped(self.plain(x).relu()).relu())

    model = ir.from_proto(traced(Counted(), 2))
    cost = cost_of(model)
    pixels = 12 * 16
    assert cost.macs == pixels * (8 * 3 * 9 + 8 * 2 * 5 + 2 * 8)
    assert cost.parameters == (8 * 3 * 9 + 8) + (8 * 2 * 5 + 8) + (2 * 8 + 2)


def test_fold_linear_head_a_dynamic_graph_has_no_count() -> None:
    model = traced(DeepLabV3(2, width=4), 2, dynamic=True)
    assert cost_of(ir.from_proto(model)).macs is None


def test_fold_linear_head_a_graph_without_metadata_from_elsewhere_is_folded_too() -> None:
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.normal(0, 1, shape).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[2] * 4, dilations=[2, 2]),
            helper.make_node("Conv", ["a", "w2"], ["y"]),
        ],
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 12, 12])],
        [weight("w1", 16, 3, 3, 3), weight("b1", 16), weight("w2", 2, 16, 1, 1)],
    )
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    after, optimization = optimize(before)
    assert operators(after) == ["Conv"]
    assert len(optimization.rewrites) == 1
    check_equal(before, after, image(1, 3, 12, 12))


def random_head(draw: st.DrawFn) -> onnx.ModelProto:
    """A linear head of random shape: maps of 1 to 5 channels, joined, added, convolved, shared."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []
    maps = {"x": 3}

    def new() -> str:
        return f"v{len(nodes)}"

    def convolve(source: str, kernel: int, shared: str | None = None) -> None:
        dilation = draw(st.integers(1, 3))
        out, wide = new(), draw(st.integers(1, 5))
        name = shared or f"m{len(weights)}"
        known = {t.name: t for t in weights}
        if f"{name}.weight" in known:
            wide, narrow, kernel, _ = known[f"{name}.weight"].dims
            if narrow != maps[source]:
                return
        else:
            shape = (wide, maps[source], kernel, kernel)
            weights.append(
                numpy_helper.from_array(
                    rng.normal(0, 1, shape).astype(np.float32), f"{name}.weight"
                )
            )
            bias = rng.normal(0, 1, wide).astype(np.float32)
            weights.append(numpy_helper.from_array(bias, f"{name}.bias"))
        nodes.append(
            helper.make_node(
                "Conv",
                [source, f"{name}.weight", f"{name}.bias"],
                [out],
                name=f"n{len(nodes)}" if draw(st.booleans()) else "",
                dilations=[dilation] * 2,
                pads=[dilation * (kernel // 2)] * 4,
                kernel_shape=[kernel] * 2,
            )
        )
        maps[out] = wide

    for _ in range(draw(st.integers(2, 9))):
        source = draw(st.sampled_from(sorted(maps)))
        kind = draw(st.sampled_from(("conv3", "conv1", "conv1", "cat", "add", "relu", "shared")))
        if kind == "shared" and weights:
            named = draw(st.sampled_from([t.name for t in weights if t.name.endswith("weight")]))
            convolve(source, 3, named.removesuffix(".weight"))
        elif kind.startswith("conv"):
            convolve(source, int(kind[-1]))
        elif kind == "cat":
            parts = [source, *draw(st.lists(st.sampled_from(sorted(maps)), min_size=1, max_size=3))]
            out = new()
            nodes.append(helper.make_node("Concat", parts, [out], axis=1))
            maps[out] = sum(maps[part] for part in parts)
        elif kind == "add":
            alike = [m for m, channels in maps.items() if channels == maps[source]]
            out = new()
            nodes.append(
                helper.make_node("Add", [source, draw(st.sampled_from(sorted(alike)))], [out])
            )
            maps[out] = maps[source]
        elif kind == "relu":
            out = new()
            nodes.append(helper.make_node("Relu", [source], [out]))
            maps[out] = maps[source]
    last = f"v{len(nodes) - 1}" if nodes else "x"
    convolve(last, 1)
    if draw(st.booleans()):
        convolve(f"v{len(nodes) - 1}", 1)
    output = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 9, 10])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, maps[output], 9, 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.composite(random_head)())
def test_fold_linear_head_random_linear_heads_stay_what_they_are(before: onnx.ModelProto) -> None:
    after, optimization = optimize(before, passes=PASSES[1:])
    onnx.checker.check_model(after, full_check=True)
    x = image(1, 3, 9, 10)
    expected, found = run(before, x), run(after, x)
    assert np.abs(found - expected).max() <= 2e-5 * max(float(np.abs(expected).max()), 1e-3)
    assert optimization.after.macs <= optimization.before.macs

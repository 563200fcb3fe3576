"""Dead taps of dilated kernels: the pass, and the proof that counts the taps for itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from segdeploy.commands.export import trace
from segdeploy.models.network import Network
from segdeploy.onnx_graph.convolutions import ConvGeometry
from segdeploy.optimizer import optimize as optimizing
from segdeploy.optimizer.passes.remove_dead_taps import live_taps, remove_dead_taps
from segdeploy.proof.dilation import prove_dilations, prove_trace
from segdeploy.proof.recording import record

from .graphs import (
    SIZE,
    Rates,
    check_equal,
    convolutions,
    graph_of,
    image,
    random,
    result_of,
    run,
    traced,
)


def test_remove_dead_taps_dead_taps_go_and_the_proof_follows_them() -> None:
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


def test_remove_dead_taps_a_dynamic_graph_keeps_every_tap_and_says_why() -> None:
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
def test_remove_dead_taps_any_kernel_without_its_dead_taps_is_the_same(
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
def test_remove_dead_taps_pass_and_proof_keep_the_same_taps(
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


def test_remove_dead_taps_the_proof_counts_live_taps_for_itself() -> None:
    wide = ConvGeometry((3, 3), (24, 24), (1, 1), (24, 24, 24, 24), 1)
    assert wide.without_dead_taps((23, 30), (23, 30)) == ConvGeometry(
        (1, 3), (1, 24), (1, 1), (0, 24, 0, 24), 1
    )
    assert wide.without_dead_taps((40, 40), (40, 40)) == wide

"""Dilation proof: compare every convolution of a graph with the one that PyTorch executed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import CALL_KEY, FOLDED_KEY
from segdeploy.onnx_graph.convolutions import ConvProof, ResizeGeometry, Sources
from segdeploy.onnx_graph.model_file import note_of
from segdeploy.proof.operator_calls import ConvCall, GraphCalls, NodeCall, Recording
from segdeploy.proof.raw_graph import node_calls
from segdeploy.proof.recording import reaches_output, record

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn


@dataclass(frozen=True)
class TraceProof:
    """Comparison of a raw graph with the convolution calls that PyTorch executed.

    `calls` are the calls that are paired with a node of the graph, `left_out` the other calls.
    `trace_failures` describe differences beyond these pairs: convolutions of the graph that did not
    run in PyTorch, resizes with another pixel alignment, and concatenations with swapped branches.
    """

    calls: tuple[ConvCall, ...]
    convolutions: tuple[ConvProof, ...]
    left_out: tuple[ConvCall, ...]
    trace_failures: tuple[str, ...]

    @property
    def failures(self) -> list[str]:
        """One clause for each failed check."""
        return [p.failure() for p in self.convolutions if not p.holds] + list(self.trace_failures)


def prove_trace(
    network: nn.Module, run: nn.Module, graph: onnx.ModelProto, image: Tensor
) -> TraceProof:
    """Compare a raw graph with the calls that PyTorch executes for `image` `(N, C, H, W)`.

    The calls that reach the output and the graph's convolutions must be the same, in the same
    order. Each pair must agree in kernel, stride, padding (including a preceding constant zero
    pad), dilation, groups, output padding, weight values and source convolutions. The label of the
    call is written into the node's metadata. `prove_dilations` identifies the node by this label
    after rewrites.

    Module names are relative to `network`. `run` is the module that is called: the network or its
    wrapper.
    """
    recording = record(network, run, image)
    found = node_calls(graph, image.numpy())
    calls = recording.live
    pairs, missing, surplus = _paired(calls, found.convolutions)
    if missing and not reaches_output(network, run, image, {call.label for call in missing}):
        missing = []  # the exporter removed calls that the output does not depend on
    labels = {node.name: call.label for call, node in pairs}
    for call, node in pairs:
        node.node.metadata_props.add(key=CALL_KEY, value=call.label)
    wired = recording.joins is not None and found.joins is not None
    proofs = [_prove(call, node, labels if wired else None) for call, node in pairs]
    proofs += [ConvProof(call.label, None, call.geometry, None) for call in missing]
    failures = [
        f"convolution node {node.name} of the graph did not run in PyTorch" for node in surplus
    ]
    if wired and not missing and not surplus:
        failures += _exchanged(recording, found, labels)
        failures += _resized_otherwise(recording, found, labels)
    kept = {call.label for call, _ in pairs}
    return TraceProof(
        calls=tuple(call for call, _ in pairs),
        convolutions=tuple(proofs),
        left_out=tuple(c for c in recording.convolutions if c.label not in kept),
        trace_failures=tuple(failures),
    )


def _paired(
    calls: Sequence[ConvCall], nodes: Sequence[NodeCall]
) -> tuple[list[tuple[ConvCall, NodeCall]], list[ConvCall], list[NodeCall]]:
    """Pair calls with nodes in order; return the pairs, the unpaired calls and the unpaired nodes.

    Unpaired nodes inside a branch (If) are not returned, since this image may not take the branch.
    """
    if len(calls) == len(nodes):
        return list(zip(calls, nodes, strict=True)), [], []
    weights = [*(_values(call) for call in calls), *(n.weight for n in nodes)]
    kinds = _kinds(weights)
    matcher = SequenceMatcher(None, kinds[: len(calls)], kinds[len(calls) :], autojunk=False)
    pairs = [
        (calls[block.a + i], nodes[block.b + i])
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    ]
    paired_calls = {call.label for call, _ in pairs}
    paired_nodes = {node.name for _, node in pairs}
    missing = [call for call in calls if call.label not in paired_calls]
    surplus = [n for n in nodes if n.name not in paired_nodes and not n.in_branch]
    return pairs, missing, surplus


def _values(call: ConvCall) -> NDArray[np.float32]:
    values: NDArray[np.float32] = call.weight.detach().numpy()
    return values


def _kinds(weights: Sequence[NDArray[np.float32] | None]) -> list[int]:
    """Return one number per weight; weights with equal values have the same number."""
    seen: dict[tuple[int, ...], list[tuple[int, NDArray[np.float32]]]] = defaultdict(list)
    kinds = []
    for number, weight in enumerate(weights):
        if weight is None:
            kinds.append(-number - 1)
            continue
        alike = seen[weight.shape]
        kind = next((n for n, other in alike if _same(weight, other)), None)
        if kind is None:
            kind = number
            alike.append((number, weight))
        kinds.append(kind)
    return kinds


def _same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Return whether two weights are equal, up to rounding in the way they are computed."""
    if one.shape != other.shape:
        return False
    largest = float(np.abs(one).max(initial=0))
    return bool(np.allclose(one, other, rtol=0, atol=1e-5 * largest))


def _prove(call: ConvCall, node: NodeCall, labels: dict[str, str] | None) -> ConvProof:
    problem = ""
    if node.weight is None or not _same(_values(call), node.weight):
        problem = "has other weights than PyTorch used"
    elif labels is not None:
        read = frozenset(labels.get(name, name) for name in node.sources)
        if read != call.sources:
            problem = f"reads {_listed(read)} instead of {_listed(call.sources)}"
    return ConvProof(call.label, node.name, call.geometry, node.geometry, problem=problem)


def _listed(sources: frozenset[str]) -> str:
    return ", ".join(sorted(sources)) or "nothing"


def _exchanged(recording: Recording, found: GraphCalls, labels: dict[str, str]) -> list[str]:
    """Describe the graph's concatenations whose inputs have another order than PyTorch's."""

    def whatever_order(parts: Sources) -> frozenset[tuple[frozenset[str], int]]:
        return frozenset(Counter(parts).items())

    ran = set(recording.joins or ())
    orders = {whatever_order(parts): parts for parts in ran}
    failures = []
    for name, sources in found.joins or []:
        parts = tuple(frozenset(labels.get(n, n) for n in part) for part in sources)
        expected = orders.get(whatever_order(parts))
        if expected is not None and parts not in ran:
            failures.append(
                f"concatenation {name} joins {' | '.join(map(_listed, parts))} instead of "
                f"{' | '.join(map(_listed, expected))}"
            )
    return failures


def _resized_otherwise(
    recording: Recording, found: GraphCalls, labels: dict[str, str]
) -> list[str]:
    """Describe the graph's resizes whose geometry differs from PyTorch's for the same sources."""
    ran = defaultdict(list)
    for call in recording.resizes:
        ran[call.sources].append(call)
    there: dict[frozenset[str], list[tuple[str, ResizeGeometry]]] = defaultdict(list)
    for name, geometry, sources in found.resizes:
        there[frozenset(labels.get(n, n) for n in sources)].append((name, geometry))
    return [
        f"resize of {call.label} (node {name}) has {call.geometry.differences(geometry)}"
        for sources, calls in ran.items()
        if len(calls) == len(there[sources])
        for call, (name, geometry) in zip(calls, there[sources], strict=True)
        if geometry != call.geometry
    ]


def modules_left_out(trace: TraceProof, network: nn.Module) -> tuple[str, ...]:
    """Return the outermost modules, and the single calls, whose convolutions reach no output."""
    from torch import nn

    live = {call.module for call in trace.calls}
    dead = {call.module for call in trace.left_out} - live
    convolutions = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd)
    ]
    whole: list[str] = []
    for name, _ in network.named_modules():
        inside = {one for one in convolutions if one == name or one.startswith(f"{name}.")}
        covered = any(name.startswith(f"{outer}.") for outer in whole)
        if name and inside and inside <= dead and not covered:
            whole.append(name)

    for name in (call.module for call in trace.left_out):
        if not any(f"{name}.".startswith(f"{outer}.") for outer in whole):
            whole.append(f"one call of {name}" if name in live else name)
    return tuple(dict.fromkeys(whole))


def prove_dilations(
    calls: Sequence[ConvCall], graph: onnx.ModelProto, image: Tensor
) -> tuple[tuple[ConvProof, ...], tuple[str, ...]]:
    """Compare a rewritten graph with the calls that `prove_trace` paired in the raw graph.

    A node is identified by the call label in its metadata, which rewrites copy to the nodes that
    they create. A convolution that was folded away is traced to the nodes that absorbed it. Also
    returned are the convolution nodes that belong to no call. `image` is the image that the calls
    were recorded for.
    """
    static = _has_static_size(graph)
    nodes: dict[str, list[NodeCall]] = defaultdict(list)
    folded: dict[str, list[str]] = defaultdict(list)
    unmatched_convolutions = []
    known = {call.label for call in calls}
    for node in node_calls(graph, image.numpy()).convolutions:
        taken_in = note_of(node.node, FOLDED_KEY)
        for label in taken_in.split("\n") if taken_in else ():
            folded[label].append(node.name)
        call_label = note_of(node.node, CALL_KEY)
        if call_label in known:
            nodes[str(call_label)].append(node)
        elif not (taken_in and node.geometry.is_pointwise):
            unmatched_convolutions.append(node.name)
    proofs = []
    for call in calls:
        live = call.live if static else None
        into = tuple(dict.fromkeys(folded[call.label]))
        proofs += [
            ConvProof(call.label, node.name, call.geometry, node.geometry, live=live)
            for node in nodes[call.label]
        ] or [ConvProof(call.label, None, call.geometry, None, into)]
    return tuple(proofs), tuple(unmatched_convolutions)


def _has_static_size(graph: onnx.ModelProto) -> bool:
    dims = [d for value in graph.graph.input for d in value.type.tensor_type.shape.dim[1:]]
    return all(d.HasField("dim_value") for d in dims)

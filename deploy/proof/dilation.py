"""The dilation proof: every convolution of a graph against the one that PyTorch executed."""

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
    """What a raw graph has of the calls that PyTorch executed.

    `calls` are those that reach the output, `left_out` the others. `complaints` name
    what is in the graph and not in PyTorch: convolutions that did not run, a resize that aligns
    pixels otherwise, and branches that changed places.
    """

    calls: tuple[ConvCall, ...]
    convolutions: tuple[ConvProof, ...]
    left_out: tuple[ConvCall, ...]
    complaints: tuple[str, ...]

    @property
    def failures(self) -> list[str]:
        """A clause for everything that does not hold."""
        return [p.complaint() for p in self.convolutions if not p.holds] + list(self.complaints)


def prove_trace(
    network: nn.Module, run: nn.Module, graph: onnx.ModelProto, image: Tensor
) -> TraceProof:
    """Compare a raw graph with what PyTorch executes for `image` `(N, C, H, W)`, call by call.

    The calls that reach the output and the graph's convolutions must be the same, in the same
    order: kernel, stride, padding with a constant zero pad in front of it, dilation, groups, output
    padding, the weight's values, and the convolutions that each one reads. Each node is told its
    call's label, by which `prove_dilations` knows it again once the graph was rewritten.

    `network` is what modules are named after; `run` is called: the network, or what wraps it.
    """
    recording = record(network, run, image)
    found = node_calls(graph, image.numpy())
    calls = recording.live
    pairs, missing, surplus = _paired(calls, found.convolutions)
    if missing and not reaches_output(network, run, image, {call.label for call in missing}):
        missing = []  # the exporter knew better that nothing reads it
    labels = {node.name: call.label for call, node in pairs}
    for call, node in pairs:
        node.node.metadata_props.add(key=CALL_KEY, value=call.label)
    wired = recording.joins is not None and found.joins is not None
    proofs = [_prove(call, node, labels if wired else None) for call, node in pairs]
    proofs += [ConvProof(call.label, None, call.geometry, None) for call in missing]
    complaints = [
        f"convolution node {node.name} of the graph did not run in PyTorch" for node in surplus
    ]
    if wired and not missing and not surplus:
        complaints += _exchanged(recording, found, labels)
        complaints += _resized_otherwise(recording, found, labels)
    kept = {call.label for call, _ in pairs}
    return TraceProof(
        calls=tuple(call for call, _ in pairs),
        convolutions=tuple(proofs),
        left_out=tuple(c for c in recording.convolutions if c.label not in kept),
        complaints=tuple(complaints),
    )


def _paired(
    calls: Sequence[ConvCall], nodes: Sequence[NodeCall]
) -> tuple[list[tuple[ConvCall, NodeCall]], list[ConvCall], list[NodeCall]]:
    """Calls and nodes in order; where one side has more, what lacks a partner.

    A node inside a branch (of If) may be one that this image does not take.
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
    """A number a weight; weights of the same values have the same one."""
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
    """Whether two weights are equal, or differ by the rounding of how they are computed."""
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
    """Concatenations of the graph whose parts stand in another order than PyTorch's."""

    def whatever_order(parts: Sources) -> frozenset[tuple[frozenset[str], int]]:
        return frozenset(Counter(parts).items())

    ran = set(recording.joins or ())
    orders = {whatever_order(parts): parts for parts in ran}
    complaints = []
    for name, sources in found.joins or []:
        parts = tuple(frozenset(labels.get(n, n) for n in part) for part in sources)
        expected = orders.get(whatever_order(parts))
        if expected is not None and parts not in ran:
            complaints.append(
                f"concatenation {name} joins {' | '.join(map(_listed, parts))} instead of "
                f"{' | '.join(map(_listed, expected))}"
            )
    return complaints


def _resized_otherwise(
    recording: Recording, found: GraphCalls, labels: dict[str, str]
) -> list[str]:
    """Resizes of the graph that place pixels otherwise than those of PyTorch for the same maps."""
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
    """The outermost modules whose convolutions all lead to no output, and single calls that do."""
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
    """Compare a graph that was rewritten with the calls that `prove_trace` found in the raw one.

    A node is known by the label that it was told, or that the rewrite which made it took over. What
    a rewrite folded away is traced to the nodes that took it in. Beside the proofs stand the nodes
    that belong to no call. `image` is the one that the calls were recorded for.
    """
    static = _has_static_size(graph)
    nodes: dict[str, list[NodeCall]] = defaultdict(list)
    folded: dict[str, list[str]] = defaultdict(list)
    strangers = []
    known = {call.label for call in calls}
    for node in node_calls(graph, image.numpy()).convolutions:
        taken_in = note_of(node.node, FOLDED_KEY)
        for label in taken_in.split("\n") if taken_in else ():
            folded[label].append(node.name)
        call_label = note_of(node.node, CALL_KEY)
        if call_label in known:
            nodes[str(call_label)].append(node)
        elif not (taken_in and node.geometry.is_pointwise):
            strangers.append(node.name)
    proofs = []
    for call in calls:
        live = call.live if static else None
        into = tuple(dict.fromkeys(folded[call.label]))
        proofs += [
            ConvProof(call.label, node.name, call.geometry, node.geometry, live=live)
            for node in nodes[call.label]
        ] or [ConvProof(call.label, None, call.geometry, None, into)]
    return tuple(proofs), tuple(strangers)


def _has_static_size(graph: onnx.ModelProto) -> bool:
    dims = [d for value in graph.graph.input for d in value.type.tensor_type.shape.dim[1:]]
    return all(d.HasField("dim_value") for d in dims)

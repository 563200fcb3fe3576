"""Operator calls of an ONNX graph, in the types that PyTorch's recorded calls are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.onnx_graph.convolutions import (
    CONVOLUTIONS,
    IMAGE,
    node_geometry,
    resize_geometry,
)
from segdeploy.onnx_graph.model_file import all_graphs
from segdeploy.proof.graph_session import run_values
from segdeploy.proof.operator_calls import GraphCalls, NodeCall

if TYPE_CHECKING:
    import onnx

# Input indices whose values do not reach the output: only their shape or type is used.
_SHAPE_ONLY = {"Shape": (0,), "Size": (0,), "CastLike": (1,)}
_SAME = ("Identity", "Cast")
_IMAGE_RANK = 4


def node_calls(graph: onnx.ModelProto, image: NDArray[np.float32]) -> GraphCalls:
    """Read a graph's convolutions, concatenations and resizes, each with its source convolutions.

    Values that depend on the input's shape, such as the amounts of a Pad, are computed for `image`
    `(N, C, H, W)`.

    Raises:
        CheckFailed: if ONNX Runtime cannot compute these values.
    """
    import onnx

    values = _values(graph, image)
    calls = GraphCalls([], [], [])
    sources = {value.name: frozenset((IMAGE,)) for value in graph.graph.input}
    pads: dict[str, tuple[int, ...]] = {}
    for node in graph.graph.node:
        inner = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        branches = [n for one in inner for n in all_nodes(one) if n.op_type in CONVOLUTIONS]
        calls.convolutions.extend(
            _convolution(hidden, graph, values, frozenset(), in_branch=True) for hidden in branches
        )
        if inner:
            calls = replace(calls, joins=None)
        skipped = _SHAPE_ONLY.get(node.op_type, ())
        read = [
            sources.get(name, frozenset())
            for place, name in enumerate(node.input)
            if name and place not in skipped
        ]
        reached = frozenset[str]().union(*read)
        if node.op_type in CONVOLUTIONS:
            around = pads.get(node.input[0], ())
            calls.convolutions.append(_convolution(node, graph, values, reached, around))
            reached = frozenset((node.name,))
        elif node.op_type == "Pad" and (amounts := _zeros_around(node, values)) is not None:
            before = pads.get(node.input[0], (0,) * len(amounts))
            pads[node.output[0]] = tuple(a + b for a, b in zip(before, amounts, strict=True))
        elif node.op_type in _SAME and node.input[0] in pads:
            pads[node.output[0]] = pads[node.input[0]]
        elif node.op_type == "Concat" and calls.joins is not None and any(read):
            calls.joins.append((node.name, tuple(read)))
        elif node.op_type == "Resize":
            calls.resizes.append((node.name, resize_geometry(node), reached))
        sources.update(dict.fromkeys(node.output, reached))
    return calls


def _convolution(
    node: onnx.NodeProto,
    graph: onnx.ModelProto,
    values: Mapping[str, NDArray[Any]],
    sources: frozenset[str],
    around: tuple[int, ...] = (),
    *,
    in_branch: bool = False,
) -> NodeCall:
    """Read a convolution; the zeros that a Pad puts `around` its input count as its own padding."""
    geometry, weight = node_geometry(node, graph), values.get(node.input[1])
    if not geometry.kernel and weight is not None:
        geometry = replace(geometry, kernel=weight.shape[2:])
    if len(around) == len(geometry.padding):
        total = zip(geometry.padding, around, strict=True)
        geometry = replace(geometry, padding=tuple(int(a) + b for a, b in total))
    return NodeCall(node, geometry, weight, sources, in_branch)


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes of a graph and of its subgraphs (If, Loop, Scan)."""
    return [node for one in all_graphs(graph) for node in one.node]


def _values(graph: onnx.ModelProto, image: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
    """Return weights and Pad amounts by name: constants, or the values computed for `image`."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    wanted = set()
    for node in all_nodes(graph.graph):
        if node.op_type in CONVOLUTIONS:
            wanted.add(node.input[1])
        elif node.op_type == "Pad":
            wanted |= {name for name in node.input[1:] if name}
    values = {name: numpy_helper.to_array(constants[name]) for name in wanted & set(constants)}
    made = {name for node in graph.graph.node for name in node.output}
    computed = sorted(wanted & made - set(constants))
    if computed:
        values.update(zip(computed, run_values(graph, computed, image), strict=True))
    return values


def _zeros_around(
    node: onnx.NodeProto, values: Mapping[str, NDArray[Any]]
) -> tuple[int, ...] | None:
    """Return the zeros (begin..., end...) of a spatial zero Pad; None for any other padding."""
    inputs = [values.get(name) if name else None for name in node.input]
    mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
    if mode != b"constant" or len(inputs) < 2 or inputs[1] is None:
        return None
    amounts = inputs[1].tolist()
    if len(node.input) > 2 and node.input[2] and (inputs[2] is None or inputs[2].any()):
        return None
    rank, axes = len(amounts) // 2, list(range(len(amounts) // 2))
    if len(node.input) > 3 and node.input[3]:
        if inputs[3] is None:
            return None
        rank = _IMAGE_RANK  # the amounts of a Pad with explicit axes do not reveal the rank
        axes = [axis % rank for axis in inputs[3].tolist()]
    begin, end = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        begin[axis], end[axis] = amounts[place], amounts[place + len(axes)]
    if min(amounts) < 0 or any((*begin[:2], *end[:2])):
        return None
    return (*begin[2:], *end[2:])

"""Editing of an onnx-ir graph: unique names, new constants, and removal of unused nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass


class Names:
    """Allocator of unused node and value names in a graph."""

    def __init__(self, graph: ir.Graph):
        self._taken = {value.name for value in graph.inputs} | set(graph.initializers)
        for node in graph:
            self._taken.add(node.name)
            self._taken |= {value.name for value in node.outputs}

    def new(self, wanted: str) -> str:
        """Return `wanted`, with the first number that makes it unique if the name is taken."""
        name, number = wanted, 1
        while name in self._taken:
            name, number = f"{wanted}{number}", number + 1
        self._taken.add(name)
        return name


def add_constant(graph: ir.Graph, name: str, values: NDArray[np.float64]) -> ir.Value:
    """Add a float32 constant, or return the equal constant that an earlier fold added."""
    return _constant(graph, name, values.astype(np.float32))


def add_integers(graph: ir.Graph, name: str, values: Sequence[int]) -> ir.Value:
    """Add an int64 constant, such as a shape."""
    return _constant(graph, name, np.array(values, np.int64))


def _constant(graph: ir.Graph, name: str, values: NDArray[Any]) -> ir.Value:
    candidates = (f"{name}_folded{suffix}" for suffix in ("", *range(len(graph.initializers))))
    for name in candidates:
        there = graph.initializers.get(name)
        if there is None:
            break
        stored = None if there.const_value is None else there.const_value.numpy()
        if stored is not None and stored.dtype == values.dtype and np.array_equal(stored, values):
            return there
    tensor = ir.tensor(values, name=name)
    value = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.initializers[name] = value
    return value


def copy_of(node: ir.Node, inputs: Sequence[ir.Value | None], output: ir.Value) -> ir.Node:
    """Return a copy of a node with other inputs and another output, and the same metadata."""
    return ir.Node(
        "",
        node.op_type,
        inputs,
        list(node.attributes.values()),
        name=node.name,
        outputs=[output],
        metadata_props=dict(node.metadata_props),
    )


def replace(graph: ir.Graph, node: ir.Node, new: Sequence[ir.Node]) -> None:
    """Replace a node by `new`; the last new node takes over the output's name and readers."""
    output, final = node.outputs[0], new[-1].outputs[0]
    name = output.name
    graph.insert_before(node, new)
    output.replace_all_uses_with(final, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    final.name = name


def is_private(value: ir.Value) -> bool:
    """Return whether a value has exactly one reader and is not a graph output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def remove_dead(graph: ir.Graph) -> None:
    """Remove unused nodes and constants, also in subgraphs."""
    RemoveUnusedNodesPass()(ir.Model(graph, ir_version=10))  # the version is not used

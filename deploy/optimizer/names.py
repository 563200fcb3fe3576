"""Names that are still free in a graph."""

from __future__ import annotations

import onnx_ir as ir


class Names:
    """Names of nodes and values that are still free in a graph."""

    def __init__(self, graph: ir.Graph):
        self._taken = {value.name for value in graph.inputs} | set(graph.initializers)
        for node in graph:
            self._taken.add(node.name)
            self._taken |= {value.name for value in node.outputs}

    def new(self, wanted: str) -> str:
        """`wanted`, or with the first number that makes it unique."""
        name, number = wanted, 1
        while name in self._taken:
            name, number = f"{wanted}{number}", number + 1
        self._taken.add(name)
        return name

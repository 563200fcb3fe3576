"""Cost of a graph: multiply-accumulates, parameters and nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from segdeploy.calibration.multiply_accumulates import multiply_accumulates


@dataclass(frozen=True)
class Cost:
    """`macs` are the multiply-accumulates of the convolutions, None where a shape is dynamic."""

    macs: int | None
    parameters: int
    nodes: int


def cost_of(model: ir.Model) -> Cost:
    """Count the cost of one run of the graph."""
    macs: int | None = 0
    for node in model.graph:
        if node.op_type in ("Conv", "ConvTranspose") and macs is not None:
            here = _macs(node)
            macs = None if here is None else macs + here
    parameters = sum(
        math.prod(value.shape.numpy())
        for value in model.graph.initializers.values()
        if value.shape is not None and value.dtype is not None and value.dtype.is_floating_point()
    )
    return Cost(macs, parameters, len(model.graph))


def _macs(node: ir.Node) -> int | None:
    shapes = [_static(value) for value in (node.inputs[0], node.inputs[1], node.outputs[0])]
    return multiply_accumulates(*shapes, transposed=node.op_type == "ConvTranspose")


def _static(value: ir.Value | None) -> tuple[int, ...]:
    """The shape, or () where it is unknown or dynamic."""
    if value is None or value.shape is None or not value.shape.is_static():
        return ()
    return tuple(value.shape.numpy())

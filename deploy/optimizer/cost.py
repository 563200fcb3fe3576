"""Counting multiply-accumulates and parameters of a graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Cost:
    """`macs` counts the convolutions' multiply-accumulates; None where a shape is dynamic."""

    macs: int | None
    parameters: int
    nodes: int


def cost_of(model: ir.Model) -> Cost:
    """Count what one run of the graph costs; a convolution's bias and zero padding are not free
    of memory but of multiply-accumulates, and are not counted.
    """
    macs: int | None = 0
    for node in model.graph:
        if node.op_type == "Conv" and macs is not None:
            here = _convolution_macs(node)
            macs = None if here is None else macs + here
    parameters = sum(
        math.prod(value.shape.numpy())
        for value in model.graph.initializers.values()
        if value.shape is not None and value.dtype is not None and value.dtype.is_floating_point()
    )
    return Cost(macs, parameters, len(model.graph))


def _convolution_macs(node: ir.Node) -> int | None:
    output, weight = node.outputs[0].shape, node.inputs[1]
    if output is None or output.has_unknown_dim() or weight is None or weight.shape is None:
        return None
    if not output.is_static():
        return None
    # A weight is (out, in / groups, kH, kW): its size over `out` is the work of one output value.
    out_channels, *per_value = weight.shape.numpy()
    batch, _, *spatial = output.numpy()
    return int(batch * math.prod(spatial) * out_channels * math.prod(per_value))

"""What would overflow or vanish in FP16, found on the calibration frames before any cast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from segdeploy.calibration.half import FP16_LARGEST
from segdeploy.calibration.layers import shapes_of
from segdeploy.calibration.thresholds import Statistics

# Frames that nobody has seen may hold larger values than those of the calibration.
_HEADROOM = 2
_SMALLEST_NORMAL = 2.0**-14
_REDUCTIONS = ("ReduceMean", "ReduceSum", "GlobalAveragePool", "AveragePool")


@dataclass(frozen=True)
class Island:
    """A node that stays FP32, why, and the values that are cast to and from it for one image."""

    node: str
    tensor: str
    reason: str
    values_cast: int


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """The input, if it is float32, and every node's float32 output, in graph order."""
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    names = [model.graph.input[0].name, *(o for node in model.graph.node for o in node.output)]
    return [name for name in names if types.get(name) == onnx.TensorProto.FLOAT]


def fp16_islands(model: onnx.ModelProto, values: Mapping[str, Statistics]) -> list[Island]:
    """The nodes that must stay FP32: those that give or read a value beyond FP16, or add one up.

    `model` has static shapes; `values` holds the extremes of `float_tensors(model)`. A mean is a
    sum first: one of thousands of values may pass FP16's range where the mean does not.
    """
    shapes = shapes_of(model)
    constants = {t.name: t for t in model.graph.initializer}
    islands = []
    for node in model.graph.node:
        found = _reason(node, values, constants, shapes)
        if found is not None:
            tensor, reason = found
            touched = [name for name in (*node.input, *node.output) if name in values]
            cast = sum(math.prod(shapes.get(name, ())) for name in touched)
            islands.append(Island(node.name, tensor, reason, cast))
    return islands


def _reason(
    node: onnx.NodeProto,
    values: Mapping[str, Statistics],
    constants: Mapping[str, onnx.TensorProto],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[str, str] | None:
    for name in (*node.output, *node.input):
        if name in values and values[name].largest * _HEADROOM > FP16_LARGEST:
            return name, f"reaches {values[name].largest:.3g}, near FP16's {FP16_LARGEST:.0f}"
    for name in node.output:
        if name in values and 0 < values[name].largest < _SMALLEST_NORMAL:
            return name, f"stays below {values[name].largest:.2g}, where FP16 loses its digits"
    if node.op_type == "Conv" and node.input[1] in constants:
        weight = numpy_helper.to_array(constants[node.input[1]])
        largest = float(np.abs(weight).max()) if weight.size else 0.0
        if 0 < largest < _SMALLEST_NORMAL:
            return node.input[1], f"stays below {largest:.2g}, where FP16 loses its digits"
    if node.op_type in _REDUCTIONS and node.output[0] in values:
        read, given = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
        depth = math.prod(read) / max(1, math.prod(given))
        whole = values[node.output[0]].largest * (1 if node.op_type == "ReduceSum" else depth)
        if whole * _HEADROOM > FP16_LARGEST:
            return node.output[0], f"sums {depth:,.0f} values to {whole:.3g}"
    return None

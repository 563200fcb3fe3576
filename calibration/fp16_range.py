"""What would overflow or vanish in FP16, found on the calibration frames before any cast."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from segdeploy.calibration.half_precision import FP16_LARGEST
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
    """The input, if it is float32, and every node's float32 output, in graph order.

    What only a Relu reads is left out: beneath zero it may overflow without harm, above zero the
    Relu's output tells it, and runtimes run the two as one.
    """
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    names = [model.graph.input[0].name, *(o for node in model.graph.node for o in node.output)]
    hidden = _before_relu(model)
    return [n for n in names if types.get(n) == onnx.TensorProto.FLOAT and n not in hidden]


def _before_relu(model: onnx.ModelProto) -> dict[str, str]:
    """The tensors that one Relu reads and nothing else, and what that Relu gives."""
    often = Counter(name for node in model.graph.node for name in node.input)
    often.update(value.name for value in model.graph.output)
    return {
        node.input[0]: node.output[0]
        for node in model.graph.node
        if node.op_type == "Relu" and often[node.input[0]] == 1
    }


def fp16_islands(model: onnx.ModelProto, values: Mapping[str, Statistics]) -> list[Island]:
    """The nodes that must stay FP32: those that give or read a value beyond FP16, or add one up.

    `model` has static shapes; `values` holds the extremes of `float_tensors(model)`. A mean is a
    sum first: one of thousands of values may pass FP16's range where the mean does not.
    """
    shapes = shapes_of(model)
    constants = {t.name: t for t in model.graph.initializer}
    behind = _before_relu(model).items()
    values = {**{name: values[relu] for name, relu in behind if relu in values}, **values}
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
        if name in values and 0 < values[name].largest < _SMALLEST_NORMAL:
            return name, f"stays below {values[name].largest:.2g}, where FP16 loses its digits"
    for name in node.input:
        if name in constants and (reason := _constant_reason(constants[name], node)):
            return name, reason
    if node.op_type in _REDUCTIONS and node.output[0] in values:
        depth = _depth(node, shapes)
        whole = values[node.output[0]].largest * (1 if node.op_type == "ReduceSum" else depth)
        if whole * _HEADROOM > FP16_LARGEST:
            return node.output[0], f"sums {depth:,.0f} values to {whole:.3g}"
    return None


def _constant_reason(constant: onnx.TensorProto, node: onnx.NodeProto) -> str | None:
    """What FP16 would do to a weight, or to a scalar such as the epsilon of a division."""
    is_weight = node.op_type == "Conv" and node.input[1] == constant.name
    if constant.data_type != onnx.TensorProto.FLOAT or not (is_weight or _is_scalar(constant)):
        return None
    largest = float(np.abs(numpy_helper.to_array(constant)).max(initial=0))
    if 0 < largest < _SMALLEST_NORMAL:
        return f"stays below {largest:.2g}, where FP16 loses its digits"
    if is_weight and largest > FP16_LARGEST:
        return f"reaches {largest:.3g}, beyond FP16's {FP16_LARGEST:.0f}"
    return None


def _is_scalar(constant: onnx.TensorProto) -> bool:
    return bool(math.prod(constant.dims) == 1)


def _depth(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """How many values one mean or sum adds up."""
    kernel = next((a.ints for a in node.attribute if a.name == "kernel_shape"), None)
    if kernel is not None:
        return float(math.prod(kernel))
    read, given = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
    return math.prod(read) / max(1, math.prod(given))

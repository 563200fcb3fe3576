"""Detect values that overflow or underflow in FP16, from FP32 runs on the calibration frames."""

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

# Later frames may give larger values than the calibration frames.
_HEADROOM = 2
_SMALLEST_NORMAL = 2.0**-14
_REDUCTIONS = ("ReduceMean", "ReduceSum", "GlobalAveragePool", "AveragePool")


@dataclass(frozen=True)
class Fallback:
    """A node that stays FP32, the reason, and how many values are cast for it per image."""

    node: str
    tensor: str
    reason: str
    values_cast: int


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """Return the graph input, if float32, and every node's float32 output, in graph order.

    A tensor that only a Relu reads is left out. Below zero its overflow is harmless. Above zero the
    Relu's output shows the values, and runtimes fuse the Relu.
    """
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    names = [model.graph.input[0].name, *(o for node in model.graph.node for o in node.output)]
    hidden = _before_relu(model)
    return [n for n in names if types.get(n) == onnx.TensorProto.FLOAT and n not in hidden]


def _before_relu(model: onnx.ModelProto) -> dict[str, str]:
    """Return the tensors that only one Relu reads, each with the output of the Relu."""
    often = Counter(name for node in model.graph.node for name in node.input)
    often.update(value.name for value in model.graph.output)
    return {
        node.input[0]: node.output[0]
        for node in model.graph.node
        if node.op_type == "Relu" and often[node.input[0]] == 1
    }


def fp32_fallbacks_of(model: onnx.ModelProto, values: Mapping[str, Statistics]) -> list[Fallback]:
    """Return the nodes that must stay FP32, because FP16 cannot hold one of their values.

    Such a value is an input, an output, a constant or an intermediate sum. `model` has static
    shapes. `values` holds the extremes of `float_tensors(model)`. A mean is computed as a sum, and
    the sum of thousands of values may exceed the FP16 range although the mean does not.
    """
    shapes = shapes_of(model)
    constants = {t.name: t for t in model.graph.initializer}
    behind = _before_relu(model).items()
    values = {**{name: values[relu] for name, relu in behind if relu in values}, **values}
    fp32_fallbacks = []
    for node in model.graph.node:
        found = _reason(node, values, constants, shapes)
        if found is not None:
            tensor, reason = found
            touched = [name for name in (*node.input, *node.output) if name in values]
            cast = sum(math.prod(shapes.get(name, ())) for name in touched)
            fp32_fallbacks.append(Fallback(node.name, tensor, reason, cast))
    return fp32_fallbacks


def _reason(
    node: onnx.NodeProto,
    values: Mapping[str, Statistics],
    constants: Mapping[str, onnx.TensorProto],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[str, str] | None:
    for name in (*node.output, *node.input):
        if name in values and values[name].largest * _HEADROOM > FP16_LARGEST:
            return (
                name,
                f"reaches {values[name].largest:.3g}, near the FP16 limit {FP16_LARGEST:.0f}",
            )
        if name in values and 0 < values[name].largest < _SMALLEST_NORMAL:
            return name, f"stays below {values[name].largest:.2g}, where FP16 loses precision"
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
    """Return why FP16 cannot hold a weight, or a scalar such as the epsilon of a division."""
    is_weight = node.op_type == "Conv" and node.input[1] == constant.name
    if constant.data_type != onnx.TensorProto.FLOAT or not (is_weight or _is_scalar(constant)):
        return None
    largest = float(np.abs(numpy_helper.to_array(constant)).max(initial=0))
    if 0 < largest < _SMALLEST_NORMAL:
        return f"stays below {largest:.2g}, where FP16 loses precision"
    if is_weight and largest > FP16_LARGEST:
        return f"reaches {largest:.3g}, beyond FP16's limit {FP16_LARGEST:.0f}"
    return None


def _is_scalar(constant: onnx.TensorProto) -> bool:
    return bool(math.prod(constant.dims) == 1)


def _depth(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Return the number of values that one mean or sum adds up."""
    kernel = next((a.ints for a in node.attribute if a.name == "kernel_shape"), None)
    if kernel is not None:
        return float(math.prod(kernel))
    read, given = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
    return math.prod(read) / max(1, math.prod(given))

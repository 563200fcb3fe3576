"""Conversion of other tools' Q/DQ graphs to the Q/DQ that TensorRT takes.

`onnxruntime.quantization.quantize_static` quantizes biases to int32 and, by default, activations
to uint8 with a zero point. TensorRT takes floating-point biases and symmetric int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InputError

if TYPE_CHECKING:
    import onnx

_INT8 = 3  # onnx.TensorProto.INT8
_INTEGER_OPERATORS = (
    *("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearConcat", "QGemm"),
    *("ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
)


def refuse_integer_operators(graph: onnx.ModelProto, source: str) -> None:
    """Refuse a graph with operators that compute on integers.

    Raises:
        InputError: with the first such node, and the way to a Q/DQ graph.
    """
    integer = next((n for n in graph.graph.node if n.op_type in _INTEGER_OPERATORS), None)
    if integer is not None:
        raise InputError(
            f"{source}: node '{integer.name}' is a {integer.op_type}, but TensorRT takes only "
            "Q/DQ; quantize with QuantFormat.QDQ, or calibrate the FP32 graph with "
            "--scheme tensorrt"
        )


def with_symmetric_integers(graph: onnx.ModelProto, source: str) -> tuple[onnx.ModelProto, int]:
    """Return a copy with symmetric int8 tensors, and the number of converted tensors.

    A converted tensor keeps its range: the larger side of the range becomes 127. The quantization
    is up to one bit coarser, so that the copy's values differ from the graph's. If all tensors are
    symmetric already, the graph itself is returned.

    Raises:
        InputError: for 16-bit integers, or a scale or zero point that is not constant.
    """
    import onnx
    from onnx import helper, numpy_helper

    mended = onnx.ModelProto()
    mended.CopyFrom(graph)
    constants = {t.name: numpy_helper.to_array(t) for t in mended.graph.initializer}
    makers = {node.output[0]: node for node in mended.graph.node}
    zeros = {
        node.output[0]: _zero_point(node, makers, constants, source)
        for node in mended.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }

    def constant(name: str, values: NDArray[Any]) -> str:
        constants[name] = values
        mended.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    count, nodes = 0, []
    for node in mended.graph.node:
        nodes.append(node)
        zero = zeros.get(node.output[0])
        if zero is None or zero.dtype not in (np.int8, np.uint8):
            continue  # FP8, INT4, or an int32 bias, which `with_float_biases` converts
        if zero.dtype == np.int8 and not zero.any():
            continue
        tensor, scale, name = node.input[0], constants[node.input[1]], node.output[0]
        limits, center = np.iinfo(zero.dtype), zero.astype(np.int64)
        reach = np.maximum(center - limits.min, limits.max - center) / 127
        if tensor in constants:
            integers = constants[tensor]
            shape = [1] * integers.ndim
            if center.size > 1:
                shape[next((a.i for a in node.attribute if a.name == "axis"), 1)] = center.size
            steps = np.rint((integers - center.reshape(shape)) / reach.reshape(shape))
            tensor = constant(f"{name}.integers", steps.astype(np.int8))
        elif node.op_type == "QuantizeLinear" and center.size == 1:
            # The original integers saturate inside the symmetric range. This saturation may stand
            # for a fused Relu, so a Clip keeps it.
            least, most = ((end - center) * scale for end in (limits.min, limits.max))
            ends = [constant(f"{name}.{side}", value.astype(scale.dtype).reshape(()))
                    for side, value in (("least", least), ("most", most))]  # fmt: skip
            clip = helper.make_node("Clip", [tensor, *ends], [f"{name}.clipped"], f"{name}.clip")
            nodes.insert(-1, clip)
            tensor = clip.output[0]
        node.input[:] = [
            tensor,
            constant(f"{name}.scale", (scale * reach).astype(scale.dtype)),
            constant(f"{name}.zero", np.zeros(zero.shape, np.int8)),
        ]
        count += node.op_type == "QuantizeLinear" or tensor in constants
    if not count:
        return graph, 0
    del mended.graph.node[:]
    mended.graph.node.extend(nodes)
    # The recorded types of these tensors no longer hold.
    kept = [value for value in mended.graph.value_info if value.name not in zeros]
    del mended.graph.value_info[:]
    mended.graph.value_info.extend(kept)
    return mended, count


def _zero_point(
    node: onnx.NodeProto,
    makers: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, NDArray[Any]],
    source: str,
) -> NDArray[Any]:
    """Return the zero point in the type of the integers, by default 0 (ONNX QuantizeLinear)."""
    named = [name for name in node.input[1:] if name]
    if any(name not in constants for name in named):
        raise InputError(
            f"{source}: the scale or zero point of node '{node.name}' is not a constant, but "
            "TensorRT requires a constant; calibrate the FP32 graph with --scheme tensorrt"
        )
    maker = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    if len(named) > 1:
        zero = constants[named[1]]
    elif node.op_type == "QuantizeLinear":
        kind = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
        zero = np.zeros((), np.int8 if kind == _INT8 else np.uint8)
    elif maker is not None and maker.op_type == "QuantizeLinear":
        return _zero_point(maker, makers, constants, source)
    else:
        zero = np.zeros(
            (), constants[node.input[0]].dtype if node.input[0] in constants else np.int8
        )
    if zero.dtype in (np.int16, np.uint16):
        raise InputError(
            f"{source}: node '{node.name}' has {zero.dtype} integers, but TensorRT takes int8; "
            "calibrate the FP32 graph with --scheme tensorrt"
        )
    return zero


def with_float_biases(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return a copy with dequantized int32 constants as float32, and the number of constants.

    The float32 values equal the output of the removed DequantizeLinear, so that the copy computes
    the same values as the graph. Without such a constant, the graph itself is returned.
    """
    import onnx
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.graph.initializer}

    def is_int32(node: onnx.NodeProto) -> bool:
        held = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        typed = held is not None and held.data_type == onnx.TensorProto.INT32
        return typed and all(name in constants for name in node.input if name)

    found = [node for node in graph.graph.node if is_int32(node)]
    if not found:
        return graph, 0
    mended = onnx.ModelProto()
    mended.CopyFrom(graph)
    kept = [node for node in mended.graph.node if not is_int32(node)]
    del mended.graph.node[:]
    mended.graph.node.extend(kept)
    for node in found:
        integers, scale, *zero = (
            numpy_helper.to_array(constants[name]) for name in node.input if name
        )
        # One scale per value, or one scale for all values: a bias has a single axis.
        shifted = integers.astype(np.float64) - (zero[0] if zero else 0)
        values = (shifted * scale).astype(np.float32)
        mended.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
    return mended, len(found)

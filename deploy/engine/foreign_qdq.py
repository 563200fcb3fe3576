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
    from onnx import numpy_helper

    mended = onnx.ModelProto()
    mended.CopyFrom(graph)
    constants = {t.name: numpy_helper.to_array(t) for t in mended.graph.initializer}
    makers = {node.output[0]: node for node in mended.graph.node}
    zeros = {
        node.output[0]: _zero_point(node, makers, constants, source)
        for node in mended.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    shifted = {name: zero for name, zero in zeros.items() if _is_shifted(zero)}
    count = sum(
        makers[name].op_type == "QuantizeLinear" or makers[name].input[0] in constants
        for name in shifted
    )
    if not count:
        return graph, 0
    nodes: list[onnx.NodeProto] = []
    for node in mended.graph.node:
        if node.output[0] in shifted:
            clip, added = _make_symmetric(node, shifted[node.output[0]], constants)
            mended.graph.initializer.extend(
                numpy_helper.from_array(values, name) for name, values in added.items()
            )
            nodes += clip
        nodes.append(node)
    del mended.graph.node[:]
    mended.graph.node.extend(nodes)
    # The recorded types of these tensors no longer hold.
    kept = [value for value in mended.graph.value_info if value.name not in zeros]
    del mended.graph.value_info[:]
    mended.graph.value_info.extend(kept)
    return mended, count


def _is_shifted(zero: NDArray[Any]) -> bool:
    """Return whether 8-bit integers are unsigned or have a zero point.

    FP8, INT4 and int32 biases, which `with_float_biases` converts, are left alone.
    """
    return zero.dtype == np.uint8 or (zero.dtype == np.int8 and bool(zero.any()))


def _make_symmetric(
    node: onnx.NodeProto, zero: NDArray[Any], constants: Mapping[str, NDArray[Any]]
) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    """Give a Q or DQ node symmetric inputs; return a Clip to put before it, and new constants."""
    from onnx import helper

    tensor, scale, name = node.input[0], constants[node.input[1]], node.output[0]
    limits, center = np.iinfo(zero.dtype), zero.astype(np.int64)
    reach = np.maximum(center - limits.min, limits.max - center) / 127
    added = {
        f"{name}.scale": (scale * reach).astype(scale.dtype),
        f"{name}.zero": np.zeros(zero.shape, np.int8),
    }
    before: list[onnx.NodeProto] = []
    if node.op_type == "DequantizeLinear" and tensor in constants:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        added[f"{name}.integers"] = _rescaled(constants[tensor], center, reach, axis)
        tensor = f"{name}.integers"
    elif node.op_type == "QuantizeLinear" and center.size == 1:
        # The original integers saturate inside the symmetric range. This saturation may stand for
        # a fused Relu, so a Clip keeps it.
        ends = {
            f"{name}.least": (limits.min - center) * scale,
            f"{name}.most": (limits.max - center) * scale,
        }
        added |= {end: value.astype(scale.dtype).reshape(()) for end, value in ends.items()}
        clip = helper.make_node("Clip", [tensor, *ends], [f"{name}.clipped"], f"{name}.clip")
        before, tensor = [clip], clip.output[0]
    node.input[:] = [tensor, f"{name}.scale", f"{name}.zero"]
    return before, added


def _rescaled(
    integers: NDArray[Any], center: NDArray[Any], reach: NDArray[Any], axis: int
) -> NDArray[np.int8]:
    """Return quantized weights around zero; `center` and `reach` have one value per channel."""
    shape = [1] * integers.ndim
    if center.size > 1:
        shape[axis] = center.size
    steps = np.rint((integers - center.reshape(shape)) / reach.reshape(shape))
    rescaled: NDArray[np.int8] = steps.astype(np.int8)
    return rescaled


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

"""Q/DQ as other tools write it: what TensorRT refuses, and what of that can be mended exactly.

`onnxruntime.quantization.quantize_static` quantises biases to int32 and, by default, activations
with a zero point. TensorRT takes biases in floating point, and zero points that are zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from segdeploy.errors import InputError

if TYPE_CHECKING:
    import onnx


def refuse_zero_points(graph: onnx.ModelProto, source: str) -> None:
    """Refuse a graph whose integers are not symmetric about zero.

    Raises:
        InputError: with the first node, and how to come by symmetric ones.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        zero = constants.get(node.input[2])
        if zero is not None and numpy_helper.to_array(zero).any():
            raise InputError(
                f"{source}: node '{node.name}' has a zero point that is not 0, and TensorRT takes "
                "symmetric INT8 alone; calibrate the FP32 graph with --for tensorrt"
            )


def with_float_biases(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy whose int32 constants behind a DequantizeLinear are float32, and how many there were.

    The values are what the DequantizeLinear would give, so that the graph computes the same. The
    graph itself comes back if there is none.
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
        # A scale for each value, or one for all: the axis of a bias is its only one.
        shifted = integers.astype(np.float64) - (zero[0] if zero else 0)
        values = (shifted * scale).astype(np.float32)
        mended.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
    return mended, len(found)

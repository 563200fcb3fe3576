"""Explicit INT8: Q/DQ pairs in the graph, the one form that TensorRT 10, 11 and RTX share.

Activations are symmetric per tensor, weights symmetric per output channel, zero points are 0, and
biases stay in floating point (TensorRT's parser refuses an int32 DequantizeLinear).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from segdeploy.calibration.errors import CalibrationInputError

_LEVELS = 127  # symmetric: -128 is not used


def quantize_convolutions(model: onnx.ModelProto, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """Return a copy of `model` with Q/DQ at the input of each convolution and on its weights.

    `ranges` gives the largest magnitude of every convolution's input tensor. Weights are stored as
    int8 behind a DequantizeLinear, so the file shrinks to about a quarter.

    Raises:
        CalibrationInputError: if the graph holds Q/DQ already, has no convolution with constant
            weights, or a weight is not finite.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise CalibrationInputError(
            "calibration: the graph is quantised already (it holds Q/DQ nodes); "
            "calibrate the FP32 graph that it was made from"
        )
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    dequantised: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Conv" and node.input[1] in weights:
            data, weight = node.input[0], node.input[1]
            if data not in dequantised:
                nodes += _activation_pair(graph, data, ranges[data])
                dequantised[data] = f"{data}_dequantized"
            if weight not in dequantised:
                nodes.append(_weight_dequantizer(graph, weights[weight]))
                dequantised[weight] = f"{weight}_dequantized"
            node.input[0], node.input[1] = dequantised[data], dequantised[weight]
        nodes.append(node)
    if not dequantised:
        raise CalibrationInputError("calibration: the graph has no convolution to quantise")
    # A weight may have other readers: a transposed convolution that it is tied to.
    read = {name for node in nodes for name in node.input}
    kept = [t for t in graph.initializer if t.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return quantised


def _activation_pair(graph: onnx.GraphProto, tensor: str, largest: float) -> list[onnx.NodeProto]:
    scale = _scales(np.asarray(largest, np.float32))
    graph.initializer.extend(
        [
            numpy_helper.from_array(scale, f"{tensor}_scale"),
            numpy_helper.from_array(np.asarray(0, np.int8), f"{tensor}_zero_point"),
        ]
    )
    constants = [f"{tensor}_scale", f"{tensor}_zero_point"]
    return [
        onnx.helper.make_node(
            "QuantizeLinear",
            [tensor, *constants],
            [f"{tensor}_quantized"],
            name=f"{tensor}_quantize",
        ),
        onnx.helper.make_node(
            "DequantizeLinear",
            [f"{tensor}_quantized", *constants],
            [f"{tensor}_dequantized"],
            name=f"{tensor}_dequantize",
        ),
    ]


def _weight_dequantizer(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> onnx.NodeProto:
    name = tensor.name
    integers, scales = quantize_weight(numpy_helper.to_array(tensor), name)
    graph.initializer.extend(
        [
            numpy_helper.from_array(integers, f"{name}_quantized"),
            numpy_helper.from_array(scales, f"{name}_scale"),
            numpy_helper.from_array(np.zeros(len(scales), np.int8), f"{name}_zero_point"),
        ]
    )
    return onnx.helper.make_node(
        "DequantizeLinear",
        [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"],
        [f"{name}_dequantized"],
        name=f"{name}_dequantize",
        axis=0,
    )


def quantize_weight(
    weight: NDArray[np.float32], name: str
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise `(out, in, kH, kW) float32` to int8 with one scale an output channel `(out,)`.

    A channel that is all zero, or nearly, gets scale 1 and zeros.

    Raises:
        CalibrationInputError: if a weight is not finite.
    """
    if not np.isfinite(weight).all():
        raise CalibrationInputError(f"calibration: weight {name} holds NaN or infinity")
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    scales = _scales(largest)
    steps = weight / scales.reshape(-1, *(1,) * (weight.ndim - 1))
    return np.clip(np.rint(steps), -_LEVELS, _LEVELS).astype(np.int8), scales


def _scales(largest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales of ranges; TensorRT wants them positive, so one that would vanish becomes 1."""
    scales = (largest / np.float32(_LEVELS)).astype(np.float32)
    usable: NDArray[np.float32] = np.where(
        scales >= np.finfo(np.float32).tiny, scales, np.float32(1)
    )
    return usable

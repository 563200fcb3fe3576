"""Explicit INT8 quantization with Q/DQ pairs, the form that TensorRT 10, 11 and RTX share.

Q/DQ pairs are placed where TensorRT fuses them (Developer Guide, "Explicit quantization"): at the
input and the weight of a convolution, and on the branch that is added to its output. No pair is
placed before a Resize or a softmax. For TensorRT, biases stay in floating point, because its parser
refuses an int32 DequantizeLinear. The CPU scheme has int32 biases. The tensors that one Concat
joins get the same scale, so that the Concat needs no rescaling.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from segdeploy.calibration.errors import CalibrationInputError
from segdeploy.calibration.layers import InsertionPoints
from segdeploy.calibration.thresholds import LEVELS

_OUTLIER = 20


@dataclass(frozen=True)
class QuantizationScheme:
    """Quantization scheme: tensorrt (symmetric INT8) or cpu (UINT8 activations, 7-bit weights).

    CPU activations have a zero point. CPU weights have 7 bits, because without VNNI the sum of two
    8-bit products exceeds 16 bits and saturates. ONNX Runtime's integer convolution produces
    integers and adds an int32 bias. With `results`, layer results and biases are therefore
    quantized as well.
    """

    name: str
    weight_levels: int = LEVELS
    unsigned: bool = False
    results: bool = False
    half_scales: bool = True  # exact in FP16, to which the rest of the graph may be converted


TENSORRT = QuantizationScheme("tensorrt")
CPU = QuantizationScheme("cpu", weight_levels=63, unsigned=True, results=True, half_scales=False)
SCHEMES = {scheme.name: scheme for scheme in (TENSORRT, CPU)}


@dataclass(frozen=True)
class Range:
    """Range of an activation: the clamping threshold, and the lowest and highest value seen."""

    threshold: float
    lowest: float
    highest: float


def refuse_quantized(model: onnx.ModelProto) -> None:
    """Refuse a graph that holds Q/DQ nodes.

    Raises:
        CalibrationInputError: if the graph holds a Q/DQ node.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise CalibrationInputError(
            "calibration: the graph is quantized already (it holds Q/DQ nodes); "
            "calibrate the FP32 graph that it was made from"
        )


def quantize(
    model: onnx.ModelProto,
    insertion_points: InsertionPoints,
    chosen: Collection[str],
    ranges: Mapping[str, Range],
    scheme: QuantizationScheme = TENSORRT,
    *,
    weights_only: Collection[str] = (),
) -> onnx.ModelProto:
    """Return a copy of `model` in which the Conv nodes `chosen` by name are INT8.

    `ranges` holds the range of every tensor in `insertion_points.activations` for the same
    `chosen`, with `scheme.results`. Weights are stored as int8 and read by a DequantizeLinear, so
    the file shrinks. The weights of the nodes `weights_only` are stored in the same way, although
    these nodes compute in the precision of the graph around them.

    Raises:
        CalibrationInputError: if the graph holds Q/DQ already, or a weight is not finite.
    """
    refuse_quantized(model)
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    branches = insertion_points.branches(chosen)
    needed = insertion_points.activations(chosen, results=scheme.results)
    shared = _share_over_concats(model, needed, ranges)
    outputs = {output.name for output in graph.output}
    results = {
        y.result for y in insertion_points.layers if y.name in chosen and scheme.results
    } - outputs
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: dict[str, str] = {}
    rewired: dict[str, str] = {}
    for node in graph.node:
        node.input[:] = [rewired.get(name, name) for name in node.input]
        if node.op_type == "Conv" and (node.name in chosen or node.name in weights_only):
            weight = node.input[1]
            if weight not in done:
                nodes.append(_weight_dequantizer(graph, weights[weight], scheme))
                done[weight] = nodes[-1].output[0]
            node.input[1] = done[weight]
            if node.name in chosen:
                _quantize_input(graph, nodes, done, node, 0, shared, scheme)
                if scheme.results:
                    _quantize_bias(graph, nodes, node, weight, weights)
        elif node.name in branches and branches[node.name] in node.input:
            index = list(node.input).index(branches[node.name])
            _quantize_input(graph, nodes, done, node, index, shared, scheme)
        nodes.append(node)
        for name in results.intersection(node.output):
            nodes += _activation_pair(graph, name, shared[name], scheme)
            rewired[name] = done[name] = nodes[-1].output[0]
    # A weight may have other readers, such as a transposed convolution with a tied weight.
    read = {name for node in nodes for name in node.input}
    kept = [t for t in graph.initializer if t.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return quantized


def _share_over_concats(
    model: onnx.ModelProto, tensors: Collection[str], ranges: Mapping[str, Range]
) -> dict[str, Range]:
    """Return the ranges, with the widest range for all quantized tensors of a Concat."""
    shared = {name: ranges[name] for name in tensors}
    joins = [node for node in model.graph.node if node.op_type == "Concat"]
    for node in joins * len(joins):  # one Concat may feed another
        joined = [name for name in (*node.input, *node.output) if name in shared]
        if len(joined) > 1:
            widest = Range(
                max(shared[name].threshold for name in joined),
                min(shared[name].lowest for name in joined),
                max(shared[name].highest for name in joined),
            )
            shared.update(dict.fromkeys(joined, widest))
    return shared


def _quantize_input(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    done: dict[str, str],
    node: onnx.NodeProto,
    index: int,
    ranges: Mapping[str, Range],
    scheme: QuantizationScheme,
) -> None:
    tensor = node.input[index]
    if tensor in done.values():  # a result that is quantized at its producer
        return
    if tensor not in done:
        nodes += _activation_pair(graph, tensor, ranges[tensor], scheme)
        done[tensor] = nodes[-1].output[0]
    node.input[index] = done[tensor]


def _activation_pair(
    graph: onnx.GraphProto, tensor: str, values: Range, scheme: QuantizationScheme
) -> list[onnx.NodeProto]:
    if scheme.unsigned:
        low = min(0.0, max(values.lowest, -values.threshold))
        high = max(0.0, min(values.highest, values.threshold))
        scale = _scales(np.asarray((high - low) / 255, np.float32), scheme)
        zero: NDArray[Any] = np.asarray(np.clip(np.rint(-low / scale), 0, 255), np.uint8)
    else:
        scale = _scales(np.asarray(values.threshold / LEVELS, np.float32), scheme)
        zero = np.asarray(0, np.int8)
    constants = [f"{tensor}_scale", f"{tensor}_zero_point"]
    graph.initializer.extend(
        [numpy_helper.from_array(scale, constants[0]), numpy_helper.from_array(zero, constants[1])]
    )
    return [
        onnx.helper.make_node(kind, [given, *constants], [made], name=f"{tensor}_{name}")
        for kind, given, made, name in (
            ("QuantizeLinear", tensor, f"{tensor}_quantized", "quantize"),
            ("DequantizeLinear", f"{tensor}_quantized", f"{tensor}_dequantized", "dequantize"),
        )
    ]


def _quantize_bias(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    node: onnx.NodeProto,
    weight: str,
    weights: Mapping[str, onnx.TensorProto],
) -> None:
    """Store a bias as int32 if it fits, with the data's scale times the weight's as its scale.

    The rounding error of half a step is below the resolution of the integer sum. ONNX Runtime's
    optimizer, which is switched off here, would store the bias in the same way.
    """
    bias = weights.get(node.input[2]) if len(node.input) > 2 else None
    names = [f"{node.input[0].removesuffix('_dequantized')}_scale", f"{weight}_scale"]
    scales = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name in names}
    if bias is None or len(scales) < len(names):
        return
    step = scales[names[0]] * scales[names[1]]
    integers = np.rint(numpy_helper.to_array(bias).astype(np.float64) / step)
    if not (np.abs(integers) < 1 << 31).all():
        return
    stem = f"{node.name}_bias"
    graph.initializer.extend(
        [
            numpy_helper.from_array(integers.astype(np.int32), f"{stem}_quantized"),
            numpy_helper.from_array(step.astype(np.float32), f"{stem}_scale"),
        ]
    )
    inputs = [f"{stem}_quantized", f"{stem}_scale"]
    name = f"{stem}_dequantize"
    nodes.append(
        onnx.helper.make_node("DequantizeLinear", inputs, [f"{stem}_dequantized"], name, axis=0)
    )
    node.input[2] = f"{stem}_dequantized"


def _weight_dequantizer(
    graph: onnx.GraphProto, tensor: onnx.TensorProto, scheme: QuantizationScheme
) -> onnx.NodeProto:
    name = tensor.name
    integers, scales = quantize_weight(numpy_helper.to_array(tensor), name, scheme)
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
    weight: NDArray[np.float32], name: str, scheme: QuantizationScheme = TENSORRT
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize `(out, in, kH, kW) float32` to int8 with one scale per output channel `(out,)`.

    A channel that is all zero, or nearly, gets scale 1 and zeros.

    Raises:
        CalibrationInputError: if a weight is not finite.
    """
    if not np.isfinite(weight).all():
        raise CalibrationInputError(f"calibration: weight {name} holds NaN or infinity")
    levels = scheme.weight_levels
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    scales = _scales(largest / np.float32(levels), scheme)
    steps = weight / scales.reshape(-1, *(1,) * (weight.ndim - 1))
    return np.clip(np.rint(steps), -levels, levels).astype(np.int8), scales


def odd_channels(weight: NDArray[np.float32]) -> tuple[int, int]:
    """Count the all-zero output channels, and the channels with outliers.

    An outlier is a largest weight of more than `_OUTLIER` times the median channel's. Both kinds
    have scales of their own and do not affect other channels.
    """
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    alive = largest[largest > 0]
    outliers = int((alive > _OUTLIER * np.median(alive)).sum()) if alive.size else 0
    return int((largest == 0).sum()), outliers


def _scales(wanted: NDArray[np.float32], scheme: QuantizationScheme) -> NDArray[np.float32]:
    """Return usable scales: positive, as TensorRT requires, and exact in FP16 if `half_scales`.

    Values are divided by the stored scale. Rounding a scale up therefore costs only range: one part
    in two thousand, and more below 6e-5, where FP16 has fewer digits. A scale of zero becomes 1.
    """
    scales = np.asarray(wanted, np.float32)
    smallest = np.float32(np.finfo(np.float32).tiny)
    if scheme.half_scales:
        with np.errstate(over="ignore"):
            half = scales.astype(np.float16)
        up = np.nextafter(half, np.float16(np.inf))
        scales = np.where(half.astype(np.float32) < scales, up, half).astype(np.float32)
        smallest = np.float32(2.0**-24)
        if not np.isfinite(scales).all():
            raise CalibrationInputError(
                f"calibration: a scale of {float(np.max(wanted)):.3g} exceeds the FP16 range; keep "
                "the layer out of INT8 (--exclude)"
            )
    usable: NDArray[np.float32] = np.where(
        np.asarray(wanted) > 0, np.maximum(scales, smallest), np.float32(1)
    ).astype(np.float32)
    return usable

"""Explicit INT8: Q/DQ pairs in the graph, the one form that TensorRT 10, 11 and RTX share.

Where they stand is what TensorRT fuses (Developer Guide, "Explicit quantization"): at the input and
the weight of a convolution, and on the branch that is added to its output. Nothing stands before a
Resize or a softmax. Biases stay in floating point: TensorRT's parser refuses an int32
DequantizeLinear, which CPUs alone are given. The tensors that one Concat joins get one scale, so
that it needs no rescaling.
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
from segdeploy.calibration.layers import Sites
from segdeploy.calibration.thresholds import LEVELS

_OUTLIER = 20


@dataclass(frozen=True)
class Flavour:
    """Integers for one kind of machine: TensorRT's are symmetric s8.

    For CPUs, activations are u8 with a zero point, and weights have seven bits: without VNNI the
    sum of two products of eight bits passes 16, and saturates. ONNX Runtime's integer convolution
    gives integers and adds an int32 bias, so with `results` both are quantised, too.
    """

    name: str
    weight_levels: int = LEVELS
    unsigned: bool = False
    results: bool = False
    half_scales: bool = True  # exact in FP16, to which the rest of the graph may go


TENSORRT = Flavour("tensorrt")
CPU = Flavour("cpu", weight_levels=63, unsigned=True, results=True, half_scales=False)
FLAVOURS = {flavour.name: flavour for flavour in (TENSORRT, CPU)}


@dataclass(frozen=True)
class Range:
    """What an activation is to represent: the threshold, and the lowest and highest value seen."""

    threshold: float
    lowest: float
    highest: float


def refuse_quantised(model: onnx.ModelProto) -> None:
    """Refuse a graph that holds Q/DQ.

    Raises:
        CalibrationInputError: if it does.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise CalibrationInputError(
            "calibration: the graph is quantised already (it holds Q/DQ nodes); "
            "calibrate the FP32 graph that it was made from"
        )


def quantize(
    model: onnx.ModelProto,
    sites: Sites,
    chosen: Collection[str],
    ranges: Mapping[str, Range],
    flavour: Flavour = TENSORRT,
    *,
    weights_only: Collection[str] = (),
) -> onnx.ModelProto:
    """Return a copy of `model` in which the Conv nodes `chosen` by name are INT8.

    `ranges` holds those of `sites.activations` for the same, with `flavour.results`. Weights are
    stored as int8 behind a DequantizeLinear, so the file shrinks; those of `weights_only`, too,
    though these compute in the precision of the graph around them.

    Raises:
        CalibrationInputError: if the graph holds Q/DQ already, or a weight is not finite.
    """
    refuse_quantised(model)
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    branches = sites.branches(chosen)
    needed = sites.activations(chosen, results=flavour.results)
    shared = _share_over_concats(model, needed, ranges)
    outputs = {output.name for output in graph.output}
    results = {y.result for y in sites.layers if y.name in chosen and flavour.results} - outputs
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: dict[str, str] = {}
    rewired: dict[str, str] = {}
    for node in graph.node:
        node.input[:] = [rewired.get(name, name) for name in node.input]
        if node.op_type == "Conv" and (node.name in chosen or node.name in weights_only):
            weight = node.input[1]
            if weight not in done:
                nodes.append(_weight_dequantizer(graph, weights[weight], flavour))
                done[weight] = nodes[-1].output[0]
            node.input[1] = done[weight]
            if node.name in chosen:
                _quantise_input(graph, nodes, done, node, 0, shared, flavour)
                if flavour.results:
                    _quantise_bias(graph, nodes, node, weight, weights)
        elif node.name in branches and branches[node.name] in node.input:
            index = list(node.input).index(branches[node.name])
            _quantise_input(graph, nodes, done, node, index, shared, flavour)
        nodes.append(node)
        for name in results.intersection(node.output):
            nodes += _activation_pair(graph, name, shared[name], flavour)
            rewired[name] = done[name] = nodes[-1].output[0]
    # A weight may have other readers: a transposed convolution that it is tied to.
    read = {name for node in nodes for name in node.input}
    kept = [t for t in graph.initializer if t.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return quantised


def _share_over_concats(
    model: onnx.ModelProto, tensors: Collection[str], ranges: Mapping[str, Range]
) -> dict[str, Range]:
    """The widest range for the quantised tensors that one Concat joins and gives."""
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


def _quantise_input(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    done: dict[str, str],
    node: onnx.NodeProto,
    index: int,
    ranges: Mapping[str, Range],
    flavour: Flavour,
) -> None:
    tensor = node.input[index]
    if tensor in done.values():  # a result that was quantised where it was given
        return
    if tensor not in done:
        nodes += _activation_pair(graph, tensor, ranges[tensor], flavour)
        done[tensor] = nodes[-1].output[0]
    node.input[index] = done[tensor]


def _activation_pair(
    graph: onnx.GraphProto, tensor: str, values: Range, flavour: Flavour
) -> list[onnx.NodeProto]:
    if flavour.unsigned:
        low = min(0.0, max(values.lowest, -values.threshold))
        high = max(0.0, min(values.highest, values.threshold))
        scale = _scales(np.asarray((high - low) / 255, np.float32), flavour)
        zero: NDArray[Any] = np.asarray(np.clip(np.rint(-low / scale), 0, 255), np.uint8)
    else:
        scale = _scales(np.asarray(values.threshold / LEVELS, np.float32), flavour)
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


def _quantise_bias(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    node: onnx.NodeProto,
    weight: str,
    weights: Mapping[str, onnx.TensorProto],
) -> None:
    """Store a bias as int32, in steps of the data's scale times the weight's, where it fits.

    Half a step of the sum is beyond what the sum itself can hold. ONNX Runtime would do the same
    behind our back, were its optimizer not off.
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
    graph: onnx.GraphProto, tensor: onnx.TensorProto, flavour: Flavour
) -> onnx.NodeProto:
    name = tensor.name
    integers, scales = quantize_weight(numpy_helper.to_array(tensor), name, flavour)
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
    weight: NDArray[np.float32], name: str, flavour: Flavour = TENSORRT
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise `(out, in, kH, kW) float32` to int8 with one scale an output channel `(out,)`.

    A channel that is all zero, or nearly, gets scale 1 and zeros.

    Raises:
        CalibrationInputError: if a weight is not finite.
    """
    if not np.isfinite(weight).all():
        raise CalibrationInputError(f"calibration: weight {name} holds NaN or infinity")
    levels = flavour.weight_levels
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    scales = _scales(largest / np.float32(levels), flavour)
    steps = weight / scales.reshape(-1, *(1,) * (weight.ndim - 1))
    return np.clip(np.rint(steps), -levels, levels).astype(np.int8), scales


def odd_channels(weight: NDArray[np.float32]) -> tuple[int, int]:
    """Output channels without a weight, and those whose largest is `_OUTLIER` times the median's.

    Both are quantised by scales of their own, and harm no other channel.
    """
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    alive = largest[largest > 0]
    outliers = int((alive > _OUTLIER * np.median(alive)).sum()) if alive.size else 0
    return int((largest == 0).sum()), outliers


def _scales(wanted: NDArray[np.float32], flavour: Flavour) -> NDArray[np.float32]:
    """Usable scales: positive, as TensorRT wants them, and exact in FP16 where that is asked for.

    A value is divided by the scale that is stored, so that rounding a scale up costs range alone: a
    part in two thousand, more below 6e-5, where FP16 has fewer digits. What is zero gets scale 1.
    """
    scales = np.asarray(wanted, np.float32)
    smallest = np.float32(np.finfo(np.float32).tiny)
    if flavour.half_scales:
        with np.errstate(over="ignore"):
            half = scales.astype(np.float16)
        up = np.nextafter(half, np.float16(np.inf))
        scales = np.where(half.astype(np.float32) < scales, up, half).astype(np.float32)
        smallest = np.float32(2.0**-24)
        if not np.isfinite(scales).all():
            raise CalibrationInputError(
                f"calibration: a scale of {float(np.max(wanted)):.3g} is beyond FP16; keep the "
                "layer out of INT8 (--keep)"
            )
    usable: NDArray[np.float32] = np.where(
        np.asarray(wanted) > 0, np.maximum(scales, smallest), np.float32(1)
    ).astype(np.float32)
    return usable

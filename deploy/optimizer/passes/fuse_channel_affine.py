"""Fold scales and shifts per channel into the preceding convolution.

For a plain or transposed convolution with weight `W` and bias `b`, whose output has no other
reader:

1. BatchNormalization is `y * f + s` with `f = scale / sqrt(var + epsilon)`, `s = bias - mean * f`
   (ONNX operator BatchNormalization).
2. Mul or Div by one constant per channel, or by one constant for all channels, is `y * f`. The
   LayerScale of ConvNeXt (Liu et al. 2022, arXiv 2201.03545) is an example.
3. Add or Sub of such a constant is `y + s`.

`(W x + b) f + s` is one convolution with weight `f W` and bias `f b + s`. The products are computed
in float64. The fusion is exact up to rounding. It is skipped if float32 cannot hold the result: a
product that underflows, or a shift that vanishes beside the bias (`+ 1e-9`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from segdeploy.contract import MODULE_KEY
from segdeploy.optimizer.convolution import Matrix
from segdeploy.optimizer.editing import add_constant, is_private, remove_dead
from segdeploy.optimizer.pass_result import PassResult

_ROUNDING = 1e-6


@dataclass(frozen=True)
class _Affine:
    """`y * factor + shift`, each `(C,)` float64."""

    factor: Matrix
    shift: Matrix


def fuse_channel_affine(model: ir.Model) -> PassResult:
    """Fuse every scale or shift per channel of `model` into the convolution before it, in place."""
    result = PassResult()
    for node in list(model.graph):
        place, convolution = _convolution_before(node)
        if convolution is None:
            continue
        affine = _affine(node, place, _channels(convolution))
        if affine is None:
            continue
        if not is_private(convolution.outputs[0]):
            result.skipped.append(f"{node.name}: {convolution.name} has another reader")
        elif _fuse(model.graph, convolution, node, affine):
            result.rewrites.append(f"{node.name} into {convolution.name}")
        else:
            result.skipped.append(f"{node.name}: float32 cannot hold it inside the weights")
    remove_dead(model.graph)
    return result


def _convolution_before(node: ir.Node) -> tuple[int, ir.Node | None]:
    """Return the index of the input that a convolution produces, and that convolution or None.

    The convolution's weights must be float32 constants.
    """
    if node.op_type not in ("BatchNormalization", "Mul", "Div", "Add", "Sub"):
        return 0, None
    for place, value in enumerate(node.inputs[:2]):
        producer = None if value is None else value.producer()
        if producer is None or producer.op_type not in ("Conv", "ConvTranspose"):
            continue
        constants = [v for v in producer.inputs[1:] if v is not None]
        if all(v.const_value is not None and v.dtype == ir.DataType.FLOAT for v in constants):
            return place, producer
    return 0, None


def _groups(node: ir.Node) -> int:
    attribute = node.attributes.get("group")
    return 1 if attribute is None else attribute.as_int()


def _channels(node: ir.Node) -> int:
    shape = _values(node.inputs[1]).shape
    return int(shape[0] if node.op_type == "Conv" else shape[1] * _groups(node))


def _values(value: ir.Value | None) -> Matrix:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _affine(node: ir.Node, place: int, channels: int) -> _Affine | None:
    """Return the scale and shift that a node applies to the channels of its input at `place`."""
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "BatchNormalization":
        if place != 0 or any(v is None or v.const_value is None for v in node.inputs[1:5]):
            return None
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return None
        scale, bias, mean, variance = (_values(v) for v in node.inputs[1:5])
        epsilon = node.attributes.get("epsilon")
        factor = scale / np.sqrt(variance + (1e-5 if epsilon is None else epsilon.as_float()))
        return _Affine(factor, bias - mean * factor)
    constant = _a_channel(node.inputs[1 - place], node.inputs[place], channels)
    if constant is None:
        return None
    if node.op_type == "Mul":
        return _Affine(constant, zero)
    if node.op_type == "Add":
        return _Affine(one, constant)
    if node.op_type == "Sub":
        return _Affine(one, -constant) if place == 0 else _Affine(-one, constant)
    return _Affine(1 / constant, zero) if place == 0 and constant.all() else None


def _a_channel(other: ir.Value | None, given: ir.Value | None, channels: int) -> Matrix | None:
    """Return a constant as one value per channel of the feature map `given`, or None."""
    if other is None or other.const_value is None or other.dtype != ir.DataType.FLOAT:
        return None
    values = _values(other)
    if values.size == 1 and values.ndim <= 3:
        return np.full(channels, values.item())
    rank = None if given is None or given.shape is None else given.shape.rank()
    shape = (1,) * ((rank or 4) - values.ndim) + values.shape
    if len(shape) != rank or shape[1] != channels or values.size != channels:
        return None
    return values.reshape(channels)


def _fuse(graph: ir.Graph, convolution: ir.Node, node: ir.Node, affine: _Affine) -> bool:
    """Fuse a node into the convolution's weights; return False if float32 cannot hold them."""
    weight, given = _values(convolution.inputs[1]), convolution.inputs[2:3]
    has_bias = bool(given) and given[0] is not None
    bias = _values(given[0]) if has_bias else np.zeros(len(affine.shift))
    scaled = weight * _along_outputs(convolution, affine.factor, weight)
    shifted = bias * affine.factor + affine.shift
    vanishes = (affine.shift != 0) & (shifted.astype(np.float32) == bias.astype(np.float32))
    if not _fits(scaled) or not _fits(shifted) or (has_bias and vanishes.any()):
        return False
    stem = _stem(convolution)
    _put(graph, convolution, 1, f"{stem}.weight", scaled)
    if has_bias or affine.shift.any():
        convolution.resize_inputs(3)
        _put(graph, convolution, 2, f"{stem}.bias", shifted)
    own, output = convolution.outputs[0], node.outputs[0]
    name = output.name or node.name or ""
    own.shape, own.type = output.shape, output.type
    output.replace_all_uses_with(own, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    own.name = name
    # The convolution now computes the output of that node.
    notes = node.metadata_props
    if MODULE_KEY in notes:
        convolution.metadata_props[MODULE_KEY] = notes[MODULE_KEY]
    return True


def _stem(convolution: ir.Node) -> str:
    """Return the name prefix of a convolution's constants."""
    weight = convolution.inputs[1]
    name = (weight.name if weight is not None else None) or convolution.name or "convolution"
    return re.sub(r"(\.weight)?(_folded\d*)?$", "", name)


def _put(graph: ir.Graph, node: ir.Node, place: int, name: str, values: Matrix) -> None:
    """Replace the constant at an input, in place if nothing else reads or has read it.

    A constant that several convolutions share is still shared afterwards.
    """
    old = node.inputs[place]
    alone = old is not None and is_private(old) and not old.is_graph_input()
    if old is not None and alone and f"{name}_folded" not in graph.initializers:
        old.const_value = ir.tensor(values.astype(np.float32), name=old.name)
    else:
        node.replace_input_with(place, add_constant(graph, name, values))


def _along_outputs(convolution: ir.Node, factor: Matrix, weight: Matrix) -> Matrix:
    """Reshape one factor per output channel to broadcast over the weight that it multiplies.

    A weight is `(out, in / groups, kH, kW)`, and `(in, out / groups, kH, kW)` if transposed.
    """
    spatial = (1,) * (weight.ndim - 2)
    if convolution.op_type == "Conv":
        return factor.reshape(-1, 1, *spatial)
    groups = _groups(convolution)
    a_group = factor.reshape(groups, 1, -1).repeat(len(weight) // groups, axis=1)
    return a_group.reshape(len(weight), -1, *spatial)


def _fits(values: Matrix) -> bool:
    with np.errstate(over="ignore"):
        stored = values.astype(np.float32).astype(np.float64)
    return bool((np.abs(stored - values) <= _ROUNDING * np.abs(values)).all())

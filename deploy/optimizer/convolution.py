"""Queries on convolutions, concatenations and resizes of an onnx-ir graph."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from segdeploy.contract import CALL_KEY, MODULE_KEY

Matrix = NDArray[np.float64]


def weights_of(node: ir.Node) -> tuple[Matrix, Matrix | None] | None:
    """Return constant weight `(out, in, kH, kW)` and bias `(out,)` of an ungrouped convolution.

    None if the convolution is grouped, or a weight or bias is not a float32 constant.
    """
    groups = node.attributes.get("group")
    if groups is not None and groups.as_int() != 1:
        return None
    constants: list[Matrix | None] = [None, None]
    for index, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        if value.const_value is None or value.dtype != ir.DataType.FLOAT:
            return None
        constants[index] = value.const_value.numpy().astype(np.float64)
    weight, bias = constants
    return (weight, bias) if weight is not None and weight.ndim == 4 else None


def is_pointwise(node: ir.Node) -> bool:
    """Return whether a node is a 1x1 convolution with stride 1 and no padding."""
    if node.op_type != "Conv" or (own := weights_of(node)) is None or own[0].shape[2:] != (1, 1):
        return False
    strides, pads = node.attributes.get("strides"), node.attributes.get("pads")
    return (strides is None or set(strides.as_ints()) == {1}) and (
        pads is None or set(pads.as_ints()) == {0}
    )


def joins_channels(node: ir.Node) -> bool:
    """Return whether a node concatenates channels of feature maps with static channel counts."""
    return (
        node.op_type == "Concat"
        and node.attributes["axis"].as_int() in (1, -3)
        and all(
            part is not None
            and part.shape is not None
            and part.shape.rank() == 4
            and isinstance(part.shape[1], int)
            for part in node.inputs
        )
    )


def channels_of(value: ir.Value) -> int:
    """Return the channel count of a feature map, which must be static."""
    assert value.shape is not None
    width = value.shape[1]
    assert isinstance(width, int)
    return width


def is_average(node: ir.Node) -> bool:
    """Return whether a node is a spatial Resize whose interpolation weights sum to one.

    This holds for `linear` and `nearest`, unless pixels outside the feature map have a value of
    their own (ONNX operator Resize, `tf_crop_and_resize`).
    """
    if node.op_type != "Resize" or node.inputs[0] is None or "axes" in node.attributes:
        return False
    source, output = node.inputs[0].shape, node.outputs[0].shape
    mode = node.attributes.get("mode")
    policy = node.attributes.get("keep_aspect_ratio_policy")
    coordinates = node.attributes.get("coordinate_transformation_mode")
    return (
        source is not None
        and output is not None
        and node.inputs[0].dtype == ir.DataType.FLOAT  # integer results would be rounded
        and source.rank() == output.rank() == 4
        and isinstance(source[1], int)
        and source[1] == output[1]
        and not (isinstance(source[0], int) and source[0] != output[0])
        and (policy is None or policy.as_string() == "stretch")
        and mode is not None  # the operator's default is nearest, with roundings of its own
        and mode.as_string() in ("linear", "nearest")
        and (coordinates is None or coordinates.as_string() != "tf_crop_and_resize")
    )


def bilinear_alignment(node: ir.Node) -> str | None:
    """Return the pixel alignment of a bilinear Resize: `half_pixel` or `align_corners`.

    None for any other node. The Resize must have explicit sizes, or scales that are exactly the
    ratio of the sizes: 2.5 times 3 pixels would be truncated.
    """
    message = len(node.inputs) > 3 and node.inputs[3] is not None
    if (
        not is_average(node)
        or not (message or _scales_exactly(node))
        or node.attributes["mode"].as_string() != "linear"
    ):
        return None
    antialias = node.attributes.get("antialias")
    if antialias is not None and antialias.as_int():
        return None
    coordinates = node.attributes.get("coordinate_transformation_mode")
    alignment = "half_pixel" if coordinates is None else coordinates.as_string()
    return alignment if alignment in ("half_pixel", "align_corners") else None


def _scales_exactly(node: ir.Node) -> bool:
    """Return whether the scales of a Resize give its static output size without truncation."""
    factors = node.inputs[2] if len(node.inputs) > 2 else None
    source, output = node.inputs[0], node.outputs[0]
    before, after = pixels_of(source), pixels_of(output)
    if factors is None or factors.const_value is None or before is None or after is None:
        return False
    pairs = zip(before, after, factors.const_value.numpy()[2:], strict=True)
    return all(float(factor) * old == new for old, new, factor in pairs)


def enlarges_one_pixel(node: ir.Node) -> bool:
    """Return whether a node is a Resize of a 1x1 feature map, which is a broadcast."""
    if not is_average(node):
        return False
    source = node.inputs[0]
    assert source is not None
    assert source.shape is not None
    return source.shape[2] == source.shape[3] == 1


def pixels_of(value: ir.Value | None) -> tuple[int, int] | None:
    """Return height and width of a feature map `(N, C, H, W)`, or None if either is dynamic."""
    if value is None or value.shape is None or value.shape.rank() != 4:
        return None
    height, width = value.shape[2], value.shape[3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def module_of(node: ir.Node) -> str:
    """Return the label of a convolution's call, else the module that its weight is named after."""
    if call := node.metadata_props.get(CALL_KEY):
        return call
    weight = node.inputs[1]
    assert weight is not None
    name = weight.name or node.name or "convolution"
    if match := re.fullmatch(r"(.+)\.weight(?:_\w+)?", name):
        return match[1]
    return node.metadata_props.get(MODULE_KEY, name)

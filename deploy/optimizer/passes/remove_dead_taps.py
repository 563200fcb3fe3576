"""Remove the taps of a dilated kernel that can only read padding.

On a 20x20 feature map, eight taps of a 3x3 kernel with dilation 24 lie outside the feature map at
every position of the kernel. These taps multiply zeros. Along each axis:

1. Tap t of output o reads row `o * stride + t * dilation - pad`. The tap is dead if this row is
   outside the feature map for every o. The live taps are neighbors, since the rows of consecutive
   taps are `dilation` apart.
2. The kernel is cut to the live taps: 3x3 becomes 3x1, 1x3 or 1x1. The padding at the front shrinks
   by the extent of the removed front taps. The padding at the end is set to what the output size
   needs. A kernel of one tap gets dilation 1.

The rewrite is exact, since the removed taps multiplied zeros. It needs a static size of the feature
map and explicit padding.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from segdeploy.contract import MODULE_KEY
from segdeploy.optimizer.convolution import module_of, pixels_of
from segdeploy.optimizer.editing import Names, add_constant, remove_dead, replace
from segdeploy.optimizer.pass_result import PassResult

_GEOMETRY = ("auto_pad", "pads", "kernel_shape", "dilations")


def remove_dead_taps(model: ir.Model) -> PassResult:
    """Cut the kernel of every convolution of `model` to its live taps, in place."""
    result = PassResult()
    for node in list(model.graph):
        if node.op_type == "Conv" and _is_wide(node):
            _cut(model.graph, node, result)
    remove_dead(model.graph)
    return result


def _is_wide(node: ir.Node) -> bool:
    dilations = node.attributes.get("dilations")
    return dilations is not None and max(dilations.as_ints()) > 1


def _cut(graph: ir.Graph, node: ir.Node, result: PassResult) -> None:
    source, output, weight = node.inputs[0], node.outputs[0], node.inputs[1]
    before, after = pixels_of(source), pixels_of(output)
    if before is None or after is None:
        result.skipped.append(f"{node.name}: its map has no static size, so every tap may live")
        return
    assert weight is not None
    constant = weight.const_value
    automatic = node.attributes.get("auto_pad")
    explicit = automatic is None or automatic.as_string() in ("NOTSET", "VALID")
    if not explicit or constant is None or weight.dtype != ir.DataType.FLOAT:
        result.skipped.append(
            f"{node.name}: its padding or float32 weight is not an explicit constant"
        )
        return
    values = constant.numpy()
    axes = [
        live_taps(values.shape[2 + a], *_geometry(node, a), before[a], after[a]) for a in (0, 1)
    ]
    if all(axis[:2] == (0, values.shape[2 + a]) for a, axis in enumerate(axes)):
        return
    (top, bottom, pad_top, pad_bottom), (left, right, pad_left, pad_right) = axes
    cut = values[:, :, top:bottom, left:right]
    names = Names(graph)
    name = (weight.name or node.name or "weight").removesuffix("_folded")
    new = ir.Node(
        "",
        "Conv",
        [source, add_constant(graph, f"{name}_live", cut.astype(np.float64)), *node.inputs[2:]],
        [
            *(a for a in node.attributes.values() if a.name not in _GEOMETRY),
            ir.AttrInt64s(
                "dilations",
                [_geometry(node, a)[0] if cut.shape[2 + a] > 1 else 1 for a in (0, 1)],
            ),
            ir.AttrInt64s("pads", [pad_top, pad_left, pad_bottom, pad_right]),
            ir.AttrInt64s("kernel_shape", list(cut.shape[2:])),
        ],
        name=node.name,
        outputs=[ir.Value(name=names.new(f"{output.name}_live"), type=output.type)],
        metadata_props=dict(node.metadata_props),
    )
    new.metadata_props.setdefault(MODULE_KEY, module_of(node))
    new.outputs[0].shape = output.shape
    replace(graph, node, [new])
    result.rewrites.append(
        f"dead taps of {node.name}: its {values.shape[2]}x{values.shape[3]} kernel has only "
        f"{cut.shape[2]}x{cut.shape[3]} live taps on a {before[0]}x{before[1]} feature map"
    )


def _geometry(node: ir.Node, axis: int) -> tuple[int, int, int]:
    """Return dilation, stride and front padding along an axis."""

    def at(name: str, default: int) -> int:
        attribute = node.attributes.get(name)
        return default if attribute is None else attribute.as_ints()[axis]

    return at("dilations", 1), at("strides", 1), at("pads", 0)


def live_taps(
    kernel: int, dilation: int, stride: int, pad: int, source: int, output: int
) -> tuple[int, int, int, int]:
    """Return the live taps first..last (last excluded), and the front and end padding they need.

    If no tap is live, the last tap stays. Dead taps also stay if the padding would otherwise be
    negative, because the kernel would begin or end inside the feature map.
    """

    def lives(tap: int) -> bool:
        row = tap * dilation - pad
        nearest = max(0, -(row // stride))  # the first output whose row is not before the map
        return nearest < output and row + nearest * stride < source

    live = [tap for tap in range(kernel) if lives(tap)] or [kernel - 1]
    first, last = min(live[0], pad // dilation), live[-1] + 1
    front = pad - first * dilation
    while (end := (output - 1) * stride + (last - 1) * dilation - pad + 1 - source) <= -stride:
        last += 1
    return first, last, front, max(0, end)

"""Apply linear operations to low-resolution logits, and enlarge once, last.

A bilinear resize is linear, the same for every channel, and symmetric. If both sizes are static and
the resize does not shrink the feature map, these rules hold:

1. A resize to the size of its input is the identity.
2. A flip of rows or columns, and a multiplication or division by a scalar, commute with the resize.
3. The sum of two feature maps that were enlarged alike is the enlarged sum. The flipped second run
   of test-time augmentation (`--flip`) is added at low resolution, and enlarged once, not twice.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from segdeploy.optimizer.convolution import bilinear_alignment, pixels_of
from segdeploy.optimizer.editing import Names, copy_of, is_private, remove_dead, replace
from segdeploy.optimizer.pass_result import PassResult


def delay_resizes(model: ir.Model) -> PassResult:
    """Move every bilinear resize of `model` behind the linear operations after it, in place."""
    result = PassResult()
    resizes = [node for node in model.graph if bilinear_alignment(node)]
    while resizes:
        node = resizes.pop(0)
        if node.graph is None:  # removed by the move of another resize
            continue
        moved = _move(model.graph, node, result)
        if moved is not None:
            resizes.append(moved)
    remove_dead(model.graph)
    return result


def _move(graph: ir.Graph, node: ir.Node, result: PassResult) -> ir.Node | None:
    """Apply the first rule that fits; return the moved resize, or None."""
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    small, large = pixels_of(source), pixels_of(output)
    reader = next((use.node for use in output.uses()), None)
    if small is None or large is None:
        if reader is not None and _kind(reader, output):
            result.skipped.append(f"{node.name}: its sizes are not static")
        return None
    if small == large:
        if output.is_graph_output() and (source.is_graph_input() or source.is_graph_output()):
            return None
        _skip(graph, node)
        result.rewrites.append(f"{node.name}: resizes {small[0]}x{small[1]} to itself")
        return None
    if reader is None or reader.graph is not graph or not (kind := _kind(reader, output)):
        return None
    if not is_private(output) or small[0] > large[0] or small[1] > large[1]:
        result.skipped.append(f"{node.name}: shrinks, or another node reads it, too")
        return None
    if kind == "sum":
        return _sum(graph, reader, result)
    result.rewrites.append(f"{node.name} behind {reader.name}, which now runs at low resolution")
    return _swap(graph, node, reader, [source, *reader.inputs[1:]])


def _kind(reader: ir.Node, value: ir.Value) -> str | None:
    if reader.op_type == "Add" and len(set(reader.inputs)) == 2:
        return "sum" if _scalar(reader, value) is None else None
    if reader.inputs[0] is not value:
        return None
    if reader.op_type in ("Mul", "Div") and _scalar(reader, value) is not None:
        return "scale"
    return "mirror" if reader.op_type == "Slice" and _mirrors(reader) else None


def _scalar(reader: ir.Node, value: ir.Value) -> ir.Value | None:
    other = next((v for v in reader.inputs if v is not None and v is not value), None)
    constant = None if other is None else other.const_value
    if constant is None or constant.size != 1 or len(constant.shape) > 4:
        return None
    return other


def _mirrors(node: ir.Node) -> bool:
    """Return whether a Slice flips whole rows or columns, from the last to the first."""
    if len(node.inputs) != 5:
        return False
    constants = [None if v is None else v.const_value for v in node.inputs[1:]]
    if any(constant is None for constant in constants):
        return False
    starts, ends, axes, steps = (c.numpy() for c in constants if c is not None)
    return bool(
        (starts == -1).all()
        and (ends <= np.iinfo(np.int32).min).all()
        and (steps == -1).all()
        and set(axes.tolist()) <= {2, 3, -1, -2}
    )


def _sum(graph: ir.Graph, reader: ir.Node, result: PassResult) -> ir.Node | None:
    """Add the low-resolution sources and enlarge the sum, if both operands were enlarged alike."""
    first, second = (v.producer() if v is not None else None for v in reader.inputs)
    if first is None or second is None or not all(map(bilinear_alignment, (first, second))):
        return None  # a later move may put a resize at the other operand
    a, b = first.inputs[0], second.inputs[0]
    assert a is not None
    assert b is not None
    alike = (
        a.shape == b.shape
        and first.outputs[0].shape == second.outputs[0].shape
        and bilinear_alignment(first) == bilinear_alignment(second)
        and all(is_private(n.outputs[0]) for n in (first, second))
    )
    if not alike:
        result.skipped.append(f"{reader.name}: its two maps are not enlarged alike")
        return None
    result.rewrites.append(f"{first.name} and {second.name} as one resize behind {reader.name}")
    return _swap(graph, first, reader, [a, b])


def _swap(
    graph: ir.Graph, resize: ir.Node, reader: ir.Node, inputs: list[ir.Value | None]
) -> ir.Node:
    """Replace `reader` by a copy on the low-resolution `inputs`, followed by the resize."""
    names, output, source = Names(graph), reader.outputs[0], inputs[0]
    assert source is not None
    small = ir.Value(name=names.new(f"{output.name}_small"), type=output.type, shape=source.shape)
    large = ir.Value(name=names.new(f"{output.name}_large"), type=output.type, shape=output.shape)
    later = copy_of(resize, [small, *resize.inputs[1:]], large)
    replace(graph, reader, [copy_of(reader, inputs, small), later])
    remove_dead(graph)
    return later


def _skip(graph: ir.Graph, node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    name, is_output = output.name, output.is_graph_output()
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if is_output:
        source.name = name

"""Let what is linear happen to the small map, and enlarge once, last.

A bilinear resize is linear, the same for every channel, and symmetric. So behind it, where both
sizes are known and it does not shrink the map:

1. A resize to the size that the map has is the map itself.
2. Mirroring rows or columns, or a scalar's multiplication, commutes with it.
3. The sum of two maps that were enlarged alike is the enlarged sum: a mirrored second run
   (`--flip`) is added before both are enlarged, once instead of twice.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from segdeploy.optimizer.convolution import bilinear_alignment, pixels_of
from segdeploy.optimizer.editing import Names, copy_of, is_private, remove_dead, replace
from segdeploy.optimizer.pass_result import Outcome


def delay_resizes(model: ir.Model) -> Outcome:
    """Move every bilinear resize of `model` behind what is linear, in place."""
    outcome = Outcome()
    resizes = [node for node in model.graph if bilinear_alignment(node)]
    while resizes:
        node = resizes.pop(0)
        if node.graph is None:  # gone with another's move
            continue
        moved = _move(model.graph, node, outcome)
        if moved is not None:
            resizes.append(moved)
    remove_dead(model.graph)
    return outcome


def _move(graph: ir.Graph, node: ir.Node, outcome: Outcome) -> ir.Node | None:
    """Apply the first rule that fits; returns the resize that now comes later."""
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    small, large = pixels_of(source), pixels_of(output)
    reader = next((use.node for use in output.uses()), None)
    if small is None or large is None:
        if reader is not None and _kind(reader, output):
            outcome.refusals.append(f"{node.name}: its sizes are not static")
        return None
    if small == large:
        if output.is_graph_output() and (source.is_graph_input() or source.is_graph_output()):
            return None
        _skip(graph, node)
        outcome.rewrites.append(f"{node.name}: resizes {small[0]}x{small[1]} to itself")
        return None
    if reader is None or reader.graph is not graph or not (kind := _kind(reader, output)):
        return None
    if not is_private(output) or small[0] > large[0] or small[1] > large[1]:
        outcome.refusals.append(f"{node.name}: shrinks, or another node reads it, too")
        return None
    if kind == "sum":
        return _sum(graph, reader, outcome)
    outcome.rewrites.append(f"{node.name} behind {reader.name}, which works on the small map")
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
    """Whether a Slice turns whole rows or columns round: from the last to before the first."""
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


def _sum(graph: ir.Graph, reader: ir.Node, outcome: Outcome) -> ir.Node | None:
    """Add the sources and enlarge the sum, if the other operand was enlarged alike."""
    first, second = (v.producer() if v is not None else None for v in reader.inputs)
    if first is None or second is None or not all(map(bilinear_alignment, (first, second))):
        return None  # the other may become a resize when it has moved
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
        outcome.refusals.append(f"{reader.name}: its two maps are not enlarged alike")
        return None
    outcome.rewrites.append(f"{first.name} and {second.name} as one, behind {reader.name}")
    return _swap(graph, first, reader, [a, b])


def _swap(
    graph: ir.Graph, resize: ir.Node, reader: ir.Node, inputs: list[ir.Value | None]
) -> ir.Node:
    """Emit `reader` on the small `inputs` and the resize behind it, in the reader's place."""
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

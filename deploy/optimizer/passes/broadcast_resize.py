"""Replace the Resize of a 1x1 feature map by a broadcast.

1. Where every reader is an Add, Sub, Mul or Div with a feature map of the full size, the reader
   broadcasts by itself and the Resize is removed.
2. Elsewhere the Resize becomes an Expand, which copies instead of interpolating.
"""

from __future__ import annotations

import onnx_ir as ir

from segdeploy.optimizer.convolution import enlarges_one_pixel
from segdeploy.optimizer.editing import Names, add_integers, remove_dead, replace
from segdeploy.optimizer.pass_result import PassResult

_BROADCASTING = ("Add", "Mul", "Sub", "Div")


def broadcast_resizes(model: ir.Model) -> PassResult:
    """Rewrite every Resize of a 1x1 feature map in `model`, in place."""
    result = PassResult()
    for node in list(model.graph):
        if not enlarges_one_pixel(node):
            continue
        text = _rewrite(model.graph, node)
        (result.rewrites if text else result.skipped).append(
            text or f"{node.name}: resizes a 1x1 map to a size that is not static"
        )
    remove_dead(model.graph)
    return result


def _rewrite(graph: ir.Graph, node: ir.Node) -> str | None:
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    readers = list(output.uses())
    if (
        readers
        and not output.is_graph_output()
        and all(_broadcasts(use.node, output) for use in readers)
    ):
        for use in readers:
            use.node.replace_input_with(use.idx, source)
        return f"{node.name}: a broadcast 1x1 map, now read directly by {readers[0].node.name}"
    names = Names(graph)
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    if sizes is None:
        if output.shape is None or not output.shape.is_static():
            return None
        sizes = add_integers(graph, f"{node.name}_sizes", output.shape.numpy())
    expanded = ir.Value(name=names.new(f"{output.name}_expanded"), type=output.type)
    expanded.shape = output.shape
    new = ir.Node("", "Expand", [source, sizes], name=node.name, outputs=[expanded])
    new.metadata_props.update(node.metadata_props)
    replace(graph, node, [new])
    return f"{node.name}: a broadcast 1x1 map, now an Expand"


def _broadcasts(reader: ir.Node, value: ir.Value) -> bool:
    """Return whether a reader broadcasts a 1x1 `value`: its other operand has the full size."""
    if reader.op_type not in _BROADCASTING:
        return False
    others = [other for other in reader.inputs if other is not value]
    return (
        len(others) == 1
        and others[0] is not None
        and others[0].shape is not None
        and value.shape is not None
        and not value.shape.has_unknown_dim()
        and others[0].shape == value.shape
        and reader.outputs[0].shape == value.shape
    )

"""Move a 1x1 convolution to the side of a bilinear resize where it costs less.

The interpolation weights of a bilinear (or nearest) resize sum to one. The resize therefore
commutes with a 1x1 convolution and its bias:

1. Enlarge, then convolve: becomes convolve at low resolution, then enlarge.
2. Convolve, then shrink: becomes shrink, then convolve.

The two are swapped if this reduces the sum of the multiply-accumulates and the resize's own
operations (four per output value). Both sizes must be static, and the value between the two nodes
must have no other reader.
"""

from __future__ import annotations

import onnx_ir as ir

from segdeploy.optimizer.convolution import (
    is_average,
    is_pointwise,
    pixels_of,
    weights_of,
)
from segdeploy.optimizer.editing import (
    Names,
    add_integers,
    copy_of,
    is_private,
    remove_dead,
    replace,
)
from segdeploy.optimizer.pass_result import PassResult

_WORK_OF_RESIZE = 4


def commute_resizes(model: ir.Model) -> PassResult:
    """Swap, in place, every resize and 1x1 convolution that are cheaper in the other order."""
    result = PassResult()
    for node in list(model.graph):
        before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if before is None or not _are_pair(before, node):
            continue
        if not is_private(before.outputs[0]):
            result.skipped.append(f"{node.name}: its input {before.name} has another reader")
            continue
        small, large = pixels_of(before.inputs[0]), pixels_of(node.outputs[0])
        batch = node.outputs[0].shape
        if small is None or large is None or batch is None or not batch.is_static():
            result.skipped.append(f"{node.name}: the sizes at {before.name} are not static")
        elif saved := _saving(before, node, small, large):
            _swap(model.graph, before, node)
            result.rewrites.append(
                f"{node.name} before {before.name}: {small[0]}x{small[1]} to "
                f"{large[0]}x{large[1]}, {saved:,} operations saved"
            )
    remove_dead(model.graph)
    return result


def _are_pair(before: ir.Node, after: ir.Node) -> bool:
    return (is_average(before) and is_pointwise(after)) or (
        is_pointwise(before) and is_average(after)
    )


def _saving(
    before: ir.Node, after: ir.Node, source: tuple[int, int], target: tuple[int, int]
) -> int:
    """Return the operations saved by swapping at batch 1; 0 if none are saved."""
    own = weights_of(before if is_pointwise(before) else after)
    assert own is not None
    wide, narrow = (int(channels) for channels in own[0].shape[:2])
    small, large = source[0] * source[1], target[0] * target[1]
    resized_first = narrow * (_WORK_OF_RESIZE + wide) * large
    convolved_first = wide * (narrow * small + _WORK_OF_RESIZE * large)
    # The resize's operations count, too, but the multiply-accumulates must not increase.
    if is_pointwise(after):
        return max(0, resized_first - convolved_first) if small <= large else 0
    return max(0, convolved_first - resized_first) if large <= small else 0


def _swap(graph: ir.Graph, before: ir.Node, after: ir.Node) -> None:
    """Insert copies of both nodes in the other order, and remove the originals."""
    source, output = before.inputs[0], after.outputs[0]
    assert source is not None
    assert source.shape is not None
    assert output.shape is not None
    names = Names(graph)
    if is_average(before):  # the channels change first, then the pixels
        between = [source.shape[0], output.shape[1], *source.shape[2:]]
    else:
        between = [source.shape[0], source.shape[1], *output.shape[2:]]
    middle = ir.Value(name=names.new(f"{after.name}_first"), type=output.type)
    middle.shape = ir.Shape(between)
    final = ir.Value(name=names.new(f"{output.name}_swapped"), type=output.type)
    final.shape = output.shape
    first = copy_of(after, [source, *after.inputs[1:]], middle)
    second = copy_of(before, [middle, *before.inputs[1:]], final)
    resize = second if is_average(before) else first
    if len(resize.inputs) > 3 and resize.inputs[3] is not None:  # it has explicit output sizes
        shape = resize.outputs[0].shape
        assert shape is not None
        new = add_integers(graph, f"{resize.name}_sizes", shape.numpy())
        resize.replace_input_with(3, new)
    replace(graph, after, [first, second])
    graph.remove(before, safe=True)

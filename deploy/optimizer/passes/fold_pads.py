"""Fold a Pad with zeros into the padding of the convolution behind it.

1. A Pad that adds zeros to rows and columns only, then Conv: the amounts are added to the
   convolution's own padding.
2. If the padded feature map has another reader, the Pad stays for that reader.

The fold is exact, since the convolution also pads with zeros (ONNX operator Conv). A Pad with any
other value, mode or axis, or with an amount that is negative or not constant, stays. A convolution
with `auto_pad` is not changed.
"""

from __future__ import annotations

import onnx_ir as ir

from segdeploy.optimizer.editing import remove_dead
from segdeploy.optimizer.pass_result import PassResult


def fold_pads(model: ir.Model) -> PassResult:
    """Fold every Pad of `model` with spatial zeros into the convolution behind it, in place."""
    result = PassResult()
    for node in model.graph:
        pad = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type != "Conv" or pad is None or pad.op_type != "Pad":
            continue
        amounts = _zeros_around(pad)
        automatic = node.attributes.get("auto_pad")
        if amounts is None or (automatic is not None and automatic.as_string() != "NOTSET"):
            result.skipped.append(f"{node.name}: {pad.name} is no constant padding with zeros")
            continue
        own = node.attributes.get("pads")
        pads = [0] * len(amounts) if own is None else list(own.as_ints())
        total = [one + other for one, other in zip(pads, amounts, strict=True)]
        node.attributes["pads"] = ir.AttrInt64s("pads", total)
        node.replace_input_with(0, pad.inputs[0])
        result.rewrites.append(f"{node.name} pads by {total}, with {pad.name} folded in")
    remove_dead(model.graph)
    return result


def _zeros_around(pad: ir.Node) -> list[int] | None:
    """Return the zeros (begin..., end...) of a spatial zero Pad; None for any other padding."""
    mode = pad.attributes.get("mode")
    source = pad.inputs[0]
    if (mode is not None and mode.as_string() != "constant") or source is None:
        return None
    constants = [None if value is None else value.const_value for value in pad.inputs[1:]]
    if any(v is not None and c is None for v, c in zip(pad.inputs[1:], constants, strict=True)):
        return None
    amounts, value, named, *_ = (*constants, None, None)
    if amounts is None or (value is not None and value.numpy().any()):
        return None
    given = amounts.numpy().tolist()
    if source.shape is None:
        return None
    rank = source.shape.rank()
    axes = [int(a) % rank for a in named.numpy()] if named is not None else list(range(rank))
    begin, end = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        begin[axis], end[axis] = given[place], given[place + len(axes)]
    if min(given) < 0 or any((*begin[:2], *end[:2])):
        return None
    return [*begin[2:], *end[2:]]

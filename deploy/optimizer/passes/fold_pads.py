"""Let a convolution pad by itself what a Pad node before it pads with zeros.

1. Pad with zeros, of rows and columns alone, then Conv: the amounts are added to the convolution's
   own padding.
2. Another reader of the padded map keeps the Pad.

Exact: the convolution's own padding is zeros, too (ONNX operator Conv). Any other value, mode or
axis, an amount that is negative or not constant, and `auto_pad` are left as they are.
"""

from __future__ import annotations

import onnx_ir as ir

from segdeploy.optimizer.editing import remove_dead
from segdeploy.optimizer.pass_result import Outcome


def fold_pads(model: ir.Model) -> Outcome:
    """Fold every such Pad of `model` in place."""
    outcome = Outcome()
    for node in model.graph:
        pad = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type != "Conv" or pad is None or pad.op_type != "Pad":
            continue
        amounts = _zeros_around(pad)
        automatic = node.attributes.get("auto_pad")
        if amounts is None or (automatic is not None and automatic.as_string() != "NOTSET"):
            outcome.refusals.append(f"{node.name}: {pad.name} is no constant padding with zeros")
            continue
        own = node.attributes.get("pads")
        pads = [0] * len(amounts) if own is None else list(own.as_ints())
        total = [one + other for one, other in zip(pads, amounts, strict=True)]
        node.attributes["pads"] = ir.AttrInt64s("pads", total)
        node.replace_input_with(0, pad.inputs[0])
        outcome.rewrites.append(f"{node.name} pads by {total} what {pad.name} padded")
    remove_dead(model.graph)
    return outcome


def _zeros_around(pad: ir.Node) -> list[int] | None:
    """Amounts (begin..., end...) of rows and columns; None for any other padding."""
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

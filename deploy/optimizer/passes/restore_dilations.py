"""Replace space-to-batch, a convolution and batch-to-space by one dilated convolution.

TensorFlow computes an atrous convolution of rate b by splitting the feature map into b x b maps of
every b-th pixel, which become a batch. tensorflow-onnx writes the split and the merge in two forms
(`SpaceToBatchND` and `BatchToSpaceND`):

1. SpaceToDepth and DepthToSpace of a map whose batch and channels are exchanged.
2. Reshape, Transpose and Reshape through six axes, where the rates of rows and columns differ.

Split, Transpose, Conv, Transpose and merge become one Conv, whose dilations and padding are b times
as large. Operators behind the convolution that compute every element alone, or with one constant
for each channel, stay behind it. Constant zeros and Transposes before the split, and the crop and
the Transposes behind the merge, are taken over: the convolution pads less where the merged map is
cropped.

The rewrite is exact. Pixels of one phase are b pixels apart, and the merge puts the phases where
the split took them. A convolution with a stride or with automatic padding stays, and so does a
split of another block size than the merge's.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from segdeploy.optimizer.editing import Names, copy_of, is_private, remove_dead, replace
from segdeploy.optimizer.pass_result import PassResult

_Order = tuple[int, ...]
_EXCHANGED = (1, 0, 2, 3)  # batch and channels
_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
# (N, h, a, w, b, C) to (a, b, N, h, w, C), and back.
_SPLIT, _MERGE = (2, 4, 0, 1, 3, 5), (2, 3, 0, 4, 1, 5)
_ELEMENTWISE = frozenset(
    (
        *("Relu", "Clip", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Identity", "Cast"),
        *("Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign", "Neg", "Abs"),
    )
)
_PER_CHANNEL = frozenset(("Add", "Sub", "Mul", "Div", "PRelu", "BatchNormalization"))


@dataclass(frozen=True)
class _Phases:
    """A split or a merge: the maps before and after it, its block `(rows, columns)`.

    `order` is the Transpose between the phases and the convolution's `(N, C, H, W)`.
    """

    before: ir.Value
    after: ir.Value
    block: tuple[int, int]
    order: _Order


@dataclass(frozen=True)
class _Dilated:
    """A split, the nodes from the convolution on to its last elementwise operator, and a merge."""

    split: _Phases
    nodes: tuple[ir.Node, ...]
    merge: _Phases


@dataclass(frozen=True)
class _Layout:
    """A map, the order of its axes against another map, and the zeros around rows and columns.

    `zeros` are (top, left, bottom, right), negative where the map is cropped.
    """

    value: ir.Value
    order: _Order
    zeros: tuple[int, ...] = (0, 0, 0, 0)


def restore_dilations(model: ir.Model) -> PassResult:
    """Rewrite every such convolution of `model`, in place."""
    result = PassResult()
    for node in list(model.graph):
        split = _split(node)
        if split is None:
            continue
        found = _dilated(split)
        if isinstance(found, str):
            result.skipped.append(f"{node.name}: {found}")
        else:
            result.rewrites.append(_rewrite(model.graph, found))
    remove_dead(model.graph)
    return result


def _split(node: ir.Node) -> _Phases | None:
    """Return the split that SpaceToDepth, or a Transpose of six axes between Reshapes, is."""
    source = node.inputs[0] if node.inputs else None
    if node.op_type == "SpaceToDepth" and source is not None and _sides(source) is not None:
        return _Phases(source, node.outputs[0], _block(node), _EXCHANGED)
    if _permutation(node) != _SPLIT or source is None or (first := source.producer()) is None:
        return None
    last, given = _only_reader(node.outputs[0]), first.inputs[0] if first.inputs else None
    if last is None or given is None or {first.op_type, last.op_type} != {"Reshape"}:
        return None
    sides, six, after = _sides(given), _sides(source), _sides(last.outputs[0])
    if sides is None or six is None or after is None or len(six) != 6 or -1 in six[1:]:
        return None
    _, rows, a, columns, b, channels = six
    whole = sides[1:] == (rows * a, columns * b, channels)
    if not whole or after[1:] != (rows, columns, channels):
        return None
    return _Phases(given, last.outputs[0], (a, b), _TO_NCHW)


def _merge(node: ir.Node) -> _Phases | None:
    """Return the merge that DepthToSpace, or a Reshape before a Transpose of six axes, begins."""
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return None
    if node.op_type == "DepthToSpace":
        mode = node.attributes.get("mode")
        is_first = mode is None or mode.as_string() == "DCR"
        return _Phases(source, node.outputs[0], _block(node), _EXCHANGED) if is_first else None
    second = _only_reader(node.outputs[0])
    if node.op_type != "Reshape" or second is None or _permutation(second) != _MERGE:
        return None
    last = _only_reader(second.outputs[0])
    if last is None or last.op_type != "Reshape":
        return None
    sides, six, after = _sides(source), _sides(node.outputs[0]), _sides(last.outputs[0])
    if sides is None or six is None or after is None or len(six) != 6 or six.count(-1) > 1:
        return None
    if -1 in six and six[2] != -1:  # the batch alone may be unknown
        return None
    a, b, _, rows, columns, channels = six
    whole = after[1:] == (rows * a, columns * b, channels)
    if not whole or sides[1:] != (rows, columns, channels):
        return None
    return _Phases(source, last.outputs[0], (a, b), _TO_NHWC)


def _dilated(split: _Phases) -> _Dilated | str:
    """Return the convolution between the split and its merge, or why there is none."""
    nodes, value, merge = [], split.after, None
    while merge is None:
        reader = _only_reader(value)
        if reader is None:
            return "the split map has several readers, or none"
        merge = _merge(reader)
        if merge is None:
            nodes.append(reader)
            value = reader.outputs[0]
    inner = nodes[1:-1]
    if len(nodes) < 3 or [node.op_type for node in inner].count("Conv") != 1:
        return "is not followed by one convolution between two Transposes"
    orders = _permutation(nodes[0]), _permutation(nodes[-1])
    if orders != (split.order, merge.order) or inner[0].op_type != "Conv":
        return "is not followed by one convolution between two Transposes"
    if split.block != merge.block:
        return "the merge is not that of the split"
    automatic, strides = (inner[0].attributes.get(name) for name in ("auto_pad", "strides"))
    if automatic is not None and automatic.as_string() != "NOTSET":
        return "its convolution pads automatically"
    if strides is not None and set(strides.as_ints()) != {1}:
        return "its convolution has a stride"
    if inner[0].inputs[0] is not nodes[0].outputs[0]:
        return "the split map is the weight of its convolution"
    other = next((node for node in inner[1:] if not _keeps_pixels_apart(node)), None)
    if other is not None:
        return f"{other.name} mixes pixels of the split map"
    return _Dilated(split, tuple(inner), merge)


def _rewrite(graph: ir.Graph, found: _Dilated) -> str:
    convolution = found.nodes[0]
    source, sink = _before(found.split), _behind(found.merge)
    rates, own = _attributes(convolution, "dilations", 2), _attributes(convolution, "pads", 4)
    block = found.split.block
    zeros = [side * b + more for side, b, more in zip(own, block * 2, source.zeros, strict=True)]
    pads = [one + other for one, other in zip(zeros, sink.zeros, strict=True)]
    if min(pads) < 0:  # the crop reaches beyond the padding, and stays
        sink, pads = _Layout(found.merge.after, found.merge.order), zeros
    names, name = Names(graph), convolution.name or "convolution"
    made: list[ir.Node] = []

    def transposed(value: ir.Value, order: _Order, end: str) -> ir.Value:
        if order == (0, 1, 2, 3):
            return value
        label = names.new(f"{name}_{end}")
        output = ir.Value(name=label, type=value.type)
        perm = ir.AttrInt64s("perm", order)
        made.append(ir.Node("", "Transpose", [value], [perm], name=label, outputs=[output]))
        return output

    value = transposed(source.value, source.order, "input")
    given = found.nodes[0].inputs[0]
    for node in found.nodes:
        before, given = given, node.outputs[0]
        output = ir.Value(
            name=names.new(f"{node.outputs[0].name}_dilated"), type=node.outputs[0].type
        )
        new = copy_of(node, [value if one is before else one for one in node.inputs], output)
        if node is convolution:
            dilations = [rate * b for rate, b in zip(rates, block, strict=True)]
            new.attributes["dilations"] = ir.AttrInt64s("dilations", dilations)
            new.attributes["pads"] = ir.AttrInt64s("pads", pads)
        made.append(new)
        value = output
    last = transposed(value, sink.order, "output")
    last.shape = sink.value.shape
    maker = sink.value.producer()
    assert maker is not None
    replace(graph, maker, made)
    shown = "x".join(map(str, block))
    return f"{name}: dilation {shown}, instead of a split into {shown} maps"


def _before(split: _Phases) -> _Layout:
    """Return the map that is split, before constant zeros and Transposes.

    `order` is the Transpose of this map to the convolution's `(N, C, H, W)`.
    """
    found = _Layout(split.before, split.order)
    while (node := found.value.producer()) is not None and node.inputs:
        source = node.inputs[0]
        if source is None or source.shape is None or source.shape.rank() != 4:
            break
        if (order := _permutation(node)) is not None:
            found = _Layout(source, _composed(order, found.order), found.zeros)
            continue
        added = _around(_zeros(node), found.order)
        if added is None:
            break
        zeros = tuple(a + b for a, b in zip(found.zeros, added, strict=True))
        found = _Layout(source, found.order, zeros)
    return found


def _behind(merge: _Phases) -> _Layout:
    """Return the map behind the crop and the Transposes that follow the merge.

    `order` is the Transpose of the convolution's `(N, C, H, W)` to this map.
    """
    found = _Layout(merge.after, merge.order)
    while (node := _only_reader(found.value)) is not None:
        output = node.outputs[0]
        if (order := _permutation(node)) is not None:
            found = _Layout(output, _composed(found.order, order), found.zeros)
            continue
        inverse = tuple(found.order.index(axis) for axis in range(4))
        removed = _around(_crop(node), inverse)
        if removed is None:
            break
        zeros = tuple(a - b for a, b in zip(found.zeros, removed, strict=True))
        found = _Layout(output, found.order, zeros)
    return found


def _around(amounts: tuple[list[int], list[int]] | None, order: _Order) -> tuple[int, ...] | None:
    """Return amounts of four axes as (top, left, bottom, right); None if other axes have some.

    Axis k of `(N, C, H, W)` is axis `order[k]` of the amounts.
    """
    if amounts is None:
        return None
    begin, end = ([side[at] for at in order] for side in amounts)
    return None if any((*begin[:2], *end[:2])) else (*begin[2:], *end[2:])


def _composed(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """Return the permutation of a Transpose by `first`, then by `second`."""
    return tuple(first[at] for at in second)


def _permutation(node: ir.Node) -> _Order | None:
    """Return the order of a Transpose, or of a Reshape that exchanges batch and channels."""
    if node.op_type == "Transpose" and "perm" in node.attributes:
        return tuple(node.attributes["perm"].as_ints())
    if node.op_type != "Reshape" or node.inputs[0] is None:
        return None
    before, after = _sides(node.inputs[0]), _sides(node.outputs[0])
    if before is None or after is None or len(before) != 4 or 1 not in before[:2] or -1 in before:
        return None
    return _EXCHANGED if after == tuple(before[at] for at in _EXCHANGED) else None


def _zeros(node: ir.Node) -> tuple[list[int], list[int]] | None:
    """Return the zeros that a Pad adds at the begin and the end of four axes; else None."""
    mode, value = node.attributes.get("mode"), node.attributes.get("value")
    if node.op_type != "Pad" or (mode is not None and mode.as_string() != "constant"):
        return None
    if "pads" in node.attributes:  # before opset 11
        amounts = list(node.attributes["pads"].as_ints())
        if len(amounts) != 8 or min(amounts) < 0 or (value is not None and value.as_float()):
            return None
        return amounts[:4], amounts[4:]
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return None
    constants = [_integers(one) for one in node.inputs[1:2]]
    filled = node.inputs[2] if len(node.inputs) > 2 else None
    if filled is not None and (filled.const_value is None or filled.const_value.numpy().any()):
        return None
    if not constants or constants[0] is None or len(constants[0]) != 8 or min(constants[0]) < 0:
        return None
    return constants[0][:4], constants[0][4:]


def _crop(node: ir.Node) -> tuple[list[int], list[int]] | None:
    """Return the rows that a Slice of four axes cuts off at the begin and at the end; else None."""
    source = node.inputs[0] if node.inputs else None
    if node.op_type != "Slice" or source is None or source.shape is None:
        return None
    parts: list[list[int] | None]
    if "starts" in node.attributes:  # before opset 10
        named = (node.attributes.get(key) for key in ("starts", "ends", "axes"))
        parts = [None if one is None else list(one.as_ints()) for one in named]
        steps = None
    else:
        parts = [_integers(one) for one in (*node.inputs[1:4], *[None] * 3)][:3]
        steps = node.inputs[4] if len(node.inputs) > 4 else None
    starts, ends, axes = parts
    has_steps = steps is not None and set(_integers(steps) or [0]) != {1}
    if starts is None or ends is None or axes is None or has_steps or source.shape.rank() != 4:
        return None
    begin, end = [0] * 4, [0] * 4
    for start, stop, axis in zip(starts, ends, axes, strict=True):
        side = source.shape[axis % 4]
        if start < 0 or (stop >= 0 and stop < (1 << 31) - 1 and not isinstance(side, int)):
            return None
        begin[axis % 4] = start
        end[axis % 4] = -stop if stop < 0 else max(side - stop, 0) if isinstance(side, int) else 0
    return begin, end


def _integers(value: ir.Value | None) -> list[int] | None:
    if value is None or value.const_value is None:
        return None
    return [int(one) for one in value.const_value.numpy().ravel()]


def _keeps_pixels_apart(node: ir.Node) -> bool:
    """Return whether a node computes every pixel alone, with the same numbers for all pixels."""
    if node.op_type in _ELEMENTWISE:
        return True
    if node.op_type not in _PER_CHANNEL:
        return False
    constants = [one for one in node.inputs if one is not None and one.const_value is not None]
    if len(constants) != len(node.inputs) - 1:
        return False
    if node.op_type == "BatchNormalization":
        return True
    shapes = [tuple(one.const_value.shape.numpy()) for one in constants if one.const_value]
    return all(len(s) <= 4 and {*s[-2:], *s[:-3]} <= {1} for s in shapes)


def _only_reader(value: ir.Value) -> ir.Node | None:
    return next(iter(value.uses())).node if is_private(value) else None


def _sides(value: ir.Value) -> _Order | None:
    """Return a shape whose axes are known, but for a batch of -1; None for any other."""
    if value.shape is None or value.shape.rank() not in (4, 6):
        return None
    sides = [side if isinstance(side, int) else -1 for side in value.shape]
    return tuple(sides)


def _attributes(node: ir.Node, name: str, count: int) -> list[int]:
    given = node.attributes.get(name)
    if given is not None:
        return list(given.as_ints())
    return [1 if name == "dilations" else 0] * count


def _block(node: ir.Node) -> tuple[int, int]:
    side = node.attributes["blocksize"].as_int()
    return side, side

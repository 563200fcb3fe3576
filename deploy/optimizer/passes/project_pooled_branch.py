"""Take a broadcast 1x1 feature map out of a Concat before a 1x1 convolution.

Image pooling (Chen et al. 2017, arXiv 1706.05587, section 3.3) resizes a 1x1 feature map to the
size of the other branches and concatenates it with them. The 1x1 convolution behind the Concat is
the sum of the convolutions of its slices. The convolution of a broadcast feature map is itself a
broadcast. So the 1x1 feature map is convolved with its slice of the weight, at one pixel, and
added.
"""

from __future__ import annotations

import onnx_ir as ir

from segdeploy.contract import CALL_KEY, MODULE_KEY
from segdeploy.optimizer.convolution import (
    channels_of,
    enlarges_one_pixel,
    is_pointwise,
    joins_channels,
    module_of,
    weights_of,
)
from segdeploy.optimizer.editing import Names, add_constant, is_private, remove_dead, replace
from segdeploy.optimizer.pass_result import PassResult


def project_pooled_branches(model: ir.Model) -> PassResult:
    """Rewrite every 1x1 convolution of `model` that reads a Concat with such a branch, in place."""
    result = PassResult()
    for node in list(model.graph):
        if not is_pointwise(node) or node.inputs[0] is None:
            continue
        join = node.inputs[0].producer()
        if join is None or not joins_channels(join):
            continue
        pooled = [part for part in join.inputs if part is not None and _is_broadcast(part)]
        if not pooled or len(pooled) == len(join.inputs):
            continue
        if not is_private(node.inputs[0]):
            result.skipped.append(f"{node.name}: its input {join.name} has another reader")
            continue
        result.rewrites.append(_rewrite(model.graph, node, join))
    remove_dead(model.graph)
    return result


def _is_broadcast(part: ir.Value) -> bool:
    producer = part.producer()
    return producer is not None and enlarges_one_pixel(producer)


def _rewrite(graph: ir.Graph, node: ir.Node, join: ir.Node) -> str:
    own = weights_of(node)
    assert own is not None
    weight, bias = own
    output, names, module = node.outputs[0], Names(graph), module_of(node)
    new: list[ir.Node] = []

    def value(suffix: str, shape: ir.Shape | None = None) -> ir.Value:
        made = ir.Value(name=names.new(f"{node.name}_{suffix}"), type=output.type)
        made.shape = shape
        return made

    def emit(op_type: str, inputs: list[ir.Value], out: ir.Value, like: ir.Node) -> ir.Value:
        attributes = [] if op_type == "Add" else list(like.attributes.values())
        made = ir.Node(
            "", op_type, inputs, attributes, name=names.new(f"{out.name}_node"), outputs=[out]
        )
        if op_type != "Concat":
            made.metadata_props[MODULE_KEY] = node.metadata_props.get(MODULE_KEY, module)
        if op_type == "Conv":
            made.metadata_props[CALL_KEY] = module
        new.append(made)
        return out

    batch_and_one = None if output.shape is None else ir.Shape([*output.shape[:2], 1, 1])
    maps: list[ir.Value] = []
    slices: dict[str, list[int]] = {"maps": []}
    shares: list[tuple[ir.Value, list[int]]] = []
    start = 0
    for part in join.inputs:
        assert part is not None
        columns = list(range(start, start + channels_of(part)))
        start += len(columns)
        producer = part.producer()
        if producer is not None and enlarges_one_pixel(producer):
            assert producer.inputs[0] is not None
            shares.append((producer.inputs[0], columns))
        else:
            maps.append(part)
            slices["maps"] += columns
    joined = maps[0]
    if len(maps) > 1:
        shape = joined.shape
        assert shape is not None
        whole = ir.Shape([shape[0], len(slices["maps"]), *shape[2:]])
        joined = emit("Concat", maps, value("maps", whole), join)
    constants = [add_constant(graph, f"{module}.weight", weight[:, slices["maps"]])]
    total = emit("Conv", [joined, *constants], value("map_share", output.shape), node)
    for index, (pixel, columns) in enumerate(shares):
        constants = [add_constant(graph, f"{module}.weight_pooled", weight[:, columns])]
        if bias is not None and index == 0:
            constants.append(add_constant(graph, f"{module}.bias", bias))
        share = emit("Conv", [pixel, *constants], value("pooled_share", batch_and_one), node)
        total = emit("Add", [total, share], value("sum", output.shape), node)
    replace(graph, node, new)
    return (
        f"{node.name}: {sum(len(columns) for _, columns in shares)} of its {start} input channels "
        "are a broadcast 1x1 map, now convolved at one pixel and added"
    )

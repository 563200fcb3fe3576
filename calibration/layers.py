"""The convolutions of a graph: quantizer insertion points and relative cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from segdeploy.calibration.multiply_accumulates import BYTES, multiply_accumulates

# Largest share of the multiply-accumulates that stays in higher precision by default.
_SMALL_SHARE = 0.02


@dataclass(frozen=True)
class Layer:
    """A convolution: its node, the tensors that it reads, and its multiply-accumulates at batch 1.

    `result` is the output of the convolution, or of the Relu if the Relu is the only reader.

    `kind` is `image` (reads the network's input), `one pixel` (image pooling, squeeze and
    excitation), `classifier` (no other convolution after it) or `inner`.
    """

    name: str
    data: str
    weight: str
    output: str
    result: str
    macs: int
    kind: str


@dataclass(frozen=True)
class Addition:
    """An Add of two tensors of the same shape, at least one of them from a convolution."""

    name: str
    first: str
    second: str


@dataclass(frozen=True)
class InsertionPoints:
    """Quantizer insertion points of a graph: its convolutions, and the additions after them."""

    layers: tuple[Layer, ...]
    additions: tuple[Addition, ...]
    fusable: frozenset[str]  # convolution outputs with a single reader

    def tensors(self, *, results: bool = False) -> list[str]:
        """Return each activation that may get a Q/DQ pair; `results` adds the layers' results."""
        sums = [name for one in self.additions for name in (one.first, one.second)]
        given = [layer.result for layer in self.layers] if results else []
        return list(dict.fromkeys([*(layer.data for layer in self.layers), *sums, *given]))

    def branches(self, chosen: Collection[str]) -> dict[str, str]:
        """Return the tensor that each Add adds to a chosen convolution's output, by the Add's name.

        TensorRT fuses an INT8 convolution with the Add after it if the other operand is quantized.
        If both operands come from convolutions, the first one is fused.
        """
        producers = {layer.output: layer.name for layer in self.layers}
        fused = {name for name in self.fusable if producers.get(name) in chosen}
        found = {}
        for one in self.additions:
            if one.first in fused:
                found[one.name] = one.second
            elif one.second in fused:
                found[one.name] = one.first
        return found

    def activations(self, chosen: Collection[str], *, results: bool = False) -> list[str]:
        """Return the tensors that get a Q/DQ pair if the convolutions `chosen` are in INT8."""
        layers = [layer for layer in self.layers if layer.name in chosen]
        given = [layer.result for layer in layers] if results else []
        reads = [layer.data for layer in layers]
        return list(dict.fromkeys([*reads, *self.branches(chosen).values(), *given]))


def with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model, or a copy, in which every node has a unique name."""
    names = [node.name for node in model.graph.node]
    if all(names) and len(set(names)) == len(names):
        return model
    named = onnx.ModelProto()
    named.CopyFrom(model)
    taken: set[str] = set()
    for index, node in enumerate(named.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}_{index}"
        taken.add(node.name)
    return named


def fix_shape(model: onnx.ModelProto, shape: Sequence[int]) -> onnx.ModelProto:
    """Return a copy with the static input `shape`, and all dependent shapes inferred again."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    dims = fixed.graph.input[0].type.tensor_type.shape.dim
    if [dim.dim_value for dim in dims] == list(shape):  # the exporter's shapes may be more complete
        return onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    for dim, side in zip(dims, shape, strict=True):
        dim.dim_value = side
    del fixed.graph.value_info[:]
    for output in fixed.graph.output:
        for dim in output.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()
    return onnx.shape_inference.infer_shapes(fixed, data_prop=True)


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the static shapes in a graph, by tensor name."""
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    shapes = {}
    for value in values:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes


def read_insertion_points(model: onnx.ModelProto) -> InsertionPoints:
    """Return each Conv of constant weight, and the additions after; `model` has static shapes."""
    shapes = shapes_of(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    convolutions = [n for n in model.graph.node if n.op_type == "Conv" and n.input[1] in weights]
    readers = Counter(name for node in model.graph.node for name in node.input)
    relus = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "Relu"}
    from_image, before_another = _reached_from_image(model), _before_another(model)
    layers = []
    for node in convolutions:
        read, given = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
        kind = "inner"
        if read and math.prod(read[2:]) == 1:
            kind = "one pixel"
        elif node.input[0] in from_image:
            kind = "image"
        elif node.output[0] not in before_another:
            kind = "classifier"
        dims = weights[node.input[1]].dims
        macs = multiply_accumulates(read, dims, (1, *given[1:]) if given else ()) or 0
        output = node.output[0]
        result = relus.get(output, output) if readers[output] == 1 else output
        data, weight = node.input[0], node.input[1]
        layers.append(Layer(node.name, data, weight, output, result, macs, kind))
    fusable = frozenset(y.output for y in layers if readers[y.output] == 1)
    additions = tuple(
        Addition(node.name, *node.input)
        for node in model.graph.node
        if node.op_type == "Add"
        and len(set(node.input)) == 2
        and not fusable.isdisjoint(node.input)
        and shapes.get(node.input[0], 0) == shapes.get(node.input[1], 1)
    )
    return InsertionPoints(tuple(layers), additions, fusable)


def worth_quantizing(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers that are in INT8 by default.

    Image, one-pixel and classifier layers lose much accuracy and save little work. The cheapest of
    them stay in higher precision, together at most 2 % of the multiply-accumulates.
    """
    room = _SMALL_SHARE * sum(layer.macs for layer in layers)
    kept = set()
    for layer in sorted(layers, key=lambda one: one.macs):
        if layer.kind != "inner" and layer.macs <= room:
            room -= layer.macs
            kept.add(layer.name)
    return [layer for layer in layers if layer.name not in kept] or list(layers)


def relative_cost(layers: Sequence[Layer], precision: Mapping[str, str]) -> float:
    """Return the multiply-accumulates, weighted by operand width, relative to all FP32."""
    whole = BYTES["fp32"] * sum(layer.macs for layer in layers)
    return sum(layer.macs * BYTES[precision[layer.name]] for layer in layers) / whole


def _reached_from_image(model: onnx.ModelProto) -> set[str]:
    """Return the graph input, and the tensors computed from it without a convolution."""
    reached = {model.graph.input[0].name}
    for node in model.graph.node:
        if node.op_type != "Conv" and any(name in reached for name in node.input):
            reached.update(node.output)
    return reached


def _before_another(model: onnx.ModelProto) -> set[str]:
    """Return the tensors that a convolution reads, directly or through other operators."""
    before: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type == "Conv" or any(name in before for name in node.output):
            before.update(node.input)
    return before

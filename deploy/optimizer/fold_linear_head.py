"""Fold a linear head: parallel branches, Concat, 1x1 convolutions become one sum of branches.

With no nonlinearity between them, branches -> Concat -> 1x1 combine -> 1x1 classifier is one
linear map. Each branch's weights are multiplied by the part of the combined 1x1 weights that
belongs to it, so that the branch emits class scores, and the scores are added:

1. A 1x1 convolution of a convolution is one convolution: weights `W2 W1`, bias `W2 b1 + b2`.
2. A 1x1 convolution of a Concat is the sum of its slices' convolutions.
3. A 1x1 convolution of a sum is the sum of the convolutions.
4. A bilinear Resize of a 1x1 map is a broadcast, so the pooled branch is added as it is.

Nothing is folded where that would cost more multiply-accumulates, where a value has another
consumer or is a graph output, or where a weight is not a constant. Exact up to rounding: the
products are formed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from segdeploy.optimizer.names import Names
from segdeploy.spec import FOLDED_KEY, MODULE_KEY

Matrix = NDArray[np.float64]


@dataclass
class _Term:
    """One summand: a convolution (or, without one, the value itself) under a 1x1 matrix."""

    source: ir.Value
    convolution: ir.Node | None
    weight: Matrix  # (out, in, kH, kW)
    is_map: bool  # False for a 1x1 map that is broadcast


@dataclass
class _Folding:
    """What a root 1x1 convolution unfolds to, and the convolutions that it replaces."""

    terms: list[_Term] = field(default_factory=list)
    bias: Matrix | None = None
    absorbed: list[ir.Node] = field(default_factory=list)
    work_before: int = 0  # multiply-accumulates a pixel of the head's map

    def add_bias(self, bias: Matrix) -> None:
        self.bias = bias if self.bias is None else self.bias + bias

    @property
    def work_after(self) -> int:
        return sum(term.weight.size for term in self.terms if term.is_map)


def fold_linear_heads(model: ir.Model) -> list[str]:
    """Fold every linear head of `model` in place; returns a line for each that was folded."""
    said = []
    # From the output inwards, so that a chain is folded at its outermost 1x1 convolution.
    for node in reversed(list(model.graph)):
        if node.graph is None or not _is_pointwise(node):
            continue
        folding = _Folding()
        _unfold(node.outputs[0], None, folding, is_map=True)
        worthwhile = len(folding.absorbed) > 1 and folding.work_after < folding.work_before
        if worthwhile and any(term.is_map for term in folding.terms):
            said.append(_replace(model.graph, node, folding))
    return said


def _unfold(value: ir.Value, matrix: Matrix | None, folding: _Folding, *, is_map: bool) -> None:
    """Write `matrix` applied to `value` as terms; None is the identity, at the root."""
    node = value.producer()
    if node is not None and (matrix is None or _is_private(value, is_map=is_map)):
        if node.op_type == "Conv" and (own := _weights(node)) is not None:
            _unfold_convolution(node, own, matrix, folding, is_map=is_map)
            return
        if matrix is not None and _joins_channels(node):
            start = 0
            for part in node.inputs:
                assert part is not None
                width = _channels(part)
                _unfold(part, matrix[:, start : start + width], folding, is_map=is_map)
                start += width
            return
        if matrix is not None and node.op_type == "Add" and _same_shapes(node):
            for part in node.inputs:
                assert part is not None
                _unfold(part, matrix, folding, is_map=is_map)
            return
        if matrix is not None and _resizes_one_pixel(node):
            source = node.inputs[0]
            assert source is not None
            _unfold(source, matrix, folding, is_map=False)
            return
    assert matrix is not None
    folding.terms.append(_Term(value, None, matrix[:, :, None, None], is_map))


def _unfold_convolution(
    node: ir.Node,
    own: tuple[Matrix, Matrix | None],
    matrix: Matrix | None,
    folding: _Folding,
    *,
    is_map: bool,
) -> None:
    weight, bias = own
    folding.absorbed.append(node)
    if is_map:
        folding.work_before += weight.size
    if bias is not None:
        folding.add_bias(bias if matrix is None else matrix @ bias)
    composed = weight if matrix is None else np.einsum("oc,cikl->oikl", matrix, weight)
    source = node.inputs[0]
    assert source is not None
    if _is_pointwise(node):
        _unfold(source, composed[:, :, 0, 0], folding, is_map=is_map)
        if folding.terms[-1].source is source and folding.terms[-1].convolution is None:
            folding.terms[-1].convolution = node  # its name and module live on
    else:
        folding.terms.append(_Term(source, node, composed, is_map))


def _replace(graph: ir.Graph, root: ir.Node, folding: _Folding) -> str:
    """Put the sum of terms in the root's place, and remove what nothing reads any more."""
    name = _module(root)
    names = Names(graph)
    kept = {id(term.convolution) for term in folding.terms}
    gone = [_module(node) for node in folding.absorbed if id(node) not in kept]
    # The broadcast branches come last: adding them costs least once the map is summed.
    terms = sorted(folding.terms, key=lambda term: not term.is_map)
    new: list[ir.Node] = []
    total: ir.Value | None = None
    for index, term in enumerate(terms):
        bias = folding.bias if index == 0 else None
        convolution = _emit(graph, root, term, bias, gone, names)
        new.append(convolution)
        if total is None:
            total = convolution.outputs[0]
            continue
        total = _add(root, total, convolution.outputs[0], names)
        producer = total.producer()
        assert producer is not None
        new.append(producer)
    assert total is not None
    before, after = folding.work_before, folding.work_after
    output = root.outputs[0]
    total.name, output.name = output.name, names.new(f"{output.name}_unfolded")
    total.shape, total.type = output.shape, output.type
    graph.insert_before(root, new)
    output.replace_all_uses_with(total, replace_graph_outputs=True)
    _remove_dead(graph)
    return (
        f"linear head {name}: {len(terms)} branches emit its {len(terms[0].weight)} "
        f"channels, {', '.join(gone)} folded in; {before:,} multiply-accumulates a pixel "
        f"become {after:,}"
    )


def _emit(
    graph: ir.Graph,
    root: ir.Node,
    term: _Term,
    bias: Matrix | None,
    gone: list[str],
    names: Names,
) -> ir.Node:
    like = term.convolution or root
    module = _module(like) if term.convolution else names.new(f"{_module(root)}.slice")
    inputs = [term.source, _constant(graph, f"{module}.weight", term.weight)]
    if bias is not None:
        inputs.append(_constant(graph, f"{module}.bias", bias))
    node = ir.Node(
        "",
        "Conv",
        inputs,
        list(like.attributes.values()),
        name=names.new(f"{like.name}_folded" if term.convolution else f"{root.name}_slice"),
        outputs=[ir.Value(name=names.new(f"{module}_scores"), type=root.outputs[0].type)],
    )
    reference = root.outputs[0].shape
    if reference is not None:
        node.outputs[0].shape = reference if term.is_map else ir.Shape([*reference[:2], 1, 1])
    node.metadata_props[MODULE_KEY] = module
    node.metadata_props[FOLDED_KEY] = ",".join(gone)
    return node


def _add(root: ir.Node, left: ir.Value, right: ir.Value, names: Names) -> ir.Value:
    out = ir.Value(name=names.new(f"{root.name}_sum"), type=left.type)
    out.shape = left.shape
    node = ir.Node("", "Add", [left, right], name=out.name, outputs=[out])
    node.metadata_props[MODULE_KEY] = _module(root)
    return out


def _constant(graph: ir.Graph, name: str, values: Matrix) -> ir.Value:
    """Add a float32 constant, or find the equal one that another fold of the module added."""
    single = values.astype(np.float32)
    candidates = (f"{name}_folded{suffix}" for suffix in ("", *range(len(graph.initializers))))
    for name in candidates:
        there = graph.initializers.get(name)
        if there is None:
            break
        if there.const_value is not None and np.array_equal(there.const_value.numpy(), single):
            return there
    tensor = ir.tensor(single, name=name)
    value = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.initializers[name] = value
    return value


def _remove_dead(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if not any(out.uses() or out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
    for name in [n for n, v in graph.initializers.items() if not v.uses()]:
        del graph.initializers[name]


def _weights(node: ir.Node) -> tuple[Matrix, Matrix | None] | None:
    """Constant weight `(out, in, kH, kW)` and bias `(out,)` of an ungrouped convolution."""
    groups = node.attributes.get("group")
    if groups is not None and groups.as_int() != 1:
        return None
    constants: list[Matrix | None] = [None, None]
    for index, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        if value.const_value is None or value.dtype != ir.DataType.FLOAT:
            return None
        constants[index] = value.const_value.numpy().astype(np.float64)
    weight, bias = constants
    return (weight, bias) if weight is not None and weight.ndim == 4 else None


def _is_pointwise(node: ir.Node) -> bool:
    """Whether a node is a 1x1 convolution with stride 1 and no padding."""
    if node.op_type != "Conv" or (own := _weights(node)) is None or own[0].shape[2:] != (1, 1):
        return False
    strides, pads = node.attributes.get("strides"), node.attributes.get("pads")
    return (strides is None or set(strides.as_ints()) == {1}) and (
        pads is None or set(pads.as_ints()) == {0}
    )


def _is_private(value: ir.Value, *, is_map: bool) -> bool:
    """Whether only the head reads a value, so that nothing is computed twice after folding.

    In a dynamic graph the size to resize a 1x1 map to is put together from its own Shape; that
    node dies with the Resize, and if it does not, a 1x1 map costs nothing.
    """
    readers = [use.node.op_type for use in value.uses()]
    if not is_map:
        readers = [reader for reader in readers if reader != "Shape"]
    return len(readers) == 1 and not value.is_graph_output()


def _joins_channels(node: ir.Node) -> bool:
    """Whether a node is a Concat of maps whose numbers of channels are all known."""
    return (
        node.op_type == "Concat"
        and node.attributes["axis"].as_int() == 1
        and all(
            part is not None
            and part.shape is not None
            and part.shape.rank() == 4
            and isinstance(part.shape[1], int)
            for part in node.inputs
        )
    )


def _channels(value: ir.Value) -> int:
    assert value.shape is not None
    width = value.shape[1]
    assert isinstance(width, int)
    return width


def _same_shapes(node: ir.Node) -> bool:
    left, right = node.inputs
    if left is None or right is None or left.shape is None or right.shape is None:
        return False
    return left.shape == right.shape and left.const_value is None and right.const_value is None


def _resizes_one_pixel(node: ir.Node) -> bool:
    source = node.inputs[0] if node.inputs else None
    if node.op_type != "Resize" or source is None or source.shape is None:
        return False
    mode = node.attributes.get("mode")
    return (
        source.shape.rank() == 4
        and source.shape[2] == source.shape[3] == 1
        and mode is not None
        and mode.as_string() in ("linear", "nearest")
        and "axes" not in node.attributes
    )


def _module(node: ir.Node) -> str:
    weight = node.inputs[1]
    assert weight is not None
    return (weight.name or node.name or "convolution").removesuffix(".weight")

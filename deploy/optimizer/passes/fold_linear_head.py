"""Fold a linear head of parallel branches, Concat and 1x1 convolutions into a sum of branches.

Without a nonlinearity in between, branches -> Concat -> 1x1 combine -> 1x1 classifier is one linear
function. Each branch's weights are multiplied by its part of the combined 1x1 weights. The branch
then gives class scores, and the scores are added:

1. A 1x1 convolution of a convolution is one convolution: weights `W2 W1`, bias `W2 b1 + b2`.
2. A 1x1 convolution of a Concat is the sum of its slices' convolutions.
3. A 1x1 convolution of a sum is the sum of the convolutions.
4. A bilinear Resize of a 1x1 feature map is a broadcast, so the pooled branch needs no Resize.

A head is not folded if that would need more multiply-accumulates, if a value has another reader or
is a graph output, or if a weight is not constant. The fold is exact up to rounding: the products
are computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from segdeploy.contract import CALL_KEY, FOLDED_KEY, MODULE_KEY
from segdeploy.optimizer.convolution import (
    Matrix,
    channels_of,
    enlarges_one_pixel,
    is_pointwise,
    joins_channels,
    module_of,
    pixels_of,
    weights_of,
)
from segdeploy.optimizer.editing import Names, add_constant, remove_dead
from segdeploy.optimizer.pass_result import PassResult


@dataclass
class _Term:
    """One summand: the output of a convolution, or a plain value, multiplied by a 1x1 matrix."""

    source: ir.Value
    convolution: ir.Node | None
    weight: Matrix  # (out, in, kH, kW)
    is_map: bool  # False for a 1x1 feature map that is broadcast


@dataclass
class _Folding:
    """The terms that a root 1x1 convolution unfolds to, and the convolutions that they replace."""

    terms: list[_Term] = field(default_factory=list)
    bias: Matrix | None = None
    absorbed: list[ir.Node] = field(default_factory=list)
    work_before: int = 0  # multiply-accumulates per pixel of the head's feature map
    pooled_before: int = 0  # multiply-accumulates on 1x1 feature maps, which have one pixel

    def add_bias(self, bias: Matrix) -> None:
        self.bias = bias if self.bias is None else self.bias + bias

    @property
    def work_after(self) -> int:
        return sum(term.weight.size for term in self.terms if term.is_map)

    def saves(self, pixels: int) -> bool:
        """Return whether folding makes a head on a feature map of `pixels` pixels cheaper."""
        pooled = sum(term.weight.size for term in self.terms if not term.is_map)
        return pixels * (self.work_before - self.work_after) > pooled - self.pooled_before


def fold_linear_heads(model: ir.Model) -> PassResult:
    """Fold every linear head of `model` in place."""
    result = PassResult()
    # From the output backwards, so that a chain is folded at its last 1x1 convolution.
    for node in reversed(list(model.graph)):
        if node.graph is None or not is_pointwise(node):
            continue
        folding = _Folding()
        _unfold(node.outputs[0], None, folding, is_map=True)
        if len(folding.absorbed) < 2 or not any(term.is_map for term in folding.terms):
            continue
        size = pixels_of(node.outputs[0]) or (1, 1)
        if folding.work_after < folding.work_before and folding.saves(size[0] * size[1]):
            result.rewrites.append(_replace(model.graph, node, folding))
        else:
            result.skipped.append(
                f"{node.name}: folding would turn its {folding.work_before:,} multiply-accumulates "
                f"per pixel into {folding.work_after:,}"
            )
    return result


def _unfold(value: ir.Value, matrix: Matrix | None, folding: _Folding, *, is_map: bool) -> None:
    """Append `matrix` applied to `value` as terms; None stands for the identity at the root."""
    node = value.producer()
    if node is not None and (matrix is None or _is_private(value, is_map=is_map)):
        if node.op_type == "Conv" and (own := weights_of(node)) is not None:
            _unfold_convolution(node, own, matrix, folding, is_map=is_map)
            return
        if matrix is not None and joins_channels(node):
            start = 0
            for part in node.inputs:
                assert part is not None
                width = channels_of(part)
                _unfold(part, matrix[:, start : start + width], folding, is_map=is_map)
                start += width
            return
        if matrix is not None and node.op_type == "Add" and _same_shapes(node):
            for part in node.inputs:
                assert part is not None
                _unfold(part, matrix, folding, is_map=is_map)
            return
        if matrix is not None and enlarges_one_pixel(node):
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
    else:
        folding.pooled_before += weight.size
    if bias is not None:
        folding.add_bias(bias if matrix is None else matrix @ bias)
    composed = weight if matrix is None else np.einsum("oc,cikl->oikl", matrix, weight)
    source = node.inputs[0]
    assert source is not None
    if is_pointwise(node):
        _unfold(source, composed[:, :, 0, 0], folding, is_map=is_map)
        if folding.terms[-1].source is source and folding.terms[-1].convolution is None:
            folding.terms[-1].convolution = node  # keeps its name and module
    else:
        folding.terms.append(_Term(source, node, composed, is_map))


def _replace(graph: ir.Graph, root: ir.Node, folding: _Folding) -> str:
    """Replace the root by the sum of the terms, remove unused nodes, and describe the rewrite."""
    name = module_of(root)
    names = Names(graph)
    kept = {id(term.convolution) for term in folding.terms}
    gone = [module_of(node) for node in folding.absorbed if id(node) not in kept]
    # Broadcast branches come last: adding them costs least once the feature maps are summed.
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
    remove_dead(graph)
    return (
        f"linear head {name}: {len(terms)} branches emit its {len(terms[0].weight)} "
        f"channels, {', '.join(gone)} folded in; {before:,} multiply-accumulates per pixel "
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
    module = module_of(like) if term.convolution else names.new(f"{module_of(root)}.slice")
    inputs = [term.source, add_constant(graph, f"{module}.weight", term.weight)]
    if bias is not None:
        inputs.append(add_constant(graph, f"{module}.bias", bias))
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
    if term.convolution:
        node.metadata_props[CALL_KEY] = module
    node.metadata_props[FOLDED_KEY] = "\n".join(gone)
    return node


def _add(root: ir.Node, left: ir.Value, right: ir.Value, names: Names) -> ir.Value:
    out = ir.Value(name=names.new(f"{root.name}_sum"), type=left.type)
    out.shape = left.shape
    node = ir.Node("", "Add", [left, right], name=out.name, outputs=[out])
    node.metadata_props[MODULE_KEY] = module_of(root)
    return out


def _is_private(value: ir.Value, *, is_map: bool) -> bool:
    """Return whether only the head reads a value, so that folding computes nothing twice.

    A Shape that reads a 1x1 feature map does not count. In a dynamic graph it gives the target size
    of the Resize and is removed with it. If the Shape remains, computing a 1x1 feature map twice
    costs almost nothing.
    """
    readers = [use.node.op_type for use in value.uses()]
    if not is_map:
        readers = [reader for reader in readers if reader != "Shape"]
    return len(readers) == 1 and not value.is_graph_output()


def _same_shapes(node: ir.Node) -> bool:
    left, right = node.inputs
    if left is None or right is None or left.shape is None or right.shape is None:
        return False
    if left.shape.has_unknown_dim():  # two dynamic dimensions may differ
        return False
    return left.shape == right.shape and left.const_value is None and right.const_value is None

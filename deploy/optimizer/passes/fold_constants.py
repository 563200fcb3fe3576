"""Fold all values that do not depend on the image: shapes, constants, derived weights.

1. A node whose inputs are all constants becomes a constant, unless that would make the file larger.
   This includes weights that are computed from parameters (weight norm, weight standardization).
2. The shape of a feature map with a static size becomes a constant.
3. An Identity, and a Cast, Reshape, Expand or Concat without effect, are removed.
4. Equal constants are merged, and unused nodes and constants are removed.

`fold_shapes` folds integers alone: shapes, axes and indices. A network whose rounding errors grow
so much that no folded weight passes the comparison still gets static shapes, without which TensorRT
refuses some operators.

onnxscript and onnx-ir do the folding. Their rules that compare constants within a tolerance
(`x + 0`, `x * 1`) are not used, since `x + 1e-9` is not `x`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import (
    DeduplicateHashedInitializersPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    OutputFixPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from segdeploy.optimizer.pass_result import PassResult
from segdeploy.packages import require

# A larger result is folded, too, if it replaces constants that are as large.
_SMALL = 4096
_ANY_SIZE = 1 << 40


def fold_shapes(model: ir.Model) -> PassResult:
    """Fold every constant expression of integers of `model` in place."""
    return _fold(model, lambda node: None if all(map(_is_whole, node.outputs)) else False)


def fold_constants(model: ir.Model) -> PassResult:
    """Fold every constant expression of `model` in place."""
    return _fold(model, lambda node: None)


def _is_whole(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


def _fold(model: ir.Model, should_fold: Callable[[ir.Node], bool | None]) -> PassResult:
    """Fold the nodes for which `should_fold` returns None; False leaves a node."""
    optimizer = require("onnxscript.optimizer")
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    before = _counts(model)
    optimizer.fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=_ANY_SIZE,
        output_size_limit=_SMALL,
        should_fold=should_fold,
    )
    Sequential(
        IdentityEliminationPass(),
        RemoveUnusedNodesPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    )(model)
    _lay_out(model)
    Sequential(
        DeduplicateHashedInitializersPass(),
        OutputFixPass(),
        RemoveUnusedNodesPass(),
        RemoveUnusedOpsetsPass(),
    )(model)
    after = _counts(model)
    if before == after:
        return PassResult()
    text = "{} nodes with {} constants"
    return PassResult([f"constants: {text.format(*before)} became {text.format(*after)}"])


def _lay_out(model: ir.Model) -> None:
    """Copy transposed constants into contiguous memory, which hashing requires."""
    for value in model.graph.initializers.values():
        constant = value.const_value
        if isinstance(constant, ir.Tensor) and not constant.numpy().flags.c_contiguous:
            value.const_value = ir.tensor(np.ascontiguousarray(constant.numpy()), name=value.name)


def _counts(model: ir.Model) -> tuple[int, int]:
    return len(model.graph), len(model.graph.initializers)

"""Compute once what does not depend on the image: shapes, constants, derived weights.

1. A node whose inputs are all constants becomes a constant, unless that would make the file larger.
   A weight that is computed from parameters (weight norm, weight standardization) is one.
2. The shape of a map whose size is known is a constant.
3. A Cast, Reshape, Expand or Concat that changes nothing, and an Identity, are left out.
4. Equal constants become one, and what nothing reads is removed.

The work is onnxscript's and onnx-ir's. Their rules that compare constants within a tolerance
(`x + 0`, `x * 1`) are not among them: `x + 1e-9` is not `x`.
"""

from __future__ import annotations

import logging

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

from segdeploy.optimizer.pass_result import Outcome
from segdeploy.packages import require

# Larger constants are folded, too, where they take the place of others as large.
_SMALL = 4096
_ANY_SIZE = 1 << 40


def fold_constants(model: ir.Model) -> Outcome:
    """Fold every constant expression of `model` in place."""
    optimizer = require("onnxscript.optimizer")
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    before = _counts(model)
    optimizer.fold_constants(
        model, onnx_shape_inference=True, input_size_limit=_ANY_SIZE, output_size_limit=_SMALL
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
        return Outcome()
    said = "{} nodes with {} constants"
    return Outcome([f"constants: {said.format(*before)} became {said.format(*after)}"])


def _lay_out(model: ir.Model) -> None:
    """Give constants that were transposed memory of their own, which hashing them needs."""
    for value in model.graph.initializers.values():
        constant = value.const_value
        if isinstance(constant, ir.Tensor) and not constant.numpy().flags.c_contiguous:
            value.const_value = ir.tensor(np.ascontiguousarray(constant.numpy()), name=value.name)


def _counts(model: ir.Model) -> tuple[int, int]:
    return len(model.graph), len(model.graph.initializers)

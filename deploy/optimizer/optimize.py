"""All exact rewrites, in order, with an account of what they saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from segdeploy.optimizer.cost import Cost, cost_of
from segdeploy.optimizer.fold_linear_head import fold_linear_heads

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Account:
    """What `optimize` did, a line a rewrite, and the cost before and after."""

    rewrites: tuple[str, ...]
    before: Cost
    after: Cost


def optimize(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, Account]:
    """Rewrite a graph into a cheaper one that computes the same; the argument is left alone."""
    import onnx
    import onnx_ir as ir

    copied = onnx.ModelProto()  # onnx-ir renames tensors in the message that it was given
    copied.CopyFrom(graph)
    model = ir.from_proto(copied)
    before = cost_of(model)
    rewrites = fold_linear_heads(model)
    after = cost_of(model)
    return ir.to_proto(model), Account(tuple(rewrites), before, after)

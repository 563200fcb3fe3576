"""ONNX nodes that turn class scores into labels, for a graph of ours and for a server's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from segdeploy.contract import Contract

if TYPE_CHECKING:
    import onnx


def label_nodes(
    scores: str, labels: str, contract: Contract
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return nodes and constants from `scores` `(N, C, H, W)` to `labels` `(N, H, W) uint8`.

    Several channels go through ArgMax. The one channel of a binary network is compared with the
    threshold, so that no sigmoid is computed.
    """
    from onnx import TensorProto, helper, numpy_helper

    cast = helper.make_node("Cast", [f"{labels}_best"], [labels], labels, to=TensorProto.UINT8)
    best = [f"{labels}_best"]
    if contract.head != "binary":
        arg_max = helper.make_node("ArgMax", [scores], best, "best_class", axis=1, keepdims=0)
        return [arg_max, cast], []
    threshold, axis = f"{labels}_threshold", f"{labels}_axis"
    constants = [
        numpy_helper.from_array(np.float32(contract.threshold_score).reshape(()), threshold),
        numpy_helper.from_array(np.array([1], np.int64), axis),
    ]
    nodes = [
        helper.make_node("Squeeze", [scores, axis], [f"{labels}_plane"], "one_channel"),
        helper.make_node("Greater", [f"{labels}_plane", threshold], best, "is_foreground"),
        cast,
    ]
    return nodes, constants

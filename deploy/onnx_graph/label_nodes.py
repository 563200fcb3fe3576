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
    threshold, so that no sigmoid is computed. So is every channel of a multilabel network, whose
    labels are bit planes.
    """
    from onnx import TensorProto, helper, numpy_helper

    cast = helper.make_node("Cast", [f"{labels}_best"], [labels], labels, to=TensorProto.UINT8)
    best = [f"{labels}_best"]
    if contract.has_bit_planes:
        return _bit_planes(scores, labels, contract), _plane_constants(labels, contract)
    if contract.head != "binary":
        arg_max = helper.make_node("ArgMax", [scores], best, "best_class", axis=1, keepdims=0)
        return [arg_max, cast], []
    threshold, axis = f"{labels}_threshold", f"{labels}_axis"
    constants = [
        numpy_helper.from_array(np.float32(contract.threshold_scores[0]).reshape(()), threshold),
        numpy_helper.from_array(np.array([1], np.int64), axis),
    ]
    nodes = [
        helper.make_node("Squeeze", [scores, axis], [f"{labels}_plane"], "one_channel"),
        helper.make_node("Greater", [f"{labels}_plane", threshold], best, "is_foreground"),
        cast,
    ]
    return nodes, constants


def _bit_planes(scores: str, labels: str, contract: Contract) -> list[onnx.NodeProto]:
    """Return nodes that sum the bits of the classes above their thresholds."""
    from onnx import TensorProto, helper

    above, bits, total = f"{labels}_above", f"{labels}_bits", f"{labels}_sum"
    return [
        helper.make_node("Greater", [scores, f"{labels}_thresholds"], [above], "is_of_class"),
        # Float sums of bits are exact, and TensorRT sums no bytes.
        helper.make_node("Cast", [above], [f"{above}_float"], above, to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{above}_float", f"{labels}_weights"], [bits], bits),
        helper.make_node("ReduceSum", [bits, f"{labels}_axis"], [total], total, keepdims=0),
        helper.make_node("Cast", [total], [labels], labels, to=TensorProto.UINT8),
    ]


def _plane_constants(labels: str, contract: Contract) -> list[onnx.TensorProto]:
    from onnx import numpy_helper

    shape = (1, len(contract.threshold_scores), 1, 1)
    thresholds = np.array(contract.threshold_scores, np.float32).reshape(shape)
    weights = (1 << np.arange(shape[1])).astype(np.float32).reshape(shape)
    return [
        numpy_helper.from_array(thresholds, f"{labels}_thresholds"),
        numpy_helper.from_array(weights, f"{labels}_weights"),
        numpy_helper.from_array(np.array([1], np.int64), f"{labels}_axis"),
    ]

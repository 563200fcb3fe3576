"""What stands before and behind a network on a server, as graphs of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.runtime.preprocess import normalisation

if TYPE_CHECKING:
    import onnx


def preprocessing_graph(contract: Contract) -> onnx.ModelProto:
    """`bytes` `(N, H, W, 3) uint8` RGB to `image` `(N, 3, H, W) float32`, as `preprocess` does.

    The bytes have the network's size already: a server's resize would be another than Pillow's.
    """
    from onnx import TensorProto, helper, numpy_helper

    height, width = contract.size
    scale, shift = normalisation(contract)
    constants: dict[str, NDArray[Any]] = {"scale": scale, "shift": shift}
    nodes = [helper.make_node("Cast", ["bytes"], ["values"], to=TensorProto.FLOAT)]
    if contract.colour == "BGR":
        constants["order"] = np.array([2, 1, 0])
        nodes = [
            helper.make_node("Gather", ["bytes", "order"], ["ordered"], axis=3),
            helper.make_node("Cast", ["ordered"], ["values"], to=TensorProto.FLOAT),
        ]
    nodes += [
        helper.make_node("Mul", ["values", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "shift"], ["normalised"]),
        helper.make_node("Transpose", ["normalised"], ["image"], perm=[0, 3, 1, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "preprocessing",
        [helper.make_tensor_value_info("bytes", TensorProto.UINT8, ["batch", height, width, 3])],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, height, width])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return _model(graph)


def labels_graph(contract: Contract) -> onnx.ModelProto:
    """`scores` `(N, C, H, W) float32` to `labels` `(N, H, W) uint8`: the best class."""
    from onnx import TensorProto, helper

    classes, (height, width) = len(contract.classes), contract.size
    nodes = [
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.UINT8),
    ]
    scores: list[str | int | None] = ["batch", classes, height, width]
    graph = helper.make_graph(
        nodes,
        "labels",
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, scores)],
        [helper.make_tensor_value_info("labels", TensorProto.UINT8, ["batch", height, width])],
    )
    return _model(graph)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    from onnx import helper

    made: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return made

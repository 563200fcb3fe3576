"""ONNX graphs of the preprocessing and the argmax that a server runs around a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.onnx_graph.label_nodes import label_nodes
from segdeploy.preprocessing.normalization import affine

if TYPE_CHECKING:
    import onnx


def preprocessing_graph(contract: Contract) -> onnx.ModelProto:
    """Return the graph that normalizes images as `preprocess` does, without the resize.

    It maps `bytes` `(N, H, W, C)` of the contract's image channels and dtype to `image`
    `(N, C, H, W) float32`. The client resizes the images to the network's size, because a server's
    resize would differ from Pillow's.
    """
    from onnx import TensorProto, helper, numpy_helper

    height, width = contract.size
    kind = {"uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16}.get(
        contract.dtype, TensorProto.FLOAT
    )
    scale, shift = affine(contract)
    constants: dict[str, NDArray[Any]] = {"scale": scale, "shift": shift}
    nodes = [helper.make_node("Cast", ["bytes"], ["values"], to=TensorProto.FLOAT)]
    if contract.channels != contract.image_channels:
        constants["order"] = np.array(contract.channel_order)
        nodes = [
            helper.make_node("Gather", ["bytes", "order"], ["ordered"], axis=3),
            helper.make_node("Cast", ["ordered"], ["values"], to=TensorProto.FLOAT),
        ]
    nodes += [
        helper.make_node("Mul", ["values", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "shift"], ["normalized"]),
        helper.make_node("Transpose", ["normalized"], ["image"], perm=[0, 3, 1, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "preprocessing",
        [
            helper.make_tensor_value_info(
                "bytes", kind, ["batch", height, width, len(contract.image_channels)]
            )
        ],
        [
            helper.make_tensor_value_info(
                "image", TensorProto.FLOAT, ["batch", len(contract.channels), height, width]
            )
        ],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return _model(graph)


def labels_graph(contract: Contract) -> onnx.ModelProto:
    """Return the graph of the best class: `scores` `(N, C, H, W)` to `labels` `(N, H, W) uint8`."""
    from onnx import TensorProto, helper

    classes, (height, width) = contract.score_channels, contract.size
    nodes, constants = label_nodes("scores", "labels", contract)
    scores: list[str | int | None] = ["batch", classes, height, width]
    graph = helper.make_graph(
        nodes,
        "labels",
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, scores)],
        [helper.make_tensor_value_info("labels", TensorProto.UINT8, ["batch", height, width])],
        constants,
    )
    return _model(graph)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    from onnx import helper

    made: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return made

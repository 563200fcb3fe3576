"""Small graphs, and what tests of the exact rewrites ask of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from segdeploy.commands.export import trace
from segdeploy.models.network import Network

SIZE = (24, 32)


def traced(module: nn.Module, classes: int, *, dynamic: bool = False) -> onnx.ModelProto:
    network = Network(module.eval(), classes, SIZE, "net")
    return trace(network, SIZE, dynamic=dynamic, name="net")


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


def check_equal(before: onnx.ModelProto, after: onnx.ModelProto, x: np.ndarray) -> None:
    onnx.checker.check_model(after, full_check=True)
    expected, found = run(before, x), run(after, x)
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def graph_of(nodes: list, output: list, weights: dict, x: list) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)


def set_ints(node: onnx.NodeProto, attribute: str, values: list[int]) -> None:
    next(a for a in node.attribute if a.name == attribute).ints[:] = values

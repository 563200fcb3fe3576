"""Small graphs, and what tests of the exact rewrites ask of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from segdeploy.commands.export import trace
from segdeploy.models.network import Network
from segdeploy.optimizer import optimize as optimizing

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


def convolutions(model: onnx.ModelProto) -> list[list[int]]:
    names = [n.input[1] for n in model.graph.node if n.op_type == "Conv"]
    weights = {t.name: t for t in model.graph.initializer}
    return [list(weights[name].dims) for name in names]


def result_of(
    optimization: optimizing.RewriteReport, name: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    step = next(step for step in optimization.steps if step.name == name)
    return step.rewrites, step.skipped


def against(before: onnx.ModelProto) -> optimizing.Check:
    sides = [d.dim_value for d in before.graph.input[0].type.tensor_type.shape.dim]
    return optimizing.against_itself(before, [image(*sides)])


class Rates(nn.Module):
    """Four rates on a 6x8 map, with a ReLU behind each, as in DeepLab's pyramid."""

    def __init__(self, rates: tuple[int, ...] = (2, 5, 7, 12)):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.branches = nn.ModuleList(
            nn.Conv2d(4, 2, 3, padding=rate, dilation=rate) for rate in rates
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.first(x).relu()
        total = sum(branch(features).relu() for branch in self.branches)
        return F.interpolate(total, size=x.shape[2:], mode="bilinear")

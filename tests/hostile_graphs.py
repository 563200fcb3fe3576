"""Graphs that are sound ONNX, carry a contract, and do harm when they are run."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segdeploy.contract import Contract, placeholder_classes
from segdeploy.onnx_graph.model_file import save_onnx, set_contract

SIZE = (16, 16)


def _contract() -> Contract:
    classes, palette = placeholder_classes(3)
    return Contract("hostile", classes, palette, 255, SIZE)


def _model(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> onnx.ModelProto:
    taken = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, *SIZE])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, *SIZE])
    graph = helper.make_graph(nodes, "hostile", [taken], [given], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    set_contract(model, _contract())
    return model


def _number(name: str, value: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, np.int64), name)


def endless(*, is_written: bool) -> onnx.ModelProto:
    """A Loop of 2**62 turns, written as a constant or computed from the image."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes"]),
            helper.make_node("Add", ["state", "state"], ["state_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["batch", 3, *SIZE]),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, ["batch", 3, *SIZE]),
        ],
    )
    true = numpy_helper.from_array(np.array(True), "true")
    if is_written:
        nodes = [helper.make_node("Loop", ["turns", "true", "image"], ["logits"], body=body)]
        return _model(nodes, [_number("turns", 2**62), true])
    nodes = [
        helper.make_node("Size", ["image"], ["count"]),
        helper.make_node("Mul", ["count", "many"], ["turns"]),
        helper.make_node("Loop", ["turns", "true", "image"], ["logits"], body=body),
    ]
    return _model(nodes, [_number("many", 2**52), true])


def greedy(kind: str) -> onnx.ModelProto:
    """A tensor of 64 GB: of a written size, of one that is computed, or inside an If."""
    side = 2**17  # squared, of 4 bytes
    start = [
        helper.make_node("Size", ["image"], ["count"]),
        helper.make_node("Div", ["count", "count"], ["one"]),
        helper.make_node("Mul", ["one", "side"], ["long"]),
        helper.make_node("Reshape", ["long", "flat"], ["long_1"]),
    ]
    numbers = [
        _number("side", side),
        numpy_helper.from_array(np.array([1], np.int64), "flat"),
        numpy_helper.from_array(np.array([side, side], np.int64), "both"),
    ]
    fill = numpy_helper.from_array(np.array([1.0], np.float32), "fill_value")
    expand = [
        helper.make_node("Concat", ["long_1", "long_1"], ["sides"], axis=0),
        helper.make_node("ConstantOfShape", ["sides"], ["large"], value=fill),
        helper.make_node("ReduceMax", ["large"], ["most"], keepdims=0),
    ]
    last = helper.make_node("Add", ["image", "most"], ["logits"])
    if kind == "written":
        nodes = [
            helper.make_node("ConstantOfShape", ["both"], ["large"], value=fill),
            helper.make_node("ReduceMax", ["large"], ["most"], keepdims=0),
            last,
        ]
        return _model(nodes, numbers)
    if kind == "computed":
        return _model([*start, *expand, last], numbers)
    out = helper.make_tensor_value_info("most", TensorProto.FLOAT, [])
    other = helper.make_tensor_value_info("small", TensorProto.FLOAT, [])
    zero = helper.make_node(
        "Constant", [], ["small"], value=numpy_helper.from_array(np.array(0, np.float32))
    )
    nodes = [
        *start,
        helper.make_node("Greater", ["count", "side_small"], ["is_large"]),
        helper.make_node(
            "If",
            ["is_large"],
            ["most_of_all"],
            then_branch=helper.make_graph(expand, "then", [], [out]),
            else_branch=helper.make_graph([zero], "else", [], [other]),
        ),
        helper.make_node("Add", ["image", "most_of_all"], ["logits"]),
    ]
    return _model(nodes, [*numbers, _number("side_small", 1)])


def many_nodes(count: int) -> onnx.ModelProto:
    """A chain of Identity nodes."""
    names = ["image", *(f"x{i}" for i in range(count - 1)), "logits"]
    pairs = itertools.pairwise(names)
    return _model([helper.make_node("Identity", [a], [b]) for a, b in pairs], [])


def nested(levels: int) -> onnx.ModelProto:
    """An If in an If in an If."""
    out = helper.make_tensor_value_info("o0", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("Identity", ["image"], ["o0"])], "g0", [], [out])
    for level in range(1, levels):
        name = f"o{level}"
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        node = helper.make_node("If", ["true"], [name], then_branch=inner, else_branch=inner)
        if level > 3:  # both branches would double the file at each level
            empty = helper.make_graph(
                [helper.make_node("Identity", ["image"], [f"e{level}"])],
                f"e{level}",
                [],
                [helper.make_tensor_value_info(f"e{level}", TensorProto.FLOAT, None)],
            )
            node = helper.make_node("If", ["true"], [name], then_branch=inner, else_branch=empty)
        inner = helper.make_graph([node], f"g{level}", [], [out])
    nodes = [helper.make_node("If", ["true"], ["logits"], then_branch=inner, else_branch=inner)]
    return _model(nodes, [numpy_helper.from_array(np.array(True), "true")])


def write(model: onnx.ModelProto, path: Path) -> Path:
    """Write a graph as it is."""
    save_onnx(model, path)
    return path

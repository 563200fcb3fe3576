"""The sequence of passes: a pass that is not exact or raises the cost is undone."""

from __future__ import annotations

import onnx_ir as ir
from onnx import TensorProto, helper

from segdeploy.optimizer import optimize as optimizing
from segdeploy.optimizer.editing import remove_dead
from segdeploy.optimizer.pass_result import PassResult

from .graphs import (
    SIZE,
    Rates,
    check_equal,
    image,
    result_of,
    traced,
)


def test_optimize_graph_a_pass_that_is_not_exact_is_undone_and_named() -> None:
    def wrong(model: ir.Model) -> PassResult:
        weight = next(iter(model.graph.initializers.values()))
        weight.const_value = ir.tensor(weight.const_value.numpy() * 1.5)
        return PassResult(["something"])

    before = traced(Rates(), 2)
    after, optimization = optimizing.optimize_graph(
        before,
        passes=(("wrong", wrong), *optimizing.PASSES),
        check=optimizing.against_itself(before, [image(1, 3, *SIZE)]),
    )
    rewrites, skipped = result_of(optimization, "wrong")
    assert rewrites == ()
    assert skipped[0].startswith("undone: at input 1x3x24x32 the output differs from the graph")
    # What it did is not in the result, and the others went on.
    check_equal(before, after, image(1, 3, *SIZE))
    assert result_of(optimization, "remove dead taps")[0]


def test_optimize_graph_a_pass_that_makes_a_graph_dearer_or_fails_is_undone() -> None:
    def dearer(model: ir.Model) -> PassResult:
        conv = next(node for node in model.graph if node.op_type == "Conv")
        out = ir.Value(name="copy", shape=conv.outputs[0].shape, type=conv.outputs[0].type)
        attributes = list(conv.attributes.values())
        copied = ir.Node("", "Conv", list(conv.inputs), attributes, name="copied", outputs=[out])
        model.graph.insert_after(conv, copied)
        return PassResult(["a copy"])

    def fails(model: ir.Model) -> PassResult:
        raise KeyError("axis")

    passes = (("dearer", dearer), ("fails", fails))
    _, optimization = optimizing.optimize_graph(traced(Rates(), 2), passes=passes)
    assert "multiply-accumulates rise from" in result_of(optimization, "dearer")[1][0]
    assert result_of(optimization, "fails")[1] == ("undone: KeyError: 'axis'",)
    assert optimization.before == optimization.after


def test_optimize_graph_a_constant_that_is_an_output_is_kept() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["unread"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("y", "kept")],
        [helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name in ("kept", "idle")],
    )
    model = ir.from_proto(helper.make_model(graph))
    remove_dead(model.graph)
    assert [node.op_type for node in model.graph] == ["Relu"]
    assert list(model.graph.initializers) == ["kept"]

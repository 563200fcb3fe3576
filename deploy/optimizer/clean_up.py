"""Constant folding, identities, dead nodes, fusions of common patterns: onnxslim's work."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateHashedInitializersPass

from segdeploy.optimizer.outcome import Outcome
from segdeploy.packages import require


def clean_up(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, Outcome]:
    """Run onnxslim on a copy, and give the nodes back the metadata that it drops.

    A node is known again by the value that it gives. Equal weights become one: a network that runs
    at several scales has its BatchNorms fused once a scale. Shapes are inferred anew.
    """
    onnxslim = require("onnxslim")
    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    slim: onnx.ModelProto = onnxslim.slim(copied)
    notes = {name: node.metadata_props for node in graph.graph.node for name in node.output}
    for node in slim.graph.node:
        if not node.metadata_props and node.output[0] in notes:
            node.metadata_props.extend(notes[node.output[0]])
    del slim.graph.value_info[:]  # some of its shapes are wrong: of a Resize with axes
    model = ir.from_proto(slim)
    DeduplicateHashedInitializersPass()(model)
    cleaned = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    before, after = ((len(one.graph.node), len(one.graph.initializer)) for one in (graph, cleaned))
    if before == after:
        return graph, Outcome()
    counts = "{} nodes with {} constants"
    return cleaned, Outcome([f"clean up: {counts.format(*before)} became {counts.format(*after)}"])

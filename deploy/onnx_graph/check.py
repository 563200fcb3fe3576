"""Validation of untrusted ONNX graphs before any further processing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.errors import InputError
from segdeploy.models.errors import first_line
from segdeploy.onnx_graph.external_data import is_too_large
from segdeploy.onnx_graph.model_file import all_graphs, check_size

if TYPE_CHECKING:
    import onnx

_OWN_DOMAINS = ("", "ai.onnx")
_MOST_VALUES = 2**31
_MOST_TURNS = 1_000_000


def check_graph(model: onnx.ModelProto, path: Path, *, is_run_alone: bool = False) -> None:
    """Refuse a graph that is not valid ONNX of the standard operators.

    With `is_run_alone`, the graph is only run and may be over 2 GiB. ONNX's checker cannot process
    such a graph and is skipped.

    Raises:
        InputError: for a weight that declares more values than it holds, an operator of another
            domain, a Loop with too many iterations, a tensor too large for memory, a cycle, or
            anything else that ONNX's checker refuses.
    """
    import onnx

    for graph in all_graphs(model.graph):
        for tensor in graph.initializer:
            _check_declared_size(tensor, path)
        for node in graph.node:
            if node.domain not in _OWN_DOMAINS:
                raise InputError(
                    f"{path}: node '{node.name}' is {node.domain}.{node.op_type}, an operator that "
                    "is not ONNX's own and cannot be checked; export without custom "
                    "operators"
                )
            _check_loop(graph, node, path)
    if is_run_alone and is_too_large(model):
        return
    check_size(model, path)
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # checker and shape inference share no base below Exception
        raise InputError(f"{path}: is not sound ONNX ({first_line(error)})") from error
    for graph in all_graphs(inferred.graph):
        for value in (*graph.value_info, *graph.output):
            # A few bytes can request a tensor beyond any memory (ConstantOfShape, Expand).
            values = math.prod(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
            if values > _MOST_VALUES:
                raise InputError(
                    f"{path}: tensor '{value.name}' would have {values:,} values, too many for "
                    "memory"
                )


def _check_loop(graph: onnx.GraphProto, node: onnx.NodeProto, path: Path) -> None:
    """Refuse a Loop whose constant trip count is beyond any network's."""
    from onnx import numpy_helper

    if node.op_type != "Loop" or not node.input:
        return
    constants = [tensor for tensor in graph.initializer if tensor.name == node.input[0]]
    constants += [
        attribute.t
        for one in graph.node
        if one.op_type == "Constant" and node.input[0] in one.output
        for attribute in one.attribute
        if attribute.HasField("t")
    ]
    for tensor in constants:
        turns = numpy_helper.to_array(tensor).ravel()
        if turns.size and int(turns.max()) > _MOST_TURNS:
            raise InputError(
                f"{path}: node '{node.name}' loops {int(turns.max()):,} times, which no network "
                "needs"
            )


def _check_declared_size(tensor: onnx.TensorProto, path: Path) -> None:
    """Refuse a weight that declares more values than it holds, before memory is allocated."""
    import onnx

    if tensor.data_location == onnx.TensorProto.EXTERNAL or any(d < 0 for d in tensor.dims):
        return  # external data is read already; negative sizes are left to the checker
    size = math.prod(tensor.dims)
    held = max(
        8 * len(tensor.raw_data),  # a value takes at least four bits
        *(
            len(getattr(tensor, kind)) * 2
            for kind in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        ),
        len(tensor.string_data),
    )
    if size > held:
        raise InputError(
            f"{path}: weight '{tensor.name}' declares {size:,} values but does not hold them; "
            "the file is damaged"
        )

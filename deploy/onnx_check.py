"""Refusing a foreign ONNX graph before anything is done with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.errors import InputError
from segdeploy.models.errors import first_line
from segdeploy.onnx_file import all_graphs, check_size

if TYPE_CHECKING:
    import onnx

_OWN_DOMAINS = ("", "ai.onnx")
_MOST_VALUES = 2**31


def check_graph(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a graph that is not sound ONNX of the standard operators.

    Raises:
        InputError: for a weight that claims more data than it holds, an operator of another domain,
            a tensor beyond all memory, a cycle or any other thing that ONNX's checker refuses.
    """
    import onnx

    for graph in all_graphs(model.graph):
        for tensor in graph.initializer:
            _check_claim(tensor, path)
        for node in graph.node:
            if node.domain not in _OWN_DOMAINS:
                raise InputError(
                    f"{path}: node '{node.name}' is {node.domain}.{node.op_type}, an operator that "
                    "is not ONNX's own, so nothing can be said of it; export without custom "
                    "operators"
                )
    check_size(model, path)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # checker and shape inference share no base below Exception
        raise InputError(f"{path}: is not sound ONNX ({first_line(error)})") from error
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        # A few bytes can ask for a tensor that no machine holds (ConstantOfShape, Expand, Tile).
        values = math.prod(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
        if values > _MOST_VALUES:
            raise InputError(
                f"{path}: '{value.name}' would have {values:,} values; nothing here can hold that"
            )


def _check_claim(tensor: onnx.TensorProto, path: Path) -> None:
    """A claim of gigabytes in a small file would be allocated before it is found to be empty."""
    import onnx

    if tensor.data_location == onnx.TensorProto.EXTERNAL or any(d < 0 for d in tensor.dims):
        return  # read already, or left to the checker
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
            f"{path}: weight '{tensor.name}' claims {size:,} values and does not hold them; "
            "the file is damaged"
        )

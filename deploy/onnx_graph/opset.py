"""Conversion of a graph to a later opset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segdeploy.onnx_graph.model_file import all_graphs, opset_of

if TYPE_CHECKING:
    import onnx

_RESIZE_WITH_COORDINATES = 11  # the first Resize that says which pixels it interpolates between


def with_opset(graph: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return a copy of a graph in a later `opset`, with the metadata of the graph and its nodes.

    onnx's version converter leaves the coordinates of a Resize out, so that its pixels move by half
    a pixel. Here a Resize that was an Upsample (ONNX operator Upsample-9), or a Resize before opset
    11, keeps the coordinates that it had: output pixel / factor.

    Raises:
        ValueError: if the version converter does not know an operator.
    """
    from onnx import helper, version_converter

    before = opset_of(graph)
    try:
        converted = version_converter.convert_version(graph, opset)
    except Exception as error:  # the converter raises what its C++ code throws
        raise ValueError(str(error)) from error
    if before < _RESIZE_WITH_COORDINATES:
        for part in all_graphs(converted.graph):
            for node in part.node:
                if node.op_type == "Resize":
                    kept = [a for a in node.attribute if a.name in ("mode", "extrapolation_value")]
                    copies = [type(a).FromString(a.SerializeToString()) for a in kept]
                    del node.attribute[:]
                    node.attribute.extend(copies)
                    for name, value in (
                        ("coordinate_transformation_mode", "asymmetric"),
                        ("nearest_mode", "floor"),
                    ):
                        node.attribute.append(helper.make_attribute(name, value))
    del converted.metadata_props[:]
    converted.metadata_props.extend(graph.metadata_props)
    modules = {node.output[0]: node.metadata_props for node in graph.graph.node if node.output}
    for node in converted.graph.node:
        if node.output and node.output[0] in modules:
            del node.metadata_props[:]
            node.metadata_props.extend(modules[node.output[0]])
    return converted

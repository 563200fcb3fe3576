"""Operators around the network in a graph: preprocessing, and the conversion of the output.

They are added after the graph is proven, so that the proof of its convolutions and the rewrites of
its head do not depend on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.exporter.resize_nodes import Steps, add_fit, add_padding
from segdeploy.preprocessing.fit import placement
from segdeploy.preprocessing.normalization import affine

if TYPE_CHECKING:
    import onnx

_ALIGNMENTS = {"align_corners": "align-corners", "half_pixel": "half-pixel"}


def prepend_preprocessing(
    graph: onnx.ModelProto,
    contract: Contract,
    channels: tuple[str, ...],
    source_size: tuple[int, int] | None = None,
) -> None:
    """Prepend preprocessing in place: input `(N, H, W, C)` of the contract's dtype.

    With `source_size` (H, W) the images have this size, and the graph fits them to the network's
    input as the contract says.

    `channels` is the order of the images that the graph takes; a Gather brings the channels into
    the network's order, that of the contract. The Cast precedes the Transpose, because TensorRT
    refuses a Transpose of uint8. It takes no uint16, so that images of more than 8 bits come as
    float32. The constants are those of the formula `f32-affine`.
    """
    from onnx import TensorProto, helper, numpy_helper

    taken = graph.graph.input[0]
    batch, _, height, width = (_copied(d) for d in taken.type.tensor_type.shape.dim)
    inner = "image_normalized"
    for node in graph.graph.node:
        node.input[:] = [inner if name == taken.name else name for name in node.input]
    count = len(contract.channels)
    scale, shift = (values.reshape(1, count, 1, 1) for values in affine(contract))
    constants: dict[str, NDArray[Any]] = {"image_scale": scale, "image_shift": shift}
    is_bytes = contract.dtype == "uint8"
    floats = taken.name
    nodes: list[onnx.NodeProto] = []
    if is_bytes:
        floats = "image_float"
        nodes.append(
            helper.make_node("Cast", [taken.name], [floats], "image_cast", to=TensorProto.FLOAT)
        )
    nodes.append(
        helper.make_node("Transpose", [floats], ["image_planes"], "image_planes", perm=[0, 3, 1, 2])
    )
    planes = "image_planes"
    if channels != contract.channels:
        order = [channels.index(name) for name in contract.channels]
        constants["image_order"] = np.array(order, np.int64)
        nodes.append(
            helper.make_node(
                "Gather", [planes, "image_order"], ["image_ordered"], "image_ordered", axis=1
            )
        )
        planes = "image_ordered"
    steps = Steps(planes, nodes, constants)
    place = None if source_size is None else placement(source_size, contract)
    if place is not None and source_size is not None:
        add_fit(steps, source_size, place, contract)
        if place.is_padded and not contract.pad_normalized:
            add_padding(steps, place, contract.pad or ())
        height, width = (type(batch)(dim_value=side) for side in source_size)
    steps.add("Mul", "image_scale")
    steps.add("Sub", "image_shift")
    if place is not None and place.is_padded and contract.pad_normalized:
        add_padding(steps, place, contract.pad or ())
    nodes[-1].output[0] = inner
    for position, node in enumerate(nodes):
        graph.graph.node.insert(position, node)
    graph.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    kind = TensorProto.UINT8 if is_bytes else TensorProto.FLOAT
    taken.CopyFrom(helper.make_tensor_value_info(taken.name, kind, None))
    taken.type.tensor_type.shape.Clear()
    last = type(batch)(dim_value=count)
    taken.type.tensor_type.shape.dim.extend([batch, height, width, last])


def append_output(graph: onnx.ModelProto, kind: str, contract: Contract) -> None:
    """Replace the logits output of `graph` with `probabilities` or `labels`, in place.

    Labels are `(N, H, W) uint8`: ArgMax in the graph is faster than in NumPy, and only one byte per
    pixel leaves the device. `contract` is that of the logits.
    """
    from onnx import TensorProto, helper

    from segdeploy.onnx_graph.label_nodes import label_nodes

    given = graph.graph.output[0]
    dims = [_copied(d) for d in given.type.tensor_type.shape.dim]
    logits = given.name
    if kind == "probabilities":
        if contract.head != "multiclass":
            nodes = [helper.make_node("Sigmoid", [logits], [kind], kind)]
        else:
            nodes = [helper.make_node("Softmax", [logits], [kind], kind, axis=1)]
        element = TensorProto.FLOAT
    else:
        nodes, constants = label_nodes(logits, kind, contract)
        graph.graph.initializer.extend(constants)
        element = TensorProto.UINT8
        dims.pop(1)
    graph.graph.node.extend(nodes)
    given.CopyFrom(helper.make_tensor_value_info(kind, element, None))
    given.type.tensor_type.shape.Clear()
    given.type.tensor_type.shape.dim.extend(dims)


def cut_last_upsampling(graph: onnx.ModelProto) -> str | None:
    """Cut `graph` before its last bilinear Resize, in place; return the alignment of the Resize.

    If the graph does not end in such a Resize, return None and leave the graph unchanged.
    """
    import onnx
    import onnx_ir as ir

    from segdeploy.optimizer.convolution import bilinear_alignment
    from segdeploy.optimizer.editing import remove_dead

    model = ir.from_proto(graph)
    output = model.graph.outputs[0]
    resize = output.producer()
    alignment = None if resize is None else bilinear_alignment(resize)
    if resize is None or alignment is None:
        return None
    scores = resize.inputs[0]
    assert scores is not None
    model.graph.outputs[0] = scores
    remove_dead(model.graph)
    cut = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    graph.CopyFrom(cut)
    return _ALIGNMENTS[alignment]


def _copied(dim: onnx.TensorShapeProto.Dimension) -> onnx.TensorShapeProto.Dimension:
    copy = type(dim)()
    copy.CopyFrom(dim)
    return copy

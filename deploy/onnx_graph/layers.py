"""The convolutions of a graph: geometry, precision and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.calibration.multiply_accumulates import multiply_accumulates
from segdeploy.contract import Contract
from segdeploy.errors import InputError
from segdeploy.models.errors import first_line
from segdeploy.onnx_graph.convolutions import CONVOLUTIONS, ConvGeometry, node_geometry
from segdeploy.onnx_graph.model_file import convolution_of

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class LayerInfo:
    """A convolution: its module, geometry, compute precision and multiply-accumulates.

    `macs` are the multiply-accumulates for one image at the contract's size, None if unknown.
    """

    module: str
    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int | str, ...]
    groups: int
    precision: str
    macs: int | None


def read_layers(
    graph: onnx.ModelProto, contract: Contract | None, path: Path
) -> tuple[LayerInfo, ...]:
    """Return the convolutions in execution order, at the contract's size.

    Raises:
        InputError: if shapes cannot be inferred, or an attribute has the wrong type.
    """
    from segdeploy.calibration.layers import fix_shape

    try:
        if contract is not None:
            graph = fix_shape(graph, (1, *contract.image_shape))
        return tuple(map(_layer, convolutions(graph)))
    except Exception as error:  # the checker's classes share no base below Exception
        raise InputError(f"{path}: is not sound ONNX ({first_line(error)})") from error


@dataclass(frozen=True)
class Convolution:
    """A convolution node with its geometry, compute precision and tensor shapes.

    `precision` is `?` if unknown. `read`, `weight` and `given` are the shapes of the input, the
    weight and the output, () if unknown.
    """

    node: onnx.NodeProto
    geometry: ConvGeometry
    precision: str
    read: tuple[int, ...]
    weight: tuple[int, ...]
    given: tuple[int, ...]


def convolutions(graph: onnx.ModelProto) -> Iterator[Convolution]:
    """Yield the convolutions in execution order; the shapes of `graph` must be inferred."""
    from segdeploy.calibration.layers import shapes_of

    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    shapes |= shapes_of(graph)
    makers = {output: node.op_type for node in graph.graph.node for output in node.output}
    kinds = {t.name: t.data_type for t in graph.graph.initializer}
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        kinds.setdefault(value.name, value.type.tensor_type.elem_type)
    for node in graph.graph.node:
        if node.op_type not in CONVOLUTIONS:
            continue
        reads = {makers.get(name) for name in node.input[:2]}
        kind = kinds.get(node.output[0], kinds.get(node.input[0], 0))
        precision = {1: "fp32", 10: "fp16", 16: "bf16"}.get(kind, "?")
        yield Convolution(
            node=node,
            geometry=node_geometry(node, graph),
            precision="int8" if reads == {"DequantizeLinear"} else precision,
            read=shapes.get(node.input[0], ()),
            weight=shapes.get(node.input[1], ()),
            given=shapes.get(node.output[0], ()),
        )


def _layer(found: Convolution) -> LayerInfo:
    geometry = found.geometry
    return LayerInfo(
        module=convolution_of(found.node),
        kernel=geometry.kernel,
        dilation=geometry.dilation,
        stride=geometry.stride,
        padding=geometry.padding,
        groups=geometry.groups,
        precision=found.precision,
        macs=multiply_accumulates(
            found.read, found.weight, found.given, transposed=geometry.transposed
        ),
    )

"""The convolutions of a graph: geometry, precision and work."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.errors import InputError
from segdeploy.exporter.dilation import CONVOLUTIONS, node_geometry
from segdeploy.models.errors import first_line
from segdeploy.onnx_file import convolution_of
from segdeploy.spec import Contract

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class LayerInfo:
    """A convolution: its module, geometry, the precision that it computes in, and its work.

    `macs` are multiply-accumulates for one image at the contract's size, None where unknown.
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
    """The convolutions in the order in which they run, at the contract's size.

    Raises:
        InputError: if shapes cannot be inferred, or an attribute is of another kind.
    """
    from segdeploy.calibration.layers import fix_shape, shapes_of

    try:
        if contract is not None:
            graph = fix_shape(graph, (1, *contract.picture_shape))
        weights = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
        return _read(graph, {**weights, **shapes_of(graph)})
    except Exception as error:  # the checker's classes share no base below Exception
        raise InputError(f"{path}: is not sound ONNX ({first_line(error)})") from error


def _read(graph: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> tuple[LayerInfo, ...]:
    """The convolutions in the order in which they run."""
    makers = {output: node.op_type for node in graph.graph.node for output in node.output}
    kinds = {t.name: t.data_type for t in graph.graph.initializer}
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        kinds.setdefault(value.name, value.type.tensor_type.elem_type)
    layers = []
    for node in graph.graph.node:
        if node.op_type not in CONVOLUTIONS:
            continue
        geometry = node_geometry(node, graph)
        reads = {makers.get(name) for name in node.input[:2]}
        given = kinds.get(node.output[0], kinds.get(node.input[0], 0))
        precision = {1: "fp32", 10: "fp16", 16: "bf16"}.get(given, "?")
        weight = shapes.get(node.input[1], ())
        out = shapes.get(node.output[0], ())
        layers.append(
            LayerInfo(
                module=convolution_of(node),
                kernel=geometry.kernel,
                dilation=geometry.dilation,
                stride=geometry.stride,
                padding=geometry.padding,
                groups=geometry.groups,
                precision="int8" if reads == {"DequantizeLinear"} else precision,
                macs=_macs(out, weight) if node.op_type == "Conv" else None,
            )
        )
    return tuple(layers)


def _macs(out: tuple[int, ...], weight: tuple[int, ...]) -> int | None:
    if not out or not weight or not all(isinstance(side, int) and side > 0 for side in out):
        return None
    return prod(out) * prod(weight[1:])

"""Comparison of the convolutions in TensorRT's parsed network with those of the graph."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from segdeploy.onnx_graph.convolutions import CONVOLUTIONS, ConvGeometry, ConvProof, node_geometry
from segdeploy.onnx_graph.model_file import convolution_of

if TYPE_CHECKING:
    import onnx


def prove_network(trt: Any, network: Any, graph: onnx.ModelProto) -> list[ConvProof]:
    """Compare every 2-D convolution of `graph` with the layer that TensorRT's parser made of it."""
    layers = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        # TensorRT's Python binding casts a layer to its subclass by assignment of `__class__`.
        if layer.type == trt.LayerType.CONVOLUTION:
            layer.__class__ = trt.IConvolutionLayer
            layers[layer.name] = _layer_geometry(trt, layer)
        elif layer.type == trt.LayerType.DECONVOLUTION:
            layer.__class__ = trt.IDeconvolutionLayer
            layers[layer.name] = replace(_layer_geometry(trt, layer), transposed=True)
    proofs = []
    for node in graph.graph.node:
        if node.op_type not in CONVOLUTIONS:
            continue
        expected, found = node_geometry(node, graph), layers.get(node.name)
        if expected.transposed and found is not None:
            # TensorRT merges the output padding into `post_padding`; its shape check covers both.
            found = replace(found, padding=expected.padding, output_padding=expected.output_padding)
        if len(expected.kernel) == 2:
            proofs.append(ConvProof(convolution_of(node), node.name, expected, found))
    return proofs


def count_int8(trt: Any, network: Any) -> int:
    """Return the number of INT8 convolutions in TensorRT's network.

    The data and the weights of an INT8 convolution both come from a Dequantize layer (Developer
    Guide, "Explicit quantization").
    """
    dequantized = set()
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    for layer in layers:
        if layer.type == trt.LayerType.DEQUANTIZE:
            dequantized.add(layer.get_output(0).name)
    convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]

    def reads(layer: Any, index: int) -> bool:
        tensor = layer.get_input(index) if index < layer.num_inputs else None
        return tensor is not None and tensor.name in dequantized

    return sum(reads(layer, 0) and reads(layer, 1) for layer in convolutions)


def _layer_geometry(trt: Any, layer: Any) -> ConvGeometry:
    padding: tuple[int | str, ...] = (*layer.pre_padding, *layer.post_padding)
    if layer.padding_mode in (trt.PaddingMode.SAME_UPPER, trt.PaddingMode.SAME_LOWER):
        padding = (layer.padding_mode.name,)
    return ConvGeometry(
        kernel=tuple(layer.kernel_size_nd),
        dilation=tuple(layer.dilation_nd),
        stride=tuple(layer.stride_nd),
        padding=padding,
        groups=layer.num_groups,
    )

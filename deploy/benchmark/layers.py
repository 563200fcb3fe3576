"""Layer by layer: where a candidate's error enters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy.onnx_graph.model_file import contract_of, load_onnx
from segdeploy.proof.divergence import LayerError, layer_errors
from segdeploy.runtime.session import Session
from segdeploy.runtime.torch_session import TorchSession

# An error that is this many times those of all layers before it did not grow: it entered.
_JUMP = 8.0
_LEAST = 1e-5  # of a layer's range; float32 rounds to a hundredth of that


@dataclass(frozen=True)
class LayerReport:
    """Every layer that can be compared, in the order in which they run, and where the error enters.

    `enters` is the layer whose error stands out most from all before it; None if none does.
    """

    layers: tuple[LayerError, ...]
    enters: LayerError | None


def compare_layers(
    reference: Session, model: Path, image: NDArray[np.float32]
) -> LayerReport | str:
    """Set each module of the reference beside the tensor of the graph that it became.

    `image` is the network's input `(1, 3, H, W) float32`. What cannot be compared is told in words:
    an engine shows no tensors, and a graph of several scales or bytes has no such layers.
    """
    if not isinstance(reference, TorchSession):
        return "layers need a PyTorch network as reference"
    if model.suffix != ".onnx":
        return "an engine shows no tensors of its inside; compare the .onnx that it was built from"
    graph = load_onnx(model)
    contract = contract_of(graph, model)
    if contract.layout != "NCHW" or contract.scales != (1.0,) or contract.flip:
        return "layers are compared in a graph of one scale that takes float pictures"
    network = reference.network
    found = layer_errors(network.module, network, graph, image)
    layers = tuple(layer for layer in found if not layer.is_moved)
    return LayerReport(layers, _entry(layers))


def _entry(layers: Sequence[LayerError]) -> LayerError | None:
    found, most, before = None, _JUMP, _LEAST
    for layer in layers:
        jump = layer.max_rel / before
        if jump > most:
            found, most = layer, jump
        before = max(before, layer.max_rel)
    return found

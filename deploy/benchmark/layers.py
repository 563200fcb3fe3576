"""Layer-by-layer comparison of a candidate with PyTorch: find the layer where the error enters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdeploy.artifact import Artifact, EngineFile
from segdeploy.benchmark.failure import Failure
from segdeploy.proof.divergence import LayerError, layer_errors
from segdeploy.runtime.session import Session
from segdeploy.runtime.torch_session import TorchSession

# The error enters at a layer if it is this many times the largest error of all earlier layers.
# A smaller ratio is the growth of an earlier error.
_JUMP = 8.0
_LEAST = 1e-5  # relative to a layer's range; float32 rounding is a hundredth of that


@dataclass(frozen=True)
class LayerReport:
    """Errors of all comparable layers in execution order, and the layer where the error enters.

    `enters` is the layer with the largest ratio of its error to the errors of all earlier layers,
    or None if no ratio is large enough.
    """

    layers: tuple[LayerError, ...]
    enters: LayerError | None


def compare_layers(
    reference: Session, file: Artifact, image: NDArray[np.float32]
) -> LayerReport | Failure:
    """Compare the output of each module of the reference with the matching tensor of the graph.

    `image` is the network's input `(1, 3, H, W) float32`. Returns the reason if there is no
    comparison: an engine exposes no intermediate tensors, and a graph with several scales or uint8
    input has no matching layers.
    """
    if not isinstance(reference, TorchSession):
        return Failure("a layer comparison needs a PyTorch network as reference")
    if isinstance(file, EngineFile):
        return Failure(
            "an engine exposes no intermediate tensors; compare the .onnx that it was built from"
        )
    contract = file.contract
    if contract.layout != "NCHW" or contract.scales != (1.0,) or contract.flip:
        return Failure(
            "layers can only be compared in a graph of one scale with float input, without flip"
        )
    network = reference.network
    found = layer_errors(network.module, network, file.graph, image)
    layers = tuple(layer for layer in found if not layer.is_moved)
    file.release()
    return LayerReport(layers, _entry(layers))


def _entry(layers: Sequence[LayerError]) -> LayerError | None:
    found, most, before = None, _JUMP, _LEAST
    for layer in layers:
        jump = layer.max_rel / before
        if jump > most:
            found, most = layer, jump
        before = max(before, layer.max_rel)
    return found
